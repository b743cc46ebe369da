package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-run/holdfast/placement"
)

// library fills a machine with rows that tell what they should be.
func library(t testing.TB, m *Machine) (ids []placement.ObjectID) {
	t.Helper()
	for i := range 40 {
		id := placement.NamedID("book", fmt.Sprint(i))
		ids = append(ids, id)
		apply(t, m, batch(id, func(b *Batch) {
			b.Create("book", fmt.Sprint(i), true, int64(i))
			for page := range 15 {
				b.Put(SpaceKey, fmt.Sprint(page), pageOf(i, page))
			}
			b.SetAlarm("due", int64(i), []byte("return it"))
		}))
	}
	flush(t, m)
	return ids
}

func pageOf(book, page int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "page %d of book %d. ", page, book), 8)
}

// TestFlippedBits flips single bits of a file, anywhere, and reads all of it. No value
// may be wrong, and a value may only be missing where a full check notices: records and
// keys are checked by every read, but a damaged header or pointer of one of bbolt's
// pages can hide a part of the file.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "good")
	m := open(t, path, Options{})
	ids := library(t, m)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	if err := m.file.view(func(r *reader) error { size = r.tx.Size(); return nil }); err != nil {
		t.Fatal(err)
	}
	const seed = 1
	r := rand.New(rand.NewPCG(seed, 0))
	var found, hidden, harmless int
	const flips = 200
	for n := range flips {
		bit := r.Int64N(size * 8)
		damaged := bytes.Clone(data)
		damaged[bit/8] ^= 1 << (bit % 8)
		path := filepath.Join(dir, fmt.Sprint(n))
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		missing, err := readLibrary(t, path, ids)
		switch {
		case err != nil && !errors.Is(err, ErrCorrupt):
			t.Errorf("seed %d, flip %d, bit %d of byte %d: the error is not about corruption: %v", seed, n, bit%8, bit/8, err)
		case missing > 0 && err == nil:
			t.Errorf("seed %d, flip %d, bit %d of byte %d: %d rows are missing, and nothing noticed", seed, n, bit%8, bit/8, missing)
		case missing > 0:
			hidden++
		case err != nil:
			found++
		default:
			harmless++
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("found by a read: %d; found by a full check only: %d; harmless (free space): %d", found, hidden, harmless)
	if hidden > flips/20 {
		t.Errorf("%d of %d flips are found by a full check only", hidden, flips)
	}
}

// readLibrary reads everything and returns how many rows seem not to exist though no read
// failed, and the error of the first read, or of the full check, that did.
func readLibrary(t *testing.T, path string, ids []placement.ObjectID) (missing int, err error) {
	m, err := Open(path, Options{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	for i, id := range ids {
		for page := range 15 {
			value, ok, err := m.Get(id, SpaceKey, fmt.Sprint(page))
			switch {
			case err != nil:
				return 0, err
			case !ok:
				missing++
			case !bytes.Equal(value, pageOf(i, page)):
				t.Errorf("page %d of book %d is %q", page, i, value)
			}
		}
		rows, _, err := m.List(id, SpaceKey, Range{}, 100)
		if err != nil {
			return 0, err
		}
		missing += 15 - len(rows)
	}
	objects, err := m.Objects("book", "", Position{}, 1000)
	if err != nil {
		return 0, err
	}
	due, _, err := m.DueAlarms(1000, 1000)
	if err != nil {
		return 0, err
	}
	return missing + 2*len(ids) - len(objects) - len(due), m.Check(t.Context())
}

// TestFileTruncatedWhileOpen touches memory that has no file behind it any more, and
// rebuilds the machine from a snapshot.
func TestFileTruncatedWhileOpen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "shard.db")
	m, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ids := library(t, m)
	var snapshot bytes.Buffer
	if _, _, err := m.WriteSnapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 2*pageSize); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Get(ids[7], SpaceKey, "1"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Get: %v", err)
	}
	if _, _, err := m.List(ids[7], SpaceKey, Range{}, 9); !errors.Is(err, ErrCorrupt) {
		t.Errorf("List: %v", err)
	}
	apply(t, m, batch(ids[7], func(b *Batch) { b.Put(SpaceKey, "1", nil) }))
	if err := m.Flush(t.Context()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Flush: %v", err)
	}

	if err := m.Restore(&snapshot); err != nil {
		t.Fatal(err)
	}
	if got := get(t, m, ids[7], "1"); got != string(pageOf(7, 1)) {
		t.Errorf("after Restore the page is %q", got)
	}
	apply(t, m, batch(ids[7], func(b *Batch) { b.Put(SpaceKey, "1", nil) }))
	flush(t, m)
	if err := errors.Join(m.Check(t.Context()), m.Close()); err != nil {
		t.Error(err)
	}
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, from, to string }{
		{"file to file", "from", "to"}, {"memory to file", "", "to"}, {"file to memory", "from", ""}, {"memory to memory", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := func(name string) string {
				if name == "" {
					return ""
				}
				return filepath.Join(dir, name)
			}
			from, to := open(t, path(test.from), Options{}), open(t, path(test.to), Options{})
			ids := library(t, from)
			from.SetConfiguration(3, []byte("voters"))
			apply(t, from, batch(ids[0], (*Batch).Destroy))
			apply(t, to, batch(ada, func(b *Batch) { b.Put(SpaceKey, "old", nil) }))

			s, err := from.Snapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var buf bytes.Buffer
			n, err := s.WriteTo(&buf)
			if err := errors.Join(err, s.Close()); err != nil || n != s.Size || int64(buf.Len()) != n {
				t.Fatalf("wrote %d bytes, %d arrived, announced were %d; %v", n, buf.Len(), s.Size, err)
			}
			if s.Index != 41 || s.Term != 1 || s.ConfigurationIndex != 3 || string(s.Configuration) != "voters" {
				t.Errorf("snapshot is %+v", s)
			}

			if err := to.Restore(io.MultiReader(&buf, bytes.NewReader([]byte("what follows is not read")))); err != nil {
				t.Fatal(err)
			}
			if index, _ := to.Durable(); index != 41 {
				t.Errorf("%d is durable, want 41", index)
			}
			_, want := from.Digest()
			if _, got := to.Digest(); got != want {
				t.Errorf("digest is %x, want %x", got, want)
			}
			if at, conf := to.Configuration(); at != 3 || string(conf) != "voters" {
				t.Errorf("configuration is %q of %d", conf, at)
			}
			if get(t, to, ada, "old") != "absent" || get(t, to, ids[0], "1") != "absent" || get(t, to, ids[1], "1") == "absent" {
				t.Error("the restored state is another one")
			}
			apply(t, to, batch(ada, func(b *Batch) { b.Put(SpaceKey, "new", []byte("1")) }))
			flush(t, to)
			if got := get(t, to, ada, "new"); got != "1" {
				t.Errorf("new is %s, want 1", got)
			}
		})
	}
}

