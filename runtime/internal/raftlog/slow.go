package raftlog

import (
	"log/slog"
	"sync"
	"time"
)

// A leader writes its own log before it sends anything to the others, so a slow disk of
// the leader is in every commit, and a slow one of a follower in none.

// A pace tells whether the fsyncs of the last seconds were slow: half of them took longer
// than limit. They are not slow any more when half of them take less than half of limit, or
// when there were none for so long that nobody knows.
type pace struct {
	limit time.Duration

	mu      sync.Mutex // guards what follows
	seconds [paceSeconds]paceSecond
	last    int64 // the second of the last fsync
	slow    bool
}

// A paceSecond counts the fsyncs that ended in one second.
type paceSecond struct {
	second           int64
	fast, fair, slow int // below half of limit, below limit, above it
}

const (
	paceSeconds = 10 // how long fsyncs must be slow
	paceLeast   = 5  // so many of them, at least
	paceForgets = 60 // seconds without any fsync after which the past does not count
)

// observe notes an fsync that took so long and ended in a second.
func (p *pace) observe(second int64, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = second
	s := &p.seconds[second%paceSeconds]
	if s.second != second {
		*s = paceSecond{second: second}
	}
	switch {
	case took > p.limit:
		s.slow++
	case took > p.limit/2:
		s.fair++
	default:
		s.fast++
	}
}

// judge decides anew, and returns whether that has changed.
func (p *pace) judge(second int64) (slow, changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var sum paceSecond
	first := second
	for _, s := range p.seconds {
		if n := s.fast + s.fair + s.slow; n == 0 || s.second <= second-paceSeconds {
			continue
		}
		sum.fast, sum.fair, sum.slow = sum.fast+s.fast, sum.fair+s.fair, sum.slow+s.slow
		first = min(first, s.second)
	}
	n := sum.fast + sum.fair + sum.slow
	before := p.slow
	switch {
	case second-p.last > paceForgets:
		p.slow = false
	case n < paceLeast || second-first < paceSeconds-2: // not enough to tell
	case sum.slow*2 > n:
		p.slow = true
	case sum.fast*2 > n:
		p.slow = false
	}
	return p.slow, p.slow != before
}

// Slow reports whether the log's disk is slow: over ten seconds, half of the fsyncs took more
// than Options.SlowFsync. Then another node should lead. It may be asked once in a
// while from any goroutine.
func (l *Log) Slow() bool {
	slow, changed := l.metrics.pace.judge(l.metrics.second())
	switch {
	case changed && slow:
		l.opts.Logger.Warn("the log's disk is slow", slog.String("dir", l.dir), slog.Duration("fsync_longer_than", l.opts.SlowFsync))
	case changed:
		l.opts.Logger.Info("the log's disk is not slow any more", slog.String("dir", l.dir))
	}
	return slow
}
