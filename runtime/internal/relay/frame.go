package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A frame is one thing that a node tells another. Which of its fields travel depends on
// its kind.
type frame struct {
	kind    kind
	epoch   placement.Epoch
	shard   placement.ShardID
	object  placement.ObjectID
	ref     host.Ref
	socket  host.SocketID
	attempt uint64
	number  uint64
	code    int
	text    string
	flag    bool
	first   bool
	when    time.Time
	ids     []host.SocketID
	pairs   []host.AutoResponse
	members []member
	data    []byte
}

// A member is a socket and its object.
type member struct {
	ref  host.Ref
	sock host.Socket
}

type kind uint8

const (
	// The owner of a shard to a gateway.
	kindGather    kind = iota + 1 // a reign begins: which sockets of the shard are there?
	kindReign                     // it has begun; flag: the gateway's sockets are known
	kindAccept                    // one member: its handshake follows
	kindSend                      // flag: binary
	kindBroadcast                 // text: the tag; ids: except those
	kindClose
	kindCloseAll
	kindAttach
	kindAuto
	kindForget  // the close event has run
	kindMark    // everything up to the object's outputs of a number has been sent
	kindEnded   // the handler of a message has ended; data: its error
	kindSettled // a message is settled, and those before it
	kindRefused // an attempt must be made again; flag: at this node, which still reigns
	kindUnknown // the owner knows no such socket

	// A gateway to the owner.
	kindSockets // its members of a shard; flag: these are the last
	kindMessage // flag: binary
	kindClosed  // flag: clean; number: the last epoch whose owner knew the socket
	kindFailed

	kinds
)

// A field is a part of a frame on the wire. They follow each other in this order; data
// is the rest.
type field uint32

const (
	hasEpoch field = 1 << iota
	hasShard
	hasObject
	hasRef
	hasSocket
	hasAttempt
	hasNumber
	hasCode
	hasText
	hasFlag
	hasFirst
	hasWhen
	hasIDs
	hasPairs
	hasMembers
	hasData
)

// layout tells the fields of each kind.
var layout = [kinds]field{
	kindGather:    hasEpoch | hasShard,
	kindReign:     hasEpoch | hasShard | hasFlag,
	kindAccept:    hasEpoch | hasMembers,
	kindSend:      hasEpoch | hasObject | hasSocket | hasFlag | hasData,
	kindBroadcast: hasEpoch | hasObject | hasText | hasFlag | hasIDs | hasData,
	kindClose:     hasEpoch | hasObject | hasSocket | hasCode | hasText,
	kindCloseAll:  hasEpoch | hasObject | hasCode | hasText,
	kindAttach:    hasEpoch | hasObject | hasSocket | hasData,
	kindAuto:      hasEpoch | hasObject | hasPairs,
	kindForget:    hasEpoch | hasObject | hasSocket,
	kindMark:      hasEpoch | hasObject | hasNumber,
	kindEnded:     hasObject | hasSocket | hasAttempt | hasNumber | hasData,
	kindSettled:   hasObject | hasSocket | hasAttempt | hasNumber,
	kindRefused:   hasEpoch | hasObject | hasSocket | hasAttempt | hasFlag,
	kindUnknown:   hasObject | hasSocket,
	kindSockets:   hasEpoch | hasShard | hasFlag | hasMembers,
	kindMessage:   hasEpoch | hasObject | hasSocket | hasAttempt | hasNumber | hasFlag | hasFirst | hasWhen | hasData,
	kindClosed:    hasEpoch | hasRef | hasSocket | hasAttempt | hasNumber | hasCode | hasText | hasFlag | hasFirst,
	kindFailed:    hasEpoch | hasRef | hasSocket | hasAttempt | hasText | hasFirst,
}

// Limits of frames, beside those of package host.
const (
	maxFrameBytes  = host.MaxMessageBytes + 1<<20
	maxClassBytes  = 1 << 10
	maxTextBytes   = 1 << 10
	maxMembers     = 4096       // in one frame
	memberBytes    = 256 << 10  // a frame with more of them is full
	maxAddressed   = 1 << 16    // sockets that one broadcast leaves out
	minMemberBytes = 32 + 8 + 8 // on the wire, at least
)

