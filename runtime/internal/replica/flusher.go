package replica

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// FlusherConfig says when a [Flusher] flushes. Zero values mean the defaults given.
type FlusherConfig struct {
	Logger *slog.Logger  // default: discard
	Bytes  int           // flush when all replicas together have so much unflushed; 64 MiB
	After  time.Duration // flush a replica whose oldest change is so old; 10 s
	Stall  int           // hold up new commits above so much; 512 MiB
}

// A Flusher flushes the state of all replicas of a node, one at a time: the disk that
// it writes to has commits to serve.
type Flusher struct {
	cfg FlusherConfig

	mu       sync.Mutex // guards replicas and open
	replicas []*Replica
	open     chan struct{} // not nil while commits are held up; closed when they may go on

	flushing sync.Mutex // held during a flush, so that remove waits for it
	cancel   context.CancelFunc
	running  sync.WaitGroup // the goroutine of run, stopped by Stop
}

// flushTick is how often the Flusher looks around.
const flushTick = 100 * time.Millisecond

// NewFlusher starts a flusher.
func NewFlusher(cfg FlusherConfig) *Flusher {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Bytes == 0 {
		cfg.Bytes = 64 << 20
	}
	if cfg.After == 0 {
		cfg.After = 10 * time.Second
	}
	if cfg.Stall == 0 {
		cfg.Stall = 512 << 20
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &Flusher{cfg: cfg, cancel: cancel}
	f.running.Go(func() { f.run(ctx) })
	return f
}

// Stop ends the flusher. Replicas flush for the last time in their own Stop. It may be
// called twice.
func (f *Flusher) Stop() {
	f.cancel()
	f.running.Wait()
	f.hold(false)
}

func (f *Flusher) add(r *Replica) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replicas = append(f.replicas, r)
}

// remove forgets a replica, and returns when it is not being flushed any more.
func (f *Flusher) remove(r *Replica) {
	f.mu.Lock()
	f.replicas = slices.DeleteFunc(slices.Clone(f.replicas), func(o *Replica) bool { return o == r })
	f.mu.Unlock()
	f.flushing.Lock()
	defer f.flushing.Unlock()
}

func (f *Flusher) run(ctx context.Context) {
	tick := time.NewTicker(flushTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for ctx.Err() == nil && f.flushOne(ctx) {
		}
	}
}

// flushOne flushes the replica that needs it most, and returns false if none needs it.
func (f *Flusher) flushOne(ctx context.Context) bool {
	f.flushing.Lock()
	defer f.flushing.Unlock()
	r, total := f.pick()
	f.hold(total > f.cfg.Stall)
	if r == nil {
		return false
	}
	if err := r.Flush(ctx); err != nil {
		if ctx.Err() == nil {
			f.cfg.Logger.Error("flush", slog.Any("error", err))
		}
		return false
	}
	return true
}

// pick returns the replica whose oldest change is too old or, if all together have too
// much, the one that has most.
func (f *Flusher) pick() (pick *Replica, total int) {
	f.mu.Lock()
	replicas := f.replicas
	f.mu.Unlock()
	var most int
	var largest, oldest *Replica
	limit := time.Now().Add(-f.cfg.After)
	for _, r := range replicas {
		bytes, since := r.Unflushed()
		total += bytes
		if since.IsZero() {
			continue
		}
		if bytes >= most {
			largest, most = r, bytes
		}
		if !since.After(limit) {
			oldest, limit = r, since
		}
	}
	if total >= f.cfg.Bytes {
		return largest, total
	}
	return oldest, total
}

// hold makes wait wait, or not.
func (f *Flusher) hold(stall bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case stall && f.open == nil:
		f.open = make(chan struct{})
		f.cfg.Logger.Warn("commits wait for the disk: too much is not flushed")
	case !stall && f.open != nil:
		close(f.open)
		f.open = nil
	}
}

// wait returns true when commits may go on, and false if died is closed before.
func (f *Flusher) wait(died <-chan struct{}) bool {
	f.mu.Lock()
	open := f.open
	f.mu.Unlock()
	if open == nil {
		return true
	}
	select {
	case <-open:
		return true
	case <-died:
		return false
	}
}
