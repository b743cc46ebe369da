package storage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/holdfast-run/holdfast/placement"
)

// A model is the simplest thing that behaves like a machine.
type model map[placement.ObjectID]*modelObject

type modelObject struct {
	meta   *Object
	rows   map[string][]byte
	socket map[string][]byte // rows, too, of another space
	alarms map[string]Alarm
}

func (m model) at(id placement.ObjectID) *modelObject {
	if m[id] == nil {
		m[id] = &modelObject{rows: map[string][]byte{}, socket: map[string][]byte{}, alarms: map[string]Alarm{}}
	}
	return m[id]
}

func (o *modelObject) in(space Space) map[string][]byte {
	if space == SpaceSocket {
		return o.socket
	}
	return o.rows
}

func (m model) list(id placement.ObjectID, space Space, r Range, limit int) (rows []Row, more bool) {
	for key, value := range m.at(id).in(space) {
		if key >= r.Start && (r.End == "" || key < r.End) {
			rows = append(rows, Row{key, value})
		}
	}
	slices.SortFunc(rows, func(a, b Row) int {
		if r.Reverse {
			a, b = b, a
		}
		return strings.Compare(a.Key, b.Key)
	})
	if len(rows) > limit {
		return rows[:limit], true
	}
	return rows, false
}

func (m model) objects(class, prefix string, after Position, limit int) (objects []Object) {
	for _, o := range m {
		if o.meta == nil || o.meta.Class != class || !strings.HasPrefix(o.meta.Name, prefix) {
			continue
		}
		if cmp.Or(strings.Compare(o.meta.Name, after.Name), bytes.Compare(o.meta.ID[:], after.ID[:])) > 0 {
			objects = append(objects, *o.meta)
		}
	}
	slices.SortFunc(objects, func(a, b Object) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), bytes.Compare(a.ID[:], b.ID[:]))
	})
	return objects[:min(limit, len(objects))]
}

