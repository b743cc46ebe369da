package storage

import (
	"bytes"
	"encoding/binary"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/btree"

	"github.com/holdfast-run/holdfast/placement"
)

// A table holds in memory what was applied since the last flush. It lies over older
// layers (the table that is being flushed, and the file) and decides about each of its keys:
// the row is there, or it is dead. A mask says that an object has nothing in the layers below,
// so that clearing an object costs only what was written to it since the last flush.
//
// The two indexes hold what lives in this table only. An entry of a lower layer's
// index is dead if a table above it decides about the row that it stands for.
type table struct {
	rows    *tree // by rowKey
	dead    *tree // tombstones by rowKey, no value; masks by objectKey
	alarms  *tree // by alarmKey, no value
	objects *tree // by nameKey
	floors  *floors

	masks  int       // in dead
	bytes  int       // what all this takes, about
	since  time.Time // when the first change came
	bottom bool      // no layer below: neither tombstones nor masks are needed
}

type (
	tree     = btree.BTreeG[entry]
	iterator = btree.IterG[entry]
)

// An entry is a key and its value; a tombstone has none. The first bytes of the key are
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
	maskClear   = 1 // all rows but those that are not the object's own doing
	maskDestroy = 2 // all rows
)

// spares reports whether a mask leaves the rows of a space alone: an object that empties
// itself keeps its metadata, and what is noted about its sockets, which stay open.
func spares(mask byte, space Space) bool {
	return mask == maskClear && (space == SpaceMeta || space == SpaceSocket)
}

func newTable(bottom bool) *table {
	return &table{
		rows: newTree(), dead: newTree(), alarms: newTree(), objects: newTree(),
		floors: &floors{at: map[string]floor{}}, bottom: bottom,
	}
}

// copy returns a table that later changes to t do not change. Two copies must not be
// made at the same time.
func (t *table) copy() *table {
	c := *t
	c.rows, c.dead, c.alarms, c.objects = t.rows.Copy(), t.dead.Copy(), t.alarms.Copy(), t.objects.Copy()
	return &c
}

func (t *table) empty() bool { return t.rows.Len()+t.dead.Len() == 0 }

// get returns the value of a row, nil if it is dead. decided is false if the layers
// below have to be asked.
func (t *table) get(key string) (value []byte, decided bool) {
	if e, ok := t.rows.Get(newEntry(key, nil)); ok {
		return e.value, true
	}
	if t.dead.Len() == 0 {
		return nil, t.bottom
	}
	if _, ok := t.dead.Get(newEntry(key, nil)); ok {
		return nil, true
	}
	return nil, t.masked(key[:objectBytes], rowSpace(key))
}

// masked reports whether an object has nothing below this table in a space.
func (t *table) masked(object string, space Space) bool {
	kind := t.mask(object)
	return kind != 0 && !spares(kind, space)
}

func (t *table) mask(object string) byte {
	if t.masks == 0 {
		return 0
	}
	if e, ok := t.dead.Get(newEntry(object, nil)); ok {
		return e.value[0]
	}
	return 0
}

// decides reports whether this table decides about any row of an object.
func (t *table) decides(object string) (found bool) {
	for _, in := range []*tree{t.rows, t.dead} {
		in.Ascend(newEntry(object, nil), func(e entry) bool {
			found = found || strings.HasPrefix(e.key, object)
			return false
		})
	}
	return found
}

// put sets a row and returns the value that this table had for it.
func (t *table) put(key string, value []byte) (old []byte) {
	e, replaced := t.rows.Set(newEntry(key, value))
	if replaced {
		t.bytes += len(value) - len(e.value)
		return e.value
	}
	t.bytes += size(key, value)
	if t.dead.Len() > 0 {
		t.remove(t.dead, key)
	}
	return nil
}

// delete removes a row and returns the value that this table had for it.
func (t *table) delete(key string) (old []byte) {
	old = t.remove(t.rows, key)
	if !t.bottom && !t.masked(key[:objectBytes], rowSpace(key)) {
		t.add(t.dead, key, nil)
	}
	return old
}

