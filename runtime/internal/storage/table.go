package storage

import (
	"bytes"
	"encoding/binary"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tidwall/btree"

	"github.com/holdfast-run/holdfast/placement"
)

// A table holds in memory what was applied since the last flush. It lies over older
// layers (the table that is being flushed, and the file) and says of each of its
// keys what it is now: a value, or a tombstone if it was deleted. A mask says that an object has
// nothing in the layers below, so that clearing an object costs only what was
// written to it since the last flush.
//
// The two indexes hold what lives in this table only. An entry of a lower layer's
// index is dead if a table above it has the row that it is about, or masks it.
type table struct {
	rows    *tree // by rowKey; and masks by objectKey, before the rows of their object
	alarms  *tree // by alarmKey, no value
	objects *tree // by nameKey
	masks   int
	bytes   int       // what all this takes, about
	since   time.Time // when the first change came
	bottom  bool      // no layer below: neither tombstones nor masks are needed

	// No entry of an older layer's alarm index before this key is alive. It spares
	// DueAlarms from passing over those that fired since the last flush.
	floor *atomic.Pointer[string]
}

type (
	tree     = btree.BTreeG[entry]
	iterator = btree.IterG[entry]
)

// An entry is a key and its value; nil is a tombstone. The first bytes of the key are
// kept beside it, since comparing them does not leave the tree's node.
type entry struct {
	prefix uint64
	key    string
	value  []byte
}

// entryBytes is what an entry takes beside its key and value: itself in a node of the
// tree that is two thirds full, and the allocator's rounding.
const entryBytes = 96

// The values of a mask.
const (
	maskClear   = 1 // all rows but the metadata
	maskDestroy = 2 // all rows
)

func newTable(bottom bool) *table {
	return &table{rows: newTree(), alarms: newTree(), objects: newTree(), bottom: bottom, floor: new(atomic.Pointer[string])}
}

// copy returns a table that later changes to t do not change. Two copies must not be
// made at the same time.
func (t *table) copy() *table {
	c := *t
	c.rows, c.alarms, c.objects = t.rows.Copy(), t.alarms.Copy(), t.objects.Copy()
	return &c
}

func (t *table) empty() bool { return t.rows.Len() == 0 }

// get returns the value of a row. decided is false if the layers below have to be
// asked; a nil value means that there is none.
func (t *table) get(key string) (value []byte, decided bool) {
	if e, ok := t.rows.Get(newEntry(key, nil)); ok {
		return e.value, true
	}
	return nil, t.bottom || t.masked(key[:objectBytes], rowSpace(key))
}

// masked reports whether an object has nothing below this table in a space.
func (t *table) masked(object string, space Space) bool {
	kind := t.mask(object)
	return kind == maskDestroy || kind == maskClear && space != SpaceMeta
}

func (t *table) mask(object string) byte {
	if t.masks == 0 {
		return 0
	}
	if e, ok := t.rows.Get(newEntry(object, nil)); ok {
		return e.value[0]
	}
	return 0
}

// holds reports whether this table has a row of an object, be it a tombstone.
func (t *table) holds(object string) (found bool) {
	t.rows.Ascend(newEntry(object, nil), func(e entry) bool {
		mine := strings.HasPrefix(e.key, object)
		found = mine && len(e.key) > objectBytes
		return mine && !found
	})
	return found
}

// put sets a row and returns the value that this table had for it.
func (t *table) put(key string, value []byte) (old []byte) {
	e, replaced := t.rows.Set(newEntry(key, value))
	t.bytes += len(value)
	if replaced {
		t.bytes -= len(e.value)
	} else {
		t.bytes += len(key) + entryBytes
	}
	return e.value
}

// delete removes a row and returns the value that this table had for it.
func (t *table) delete(key string) (old []byte) {
	if !t.bottom && !t.masked(key[:objectBytes], rowSpace(key)) {
		return t.put(key, nil)
	}
	return t.drop(key)
}

func (t *table) drop(key string) (old []byte) {
	e, ok := t.rows.Delete(newEntry(key, nil))
	if ok {
		t.bytes -= len(key) + len(e.value) + entryBytes
	}
	return e.value
}

func (t *table) setAlarm(id placement.ObjectID, name string, due int64, value []byte) {
	old := t.put(rowKey(id, SpaceAlarm, name), alarmRow(due, value))
	t.unindexAlarm(id, name, old)
	t.index(t.alarms, alarmKey(due, id, name), []byte{})
}

func (t *table) deleteAlarm(id placement.ObjectID, name string) {
	t.unindexAlarm(id, name, t.delete(rowKey(id, SpaceAlarm, name)))
}

func (t *table) unindexAlarm(id placement.ObjectID, name string, row []byte) {
	if due, _, ok := splitAlarmRow(row); ok {
		t.unindex(t.alarms, alarmKey(due, id, name))
	}
}

func (t *table) setObject(o Object) {
	row := objectRow(o)
	t.unindexObject(o.ID, t.put(rowKey(o.ID, SpaceMeta, ""), row))
	t.index(t.objects, nameKey(o.Class, o.Name, o.ID), row)
}

func (t *table) unindexObject(id placement.ObjectID, row []byte) {
	if o, ok := parseObjectRow(id, row); ok {
		t.unindex(t.objects, nameKey(o.Class, o.Name, id))
	}
}

// load takes a row from a file, and indexes it.
func (t *table) load(e entry) {
	id, value := rowObject(e.key), bytes.Clone(e.value)
	switch rowSpace(e.key) {
	case SpaceAlarm:
		if due, value, ok := splitAlarmRow(value); ok {
			t.setAlarm(id, rowName(e.key), due, value)
		}
	case SpaceMeta:
		if o, ok := parseObjectRow(id, value); ok {
			t.setObject(o)
		}
	default:
		t.put(e.key, value)
	}
}

// clear removes an object's rows: all of them, or all but the metadata.
func (t *table) clear(id placement.ObjectID, kind byte) {
	object := objectKey(id)
	var keys []string
	t.rows.Ascend(newEntry(object, nil), func(e entry) bool {
		if !strings.HasPrefix(e.key, object) {
			return false
		}
		if len(e.key) > objectBytes && (kind == maskDestroy || rowSpace(e.key) != SpaceMeta) {
			keys = append(keys, e.key)
		}
		return true
	})
	for _, key := range keys {
		old := t.drop(key)
		switch rowSpace(key) {
		case SpaceAlarm:
			t.unindexAlarm(id, rowName(key), old)
		case SpaceMeta:
			t.unindexObject(id, old)
		}
	}
	t.setMask(object, kind)
}

// setMask hides what the layers below have of an object.
func (t *table) setMask(object string, kind byte) {
	if t.bottom || t.mask(object) >= kind {
		return
	}
	if t.put(object, []byte{kind}) == nil {
		t.masks++
	}
}

func (t *table) index(in *tree, key string, value []byte) {
	if _, replaced := in.Set(newEntry(key, value)); !replaced {
		t.bytes += len(key) + entryBytes
	}
}

func (t *table) unindex(in *tree, key string) {
	if _, ok := in.Delete(newEntry(key, nil)); ok {
		t.bytes -= len(key) + entryBytes
	}
}

func newTree() *tree {
	return btree.NewBTreeGOptions(func(a, b entry) bool {
		if a.prefix != b.prefix {
			return a.prefix < b.prefix
		}
		return a.key < b.key
	}, btree.Options{NoLocks: true})
}

func newEntry(key string, value []byte) entry {
	var prefix [8]byte
	copy(prefix[:], key)
	return entry{binary.BigEndian.Uint64(prefix[:]), key, value}
}
