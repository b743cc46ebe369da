package storage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/holdfast-run/holdfast/placement"
)

var ada, bob = placement.NamedID("person", "ada"), placement.NamedID("person", "bob")

// batch returns the sealed batch of what fill adds.
func batch(id placement.ObjectID, fill func(*Batch)) []byte {
	var b Batch
	b.Reset(id)
	fill(&b)
	return b.Bytes()
}

// apply applies one entry after the last.
func apply(t testing.TB, m *Machine, batches ...[]byte) {
	t.Helper()
	index, _ := m.Applied()
	if err := m.Apply(index+1, 1, bytes.Join(batches, nil)); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, m *Machine, id placement.ObjectID, key string) string {
	t.Helper()
	value, ok, err := m.Get(id, SpaceKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		return "absent"
	}
	return string(value)
}

// TestLayers runs each case with a flush at every possible place, so that what an
// operation is about lies once in the file and once in memory.
func TestLayers(t *testing.T) {
	t.Parallel()
	create := func(b *Batch) { b.Create("person", "", false, 7) }
	put := func(key, value string) func(*Batch) {
		return func(b *Batch) { b.Put(SpaceKey, key, []byte(value)) }
	}
	socket := func(key, value string) func(*Batch) {
		return func(b *Batch) { b.Put(SpaceSocket, key, []byte(value)) }
	}
	del := func(key string) func(*Batch) { return func(b *Batch) { b.Delete(SpaceKey, key) } }
	alarm := func(name string, due int64) func(*Batch) {
		return func(b *Batch) { b.SetAlarm(name, due, []byte("v")) }
	}
	for _, test := range []struct {
		name   string
		events []func(*Batch)
		want   string // rows, alarms, metadata
	}{
		{"nothing", nil, "[] [] absent"},
		{"put", []func(*Batch){put("a", "1")}, "[a=1] [] absent"},
		{"put again", []func(*Batch){put("a", "1"), put("a", "2")}, "[a=2] [] absent"},
		{"empty value", []func(*Batch){put("a", "1"), put("a", "")}, "[a=] [] absent"},
		{"empty key", []func(*Batch){put("", "1")}, "[=1] [] absent"},
		{"delete", []func(*Batch){put("a", "1"), put("b", "2"), del("a")}, "[b=2] [] absent"},
		{"delete and put", []func(*Batch){put("a", "1"), del("a"), put("a", "2")}, "[a=2] [] absent"},
		{"clear", []func(*Batch){create, put("a", "1"), alarm("x", 5), (*Batch).Clear}, "[] [] {person  false 7}"},
		{"clear and put", []func(*Batch){create, put("a", "1"), put("b", "1"), (*Batch).Clear, put("a", "2")}, "[a=2] [] {person  false 7}"},
		{"clear spares sockets", []func(*Batch){create, put("a", "1"), socket("s", "1"), socket("t", "1"), func(b *Batch) { b.Delete(SpaceSocket, "t") }, (*Batch).Clear}, "[] [] {person  false 7} socket s=1"},
		{"destroy takes sockets", []func(*Batch){create, socket("s", "1"), (*Batch).Clear, (*Batch).Destroy}, "[] [] absent"},
		{"destroy", []func(*Batch){create, put("a", "1"), alarm("x", 5), (*Batch).Destroy}, "[] [] absent"},
		{"destroy, create", []func(*Batch){create, put("a", "1"), (*Batch).Destroy, func(b *Batch) { b.Create("person", "n", true, 8) }}, "[] [] {person n true 8}"},
		{"clear after destroy", []func(*Batch){create, (*Batch).Destroy, (*Batch).Clear}, "[] [] absent"},
		{"destroy after clear", []func(*Batch){create, (*Batch).Clear, (*Batch).Destroy}, "[] [] absent"},
		{"create again", []func(*Batch){create, func(b *Batch) { b.Create("person", "", false, 9) }}, "[] [] {person  false 7}"},
		{"name filled in", []func(*Batch){create, func(b *Batch) { b.Create("person", "ada", true, 9) }}, "[] [] {person ada true 7}"},
		{"name kept", []func(*Batch){func(b *Batch) { b.Create("person", "ada", true, 7) }, func(b *Batch) { b.Create("person", "eve", true, 9) }}, "[] [] {person ada true 7}"},
		{"rows before create", []func(*Batch){put("a", "1"), create}, "[a=1] [] {person  false 7}"},
		{"alarm moved", []func(*Batch){alarm("x", 5), alarm("x", 3), alarm("y", 4)}, "[] [x@3 y@4] absent"},
		{"alarm deleted", []func(*Batch){alarm("x", 5), alarm("y", 4), func(b *Batch) { b.DeleteAlarm("x") }}, "[] [y@4] absent"},
		{"alarm before 1970", []func(*Batch){alarm("x", 5), alarm("y", -4)}, "[] [y@-4 x@5] absent"},
	} {
		for flushed := range len(test.events) + 1 {
			t.Run(fmt.Sprintf("%s/flush=%d", test.name, flushed), func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(t.TempDir(), "shard")
				m := open(t, path, Options{})
				for i, event := range test.events {
					if i == flushed {
						flush(t, m)
					}
					apply(t, m, batch(ada, event))
				}
				if got := describe(t, m); got != test.want {
					t.Errorf("got %s, want %s", got, test.want)
				}
				flush(t, m)
				if got := describe(t, m); got != test.want {
					t.Errorf("after a flush: got %s, want %s", got, test.want)
				}
			})
		}
	}
}

