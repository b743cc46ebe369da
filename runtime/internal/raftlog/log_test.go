package raftlog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/wal"
	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
)

func open(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	if o.OnFatal == nil {
		o.OnFatal = func(err error) { t.Errorf("fatal: %v", err) }
	}
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// entry is what the tests store at an index.
func entry(index uint64, size int) *raft.Log {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(index) + byte(i)
	}
	return &raft.Log{Index: index, Term: 1 + index/10, Type: raft.LogCommand, Data: data}
}

func store(t testing.TB, g *Group, from, to uint64, size int) {
	t.Helper()
	for i := from; i <= to; i++ {
		if err := g.StoreLog(entry(i, size)); err != nil {
			t.Fatal(err)
		}
	}
}

// want checks that g has exactly the records from to to.
func want(t testing.TB, g *Group, from, to uint64) {
	t.Helper()
	first, err1 := g.FirstIndex()
	last, err2 := g.LastIndex()
	if first != from || last != to || err1 != nil || err2 != nil {
		t.Fatalf("log is %d to %d (%v, %v), want %d to %d", first, last, err1, err2, from, to)
	}
	if err := g.Check(0); err != nil {
		t.Fatal(err)
	}
	for i := from; i <= to && i > 0; i++ {
		var log raft.Log
		if err := g.GetLog(i, &log); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(&log, entry(i, len(log.Data))) {
			t.Fatalf("index %d holds index %d of term %d with %d bytes", i, log.Index, log.Term, len(log.Data))
		}
	}
}

func TestGroupKeepsItsLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir, Options{})
	a, b := l.Group(1), l.Group(2)
	if l.Group(1) != a {
		t.Error("the same group is not the same Group")
	}
	want(t, a, 0, 0)

	full := &raft.Log{Index: 1, Term: 7, Type: raft.LogConfiguration, Data: []byte("data"), Extensions: []byte("ext"), AppendedAt: time.Unix(12, 34)}
	if err := b.StoreLogs([]*raft.Log{full, entry(2, 10)}); err != nil {
		t.Fatal(err)
	}
	var got raft.Log
	if err := b.GetLog(1, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(full, &got); diff != "" {
		t.Error(diff)
	}

	store(t, a, 5, 30, 100) // a log may begin anywhere, after a snapshot
	want(t, a, 5, 30)
	if err := a.StoreLog(entry(32, 1)); err == nil {
		t.Error("a gap was stored")
	}
	if err := a.DeleteRange(10, 12); err == nil {
		t.Error("a gap was deleted")
	}
	if err := a.DeleteRange(5, 9); err != nil {
		t.Fatal(err)
	}
	if err := a.DeleteRange(25, 30); err != nil {
		t.Fatal(err)
	}
	want(t, a, 10, 24)
	store(t, a, 25, 26, 100)
	if err := a.GetLog(9, &got); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("below the log: %v", err)
	}
	if err := a.GetLog(27, &got); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("above the log: %v", err)
	}

	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, Options{})
	want(t, l.Group(1), 10, 26)
	if err := l.Group(1).DeleteRange(0, 100); err != nil {
		t.Fatal(err)
	}
	want(t, l.Group(1), 0, 0)
	store(t, l.Group(1), 90, 91, 10)
	want(t, l.Group(1), 90, 91)
	if last, _ := l.Group(2).LastIndex(); last != 2 {
		t.Errorf("the other group ends at %d", last)
	}
}

func TestStableValues(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir, Options{})
	g := l.Group(3)
	if n, err := g.GetUint64([]byte("CurrentTerm")); n != 0 || err != nil {
		t.Errorf("missing number: %d, %v", n, err)
	}
	if v, err := g.Get([]byte("LastVoteCand")); len(v) != 0 || err != nil {
		t.Errorf("missing value: %q, %v", v, err)
	}
	if err := errors.Join(g.SetUint64([]byte("CurrentTerm"), 9), g.Set([]byte("LastVoteCand"), []byte("me"))); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, Options{})
	n, err1 := l.Group(3).GetUint64([]byte("CurrentTerm"))
	v, err2 := l.Group(3).Get([]byte("LastVoteCand"))
	if n != 9 || string(v) != "me" || err1 != nil || err2 != nil {
		t.Errorf("got %d, %q, %v, %v", n, v, err1, err2)
	}
	if n, _ := l.Group(4).GetUint64([]byte("CurrentTerm")); n != 0 {
		t.Errorf("another group has term %d", n)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, dir, Options{})
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v", err)
	}
}