var errMalformed = errors.New("malformed frame")

// head encodes all of a frame but its data, which follows it on the wire.
func (f *frame) head() []byte {
	has := layout[f.kind]
	b := make([]byte, 0, 96)
	b = append(b, byte(f.kind))
	if has&hasEpoch != 0 {
		b = binary.AppendUvarint(b, uint64(f.epoch))
	}
	if has&hasShard != 0 {
		b = binary.AppendUvarint(b, uint64(f.shard))
	}
	if has&hasObject != 0 {
		b = append(b, f.object[:]...)
	}
	if has&hasRef != 0 {
		b = appendRef(b, f.ref)
	}
	if has&hasSocket != 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(f.socket))
	}
	if has&hasAttempt != 0 {
		b = binary.AppendUvarint(b, f.attempt)
	}
	if has&hasNumber != 0 {
		b = binary.AppendUvarint(b, f.number)
	}
	if has&hasCode != 0 {
		b = binary.AppendUvarint(b, uint64(f.code))
	}
	if has&hasText != 0 {
		b = appendString(b, f.text)
	}
	if has&hasFlag != 0 {
		b = appendBool(b, f.flag)
	}
	if has&hasFirst != 0 {
		b = appendBool(b, f.first)
	}
	if has&hasWhen != 0 {
		b = appendTime(b, f.when)
	}
	return f.appendLists(b, has)
}

func (f *frame) appendLists(b []byte, has field) []byte {
	if has&hasIDs != 0 {
		b = binary.AppendUvarint(b, uint64(len(f.ids)))
		for _, id := range f.ids {
			b = binary.BigEndian.AppendUint64(b, uint64(id))
		}
	}
	if has&hasPairs != 0 {
		b = binary.AppendUvarint(b, uint64(len(f.pairs)))
		for _, p := range f.pairs {
			b = appendString(appendString(b, p.Request), p.Response)
		}
	}
	if has&hasMembers != 0 {
		b = binary.AppendUvarint(b, uint64(len(f.members)))
		for i := range f.members {
			b = f.members[i].append(b)
		}
	}
	return b
}

func (m *member) append(b []byte) []byte {
	s := &m.sock
	b = appendRef(b, m.ref)
	b = binary.BigEndian.AppendUint64(b, uint64(s.ID))
	b = binary.AppendUvarint(b, uint64(len(s.Tags)))
	for _, tag := range s.Tags {
		b = appendString(b, tag)
	}
	b = binary.AppendUvarint(b, uint64(len(s.Attachment)))
	b = append(b, s.Attachment...)
	b = appendTime(b, s.Accepted)
	b = appendTime(b, s.AutoResponse)
	b = appendBool(b, s.Closing)
	return binary.AppendUvarint(b, s.Seen)
}

func appendRef(b []byte, ref host.Ref) []byte {
	b = append(b, ref.ID[:]...)
	b = appendString(b, ref.Class)
	b = appendBool(b, ref.Named)
	if ref.Named {
		b = appendString(b, ref.Name)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// appendTime encodes a time in nanoseconds since 1970; zero is the zero time.
func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, 0)
	}
	return binary.AppendVarint(b, t.UnixNano())
}