func describe(t *testing.T, m *Machine) string {
	t.Helper()
	rows, _, err := m.List(ada, SpaceKey, Range{}, 100)
	due, next, err2 := m.DueAlarms(100, 100)
	o, stored, err3 := m.Lookup(ada)
	listed, err4 := m.Objects("person", "", Position{}, 100)
	if err := errors.Join(err, err2, err3, err4); err != nil || next != 0 {
		t.Fatal(next, err)
	}
	var keys, alarms []string
	for _, r := range rows {
		keys = append(keys, r.Key+"="+string(r.Value))
	}
	for _, a := range due {
		alarms = append(alarms, fmt.Sprintf("%s@%d", a.Name, a.Due))
	}
	meta := "absent"
	if stored {
		meta = fmt.Sprint("{", o.Class, " ", o.Name, " ", o.Named, " ", o.Created, "}")
	}
	if stored != slices.Contains(listed, o) || len(listed) > 1 {
		t.Fatalf("Lookup says %v, Objects %v", o, listed)
	}
	text := fmt.Sprint(keys, " ", alarms, " ", meta)
	rows, _, err = m.List(ada, SpaceSocket, Range{}, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		text += fmt.Sprintf(" socket %s=%s", r.Key, r.Value)
	}
	return text
}

// TestRestart also covers what is kept beside the rows.
func TestRestart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "shard")
	m := open(t, path, Options{})
	apply(t, m, batch(ada, func(b *Batch) { b.Put(SpaceKey, "a", []byte("1")) }))
	m.SetConfiguration(1, []byte("three voters"))
	m.SetConfiguration(0, []byte("an older one"))
	flush(t, m)
	index, digest := m.Digest()

	// Entries of Raft's own move the index, not the digest.
	if err := m.Apply(5, 2, nil); err != nil {
		t.Fatal(err)
	}
	if durable, _ := m.Durable(); durable != index {
		t.Errorf("%d is durable, want %d", durable, index)
	}
	if _, since := m.Unflushed(); since.IsZero() {
		t.Error("Unflushed does not know of an entry without batches")
	}
	flush(t, m)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}

	m = open(t, path, Options{MustExist: true})
	if index, term := m.Applied(); index != 5 || term != 2 {
		t.Errorf("applied is %d of term %d, want 5 of 2", index, term)
	}
	if _, got := m.Digest(); got != digest {
		t.Errorf("digest is %x, want %x", got, digest)
	}
	if at, conf := m.Configuration(); at != 1 || string(conf) != "three voters" {
		t.Errorf("configuration is %q of %d", conf, at)
	}
	if got := get(t, m, ada, "a"); got != "1" {
		t.Errorf("a is %s, want 1", got)
	}
	// What was applied already is skipped.
	if err := m.Apply(5, 2, batch(ada, func(b *Batch) { b.Put(SpaceKey, "a", []byte("2")) })); err != nil {
		t.Fatal(err)
	}
	if got := get(t, m, ada, "a"); got != "1" {
		t.Errorf("a is %s after a repeated entry, want 1", got)
	}
}