// changes returns the rows of this table, and before them what is dead: rows may have
// been put since their object was cleared.
func (t *table) changes() iter.Seq[entry] {
	return func(yield func(entry) bool) {
		more := true
		for _, in := range []*tree{t.dead, t.rows} {
			if more {
				in.Scan(func(e entry) bool { more = yield(e); return more })
			}
		}
	}
}

func (t *table) setAlarm(id placement.ObjectID, name string, due int64, value []byte) {
	old := t.put(rowKey(id, SpaceAlarm, name), alarmRow(due, value))
	t.unindexAlarm(id, name, old)
	t.add(t.alarms, alarmKey(due, id, name), []byte{})
}

func (t *table) deleteAlarm(id placement.ObjectID, name string) {
	t.unindexAlarm(id, name, t.delete(rowKey(id, SpaceAlarm, name)))
}

func (t *table) unindexAlarm(id placement.ObjectID, name string, row []byte) {
	if due, _, ok := splitAlarmRow(row); ok {
		t.remove(t.alarms, alarmKey(due, id, name))
	}
}

func (t *table) setObject(o Object) {
	row := objectRow(o)
	t.unindexObject(o.ID, t.put(rowKey(o.ID, SpaceMeta, ""), row))
	t.add(t.objects, nameKey(o.Class, o.Name, o.ID), row)
}

func (t *table) unindexObject(id placement.ObjectID, row []byte) {
	if o, ok := parseObjectRow(id, row); ok {
		t.remove(t.objects, nameKey(o.Class, o.Name, id))
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

// clear removes an object's rows, except those that the mask spares. A tombstone of these
// stays, too: below it there may be a row.
func (t *table) clear(id placement.ObjectID, kind byte) {
	object := objectKey(id)
	for _, key := range t.keys(t.dead, object) {
		if !spares(kind, rowSpace(key)) {
			t.remove(t.dead, key)
		}
	}
	for _, key := range t.keys(t.rows, object) {
		if spares(kind, rowSpace(key)) {
			continue
		}
		old := t.remove(t.rows, key)
		switch rowSpace(key) {
		case SpaceAlarm:
			t.unindexAlarm(id, rowName(key), old)
		case SpaceMeta:
			t.unindexObject(id, old)
		}
	}
	t.setMask(object, kind)
}

// keys returns the row keys of an object in a tree.
func (t *table) keys(in *tree, object string) (keys []string) {
	in.Ascend(newEntry(object, nil), func(e entry) bool {
		if !strings.HasPrefix(e.key, object) {
			return false
		}
		if len(e.key) > objectBytes {
			keys = append(keys, e.key)
		}
		return true
	})
	return keys
}

// setMask hides what the layers below have of an object.
func (t *table) setMask(object string, kind byte) {
	if t.bottom || t.mask(object) >= kind {
		return
	}
	if t.add(t.dead, object, []byte{kind}) {
		t.masks++
	}
}

func (t *table) add(to *tree, key string, value []byte) (added bool) {
	_, replaced := to.Set(newEntry(key, value))
	if !replaced {
		t.bytes += size(key, value)
	}
	return !replaced
}

func (t *table) remove(from *tree, key string) (old []byte) {
	e, ok := from.Delete(newEntry(key, nil))
	if ok {
		t.bytes -= size(key, e.value)
	}
	return e.value
}

func size(key string, value []byte) int { return len(key) + len(value) + entryBytes }

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

// Floors spare reads that begin at the same key from passing over entries that died
// since the last flush again and again: in the layers below a table, nothing is alive
// from that key to the floor. That stays true as long as the table lies above, since it
// never forgets what is dead.
type floors struct {
	mu sync.Mutex
	at map[string]floor // by row key; "" is the beginning of the alarm index
}

// A floor holds for views of the state at an index, or a later one.
type floor struct {
	key   string
	index uint64
}

// floorDead is the number of dead entries in a row that are worth a floor.
const floorDead = 16

// maxFloors bounds what reads can make a table remember; they begin anew then.
const maxFloors = 4096

func (f *floors) get(from string, index uint64) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at := f.at[from]; at.index <= index {
		return at.key
	}
	return ""
}

func (f *floors) set(from, key string, index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.at) >= maxFloors {
		clear(f.at)
	}
	if key > f.at[from].key {
		f.at[from] = floor{key, index}
	}
}
