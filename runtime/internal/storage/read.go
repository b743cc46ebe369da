package storage

import (
	"bytes"

	"github.com/holdfast-run/holdfast/placement"
)

// Get returns a stored value. The caller must not modify it.
func (m *Machine) Get(id placement.ObjectID, space Space, key string) ([]byte, bool, error) {
	row := rowKey(id, space, key)
	value, err := m.get(row)
	if err != nil || value == nil {
		return nil, false, err
	}
	value, err = payload(row, value)
	return value, err == nil, err
}

// Lookup returns an object's metadata.
func (m *Machine) Lookup(id placement.ObjectID) (Object, bool, error) {
	row, err := m.get(rowKey(id, SpaceMeta, ""))
	if err != nil || row == nil {
		return Object{}, false, err
	}
	o, ok := parseObjectRow(id, row)
	if !ok {
		return Object{}, false, corruptf("malformed metadata of object %s", id)
	}
	return o, true, nil
}

// get returns the value of a row, nil if there is none. It opens a transaction of the
// file only if the tables do not know.
func (m *Machine) get(row string) (value []byte, err error) {
	m.mu.RLock()
	for _, t := range [...]*table{m.active, m.frozen} {
		if t == nil {
			break
		}
		if value, decided := t.get(row); decided {
			m.mu.RUnlock()
			return value, nil
		}
	}
	f := m.file
	r, err := f.begin()
	m.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	defer r.close()
	err = f.guard(func() error {
		value, err = r.get(row)
		value = bytes.Clone(value)
		return err
	})
	return value, err
}

// List returns up to limit rows of a range in order, and whether there are more. It is
// one consistent view. The caller must not modify the values.
func (m *Machine) List(id placement.ObjectID, space Space, r Range, limit int) (rows []Row, more bool, err error) {
	err = m.read(m.currentView, func(v *view) error {
		rows, more, err = v.list(id, space, r, limit)
		return err
	})
	return rows, more, err
}

// Objects lists up to limit objects of a class whose names begin with prefix, after a
// position, in order of (name, id).
func (m *Machine) Objects(class, prefix string, after Position, limit int) (objects []Object, err error) {
	err = m.read(m.currentView, func(v *view) error {
		objects, err = v.objects(class, prefix, after, limit)
		return err
	})
	return objects, err
}

// DueAlarms returns up to limit alarms that are due at or before a time (Unix
// milliseconds), earliest first, and when the first one after those is due; 0 if there
// is none.
func (m *Machine) DueAlarms(now int64, limit int) (due []Alarm, next int64, err error) {
	err = m.read(m.currentView, func(v *view) error {
		due, next, err = v.dueAlarms(now, limit)
		return err
	})
	return due, next, err
}

// read runs fn over one consistent view: some tables, and the file below them.
func (m *Machine) read(tables func() view, fn func(*view) error) (err error) {
	m.mu.RLock()
	v, f := tables(), m.file
	if f == nil {
		m.mu.RUnlock()
		return fn(&v)
	}
	v.disk, err = f.begin()
	m.mu.RUnlock()
	if err != nil {
		return err
	}
	defer v.disk.close()
	return f.guard(func() error { return fn(&v) })
}

// currentView returns the tables as they are, and is called with mu held for reading. Its
// copies are shared by all that read between two changes.
func (m *Machine) currentView() view {
	m.viewMu.Lock()
	defer m.viewMu.Unlock()
	if m.view == nil {
		m.view = &view{index: m.state.index, tables: []*table{m.active.copy()}}
		if m.frozen != nil {
			m.view.tables = append(m.view.tables, m.frozen)
		}
	}
	return *m.view
}