func TestFlushWritesOnlyWhatStays(t *testing.T) {
	t.Parallel()
	m := open(t, filepath.Join(t.TempDir(), "shard"), Options{})
	flush(t, m)
	transactions := func() (id int) {
		if err := m.file.view(func(r *reader) error { id = r.tx.ID(); return nil }); err != nil {
			t.Fatal(err)
		}
		return id
	}
	before := transactions()
	flush(t, m)
	if after := transactions(); after != before {
		t.Errorf("a flush with nothing to do made %d transactions", after-before)
	}

	for i := range 1000 {
		apply(t, m, batch(ada, func(b *Batch) { b.Put(SpaceKey, fmt.Sprint(i), make([]byte, 1000)) }))
		apply(t, m, batch(ada, func(b *Batch) { b.Delete(SpaceKey, fmt.Sprint(i)) }))
	}
	flush(t, m)
	err := m.file.view(func(r *reader) error {
		if size := r.tx.Size(); size > 20*pageSize {
			t.Errorf("rows that are gone take %d bytes of the file", size)
		}
		if tally, err := r.readTally(); err != nil || tally.records != 0 {
			t.Errorf("the file has %d records, want none; %v", tally.records, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if bytes, since := m.Unflushed(); bytes != 0 || !since.IsZero() {
		t.Errorf("after a flush %d bytes wait since %v", bytes, since)
	}
}

func TestMalformedEntryIsRefusedWhole(t *testing.T) {
	t.Parallel()
	m := open(t, "", Options{})
	good := batch(ada, func(b *Batch) { b.Put(SpaceKey, "a", []byte("1")) })
	raw := func(ops ...byte) []byte { return batch(bob, func(b *Batch) { b.buf = append(b.buf, ops...) }) }
	for name, bad := range map[string][]byte{
		"cut header":       good[:20],
		"cut body":         good[:len(good)-1],
		"length too small": append(binary.LittleEndian.AppendUint32(nil, 5), good[4:]...),
		"length too large": append(binary.LittleEndian.AppendUint32(nil, 1<<31), good[4:]...),
		"operation 0":      raw(0),
		"operation 99":     raw(99),
		"key too long":     raw(opPut, byte(SpaceKey), 0x81, 0x80, 0x01),
		"key past the end": raw(opPut, byte(SpaceKey), 5, 'a'),
		"endless number":   raw(opDelete, byte(SpaceKey), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01),
		"put of metadata":  raw(opPut, byte(SpaceMeta), 0, 0),
		"put of an alarm":  raw(opPut, byte(SpaceAlarm), 0, 0),
		"space 0":          raw(opDelete, 0, 0),
		"foreign flags":    raw(opCreate, 0, 0, 2, 0),
	} {
		err := m.Apply(1, 1, append(bytes.Clone(good), bad...))
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error is %v", name, err)
		}
		if index, _ := m.Applied(); index != 0 || get(t, m, ada, "a") != "absent" {
			t.Fatalf("%s: a part of the entry was applied", name)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	whole := func(t *testing.T) []byte {
		path := filepath.Join(t.TempDir(), "whole")
		m := open(t, path, Options{})
		for i := range 300 {
			apply(t, m, batch(ada, func(b *Batch) { b.Put(SpaceKey, fmt.Sprint(i), make([]byte, 100)) }))
		}
		flush(t, m)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	write := func(change func(data []byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, change(whole(t)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	alter := func(change func(*bbolt.Tx) error) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: pageSize})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(db.Update(change), db.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name    string
		prepare func(*testing.T, string)
		want    string
		corrupt bool
	}{
		{"missing", func(*testing.T, string) {}, "no such file", false},
		{"empty", write(func(d []byte) []byte { return nil }), "truncated", true},
		{"one page", write(func(d []byte) []byte { return d[:pageSize] }), "truncated", true},
		{"half", write(func(d []byte) []byte { return d[:6*pageSize] }), "truncated", true},
		{"zeros", write(func(d []byte) []byte { return make([]byte, len(d)) }), "not a bbolt file", true},
		{"text", write(func(d []byte) []byte { return []byte(strings.Repeat("hello", 10_000)) }), "not a bbolt file", true},
		{"garbage behind the meta pages", write(func(d []byte) []byte {
			_, _ = rand.NewChaCha8([32]byte{1}).Read(d[2*pageSize:])
			return d
		}), "", true},
		{"zeros behind the meta pages", write(func(d []byte) []byte { clear(d[2*pageSize:]); return d }), "", true},
		{"another program's", alter(func(tx *bbolt.Tx) error {
			_, err := tx.CreateBucket([]byte("logs"))
			return err
		}), "not written by this program", false},
		{"of the future", alter(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucket(metaBucket)
			if err != nil {
				return err
			}
			return b.Put(formatKey, []byte("holdfast storage 2"))
		}), `"holdfast storage 2"`, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "shard.db")
			test.prepare(t, path)
			m, err := Open(path, Options{MustExist: true})
			if err == nil {
				t.Fatal("Open accepted it: ", m.Close())
			}
			if errors.Is(err, ErrCorrupt) != test.corrupt || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error is %q", err)
			}
		})
	}
}

func TestOpenTwice(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "shard.db")
	open(t, path, Options{})
	m, err := Open(path, Options{LockTimeout: 10 * time.Millisecond})
	if err == nil {
		t.Fatal("a file was opened twice: ", m.Close())
	}
	if !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("error is %q", err)
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	m := open(t, filepath.Join(t.TempDir(), "shard.db"), Options{})
	if err := errors.Join(m.Close(), m.Close()); err != nil {
		t.Fatal(err)
	}
	if err := m.Flush(t.Context()); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Flush: %v", err)
	}
	if _, _, err := m.Get(ada, SpaceKey, "a"); err == nil {
		t.Error("Get of a closed machine did not fail")
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "shard.db")
	put := func(i int) []byte {
		return batch(ada, func(b *Batch) { b.Put(SpaceKey, fmt.Sprint(i), make([]byte, 1000)) })
	}
	m := open(t, path, Options{maxSize: 64 << 10, txOperations: 8})
	apply(t, m, put(0))
	flush(t, m)
	for i := range 99 {
		apply(t, m, put(i+1))
	}
	first := m.Flush(t.Context())
	if first == nil {
		t.Fatal("a flush of 100 KB went into 64 KB")
	}
	if err := m.Flush(t.Context()); err == nil {
		t.Error("a flush after a failed one did not fail")
	}
	if get(t, m, ada, "99") == "absent" {
		t.Error("a row is lost while it is only in memory")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = open(t, path, Options{})
	if index, _ := m.Durable(); index != 1 {
		t.Errorf("%d is durable, want 1", index)
	}
	for i := range 99 {
		apply(t, m, put(i+1))
	}
	flush(t, m)
	if rows, _, err := m.List(ada, SpaceKey, Range{}, 1000); err != nil || len(rows) != 100 {
		t.Errorf("after the replay there are %d rows, want 100; %v", len(rows), err)
	}
}

// TestConcurrentReads reads while entries are applied and flushed. Every entry sets
// all that it is about to the same number, so a view that is not consistent shows two.
func TestConcurrentReads(t *testing.T) {
	t.Parallel()
	m := open(t, filepath.Join(t.TempDir(), "shard.db"), Options{txOperations: 7})
	entry := func(n int) []byte {
		return append(batch(ada, func(b *Batch) {
			if n%5 == 0 {
				b.Clear()
			}
			for key := range 20 {
				b.Put(SpaceKey, fmt.Sprint(key), fmt.Append(nil, n))
			}
		}), batch(bob, func(b *Batch) {
			if n%3 == 0 {
				b.Destroy()
			}
			b.Create("person", "bob", true, 1)
			for name := range 5 {
				b.SetAlarm(fmt.Sprint(name), int64(n), fmt.Append(nil, n))
			}
		})...)
	}
	apply(t, m, entry(0))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(read func() error) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := read(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	loop(func() error {
		rows, _, err := m.List(ada, SpaceKey, Range{Reverse: true}, 100)
		if err != nil || len(rows) != 20 {
			return fmt.Errorf("%d rows, %w", len(rows), err)
		}
		for _, r := range rows {
			if !bytes.Equal(r.Value, rows[0].Value) {
				return fmt.Errorf("one view has %s and %s", r.Value, rows[0].Value)
			}
		}
		return nil
	})
	loop(func() error {
		due, next, err := m.DueAlarms(1<<40, 100)
		if err != nil || len(due) != 5 || next != 0 || due[0].Due != due[4].Due {
			return fmt.Errorf("due are %v, then %d; %w", due, next, err)
		}
		objects, err := m.Objects("person", "b", Position{}, 10)
		if err != nil || len(objects) != 1 {
			return fmt.Errorf("objects are %v; %w", objects, err)
		}
		return nil
	})
	loop(func() error {
		_, ok, err := m.Get(ada, SpaceKey, "7")
		if err != nil || !ok {
			return fmt.Errorf("got %v; %w", ok, err)
		}
		return nil
	})
	loop(func() error { return m.Flush(context.Background()) })
	for n := range 300 {
		apply(t, m, entry(n+1))
	}
	close(stop)
	wg.Wait()
}

func FuzzApply(f *testing.F) {
	w := newWorld(1)
	for range 20 {
		f.Add(w.entry())
	}
	f.Fuzz(func(t *testing.T, entry []byte) {
		m := open(t, "", Options{})
		err := m.Apply(1, 1, entry)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		if err != nil && !m.active.empty() {
			t.Fatal("a part of a malformed entry was applied")
		}
		var file *Machine
		if err == nil {
			file = open(t, filepath.Join(t.TempDir(), "shard.db"), Options{})
			if err := file.Apply(1, 1, entry); err != nil {
				t.Fatal(err)
			}
			flush(t, file)
		}
	})
}