func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from := open(t, filepath.Join(dir, "from"), Options{})
	library(t, from)
	var buf bytes.Buffer
	if _, _, err := from.WriteSnapshot(&buf); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(s []byte) []byte{
		"nothing":          func(s []byte) []byte { return nil },
		"cut header":       func(s []byte) []byte { return s[:10] },
		"cut file":         func(s []byte) []byte { return s[:len(s)/2] },
		"cut checksum":     func(s []byte) []byte { return s[:len(s)-1] },
		"flip in magic":    func(s []byte) []byte { s[0] ^= 1; return s },
		"flip in header":   func(s []byte) []byte { s[15] ^= 1; return s },
		"flip in file":     func(s []byte) []byte { s[len(s)/2] ^= 1; return s },
		"flip in checksum": func(s []byte) []byte { s[len(s)-1] ^= 1; return s },
	} {
		path := filepath.Join(dir, name)
		m := open(t, path, Options{})
		apply(t, m, batch(ada, func(b *Batch) { b.Put(SpaceKey, "a", []byte("1")) }))
		if err := m.Restore(bytes.NewReader(change(bytes.Clone(buf.Bytes())))); err == nil {
			t.Errorf("%s: Restore accepted it", name)
		}
		if got := get(t, m, ada, "a"); got != "1" {
			t.Errorf("%s: a is %s, want 1", name, got)
		}
		if _, err := os.Stat(path + ".restore"); err == nil {
			t.Errorf("%s: the temporary file is still there", name)
		}
	}
}

// TestCorruptRowsDoNotTravel sends a snapshot of a file with a damaged record.
func TestCorruptRowsDoNotTravel(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "from")
	m := open(t, path, Options{})
	library(t, m)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(dir, "damaged")
	at := bytes.Index(data, []byte("page 3 of book 9"))
	data[at] = 'P'
	if err := os.WriteFile(damaged, data, 0o600); err != nil {
		t.Fatal(err)
	}
	from, err := Open(damaged, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := from.Close(); err != nil {
			t.Error(err)
		}
	}()
	_, _, err = from.Get(placement.NamedID("book", "9"), SpaceKey, "3")
	if !errors.Is(err, ErrCorrupt) || !bytes.Contains([]byte(err.Error()), []byte(damaged)) {
		t.Errorf("Get: %v", err)
	}
	var buf bytes.Buffer
	if _, _, err := from.WriteSnapshot(&buf); err != nil {
		t.Fatal(err)
	}
	if err := m.Restore(&buf); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Restore: %v", err)
	}
}
