package storage

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func goOn(int) error { return nil }

func TestScrub(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "shard")
	m := open(t, path, Options{})
	ids := library(t, m)

	read, calls := 0, 0
	records, err := m.Scrub(func(n int) error {
		read, calls = read+n, calls+1
		if calls == 1 { // neither of these waits
			apply(t, m, batch(ids[0], func(b *Batch) { b.Put(SpaceKey, "0", []byte("changed")) }))
			flush(t, m)
		}
		return nil
	})
	if want := uint64(len(ids) * (15 + 2*2)); err != nil || records != want { // an alarm and a name are in an index, too
		t.Errorf("scrubbed %d records of %d: %v", records, want, err)
	}
	if read > 1<<20 || calls < 3 {
		t.Errorf("paced %d times, %d bytes", calls, read)
	}
	stop := errors.New("stop")
	if _, err := m.Scrub(func(int) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a scrub that was stopped ended with %v", err)
	}
	closed := make(chan error, 1)
	_, err = m.Scrub(func(int) error {
		if !m.file.closing.Load() {
			go func() { closed <- m.Close() }() // waits for this scrub
			for !m.file.closing.Load() {
			}
		}
		return nil
	})
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a scrub whose file was closed ended with %v", err)
	}
}

func TestScrubFindsDamage(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "good")
	library(t, open(t, path, Options{}))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[bytes.LastIndex(data, []byte("page 7 of book 11. "))] ^= 1
	damaged := filepath.Join(t.TempDir(), "damaged")
	if err := os.WriteFile(damaged, data, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := Open(damaged, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Scrub(goOn); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), damaged) {
		t.Errorf("a damaged record ended the scrub with %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := open(t, "", Options{}).Scrub(goOn); err != nil {
		t.Errorf("in memory: %v", err)
	}
}