func TestSizeAndTail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir, Options{})
	g := l.Group(1)
	store(t, g, 1, 64, 256<<10) // 16 MiB
	near := func(got, want, slack uint64) bool { return got >= want-slack && got <= want+slack }
	if !near(g.Size(), 16<<20, 1<<16) {
		t.Errorf("size is %d", g.Size())
	}
	if tail := g.Tail(4 << 20); !near(tail, 49, 2) {
		t.Errorf("the last 4 MiB begin at %d", tail)
	}
	if tail := g.Tail(1 << 30); tail != 1 {
		t.Errorf("all begins at %d", tail)
	}
	if err := g.DeleteRange(1, 32); err != nil {
		t.Fatal(err)
	}
	if !near(g.Size(), 8<<20, 1<<19) {
		t.Errorf("size of a half is %d", g.Size())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, Options{})
	g = l.Group(1)
	if !near(g.Size(), 12<<20, 5<<20) { // with some of what was deleted
		t.Errorf("size after reopening is %d", g.Size())
	}
	if tail := g.Tail(4 << 20); tail <= 33 || tail > 64 {
		t.Errorf("the last 4 MiB after reopening begin at %d", tail)
	}
}

// TestPowerCut cuts the power at a random moment under load, with a random part of
// what had not been synced on the disk, and counts what is there afterwards.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 0))
			mem := vfs.NewCrashableMem()
			l := open(t, "log", Options{FS: mem, MemTableBytes: 1 << 20})

			const groups = 4
			var acked [groups]atomic.Uint64
			var wg sync.WaitGroup
			stop := make(chan struct{})
			cut := make(chan struct{})
			goal := 200 + rng.IntN(800)
			size := 1 << rng.IntN(15)
			var total atomic.Int64
			for i := range groups {
				wg.Go(func() {
					for index := uint64(1); ; index++ {
						select {
						case <-stop:
							return
						default:
						}
						if err := l.Group(uint64(i)).StoreLog(entry(index, size)); err != nil {
							t.Error(err)
							return
						}
						acked[i].Store(index)
						if total.Add(1) == int64(goal) {
							close(cut)
						}
					}
				})
			}
			<-cut
			var before [groups]uint64
			for i := range acked {
				before[i] = acked[i].Load()
			}
			crashed := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			close(stop)
			wg.Wait()

			after := open(t, "log", Options{FS: crashed})
			for i := range before {
				g := after.Group(uint64(i))
				last, err := g.LastIndex()
				if err != nil || last < before[i] {
					t.Fatalf("group %d ends at %d (%v), but %d was acknowledged", i, last, err, before[i])
				}
				want(t, g, min(1, last), last)
			}
		})
	}
}

// killed returns a log as kill -9 leaves it after n records of the given size.
func killed(t *testing.T, n uint64, size int, sealed bool) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewMem()
	l := open(t, "log", Options{FS: fs, MemTableBytes: 8 << 20})
	store(t, l.Group(1), 1, n, size)
	if sealed {
		if err := l.promise(); err != nil {
			t.Fatal(err)
		}
	}
	return clone(t, fs)
}

func clone(t *testing.T, fs vfs.FS) *vfs.MemFS {
	t.Helper()
	to := vfs.NewMem()
	if _, err := vfs.Clone(fs, to, "log", "log"); err != nil {
		t.Fatal(err)
	}
	return to
}

// newest returns the path of the newest file whose name has a prefix and a suffix.
func newest(t *testing.T, fs vfs.FS, prefix, suffix string) string {
	t.Helper()
	names, err := fs.List("log")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for _, name := range slices.Backward(names) {
		if strings.HasPrefix(name, prefix) && strings.HasSuffix(name, suffix) {
			return fs.PathJoin("log", name)
		}
	}
	t.Fatalf("no file %s*%s in %q", prefix, suffix, names)
	return ""
}

