// Package raftlog is the node's one log engine: the Raft logs, terms and votes of
// all groups in one Pebble instance, with one write-ahead log, so that one fsync
// serves the appends of many groups. It promises:
//
//   - what StoreLogs, Set or a deletion of a tail has returned nil for is on disk;
//   - a record is returned as it was written or not at all: each carries a CRC-32C
//     over its group, index and content, which is checked whenever it is read;
//   - a record that was torn by a crash is dropped silently, together with
//     everything after it, none of which had been acknowledged; a damaged record that
//     had been acknowledged stops [Open] with the name of the file and the offset;
//   - after the first failed or hanging write or fsync nothing is written any more:
//     nobody knows what is on disk, so [Options.OnFatal] ends the process.
//
// Rows are ordered by group, then kind, then index:
//
//	group u64 | 'l' | index u64  ->  a log record (record.go)
//	group u64 | 's' | key        ->  a stable value: term, vote
//
// Pebble's own detection of damage in the write-ahead log is not enough for us;
// verify.go says why and what is done instead.
package raftlog

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
)

// Options says how a [Log] works. Zero values mean the defaults given.
type Options struct {
	Logger *slog.Logger // default: discard

	// OnFatal is called once, with the reason, when the log cannot go on: a write or
	// an fsync failed, or hangs for longer than WriteDeadline (then the error is
	// [ErrStalled]). It may be called from any goroutine. If it returns, every later
	// operation fails with the same error. The default ends the process with status 1.
	OnFatal func(error)

	// WriteDeadline bounds one write or fsync of a file; default 10 s.
	WriteDeadline time.Duration

	// SlowFsync is how long an fsync takes on a disk that [Log.Slow] calls slow; default 50 ms.
	SlowFsync time.Duration

	// MemTableBytes is how much of the log is kept in memory, and in the write-ahead
	// log, before it is written to a table; default 64 MiB.
	MemTableBytes int

	// FS is the file system; default: the disk. Tests cut its power.
	FS vfs.FS
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.OnFatal == nil {
		o.OnFatal = func(error) { os.Exit(1) }
	}
	if o.WriteDeadline == 0 {
		o.WriteDeadline = 10 * time.Second
	}
	if o.SlowFsync == 0 {
		o.SlowFsync = 50 * time.Millisecond
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = 64 << 20
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	return o
}

// Errors to compare with errors.Is.
var (
	// ErrInUse means that another process, or another Log, has the directory open.
	ErrInUse = errors.New("in use by another process")
	// ErrCorrupt means that bytes on disk are not those that were written.
	ErrCorrupt = errors.New("corrupt")
	// ErrStalled means that the disk has not answered for too long.
	ErrStalled = errors.New("the disk does not answer")
)

// sameOperation is how exactly it is known when an operation began.
const sameOperation = 100 * time.Millisecond

// maxSlow bounds how many slow operations are remembered.
const maxSlow = 100

// A Log is one directory with the logs of many groups. Its methods may be called
// from any goroutine.
type Log struct {
	dir     string
	opts    Options
	db      *pebble.DB
	lock    *pebble.Lock
	watch   interface{ Close() error } // the watchdog over the file system
	metrics *metrics

	fatal   sync.Once
	failure atomic.Pointer[error] // why nothing is written any more

	durable  atomic.Uint64 // sequence number below which every record is known to be on disk
	promised atomic.Uint64 // the highest such number that a record on disk states

	sealer sync.WaitGroup // the goroutine of seal, stopped by Close
	stop   chan struct{}

	mu     sync.Mutex // guards what follows
	groups map[uint64]*Group
	slow   map[string]time.Time // when an operation began that was slow when last looked at
	closed bool
}

// Open opens the log in a directory, creating it if there is none. The error is
// [ErrInUse], or [ErrCorrupt] with the name of the damaged file and the offset.
func Open(dir string, o Options) (*Log, error) {
	o = o.withDefaults()
	l := &Log{
		dir:     dir,
		opts:    o,
		metrics: newMetrics(o.SlowFsync),
		groups:  make(map[uint64]*Group),
		slow:    make(map[string]time.Time),
		stop:    make(chan struct{}),
	}
	watched, watch := vfs.WithDiskHealthChecks(o.FS, o.WriteDeadline, nil, l.stalled)
	l.watch = watch
	fs := measuredFS{watched, l.metrics}
	if err := l.open(fs); err != nil {
		if l.lock != nil {
			err = errors.Join(err, l.lock.Close())
		}
		return nil, fmt.Errorf("open log %s: %w", dir, errors.Join(err, watch.Close()))
	}
	l.metrics.observe(l.db)
	l.sealer.Go(l.seal)
	return l, nil
}

func (l *Log) open(fs vfs.FS) (err error) {
	if err := fs.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	lock, err := pebble.LockDirectory(l.dir, fs)
	if err != nil {
		var path *os.PathError // the lock file cannot be made
		if errors.As(err, &path) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrInUse, err)
	}
	l.lock = lock
	if err := verify(fs, l.dir); err != nil {
		return err
	}
	// Pebble panics on some kinds of damage; whatever it meets while it opens its
	// files is a reason not to start.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, p)
		}
	}()
	cache := pebble.NewCache(16 << 20)
	defer cache.Unref()
	l.db, err = pebble.Open(l.dir, l.pebbleOptions(fs, cache))
	return corrupt(err)
}

