package storage

import (
	"strings"

	"github.com/holdfast-run/holdfast/placement"
)

// A view is one consistent state of a machine: its tables, newest first, and the file
// below them. Its tables do not change.
type view struct {
	index  uint64
	tables []*table
	disk   *reader // while it is read; nil in a machine without a file
}

// get returns the value of a row, nil if there is none.
func (v *view) get(key string) ([]byte, error) {
	for _, t := range v.tables {
		if value, decided := t.get(key); decided {
			return value, nil
		}
	}
	if v.disk == nil {
		return nil, nil
	}
	return v.disk.get(key)
}

// hidden reports whether a table above a layer decides about a row.
func (v *view) hidden(layer int, key string) bool {
	for _, t := range v.tables[:layer] {
		if _, decided := t.get(key); decided {
			return true
		}
	}
	return false
}

// holds reports whether any layer has something about an object.
func (v *view) holds(object string) (bool, error) {
	for _, t := range v.tables {
		if t.decides(object) {
			return true, nil
		}
	}
	return v.disk.holds(object)
}

func (v *view) list(id placement.ObjectID, space Space, r Range, limit int) (rows []Row, more bool, err error) {
	start, end := rowKey(id, space, r.Start), rowKey(id, space, r.End)
	if r.End == "" {
		end = rowKey(id, space+1, "")
	}
	m := merge{reverse: r.Reverse, from: start}
	if r.Reverse {
		m.from = end
	}
	masked := false
	for i := 0; i < len(v.tables) && !masked; i++ {
		t := v.tables[i]
		m.addTable(t.rows)
		if !r.Reverse {
			m.from = max(m.from, t.floors.get(start, v.index))
		}
		m.addTable(t.dead)
		masked = t.masked(start[:objectBytes], space)
	}
	if !masked {
		if err := m.addFile(v.disk, rowsBucket); err != nil {
			return nil, false, err
		}
	}
	dead := 0
	for {
		e, ok, err := m.next()
		if err != nil || !ok || e.key < start || e.key >= end {
			return rows, false, err
		}
		if e.value == nil {
			if dead++; dead%floorDead == 0 && len(rows) == 0 && !r.Reverse {
				v.tables[0].floors.set(start, e.key+"\x00", v.index)
			}
			continue
		}
		if len(rows) >= limit {
			return rows, true, nil
		}
		value, err := payload(e.key, e.value)
		if err != nil {
			return nil, false, err
		}
		rows = append(rows, Row{Key: rowName(e.key), Value: e.own(value)})
	}
}

func (v *view) objects(class, prefix string, after Position, limit int) (objects []Object, err error) {
	within := namePrefix(class, prefix)
	m := merge{from: max(within, nameKey(class, after.Name, after.ID)+"\x00")}
	for _, t := range v.tables {
		m.addTable(t.objects)
	}
	if err := m.addFile(v.disk, objectsBucket); err != nil {
		return nil, err
	}
	for len(objects) < limit {
		e, ok, err := m.next()
		if err != nil || !ok || !strings.HasPrefix(e.key, within) {
			return objects, err
		}
		o, ok := splitNameKey(e.key, e.value)
		if !ok {
			return nil, corruptf("malformed entry %q of the objects index", e.key)
		}
		if !v.hidden(e.layer, rowKey(o.ID, SpaceMeta, "")) {
			objects = append(objects, o)
		}
	}
	return objects, nil
}

func (v *view) dueAlarms(now int64, limit int) (due []Alarm, next int64, err error) {
	var m merge
	for _, t := range v.tables {
		m.addTable(t.alarms)
		m.from = max(m.from, t.floors.get("", v.index))
	}
	if err := m.addFile(v.disk, alarmsBucket); err != nil {
		return nil, 0, err
	}
	dead, alive := 0, false
	for {
		e, ok, err := m.next()
		if err != nil || !ok {
			return due, 0, err
		}
		a, ok := splitAlarmKey(e.key)
		if !ok {
			return nil, 0, corruptf("malformed entry %q of the alarm index", e.key)
		}
		row := rowKey(a.Object, SpaceAlarm, a.Name)
		if v.hidden(e.layer, row) {
			if dead++; dead%floorDead == 0 && !alive {
				v.tables[0].floors.set("", e.key+"\x00", v.index)
			}
			continue
		}
		alive = true
		if a.Due > now || len(due) >= limit {
			return due, a.Due, nil
		}
		if a.Value, err = v.alarmValue(row, a.Due); err != nil {
			return nil, 0, err
		}
		due = append(due, a)
	}
}

func (v *view) alarmValue(row string, due int64) ([]byte, error) {
	value, err := v.get(row)
	if err != nil {
		return nil, err
	}
	at, value, ok := splitAlarmRow(value)
	if !ok || at != due {
		return nil, corruptf("row %q is not the alarm that the alarm index says", row)
	}
	return append([]byte{}, value...), nil
}

// payload returns what the value of a row is to a caller.
func payload(key string, value []byte) ([]byte, error) {
	if value == nil || rowSpace(key) != SpaceAlarm {
		return value, nil
	}
	_, value, ok := splitAlarmRow(value)
	if !ok {
		return nil, corruptf("malformed alarm: row %q", key)
	}
	return value, nil
}

// A merge walks one index of all layers in order. Of entries with the same key it
// returns the newest layer's; layers are numbered in the order in which they were added.
type merge struct {
	from    string // where the next layer added begins: at the first key not before it, or in reverse at the last before it
	reverse bool
	layers  []cursor
}

// A merged is an entry of a merge, with the number of its layer. The value belongs to
// the layer.
type merged struct {
	entry
	layer int
	file  bool
}

// own returns a value, or a part of it, so that it outlives the view.
func (e *merged) own(value []byte) []byte {
	if e.file {
		return append([]byte{}, value...)
	}
	return value
}

func (m *merge) addTable(t *tree) {
	c := &tableCursor{it: t.Iter(), reverse: m.reverse}
	c.seek(m.from)
	m.layers = append(m.layers, c)
}

func (m *merge) addFile(r *reader, bucket []byte) error {
	if r == nil {
		return nil
	}
	c := r.cursor(bucket, m.reverse)
	m.layers = append(m.layers, c)
	return c.seek(m.from)
}

func (m *merge) next() (merged, bool, error) {
	best, ok := merged{}, false
	for i, c := range m.layers {
		e, valid := c.head()
		if valid && (!ok || e.key != best.key && (e.key < best.key) != m.reverse) {
			_, file := c.(*fileCursor)
			best, ok = merged{e, i, file}, true
		}
	}
	if !ok {
		return merged{}, false, nil
	}
	for _, c := range m.layers {
		if e, valid := c.head(); valid && e.key == best.key {
			if err := c.next(); err != nil {
				return merged{}, false, err
			}
		}
	}
	return best, true, nil
}

// A cursor walks one layer of an index.
type cursor interface {
	head() (entry, bool)
	next() error
}

type tableCursor struct {
	it      iterator
	reverse bool
	ok      bool
}

func (c *tableCursor) head() (entry, bool) { return c.it.Item(), c.ok }

func (c *tableCursor) seek(key string) {
	c.ok = c.it.Seek(newEntry(key, nil))
	switch {
	case c.reverse && c.ok:
		c.ok = c.it.Prev()
	case c.reverse:
		c.ok = c.it.Last()
	}
}

func (c *tableCursor) next() error {
	if c.reverse {
		c.ok = c.it.Prev()
	} else {
		c.ok = c.it.Next()
	}
	return nil
}