func (m model) dueAlarms(now int64, limit int) (due []Alarm, next int64) {
	var all []Alarm
	for _, o := range m {
		for _, a := range o.alarms {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(a, b Alarm) int {
		return cmp.Or(cmp.Compare(a.Due, b.Due), bytes.Compare(a.Object[:], b.Object[:]), strings.Compare(a.Name, b.Name))
	})
	for _, a := range all {
		if a.Due > now || len(due) == limit {
			return due, a.Due
		}
		due = append(due, a)
	}
	return due, 0
}

// A world makes random batches over a few objects and keys, so that they meet.
type world struct {
	*rand.Rand
	model model
	ids   []placement.ObjectID
}

var modelNames = []string{"", "a", "a\x00", "a\x00b", "ab", "b", "ü", "a\xff"}

func newWorld(seed uint64) *world {
	w := &world{Rand: rand.New(rand.NewPCG(seed, 0)), model: model{}}
	for range 12 {
		var id placement.ObjectID
		for i := range id {
			id[i] = byte(w.IntN(256))
		}
		w.ids = append(w.ids, id)
	}
	return w
}

func (w *world) id() placement.ObjectID { return w.ids[w.IntN(len(w.ids))] }

func (w *world) key() string {
	return fmt.Sprintf("%s%d", modelNames[w.IntN(len(modelNames))], w.IntN(8))
}

func (w *world) space() Space { return []Space{SpaceKey, SpaceKey, SpaceSocket}[w.IntN(3)] }

func (w *world) class() string { return []string{"c", "c\x00", "counter"}[w.IntN(3)] }

// entry returns a random log entry and does to the model what it says.
func (w *world) entry() []byte {
	var entry []byte
	for range w.IntN(6) {
		id := w.id()
		var b Batch
		b.Reset(id)
		for range w.IntN(6) {
			w.operation(id, &b)
		}
		entry = append(entry, b.Bytes()...)
	}
	return entry
}

func (w *world) operation(id placement.ObjectID, b *Batch) {
	o := w.model.at(id)
	switch n := w.IntN(100); {
	case n < 15:
		class, name, named := w.class(), modelNames[w.IntN(len(modelNames))], w.IntN(2) == 0
		created := int64(w.IntN(1000))
		b.Create(class, name, named, created)
		if o.meta == nil {
			o.meta = &Object{ID: id, Class: class, Created: created}
		}
		if named && !o.meta.Named {
			o.meta = &Object{id, o.meta.Class, name, true, o.meta.Created}
		}
	case n < 50:
		key, value := w.key(), make([]byte, w.IntN(40))
		for i := range value {
			value[i] = byte(w.IntN(256))
		}
		space := w.space()
		b.Put(space, key, value)
		o.in(space)[key] = value
	case n < 65:
		key, space := w.key(), w.space()
		b.Delete(space, key)
		delete(o.in(space), key)
	case n < 85:
		name, due := modelNames[w.IntN(len(modelNames))], int64(w.IntN(50)-5)
		value := []byte(fmt.Sprint("v", w.IntN(100)))
		b.SetAlarm(name, due, value)
		o.alarms[name] = Alarm{id, name, due, value}
	case n < 95:
		name := modelNames[w.IntN(len(modelNames))]
		b.DeleteAlarm(name)
		delete(o.alarms, name)
	case n < 98:
		b.Clear()
		clear(o.rows)
		clear(o.alarms)
	default:
		b.Destroy()
		delete(w.model, id)
		w.model.at(id)
	}
}

// compare asks the machine everything and compares it to the model.
func (w *world) compare(t *testing.T, m *Machine) {
	t.Helper()
	for _, id := range w.ids {
		o := w.model.at(id)
		got, ok, err := m.Lookup(id)
		if err != nil || ok != (o.meta != nil) || ok && got != *o.meta {
			t.Fatalf("Lookup(%s) = %v, %v, %v; want %v", id, got, ok, err, o.meta)
		}
		for range 4 {
			key, space := w.key(), w.space()
			want, exists := o.in(space)[key]
			got, ok, err := m.Get(id, space, key)
			if err != nil || ok != exists || !bytes.Equal(got, want) {
				t.Fatalf("Get(%s, %q) = %q, %v, %v; want %q, %v", id, key, got, ok, err, want, exists)
			}
		}
		for _, r := range []Range{{}, {Reverse: true}, {w.key(), w.key(), false}, {w.key(), w.key(), true}, {Start: w.key()}, {End: w.key(), Reverse: true}} {
			limit, space := 1+w.IntN(30), w.space()
			want, wantMore := w.model.list(id, space, r, limit)
			got, more, err := m.List(id, space, r, limit)
			if err != nil || more != wantMore {
				t.Fatalf("List(%s, %+v, %d): more is %v, want %v; %v", id, r, limit, more, wantMore, err)
			}
			diff(t, fmt.Sprintf("List(%s, %+v, %d)", id, r, limit), got, want)
		}
		rows, _, err := m.List(id, SpaceAlarm, Range{}, 100)
		if err != nil || len(rows) != len(o.alarms) {
			t.Fatalf("List of alarms of %s = %v, %v; want %v", id, rows, err, o.alarms)
		}
		for _, row := range rows {
			diff(t, "value of alarm", row.Value, o.alarms[row.Key].Value)
		}
	}
	for range 4 {
		class, prefix := w.class(), modelNames[w.IntN(len(modelNames))]
		after, limit := Position{modelNames[w.IntN(len(modelNames))], w.id()}, w.IntN(6)
		got, err := m.Objects(class, prefix, after, limit)
		if err != nil {
			t.Fatal(err)
		}
		diff(t, fmt.Sprintf("Objects(%q, %q, %v, %d)", class, prefix, after, limit), got, w.model.objects(class, prefix, after, limit))

		now, limit := int64(w.IntN(60)-10), w.IntN(20)
		due, next, err := m.DueAlarms(now, limit)
		if err != nil {
			t.Fatal(err)
		}
		wantDue, wantNext := w.model.dueAlarms(now, limit)
		diff(t, fmt.Sprintf("DueAlarms(%d, %d)", now, limit), due, wantDue)
		if next != wantNext {
			t.Fatalf("DueAlarms(%d, %d): next is %d, want %d", now, limit, next, wantNext)
		}
	}
}

func diff[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if reflect.DeepEqual(got, want) { // much faster
		return
	}
	if d := gocmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

// A stopwatch is a context that ends when it has been asked a number of times.
type stopwatch struct {
	context.Context
	left int
}

func (s *stopwatch) Err() error {
	if s.left--; s.left < 0 {
		return context.Canceled
	}
	return nil
}

var seedFlag = flag.Uint64("seed", 0, "run the model test with this seed only")

// TestModel applies random entries to a machine and to a model, with flushes, some of
// them cut short, reopenings and crashes in between, and compares all that can be read. A crash
// is a copy of the file as it is, opened elsewhere, with the log replayed on it.
func TestModel(t *testing.T) {
	t.Parallel()
	seeds := []uint64{*seedFlag}
	if *seedFlag == 0 {
		seeds = seeds[:0]
		for seed := range uint64(6) {
			seeds = append(seeds, seed+1)
		}
	}
	for _, seed := range seeds {
		for _, memory := range []bool{false, true} {
			t.Run(fmt.Sprintf("seed=%d,memory=%v", seed, memory), func(t *testing.T) {
				t.Parallel()
				testModel(t, seed, memory)
			})
		}
	}
}

func testModel(t *testing.T, seed uint64, memory bool) {
	w := newWorld(seed)
	dir, generation := t.TempDir(), 0
	path := func() string {
		if memory {
			return ""
		}
		return filepath.Join(dir, fmt.Sprint(generation))
	}
	m := open(t, path(), Options{txOperations: 1 + w.IntN(20)})
	reference := open(t, "", Options{})
	log := map[uint64][]byte{}
	index := uint64(0)
	replay := func() {
		for i, _ := m.Applied(); i < index; {
			i++
			if err := m.Apply(i, 1+i/50, log[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 300 {
		index++
		log[index] = w.entry()
		for _, m := range []*Machine{m, reference} {
			if err := m.Apply(index, 1+index/50, log[index]); err != nil {
				t.Fatal(err)
			}
		}
		switch n := w.IntN(40); {
		case n < 5:
			w.compare(t, m)
		case n < 7:
			flush(t, m)
		case n < 10: // cut short; what was written must not be seen in what follows
			if err := m.Flush(&stopwatch{t.Context(), w.IntN(6)}); err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		case n < 11 && !memory:
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			m = open(t, path(), Options{txOperations: 1 + w.IntN(20)})
			replay()
		case n < 12 && !memory:
			data, err := os.ReadFile(path())
			if err != nil {
				t.Fatal(err)
			}
			generation++
			if err := os.WriteFile(path(), data, 0o600); err != nil {
				t.Fatal(err)
			}
			m = open(t, path(), Options{txOperations: 1 + w.IntN(20)})
			replay()
		case n < 13:
			var snapshot bytes.Buffer
			at, term, err := m.WriteSnapshot(&snapshot)
			if err != nil || at != index || term != 1+index/50 {
				t.Fatalf("WriteSnapshot = %d, %d, %v; want index %d", at, term, err, index)
			}
			generation++
			m = open(t, path(), Options{txOperations: 1 + w.IntN(20)})
			if err := m.Restore(&snapshot); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.compare(t, m)
	_, got := m.Digest()
	if _, want := reference.Digest(); got != want {
		t.Fatalf("digest is %x, and that of a machine that never stopped is %x", got, want)
	}
	flush(t, m)
	w.compare(t, m)
}

// open opens a machine that is checked in full and closed when the test ends.
func open(t testing.TB, path string, o Options) *Machine {
	t.Helper()
	m, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if path == "" {
			return
		}
		m, err := Open(path, o)
		if err != nil {
			t.Error(err)
			return
		}
		if err := m.Check(context.Background()); err != nil {
			t.Error(err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func flush(t testing.TB, m *Machine) {
	t.Helper()
	if err := m.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	applied, _ := m.Applied()
	if durable, _ := m.Durable(); durable != applied {
		t.Fatalf("after a flush %d is durable, want %d", durable, applied)
	}
}
