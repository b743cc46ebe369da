package replica

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
)

// A disk that hangs is worse than one that fails: the node goes on to send heartbeats, so
// that nobody else takes over, and serves nothing. Every write to the log has a deadline
// (raftlog), and so has every other one that a replica waits for. Over it the node gives up.
const (
	diskBytesPerSecond = 1 << 20 // what a disk that we put up with writes at least
	deadlineSlices     = 10
)

// within runs f, which writes about so many bytes, and ends the node if it takes too long.
func (r *Replica) within(what string, bytes int64, f func() error) error {
	limit := r.cfg.DiskDeadline + time.Duration(bytes/diskBytesPerSecond)*time.Second
	defer after(limit, func() {
		r.fail(fmt.Errorf("%w: to %s takes longer than %s", raftlog.ErrStalled, what, limit))
	})()
	return f()
}

// after calls expired unless it is stopped before limit has passed. It takes several
// timers after one another: when a process goes on that was stopped for a minute, one of
// them has run out, but it is not the disk's fault.
func after(limit time.Duration, expired func()) (stop func()) {
	w := &watchdog{slice: limit / deadlineSlices, expired: expired}
	w.timer.Store(time.AfterFunc(w.slice, w.bite))
	return w.stop
}

type watchdog struct {
	slice   time.Duration
	expired func()
	slices  int // passed; used by one timer at a time
	stopped atomic.Bool
	timer   atomic.Pointer[time.Timer]
}

func (w *watchdog) bite() {
	w.slices++
	switch {
	case w.stopped.Load():
	case w.slices >= deadlineSlices:
		w.expired()
	default:
		w.timer.Store(time.AfterFunc(w.slice, w.bite))
		if w.stopped.Load() { // and the timer was not seen
			w.timer.Load().Stop()
		}
	}
}

func (w *watchdog) stop() {
	w.stopped.Store(true)
	w.timer.Load().Stop()
}

// flush makes the applied state durable. One caller at a time writes the state's file, and
// only its own time is taken.
func (r *Replica) flush(f func() error) error {
	r.flushing.Lock()
	defer r.flushing.Unlock()
	bytes, _ := r.cfg.Machine.Unflushed()
	return r.within("flush the state", int64(bytes), f)
}

// A watchedSink is a [sink] whose writes have a deadline.
type watchedSink struct{ *sink }

var _ raft.SnapshotSink = watchedSink{}

func (s watchedSink) Write(p []byte) (n int, err error) {
	err = s.snapshots.replica.within("write a snapshot", int64(len(p)), func() error {
		n, err = s.sink.Write(p)
		return err
	})
	return n, err
}

func (s watchedSink) Close() error {
	return s.snapshots.replica.within("close a snapshot", s.meta.Size, s.sink.Close)
}
