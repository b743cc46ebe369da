package storage

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/holdfast-run/holdfast/placement"
)

// A Space separates the kinds of rows that one object has.
type Space byte

// The spaces. Metadata is written by Create only.
const (
	SpaceMeta   Space = 'm'
	SpaceKey    Space = 'k'
	SpaceAlarm  Space = 'a'
	SpaceSocket Space = 's' // what has been taken from, and given to, sockets
)

// The operations of a batch. Each is one byte followed by its fields; strings and
// values are a uvarint length and the bytes, numbers are uvarints.
const (
	opCreate      = 1 // class, name, flags (1: named), created (Unix ms)
	opPut         = 2 // space, key, value
	opDelete      = 3 // space, key
	opClear       = 4 // all keys and alarms of the object, not what is noted about its sockets
	opDestroy     = 5 // all rows of the object, metadata too
	opSetAlarm    = 6 // name, due (Unix ms), value
	opDeleteAlarm = 7 // name
)

// A Batch is the effects of one event on one object, in the form in which they
// travel through the log:
//
//	length u32 | object id [32] | operations
//
// A log entry is any number of batches one after another. The zero Batch is not
// usable; begin with [Batch.Reset].
type Batch struct {
	buf []byte
}

const batchHeader = 4 + len(placement.ObjectID{})

// Reset empties b and addresses it to an object. The memory of the bytes handed
// out before is not reused.
func (b *Batch) Reset(id placement.ObjectID) {
	b.buf = make([]byte, batchHeader, 128)
	copy(b.buf[4:], id[:])
}

// Empty reports whether b has no operation.
func (b *Batch) Empty() bool { return len(b.buf) <= batchHeader }

// Size returns the encoded size in bytes.
func (b *Batch) Size() int { return len(b.buf) }

// Truncate takes back what was added since b had the given size.
func (b *Batch) Truncate(size int) { b.buf = b.buf[:size] }

// Bytes seals b and returns its encoding.
func (b *Batch) Bytes() []byte {
	binary.LittleEndian.PutUint32(b.buf, uint32(len(b.buf)-4))
	return b.buf
}

// Create records what the object is. The first batch of an object that is not
// stored yet begins with it; repeated, it changes nothing but a missing name.
func (b *Batch) Create(class, name string, named bool, createdMillis int64) {
	b.buf = append(b.buf, opCreate)
	b.string(class)
	b.string(name)
	var flags uint64
	if named {
		flags = 1
	}
	b.uvarint(flags)
	b.uvarint(uint64(createdMillis))
}

// Put sets a key.
func (b *Batch) Put(space Space, key string, value []byte) {
	b.buf = append(b.buf, opPut, byte(space))
	b.string(key)
	b.bytes(value)
}

// Delete removes a key.
func (b *Batch) Delete(space Space, key string) {
	b.buf = append(b.buf, opDelete, byte(space))
	b.string(key)
}

// Clear removes every key and alarm of the object, and leaves its metadata.
func (b *Batch) Clear() { b.buf = append(b.buf, opClear) }

// Destroy removes every row of the object.
func (b *Batch) Destroy() { b.buf = append(b.buf, opDestroy) }

// SetAlarm sets the alarm of a name to a time, replacing what it was. The value is
// stored with it.
func (b *Batch) SetAlarm(name string, dueMillis int64, value []byte) {
	b.buf = append(b.buf, opSetAlarm)
	b.string(name)
	b.uvarint(uint64(dueMillis))
	b.bytes(value)
}

// DeleteAlarm removes the alarm of a name.
func (b *Batch) DeleteAlarm(name string) {
	b.buf = append(b.buf, opDeleteAlarm)
	b.string(name)
}

func (b *Batch) uvarint(n uint64) { b.buf = binary.AppendUvarint(b.buf, n) }

func (b *Batch) string(s string) {
	b.uvarint(uint64(len(s)))
	b.buf = append(b.buf, s...)
}

func (b *Batch) bytes(v []byte) {
	b.uvarint(uint64(len(v)))
	b.buf = append(b.buf, v...)
}

// ErrCorrupt is wrapped by every error about bytes that are not what was written.
var ErrCorrupt = errors.New("corrupt")

// A Row is one stored key and its value. Neither may be modified.
type Row struct {
	Key   string
	Value []byte
}

// A Range selects keys: from Start (inclusive) to End (exclusive; "" means no end),
// in descending order if Reverse.
type Range struct {
	Start, End string
	Reverse    bool
}

// An Object is what the metadata of a stored object says.
type Object struct {
	ID      placement.ObjectID
	Class   string
	Name    string
	Named   bool
	Created int64 // Unix milliseconds
}

// A Position is a place in a class's list of objects: after the object with this
// name and ID.
type Position struct {
	Name string
	ID   placement.ObjectID
}

// An Alarm is one stored alarm.
type Alarm struct {
	Object placement.ObjectID
	Name   string
	Due    int64 // Unix milliseconds
	Value  []byte
}

func corruptf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}