// decodeFrame decodes a frame, which keeps parts of b.
func decodeFrame(b []byte) (*frame, error) {
	if len(b) == 0 || b[0] == 0 || b[0] >= byte(kinds) {
		return nil, fmt.Errorf("%w: of no known kind", errMalformed)
	}
	f := &frame{kind: kind(b[0])}
	has := layout[f.kind]
	d := decoder{b: b[1:]}
	if has&hasEpoch != 0 {
		f.epoch = placement.Epoch(d.uint())
	}
	if has&hasShard != 0 {
		f.shard = placement.ShardID(d.count(1 << 14))
	}
	if has&hasObject != 0 {
		copy(f.object[:], d.bytes(len(f.object)))
	}
	if has&hasRef != 0 {
		f.ref = d.ref()
	}
	if has&hasSocket != 0 {
		f.socket = d.socket()
	}
	if has&hasAttempt != 0 {
		f.attempt = d.uint()
	}
	if has&hasNumber != 0 {
		f.number = d.uint()
	}
	if has&hasCode != 0 {
		f.code = d.count(1 << 16)
	}
	if has&hasText != 0 {
		f.text = d.string(maxTextBytes)
	}
	if has&hasFlag != 0 {
		f.flag = d.bool()
	}
	if has&hasFirst != 0 {
		f.first = d.bool()
	}
	if has&hasWhen != 0 {
		f.when = d.time()
	}
	f.decodeLists(&d, has)
	if d.err == nil && has&hasData == 0 && len(d.b) > 0 {
		d.fail()
	}
	if d.err != nil {
		return nil, d.err
	}
	if has&hasData != 0 {
		f.data = d.b
	}
	return f, nil
}

func (f *frame) decodeLists(d *decoder, has field) {
	if has&hasIDs != 0 {
		f.ids = make([]host.SocketID, d.items(maxAddressed, 8))
		for i := range f.ids {
			f.ids[i] = d.socket()
		}
	}
	if has&hasPairs != 0 {
		f.pairs = make([]host.AutoResponse, d.items(host.MaxAutoResponses, 2))
		for i := range f.pairs {
			f.pairs[i] = host.AutoResponse{Request: d.string(host.MaxAutoResponseBytes), Response: d.string(host.MaxAutoResponseBytes)}
		}
	}
	if has&hasMembers != 0 {
		f.members = make([]member, d.items(maxMembers, minMemberBytes))
		for i := range f.members {
			f.members[i] = d.member()
		}
	}
}

// A decoder takes fields off the front of b. After the first error it yields zeros.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	if d.err == nil {
		d.err = errMalformed
	}
	d.b = nil
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count is a number below or equal to a limit.
func (d *decoder) count(limit int) int {
	v := d.uint()
	if v > uint64(limit) {
		d.fail()
		return 0
	}
	return int(v)
}

// items is how many items of at least a size follow.
func (d *decoder) items(limit, size int) int {
	n := d.count(limit)
	if n*size > len(d.b) {
		d.fail()
		return 0
	}
	return n
}

func (d *decoder) bytes(n int) []byte {
	if n > len(d.b) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) string(limit int) string { return string(d.bytes(d.count(limit))) }

func (d *decoder) bool() bool {
	v := d.bytes(1)
	if len(v) == 1 && v[0] > 1 {
		d.fail()
	}
	return len(v) == 1 && v[0] == 1
}

func (d *decoder) socket() host.SocketID {
	v := d.bytes(8)
	if v == nil {
		return 0
	}
	return host.SocketID(binary.BigEndian.Uint64(v))
}

func (d *decoder) time() time.Time {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return time.Time{}
	}
	d.b = d.b[n:]
	if v == 0 {
		return time.Time{}
	}
	return time.Unix(0, v)
}

func (d *decoder) ref() (ref host.Ref) {
	copy(ref.ID[:], d.bytes(len(ref.ID)))
	ref.Class = d.string(maxClassBytes)
	if ref.Named = d.bool(); ref.Named {
		ref.Name = d.string(host.MaxNameBytes)
	}
	return ref
}

func (d *decoder) member() member {
	m := member{ref: d.ref()}
	s := &m.sock
	s.ID = d.socket()
	if n := d.items(host.MaxTags, 1); n > 0 {
		s.Tags = make([]string, n)
	}
	for i := range s.Tags {
		s.Tags[i] = d.string(host.MaxTagBytes)
	}
	if n := d.count(host.MaxAttachmentBytes); n > 0 {
		s.Attachment = append([]byte(nil), d.bytes(n)...)
	}
	s.Accepted, s.AutoResponse = d.time(), d.time()
	s.Closing = d.bool()
	s.Seen = d.uint()
	return m
}
