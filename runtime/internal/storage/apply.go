package storage

import (
	"bytes"

	"github.com/holdfast-run/holdfast/placement"
)

// An application is what has to be known before an entry can be applied without failing:
// it is well formed, and what the older layers have of the objects that it creates.
type application struct {
	below map[placement.ObjectID]origin
}

// An origin is what the layers below the active table have of an object.
type origin struct {
	meta []byte // its metadata row, nil if there is none
	rows bool   // whether there is any row
}

// prepare reads the file, so it runs before the lock that readers wait for. Nothing that
// it sees changes under it: tables change under the applying lock only, and a flush that
// ends meanwhile only moves rows from one layer below to the other.
func (m *Machine) prepare(batches []byte) (application, error) {
	var unknown []placement.ObjectID
	err := walk(batches, func(id placement.ObjectID, op *operation) {
		if op.code != opCreate {
			return
		}
		if _, decided := m.active.get(rowKey(id, SpaceMeta, "")); !decided {
			unknown = append(unknown, id)
		}
	})
	if err != nil || len(unknown) == 0 {
		return application{}, err
	}
	a := application{below: make(map[placement.ObjectID]origin, len(unknown))}
	err = m.read(m.olderView, func(v *view) error {
		for _, id := range unknown {
			if a.below[id], err = v.origin(id); err != nil {
				return err
			}
		}
		return nil
	})
	return a, err
}

// olderView returns the layers below the active table.
func (m *Machine) olderView() view {
	if m.frozen == nil {
		return view{}
	}
	return view{tables: []*table{m.frozen}}
}

func (v *view) origin(id placement.ObjectID) (o origin, err error) {
	if o.meta, err = v.get(rowKey(id, SpaceMeta, "")); err != nil {
		return origin{}, err
	}
	o.meta = bytes.Clone(o.meta)
	o.rows, err = v.holds(objectKey(id))
	return o, err
}

// run applies the operations to a table.
func (a application) run(t *table, batches []byte) {
	err := walk(batches, func(id placement.ObjectID, op *operation) {
		switch op.code {
		case opCreate:
			a.create(t, id, op)
		case opPut:
			t.put(rowKey(id, op.space, op.key), append([]byte{}, op.value...))
		case opDelete:
			t.delete(rowKey(id, op.space, op.key))
		case opClear:
			t.clear(id, maskClear)
		case opDestroy:
			t.clear(id, maskDestroy)
		case opSetAlarm:
			t.setAlarm(id, string(op.key), op.time, op.value)
		case opDeleteAlarm:
			t.deleteAlarm(id, string(op.key))
		}
	})
	if err != nil {
		panic(err) // prepare has walked the same bytes
	}
}

// create records an object, or the name that one lacks. An object that is stored
// nowhere gets a mask: until the next flush nobody has to look for its rows in the file.
func (a application) create(t *table, id placement.ObjectID, op *operation) {
	row, decided := t.get(rowKey(id, SpaceMeta, ""))
	if !decided {
		below := a.below[id]
		row = below.meta
		if !below.rows {
			t.setMask(objectKey(id), maskDestroy)
		}
	}
	o, stored := parseObjectRow(id, row)
	switch {
	case !stored:
		o = Object{ID: id, Class: string(op.class), Created: op.time}
	case o.Named || !op.named:
		return
	}
	if op.named {
		o.Name, o.Named = string(op.key), true
	}
	t.setObject(o)
}
