package storage

import (
	"encoding/binary"

	"github.com/holdfast-run/holdfast/placement"
)

// What a batch may hold. The limits are above what an object's author may write
// (package host), and below what a key of the file can be.
const (
	maxKeyBytes  = 16 << 10 // a key, or an alarm's name
	maxNameBytes = 4 << 10  // a class, or an object's name
)

// An operation is one decoded operation of a batch. Its bytes are those of the batch.
type operation struct {
	code  byte
	space Space  // put, delete
	class []byte // create
	named bool   // create
	key   []byte // the key, or the name of the object or alarm
	value []byte // put, set alarm
	time  int64  // when an object was created, when an alarm is due; Unix ms
}

// walk decodes the batches of a log entry and visits their operations in order. It
// stops at the first byte that is not as [Batch] writes it; the error wraps
// [ErrCorrupt].
func walk(batches []byte, visit func(id placement.ObjectID, op *operation)) error {
	d := decoder{rest: batches}
	var op operation
	for len(d.rest) > 0 {
		at := len(batches) - len(d.rest)
		if len(d.rest) < batchHeader {
			return corruptf("batch at byte %d of %d: no room for its header", at, len(batches))
		}
		size := binary.LittleEndian.Uint32(d.rest)
		if uint64(size) > uint64(len(d.rest)-4) || size < uint32(idBytes) {
			return corruptf("batch at byte %d of %d: has length %d", at, len(batches), size)
		}
		body := decoder{rest: d.rest[batchHeader : 4+size]}
		id := placement.ObjectID(d.rest[4:batchHeader])
		d.rest = d.rest[4+size:]
		for len(body.rest) > 0 {
			if !body.operation(&op) {
				return corruptf("batch at byte %d of %d: malformed operation %d", at, len(batches), op.code)
			}
			visit(id, &op)
		}
	}
	return nil
}

// A decoder takes fields off the front of its bytes. Once bad, it stays so.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) operation(op *operation) bool {
	*op = operation{code: d.byte()}
	switch op.code {
	case opCreate:
		op.class = d.bytes(maxNameBytes)
		op.key = d.bytes(maxNameBytes)
		flags := d.uvarint()
		op.named = flags == 1
		op.time = int64(d.uvarint())
		d.bad = d.bad || flags > 1
	case opPut:
		op.space = d.space()
		op.key = d.bytes(maxKeyBytes)
		op.value = d.bytes(len(d.rest))
	case opDelete:
		op.space = d.space()
		op.key = d.bytes(maxKeyBytes)
	case opClear, opDestroy:
	case opSetAlarm:
		op.key = d.bytes(maxKeyBytes)
		op.time = int64(d.uvarint())
		op.value = d.bytes(len(d.rest))
	case opDeleteAlarm:
		op.key = d.bytes(maxKeyBytes)
	default:
		d.bad = true
	}
	return !d.bad
}

// space refuses the spaces that have operations, and indexes, of their own.
func (d *decoder) space() Space {
	s := Space(d.byte())
	if s == SpaceMeta || s == SpaceAlarm || s == 0 || s == 0xff {
		d.bad = true
	}
	return s
}

func (d *decoder) byte() byte {
	if d.bad || len(d.rest) == 0 {
		d.bad = true
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

func (d *decoder) uvarint() uint64 {
	if d.bad {
		return 0
	}
	n, size := binary.Uvarint(d.rest)
	if size <= 0 {
		d.bad = true
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

func (d *decoder) bytes(limit int) []byte {
	n := d.uvarint()
	if d.bad || n > uint64(limit) || n > uint64(len(d.rest)) {
		d.bad = true
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}
