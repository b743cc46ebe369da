package host

import "time"

// Limits of one object. They are Cloudflare's where Cloudflare has one.
const (
	MaxKeyBytes   = 2048     // one key
	MaxValueBytes = 2 << 20  // one value
	MaxMultiKeys  = 128      // keys in one get, put or delete of many
	MaxBatchBytes = 64 << 20 // all that one event writes between two commit points
	MaxCallBytes  = 32 << 20 // arguments, or the reply, of one call
	MaxNameBytes  = 1024     // an object's name
	MaxNested     = 64       // depth of nested transactions

	MaxSchedules    = 10_000 // schedules of one object
	MaxScheduleName = 512    // bytes of a schedule's name
	MaxScheduleArgs = 64 << 10
	MinEvery        = time.Second

	MaxSockets           = 32_768
	MaxTags              = 10
	MaxTagBytes          = 256
	MaxAttachmentBytes   = 16 << 10
	MaxMessageBytes      = 32 << 20
	MaxAutoResponses     = 16
	MaxAutoResponseBytes = 2048
	MaxCloseReasonBytes  = 123

	MaxListLimit = 1000 // objects on one page
)
