package storage

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/placement"
)

func TestTransplant(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, err := Open(filepath.Join(dir, "old.db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	id := placement.NamedID("room", "lobby")
	var b Batch
	b.Reset(id)
	b.Create("room", "lobby", true, 5)
	b.Put(SpaceKey, "a", []byte("1"))
	b.SetAlarm("wake", 77, []byte("v"))
	for _, key := range []string{"", "s1", "s2", "s3", "s4", "s5"} {
		b.Put(SpaceSocket, key, []byte("x"))
	}
	if err := m.Apply(9, 4, b.Bytes()); err != nil {
		t.Fatal(err)
	}
	m.SetConfiguration(11, []byte("three nodes"))
	var stream bytes.Buffer
	if _, _, err := m.WriteSnapshot(&stream); err != nil {
		t.Fatal(err)
	}
	_, digest := m.Digest()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	whole := stream.Bytes()

	path := filepath.Join(dir, "new.db")
	if _, _, err := Transplant(bytes.NewReader(whole[:len(whole)-1]), path, nil, Options{}); err == nil {
		t.Error("a truncated snapshot is taken")
	}
	if left, _ := filepath.Glob(path + "*"); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	index, term, err := Transplant(bytes.NewReader(whole), path, []byte("one node"), Options{txOperations: 2})
	if err != nil || index != 9 || term != 4 {
		t.Fatalf("index %d, term %d, error %v", index, term, err)
	}
	if _, err := os.Stat(path + ".restore"); err == nil {
		t.Error("a temporary file is left")
	}
	m, err = Open(path, Options{MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if at, conf := m.Configuration(); at != 9 || string(conf) != "one node" {
		t.Errorf("the members are %q as of %d", conf, at)
	}
	if at, hash := m.Digest(); at != 9 || hash != digest {
		t.Errorf("the digest is %x at %d, want %x", hash, at, digest)
	}
	if v, _, err := m.Get(id, SpaceKey, "a"); err != nil || string(v) != "1" {
		t.Errorf("the row is %q, %v", v, err)
	}
	if o, ok, err := m.Lookup(id); err != nil || !ok || o.Name != "lobby" {
		t.Errorf("the object is %v, %v, %v", o, ok, err)
	}
	due, _, err := m.DueAlarms(100, 10)
	if err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]Alarm{{Object: id, Name: "wake", Due: 77}}, due, cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Value" }, cmp.Ignore())); diff != "" {
		t.Errorf("the alarms (-want +got):\n%s", diff)
	}
	if rows, _, err := m.List(id, SpaceSocket, Range{}, 10); err != nil || len(rows) > 0 {
		t.Errorf("of the sockets %d rows are left, %v", len(rows), err)
	}
}
