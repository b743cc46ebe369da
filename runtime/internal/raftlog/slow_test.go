package raftlog

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestSlow makes a disk slow for a moment, and then for longer, and well again.
func TestSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var sync atomic.Pointer[func() error]
		takes := func(d time.Duration) {
			f := func() error { time.Sleep(d); return nil }
			sync.Store(&f)
		}
		l, err := Open("log", Options{FS: brokenFS{vfs.NewMem(), &sync}})
		if err != nil {
			t.Fatal(err)
		}
		g, next := l.Group(1), uint64(1)
		work := func(d time.Duration, every time.Duration) {
			for began := time.Now(); time.Since(began) < d; time.Sleep(every) {
				if err := g.StoreLog(entry(next, 10)); err != nil {
					t.Fatal(err)
				}
				next++
				l.Slow()
			}
		}
		for _, step := range []struct {
			what  string
			takes time.Duration
			work  time.Duration
			every time.Duration
			slow  bool
		}{
			{"fast", time.Millisecond, 15 * time.Second, 10 * time.Millisecond, false},
			{"slow for a moment", 200 * time.Millisecond, 3 * time.Second, 10 * time.Millisecond, false},
			{"fast again", time.Millisecond, 15 * time.Second, 10 * time.Millisecond, false},
			{"slow", 60 * time.Millisecond, 15 * time.Second, 10 * time.Millisecond, true},
			{"not quite so slow", 40 * time.Millisecond, 15 * time.Second, 10 * time.Millisecond, true},
			{"fast at last", 10 * time.Millisecond, 15 * time.Second, 10 * time.Millisecond, false},
			{"slow, without load", 2 * time.Second, 30 * time.Second, time.Millisecond, true},
		} {
			takes(step.takes)
			work(step.work, step.every)
			if l.Slow() != step.slow {
				t.Errorf("%s: slow is %v", step.what, !step.slow)
			}
		}
		time.Sleep(30 * time.Second)
		if !l.Slow() {
			t.Error("a disk that nobody writes to has become fast")
		}
		time.Sleep(40 * time.Second)
		if l.Slow() {
			t.Error("a disk that nobody has written to for a minute is still slow")
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}