// pebbleOptions tunes Pebble for a log: rows are written once, in order, read rarely,
// and deleted in whole ranges soon after, mostly before they have left memory.
func (l *Log) pebbleOptions(fs vfs.FS, cache *pebble.Cache) *pebble.Options {
	o := &pebble.Options{
		FS:                          fs,
		Lock:                        l.lock,
		Cache:                       cache,
		Logger:                      pebbleLogger{l},
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                uint64(l.opts.MemTableBytes),
		MemTableStopWritesThreshold: 4,  // so many may wait for the disk before appends do
		L0CompactionThreshold:       8,  // tables do not overlap in index, so reads do not suffer,
		L0StopWritesThreshold:       64, // and the later a compaction the more was deleted before
		LBaseMaxBytes:               512 << 20,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },
		BytesPerSync:                1 << 20,
		MaxOpenFiles:                512,
	}
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	for i := range o.TargetFileSizes {
		o.TargetFileSizes[i] = 64 << 20
	}
	o.EventListener = &pebble.EventListener{
		// A flush or a compaction that failed would be tried again for ever.
		BackgroundError: func(err error) { l.fail(fmt.Errorf("write log tables: %w", err)) },
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			l.fail(fmt.Errorf("log table %s: %w", i.Path, corrupt(i.Details)))
		},
	}
	return o
}

// Group returns the log of one group. Every call with the same id returns the same
// Group.
func (l *Log) Group(id uint64) *Group {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.groups[id]
	if g == nil {
		g = newGroup(l, id)
		l.groups[id] = g
	}
	return g
}

// Collectors returns the log's metrics.
func (l *Log) Collectors() []prometheus.Collector { return l.metrics.collectors() }

// Err returns nil, or why the log does not work any more.
func (l *Log) Err() error {
	if err := l.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Close closes the log. No group may be used any more. It may be called twice.
func (l *Log) Close() error {
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return nil
	}
	close(l.stop)
	l.sealer.Wait()
	failed := l.Err() != nil
	err := error(nil)
	if !failed {
		err = l.promise()
	}
	err = errors.Join(err, l.closeDB(), l.lock.Close(), l.watch.Close())
	if err != nil && !failed { // otherwise OnFatal was told the reason
		return fmt.Errorf("close log %s: %w", l.dir, err)
	}
	return nil
}