func change(t *testing.T, fs vfs.FS, path string, change func([]byte) []byte) {
	t.Helper()
	data, err := readFile(fs, path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(change(data)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// newestWAL parses the newest write-ahead log.
func newestWAL(t *testing.T, fs vfs.FS) chunkFile {
	t.Helper()
	path := newest(t, fs, "", ".log")
	data, err := readFile(fs, path)
	if err != nil {
		t.Fatal(err)
	}
	num, _, _ := wal.ParseLogFilename(fs.PathBase(path))
	return chunkFile{data: data, num: uint32(num)}
}

// reopen opens a copy of a log after one change to its newest write-ahead log, and
// returns the last index, or Open's error.
func reopen(t *testing.T, fs vfs.FS, damage func([]byte) []byte) (uint64, error) {
	t.Helper()
	broken := clone(t, fs)
	path := newest(t, broken, "", ".log")
	change(t, broken, path, damage)
	l, err := Open("log", Options{FS: broken, OnFatal: func(error) {}, MemTableBytes: 8 << 20})
	if err != nil {
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "offset") {
			t.Fatalf("the error does not say what and where: %v", err)
		}
		return 0, err
	}
	defer l.Close()
	last, err := l.Group(1).LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	want(t, l.Group(1), min(1, last), last)
	return last, nil
}

// TestDamageInTheMiddleStopsOpen flips one bit anywhere in the log: whatever record it
// hits, none that was acknowledged may be lost in silence.
func TestDamageInTheMiddleStopsOpen(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		records uint64
		size    int
	}{{40, 100}, {30, 5_000}, {12, 300_000}} {
		t.Run(fmt.Sprintf("%d of %d bytes", c.records, c.size), func(t *testing.T) {
			t.Parallel()
			for _, sealed := range []bool{false, true} {
				fs := killed(t, c.records, c.size, sealed)
				end := newestWAL(t, fs).records(func([]byte) {})
				lost, stopped := 0, 0
				rng := rand.New(rand.NewPCG(1, c.records))
				for try := range 60 {
					at := rng.IntN(end)
					if try < 20 {
						at = try // the first record
					}
					last, err := reopen(t, fs, func(wal []byte) []byte {
						wal[at] ^= 1 << rng.IntN(8)
						return wal
					})
					switch {
					case err != nil:
						stopped++
					case last == c.records:
					case last == c.records-1 && !sealed:
						lost++ // the last record, which nothing came after
					default:
						t.Fatalf("flip at %d of %d: the log ends at %d of %d in silence", at, end, last, c.records)
					}
				}
				t.Logf("sealed %v: %d flips stopped Open, %d lost the last record", sealed, stopped, lost)
				if stopped < 20 {
					t.Errorf("only %d of 60 flips were noticed", stopped)
				}
			}
		})
	}
}

// TestTornTailIsDropped cuts the newest file anywhere, or fills its end with zeros or
// noise: what is left of it is a beginning of the log, never one with a gap.
func TestTornTailIsDropped(t *testing.T) {
	t.Parallel()
	const records = 60
	fs := killed(t, records, 3_000, false)
	end := newestWAL(t, fs).records(func([]byte) {})
	lastStart := end - 3_000
	for at := range 40 {
		cut := end - at*at*100
		if cut < 0 {
			break
		}
		if _, err := reopen(t, fs, func(wal []byte) []byte { return wal[:cut] }); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
	rng := rand.New(rand.NewPCG(5, 5))
	for range 20 {
		from := lastStart + rng.IntN(3_000)
		last, err := reopen(t, fs, func(wal []byte) []byte {
			for i := from; i < end; i++ {
				wal[i] = byte(rng.Uint32())
			}
			return wal
		})
		if err != nil || last != records-1 {
			t.Fatalf("noise from %d to %d: ends at %d, %v", from, end, last, err)
		}
	}
}

func TestDamagedManifestStopsOpen(t *testing.T) {
	t.Parallel()
	mem := vfs.NewMem()
	l := open(t, "log", Options{FS: mem, MemTableBytes: 1 << 20})
	store(t, l.Group(1), 1, 60, 64<<10)
	if err := l.db.Flush(); err != nil { // its record in the manifest follows the one damaged below
		t.Fatal(err)
	}
	fs := clone(t, mem)
	path := newest(t, fs, "MANIFEST-", "")
	change(t, fs, path, func(b []byte) []byte { b[8] ^= 4; return b })
	if _, err := Open("log", Options{FS: fs}); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestDamagedTableIsNoticed(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	l := open(t, "log", Options{FS: fs})
	store(t, l.Group(1), 1, 100, 1000)
	if err := l.db.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	change(t, fs, newest(t, fs, "", ".sst"), func(b []byte) []byte { b[len(b)/2] ^= 16; return b })

	var fatal atomic.Pointer[error]
	l, err := Open("log", Options{FS: fs, OnFatal: func(err error) { fatal.Store(&err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := l.Group(1)
	if err := g.Check(0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("check: %v", err)
	}
	damaged := 0
	for i := uint64(1); i <= 100; i++ {
		var log raft.Log
		if err := g.GetLog(i, &log); err != nil {
			damaged++
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("index %d: %v", i, err)
			}
		}
	}
	if damaged == 0 {
		t.Error("every record was served")
	}
}

func TestDamagedRecordIsNoticed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir, Options{})
	g := l.Group(7)
	store(t, g, 1, 3, 100)
	v, closer, err := l.db.Get(logKey(7, 2))
	if err != nil {
		t.Fatal(err)
	}
	bad := slices.Clone(v)
	closer.Close()
	if err := l.db.Set(logKey(7, 3), bad, pebble.Sync); err != nil { // a good record in the wrong place
		t.Fatal(err)
	}
	var log raft.Log
	err = g.GetLog(3, &log)
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "group 7 index 3") || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v", err)
	}
	if err := l.db.Delete(logKey(7, 2), pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if err := g.GetLog(2, &log); !errors.Is(err, ErrCorrupt) {
		t.Errorf("lost record: %v", err)
	}
	if err := g.Check(1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("check: %v", err)
	}
}

// brokenFS fails or blocks the fsyncs of the write-ahead log once it is told to.
type brokenFS struct {
	vfs.FS
	sync *atomic.Pointer[func() error]
}

func (fs brokenFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, c)
	if err != nil || !strings.HasSuffix(name, ".log") {
		return f, err
	}
	return brokenFile{f, fs.sync}, nil
}

type brokenFile struct {
	vfs.File
	sync *atomic.Pointer[func() error]
}

func (f brokenFile) SyncData() error {
	if broken := f.sync.Load(); broken != nil {
		return (*broken)()
	}
	return f.File.SyncData()
}

func TestFailedFsyncEndsTheLog(t *testing.T) {
	t.Parallel()
	var sync atomic.Pointer[func() error]
	var calls atomic.Int32
	l, err := Open("log", Options{
		FS:      brokenFS{vfs.NewMem(), &sync},
		OnFatal: func(error) { calls.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := l.Group(1)
	store(t, g, 1, 3, 10)

	boom := errors.New("input/output error")
	fail := func() error { return boom }
	sync.Store(&fail)
	if err := g.StoreLog(entry(4, 10)); err == nil || !strings.Contains(err.Error(), boom.Error()) {
		t.Errorf("got %v", err)
	}
	sync.Store(nil) // a second fsync might say yes although the pages are gone
	if err := g.StoreLog(entry(4, 10)); err == nil {
		t.Error("the log went on after a failed fsync")
	}
	if err := g.SetUint64([]byte("CurrentTerm"), 4); err == nil {
		t.Error("a term was stored after a failed fsync")
	}
	if last, _ := g.LastIndex(); last != 3 || calls.Load() != 1 {
		t.Errorf("last index %d, %d calls of OnFatal", last, calls.Load())
	}
}

func TestHangingFsyncEndsTheLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var sync atomic.Pointer[func() error]
		fatal := make(chan error, 1)
		l, err := Open("log", Options{
			FS:      brokenFS{vfs.NewMem(), &sync},
			OnFatal: func(err error) { fatal <- err },
		})
		if err != nil {
			t.Fatal(err)
		}
		g := l.Group(1)
		store(t, g, 1, 3, 10)

		wake := make(chan struct{})
		hang := func() error { <-wake; return nil }
		sync.Store(&hang)
		start := time.Now()
		done := make(chan error)
		go func() { done <- g.StoreLog(entry(4, 10)) }()
		if err := <-fatal; !errors.Is(err, ErrStalled) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took < 10*time.Second || took > 15*time.Second {
			t.Errorf("noticed after %v", took)
		}
		close(wake)
		if err := <-done; !errors.Is(err, ErrStalled) {
			t.Errorf("the append that hung: %v", err)
		}
		l.Close()
	})
}

// TestPauseIsNoHang: an operation that looks slow once may only have been under way while the
// process was stopped.
func TestPauseIsNoHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var sync atomic.Pointer[func() error]
		l, err := Open("log", Options{
			FS:      brokenFS{vfs.NewMem(), &sync},
			OnFatal: func(err error) { t.Error(err) },
		})
		if err != nil {
			t.Fatal(err)
		}
		g := l.Group(1)
		slow := func() error { time.Sleep(11900 * time.Millisecond); return nil }
		sync.Store(&slow)
		if err := errors.Join(g.StoreLog(entry(1, 10)), g.SetUint64([]byte("CurrentTerm"), 4)); err != nil {
			t.Error(err)
		}
		sync.Store(nil)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestHangingVoteEndsTheLog: a term or a vote is written with the same deadline.
func TestHangingVoteEndsTheLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var sync atomic.Pointer[func() error]
		fatal := make(chan error, 1)
		l, err := Open("log", Options{
			FS:      brokenFS{vfs.NewMem(), &sync},
			OnFatal: func(err error) { fatal <- err },
		})
		if err != nil {
			t.Fatal(err)
		}
		wake := make(chan struct{})
		hang := func() error { <-wake; return nil }
		sync.Store(&hang)
		done := make(chan error)
		go func() { done <- l.Group(1).SetUint64([]byte("CurrentTerm"), 7) }()
		if err := <-fatal; !errors.Is(err, ErrStalled) {
			t.Errorf("got %v", err)
		}
		close(wake)
		if err := <-done; !errors.Is(err, ErrStalled) {
			t.Errorf("the write that hung: %v", err)
		}
		l.Close()
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, groups := range []int{1, 32} {
		b.Run(fmt.Sprintf("groups=%d", groups), func(b *testing.B) {
			l := open(b, b.TempDir(), Options{})
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for i := range groups {
				wg.Go(func() {
					g := l.Group(uint64(i))
					for index := uint64(1); next.Add(1) <= int64(b.N); index++ {
						if err := g.StoreLog(entry(index, 200)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// TestClear deletes a group's log and one of its values, which a power cut does not undo.
func TestClear(t *testing.T) {
	t.Parallel()
	fs := vfs.NewCrashableMem()
	l := open(t, "log", Options{FS: fs})
	g := l.Group(5)
	store(t, g, 1, 20, 100)
	store(t, l.Group(6), 1, 3, 100)
	if err := errors.Join(g.SetUint64([]byte("CurrentTerm"), 9), g.SetUint64([]byte("gone"), 1), g.Clear([]byte("gone"))); err != nil {
		t.Fatal(err)
	}
	check := func(l *Log) {
		t.Helper()
		want(t, l.Group(5), 0, 0)
		want(t, l.Group(6), 1, 3)
		term, err1 := l.Group(5).GetUint64([]byte("CurrentTerm"))
		gone, err2 := l.Group(5).GetUint64([]byte("gone"))
		if term != 9 || gone != 0 || err1 != nil || err2 != nil {
			t.Errorf("values are %d, %d, %v, %v", term, gone, err1, err2)
		}
	}
	check(l)
	crashed := open(t, "log", Options{FS: fs.CrashClone(vfs.CrashCloneCfg{})})
	check(crashed)
	store(t, crashed.Group(5), 7, 8, 100)
	want(t, crashed.Group(5), 7, 8)
}
