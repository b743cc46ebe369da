package shard

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// ScrubberConfig says how a [Scrubber] works. Zero values mean the defaults given.
type ScrubberConfig struct {
	Logger *slog.Logger  // default: discard
	Every  time.Duration // how often each file is read; 24 h
	Rate   int           // bytes per second; 16 MiB
	// Longest bounds the time for one file, which cannot reuse its pages while it is read: a
	// larger one is read faster; 2 min.
	Longest time.Duration
}

// A Scrubber reads the state files of a node's shards again and again, so that a bit that
// a disk has lost is found while there is still another copy of it, and not years later by
// whoever wants to read it. What it finds goes to the log and the metrics. A read of a
// damaged record fails, here as everywhere; all others go on.
type Scrubber struct {
	cfg    ScrubberConfig
	cancel context.CancelFunc
	once   sync.Once
	runs   sync.WaitGroup // the goroutine of run, stopped by Stop

	scrubs  *prometheus.CounterVec
	bytes   prometheus.Counter
	damaged prometheus.Gauge

	mu    sync.Mutex // guards the following
	files []*scrubbed
}

// scrubbed is one file in a scrubber's care.
type scrubbed struct {
	shard  *Shard
	ctx    context.Context // ends when the file leaves
	leave  context.CancelFunc
	due    time.Time // guarded by the scrubber's mu
	broken bool      // as of the last time; guarded by the scrubber's mu

	reading sync.Mutex // held while it is read
}

// Results of a scrub, as metrics name them.
const (
	scrubSound   = "sound"
	scrubDamaged = "damaged"
	scrubFailed  = "failed" // could not be read to its end
)

// NewScrubber starts a scrubber.
func NewScrubber(cfg ScrubberConfig) *Scrubber {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Every == 0 {
		cfg.Every = 24 * time.Hour
	}
	if cfg.Rate == 0 {
		cfg.Rate = 16 << 20
	}
	if cfg.Longest == 0 {
		cfg.Longest = 2 * time.Minute
	}
	s := &Scrubber{
		cfg: cfg,
		scrubs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_scrubs_total",
			Help: "State files read from beginning to end, by what was found.",
		}, []string{"result"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_scrub_bytes_total",
			Help: "Bytes of records that scrubs have read.",
		}),
		damaged: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "holdfast_scrub_damaged_shards",
			Help: "Shards whose state file was damaged when it was read last.",
		}),
	}
	for _, result := range []string{scrubSound, scrubDamaged, scrubFailed} {
		s.scrubs.WithLabelValues(result)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.runs.Go(func() { s.run(ctx) })
	return s
}

// Stop ends the scrubber, in the middle of a file if need be. It may be called twice.
func (s *Scrubber) Stop() {
	s.once.Do(s.cancel)
	s.runs.Wait()
}

// Collectors returns the metrics for registration.
func (s *Scrubber) Collectors() []prometheus.Collector {
	return []prometheus.Collector{s.scrubs, s.bytes, s.damaged}
}

// add takes a shard's file into care. When its turn comes is left to chance, so that the
// work is spread, and a node that is started every day does not read the same ones every day.
func (s *Scrubber) add(sh *Shard) (remove func()) {
	if s == nil {
		return func() {}
	}
	ctx, leave := context.WithCancel(context.Background())
	f := &scrubbed{shard: sh, ctx: ctx, leave: leave, due: time.Now().Add(rand.N(s.cfg.Every))}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = append(s.files, f)
	return func() { s.remove(f) }
}

// remove returns when the file is not being read any more.
func (s *Scrubber) remove(f *scrubbed) {
	s.mu.Lock()
	s.files = slices.DeleteFunc(s.files, func(o *scrubbed) bool { return o == f })
	s.count()
	s.mu.Unlock()
	f.leave()
	f.reading.Lock()
	defer f.reading.Unlock()
}

func (s *Scrubber) run(ctx context.Context) {
	const looks = 1000 // in the time from one scrub of a file to the next
	tick := time.NewTicker(max(s.cfg.Every/looks, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for f := s.next(); f != nil && ctx.Err() == nil; f = s.next() {
			s.scrub(ctx, f)
		}
	}
}

// next returns a file whose time has come, nil if there is none.
func (s *Scrubber) next() *scrubbed {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	i := slices.IndexFunc(s.files, func(f *scrubbed) bool { return !f.due.After(now) })
	if i < 0 {
		return nil
	}
	s.files[i].due = now.Add(s.cfg.Every)
	return s.files[i]
}

// scrub reads one file and reports what was found.
func (s *Scrubber) scrub(ctx context.Context, f *scrubbed) {
	f.reading.Lock()
	defer f.reading.Unlock()
	if f.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.ctx, cancel)() //nolint:contextcheck // the time that the file is in our care

	start := time.Now()
	records, err := s.read(ctx, f.shard.machine)
	attrs := []any{slog.Any("shard", f.shard.id), slog.Uint64("records", records), slog.Duration("took", time.Since(start))}
	result := scrubSound
	switch {
	case err == nil:
		s.cfg.Logger.Debug("scrubbed", attrs...)
	case errors.Is(err, storage.ErrCorrupt):
		result = scrubDamaged
		s.cfg.Logger.Error("the state of a shard is damaged on disk: reads of what is damaged will fail; restore it from a backup or another replica",
			append(attrs, slog.Any("error", err))...)
	case ctx.Err() != nil, errors.Is(err, fs.ErrClosed):
		return // it goes, or was just replaced by one that has been checked
	default:
		result = scrubFailed
		s.cfg.Logger.Warn("scrub", append(attrs, slog.Any("error", err))...)
	}
	s.scrubs.WithLabelValues(result).Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	f.broken = result == scrubDamaged
	s.count()
}

// count brings the number of damaged files up to date. The caller holds mu.
func (s *Scrubber) count() {
	n := 0
	for _, f := range s.files {
		if f.broken {
			n++
		}
	}
	s.damaged.Set(float64(n))
}

// read reads a file at the configured rate.
func (s *Scrubber) read(ctx context.Context, m *storage.Machine) (records uint64, err error) {
	size, err := m.Size()
	if err != nil {
		return 0, err
	}
	rate := max(float64(s.cfg.Rate), float64(size)/s.cfg.Longest.Seconds())
	timer := time.NewTimer(0)
	defer timer.Stop()
	start, total := time.Now(), 0
	return m.Scrub(func(bytes int) error {
		total += bytes
		s.bytes.Add(float64(bytes))
		timer.Reset(time.Until(start.Add(time.Duration(float64(total) / rate * float64(time.Second)))))
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}