// closeDB closes Pebble, which may panic after an error.
func (l *Log) closeDB() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("log engine: %v", p)
		}
	}()
	return l.db.Close()
}

// commit writes a batch and returns when it is on disk, or at once if sync is false.
func (l *Log) commit(b *pebble.Batch, sync bool) error {
	if err := l.Err(); err != nil {
		return err
	}
	opts := pebble.NoSync
	if sync {
		opts = pebble.Sync
	}
	if err := l.db.Apply(b, opts); err != nil {
		l.fail(fmt.Errorf("append to log %s: %w", l.dir, err))
	}
	if err := l.Err(); err != nil { // the only report of a failed append that Pebble makes
		return err
	}
	if sync {
		raise(&l.durable, uint64(b.SeqNum())+uint64(b.Count()))
	}
	return nil
}

// seal promises the last records of a busy time once it is over, so that damage to
// them is told from a torn tail, too.
func (l *Log) seal() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		last := l.durable.Load()
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		if l.durable.Load() != last {
			continue // the next append will do it
		}
		if err := l.promise(); err != nil {
			return
		}
	}
}

// promise writes a record whose only content is that those before it are on disk.
func (l *Log) promise() error {
	if l.durable.Load() == l.promised.Load() {
		return nil
	}
	b := l.db.NewBatch()
	defer b.Close()
	l.addPromise(b)
	if err := l.commit(b, true); err != nil {
		return err
	}
	raise(&l.promised, l.durable.Load())
	return nil
}

// addPromise makes a batch say which records were on disk before it was written. It
// must be the batch's first operation.
func (l *Log) addPromise(b *pebble.Batch) {
	durable := l.durable.Load()
	_ = b.LogData(appendPromise(make([]byte, 0, promiseSize), durable), nil) // its error is always nil
}

// fail ends the life of the log.
func (l *Log) fail(err error) {
	l.fatal.Do(func() {
		l.failure.Store(&err)
		l.opts.Logger.Error("the log cannot go on", slog.String("dir", l.dir), slog.Any("error", err))
		l.opts.OnFatal(err)
	})
}

// stalled is told again and again, every other second, of an operation that takes too long. The
// first time is not enough: when a process goes on that was stopped for a minute, every
// operation that was under way looks as if it had taken as long.
func (l *Log) stalled(i vfs.DiskSlowInfo) {
	op, began := i.OpType.String()+" "+i.Path, time.Now().Add(-i.Duration)
	l.mu.Lock()
	before, told := l.slow[op]
	if !told && len(l.slow) >= maxSlow {
		clear(l.slow) // of former times, or else they will be told again
	}
	l.slow[op] = began
	l.mu.Unlock()
	if !told || began.Sub(before).Abs() > sameOperation {
		return
	}
	l.fail(fmt.Errorf("%w: %s of %s takes longer than %s", ErrStalled, i.OpType, i.Path, l.opts.WriteDeadline))
}

// pebbleLogger is what Pebble says, in one line.
type pebbleLogger struct{ log *Log }

func (pebbleLogger) Infof(string, ...any) {}

func (p pebbleLogger) Errorf(format string, args ...any) {
	p.log.opts.Logger.Error("log engine", slog.String("dir", p.log.dir), slog.String("error", fmt.Sprintf(format, args...)))
}

func (p pebbleLogger) Fatalf(format string, args ...any) {
	p.log.fail(fmt.Errorf("log engine: "+format, args...))
}

// corrupt marks what Pebble calls corruption as [ErrCorrupt], in one line.
func corrupt(err error) error {
	if pebble.IsCorruptionError(err) && !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%w: %s", ErrCorrupt, strings.SplitN(err.Error(), "\n", 2)[0])
	}
	return err
}

// raise sets a to n unless it is higher already.
func raise(a *atomic.Uint64, n uint64) {
	for {
		old := a.Load()
		if n <= old || a.CompareAndSwap(old, n) {
			return
		}
	}
}
