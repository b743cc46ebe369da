package storage

import (
	"encoding/binary"
	"strings"

	"github.com/holdfast-run/holdfast/placement"
)

// The keys of the three indexes of a machine, in memory and in the file. The slot comes
// first so that splitting a shard is copying a range.
//
//	rows     slot u16 | object id [32] | space | key
//	alarms   due u64 | object id [32] | name
//	objects  class | end | name | end | object id [32]
//
// Numbers are big-endian. In the objects index a zero byte of a class or name is
// written as 0x00 0xFF and its end as 0x00 0x01, which keeps their order.
const (
	idBytes     = len(placement.ObjectID{})
	objectBytes = 2 + idBytes
	rowHeader   = objectBytes + 1
	dueBytes    = 8
)

// objectKey is the prefix of all rows of an object.
func objectKey(id placement.ObjectID) string {
	return string(appendObject(make([]byte, 0, objectBytes), id))
}

func rowKey[K string | []byte](id placement.ObjectID, space Space, key K) string {
	var buf [128]byte
	b := append(append(appendObject(buf[:0], id), byte(space)), key...)
	return string(b)
}

func appendObject(b []byte, id placement.ObjectID) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(placement.SlotOf(id)))
	return append(b, id[:]...)
}

func rowObject(key string) placement.ObjectID {
	return placement.ObjectID([]byte(key[2:objectBytes]))
}

func rowSpace(key string) Space { return Space(key[objectBytes]) }

func rowName(key string) string { return key[rowHeader:] }

// alarmKey turns the sign of the time so that times before 1970 come first.
func alarmKey(due int64, id placement.ObjectID, name string) string {
	b := make([]byte, 0, dueBytes+idBytes+len(name))
	b = binary.BigEndian.AppendUint64(b, uint64(due)^(1<<63))
	b = append(b, id[:]...)
	return string(append(b, name...))
}

// splitAlarmKey is the inverse of alarmKey; ok is false if it cannot be one.
func splitAlarmKey(key string) (a Alarm, ok bool) {
	if len(key) < dueBytes+idBytes {
		return Alarm{}, false
	}
	a.Due = int64(binary.BigEndian.Uint64([]byte(key[:dueBytes])) ^ (1 << 63))
	copy(a.Object[:], key[dueBytes:])
	a.Name = key[dueBytes+idBytes:]
	return a, true
}

func nameKey(class, name string, id placement.ObjectID) string {
	return namePrefix(class, name) + "\x00\x01" + string(id[:])
}

// namePrefix is what the keys of a class's objects whose names begin with prefix
// have in common.
func namePrefix(class, prefix string) string {
	return escape(class) + "\x00\x01" + escape(prefix)
}

// splitNameKey returns the object that an entry of the objects index is about.
func splitNameKey(key string, row []byte) (Object, bool) {
	if len(key) < idBytes {
		return Object{}, false
	}
	return parseObjectRow(placement.ObjectID([]byte(key[len(key)-idBytes:])), row)
}

func escape(s string) string { return strings.ReplaceAll(s, "\x00", "\x00\xff") }

// alarmRow is the value of an alarm's row.
func alarmRow(due int64, value []byte) []byte {
	b := make([]byte, 0, dueBytes+len(value))
	return append(binary.BigEndian.AppendUint64(b, uint64(due)), value...)
}

func splitAlarmRow(row []byte) (due int64, value []byte, ok bool) {
	if len(row) < dueBytes {
		return 0, nil, false
	}
	return int64(binary.BigEndian.Uint64(row)), row[dueBytes:], true
}

// objectRow is the value of an object's metadata row, and of its entry in the
// objects index.
func objectRow(o Object) []byte {
	var named byte
	if o.Named {
		named = 1
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(o.Created))
	b = append(b, named)
	b = binary.AppendUvarint(b, uint64(len(o.Class)))
	b = append(b, o.Class...)
	return append(b, o.Name...)
}

func parseObjectRow(id placement.ObjectID, row []byte) (Object, bool) {
	if len(row) < 9 {
		return Object{}, false
	}
	o := Object{ID: id, Created: int64(binary.BigEndian.Uint64(row)), Named: row[8] == 1}
	row = row[9:]
	n, size := binary.Uvarint(row)
	if size <= 0 || n > uint64(len(row)-size) {
		return Object{}, false
	}
	o.Class = string(row[size:][:n])
	o.Name = string(row[size:][n:])
	return o, true
}
