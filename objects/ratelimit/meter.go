package ratelimit

import (
	"slices"
	"time"
)

// A Rule says how much is allowed: Limit in any Window, as Algorithm counts it.
type Rule struct {
	Algorithm Algorithm     `json:"algorithm,omitempty"`
	Limit     int64         `json:"limit,omitempty"`
	Window    time.Duration `json:"window,omitempty"`
}

// An Algorithm is a way of counting.
type Algorithm string

const (
	// GCRA lets a burst of the whole limit through and then one request every
	// window/limit. In any window that is at most twice the limit.
	GCRA Algorithm = "gcra"
	// TokenBucket is GCRA seen from the other side, tokens instead of time. The two admit
	// the same requests, so one meter serves both names.
	TokenBucket Algorithm = "token-bucket"
	// SlidingWindow lets through at most the limit in any window whatever, wherever it
	// begins. It counts in sixtieths of the window, so room comes back up to a sixtieth late.
	SlidingWindow Algorithm = "sliding-window"
	// FixedWindow starts at 0 with every window of the clock. It is the cheapest to explain;
	// across a boundary it lets twice the limit through.
	FixedWindow Algorithm = "fixed-window"
)

// A Verdict answers one check. Times are in seconds.
type Verdict struct {
	Allowed    bool    `json:"allowed"`
	Limit      int64   `json:"limit"`
	Remaining  int64   `json:"remaining"`
	ResetAfter float64 `json:"resetAfter"` // until the whole limit is free again, if nobody asks
	RetryAfter float64 `json:"retryAfter"` // until the same request would be allowed; 0 if it was
}

// state is what a limiter remembers. Times are Unix microseconds.
type state struct {
	Rule  Rule    `json:"rule"`
	At    int64   `json:"at"`              // when it was last looked at
	Spent int64   `json:"spent"`           // in the algorithm's own unit
	Slots []int64 `json:"slots,omitempty"` // of windows: what was spent in each part of one, a ring
}

// A meter counts: pure functions over a state that is already at its time. All but age leave
// At alone.
type meter interface {
	age(s *state, now int64)         // forgets what is over at now
	spend(s *state, cost int64)      // takes cost
	used(s *state) int64             // is the part of the limit that is not free
	wait(s *state, cost int64) int64 // is how long until cost fits; 0 if it fits now
}

func (a Algorithm) meter() meter {
	switch a {
	case SlidingWindow:
		return ring{parts: 60, kept: 61} // as many as a window touches
	case FixedWindow:
		return ring{parts: 1, kept: 1}
	default:
		return leaky{}
	}
}

// check asks whether cost fits under the rule at a time, and takes it if it does.
func (s *state) check(rule Rule, cost, now int64) Verdict {
	m := s.follow(rule, now)
	wait := m.wait(s, cost)
	if wait == 0 {
		m.spend(s, cost)
	}
	return s.verdict(m, wait)
}

// peek is check without taking anything.
func (s *state) peek(rule Rule, cost, now int64) Verdict {
	c := s.clone()
	m := c.follow(rule, now)
	return c.verdict(m, m.wait(c, cost))
}

// busy is how long it takes until nothing of the past matters any more; 0 if it does
// not matter now.
func (s *state) busy(now int64) time.Duration {
	if s.Rule.Limit == 0 {
		return 0
	}
	c := s.clone()
	m := c.follow(c.Rule, now)
	return time.Duration(m.wait(c, c.Rule.Limit)) * time.Microsecond
}

func (s *state) clone() *state {
	c := *s
	c.Slots = slices.Clone(s.Slots)
	return &c
}

func (s *state) verdict(m meter, wait int64) Verdict {
	return Verdict{
		Allowed:    wait == 0,
		Limit:      s.Rule.Limit,
		Remaining:  s.Rule.Limit - m.used(s),
		ResetAfter: float64(m.wait(s, s.Rule.Limit)) / 1e6,
		RetryAfter: float64(wait) / 1e6,
	}
}

// follow brings the state to a time and under a rule. When the rule has changed, or the
// clock was set back, what was spent stays spent, up to the limit, as if it had been
// spent just now.
func (s *state) follow(rule Rule, now int64) meter {
	m := rule.Algorithm.meter()
	if s.Rule == rule && s.At <= now {
		m.age(s, now)
		s.At = now
		return m
	}
	var used int64
	if s.Rule.Limit > 0 {
		old := s.Rule.Algorithm.meter()
		if s.At <= now {
			old.age(s, now)
		}
		used = old.used(s)
	}
	*s = state{Rule: rule, At: now}
	m.age(s, now)
	if used > 0 {
		m.spend(s, min(used, rule.Limit))
	}
	return m
}

// leaky is GCRA and the token bucket. One unit of the limit weighs as much as the window
// has microseconds, and in every microsecond as many leak away as the limit is: so all is
// whole numbers, and exact.
type leaky struct{}

func (leaky) age(s *state, now int64) {
	elapsed := min(now-s.At, s.window())
	s.Spent = max(0, s.Spent-elapsed*s.Rule.Limit)
}

func (leaky) spend(s *state, cost int64) { s.Spent += cost * s.window() }

func (leaky) used(s *state) int64 { return ceil(s.Spent, s.window()) }

func (leaky) wait(s *state, cost int64) int64 {
	over := s.Spent - (s.Rule.Limit-cost)*s.window()
	return ceil(max(0, over), s.Rule.Limit)
}

// ring counts what was spent in each part of a window, and keeps the last few. They count in
// full as long as they are kept: it can refuse a little early, never allow too much.
type ring struct{ parts, kept int64 }

func (r ring) width(s *state) int64 { return ceil(s.window(), r.parts) }

func (r ring) age(s *state, now int64) {
	if s.Slots == nil {
		s.Slots = make([]int64, r.kept)
	}
	width := r.width(s)
	last := now / width
	for i := max(s.At/width, last-r.kept) + 1; i <= last; i++ {
		s.Spent -= s.Slots[i%r.kept]
		s.Slots[i%r.kept] = 0
	}
}

func (r ring) spend(s *state, cost int64) {
	s.Slots[s.At/r.width(s)%r.kept] += cost
	s.Spent += cost
}

func (ring) used(s *state) int64 { return s.Spent }

func (r ring) wait(s *state, cost int64) int64 {
	over := s.Spent + cost - s.Rule.Limit
	if over <= 0 {
		return 0
	}
	width := r.width(s)
	oldest := s.At/width - r.kept
	for over > 0 {
		oldest++
		over -= s.Slots[oldest%r.kept]
	}
	return (oldest+r.kept)*width - s.At
}

func (s *state) window() int64 { return s.Rule.Window.Microseconds() }

// ceil is a/b, rounded up, for numbers that are not negative.
func ceil(a, b int64) int64 {
	if a%b == 0 {
		return a / b
	}
	return a/b + 1
}
