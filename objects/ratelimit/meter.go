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
	Slots []int64 `json:"slots,omitempty"` // of a sliding window: what was spent in each slot, a ring
}

// An algorithm is a set of pure functions over a state that is already at its time:
// all but age leave At alone.
type algorithm interface {
	age(s *state, now int64)         // forgets what is over at now
	spend(s *state, cost int64)      // takes cost
	used(s *state) int64             // is the part of the limit that is not free
	wait(s *state, cost int64) int64 // is how long until cost fits; 0 if it fits now
}

func (a Algorithm) meter() algorithm {
	switch a {
	case SlidingWindow:
		return sliding{}
	case FixedWindow:
		return fixed{}
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

func (s *state) verdict(m algorithm, wait int64) Verdict {
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
func (s *state) follow(rule Rule, now int64) algorithm {
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

// fixed counts in windows that begin at the multiples of their length.
type fixed struct{}

func (fixed) age(s *state, now int64) {
	if s.At/s.window() != now/s.window() {
		s.Spent = 0
	}
}

func (fixed) spend(s *state, cost int64) { s.Spent += cost }

func (fixed) used(s *state) int64 { return s.Spent }

func (fixed) wait(s *state, cost int64) int64 {
	if s.Spent+cost <= s.Rule.Limit {
		return 0
	}
	return s.window() - s.At%s.window()
}

// sliding keeps a ring of slots. A window touches at most windowSlots+1 of them, and all
// of these count in full: it can refuse a little early, never allow too much.
type sliding struct{}

const windowSlots = 60

func (sliding) slot(s *state, at int64) int64 { return at / ceil(s.window(), windowSlots) }

func (m sliding) age(s *state, now int64) {
	if s.Slots == nil {
		s.Slots = make([]int64, windowSlots+1)
	}
	last := m.slot(s, now)
	for i := max(m.slot(s, s.At), last-int64(len(s.Slots))) + 1; i <= last; i++ {
		old := &s.Slots[i%int64(len(s.Slots))]
		s.Spent -= *old
		*old = 0
	}
}

func (m sliding) spend(s *state, cost int64) {
	s.Slots[m.slot(s, s.At)%int64(len(s.Slots))] += cost
	s.Spent += cost
}

func (sliding) used(s *state) int64 { return s.Spent }

func (m sliding) wait(s *state, cost int64) int64 {
	over := s.Spent + cost - s.Rule.Limit
	if over <= 0 {
		return 0
	}
	n, width := int64(len(s.Slots)), ceil(s.window(), windowSlots)
	i := m.slot(s, s.At) - n
	for over > 0 {
		i++
		over -= s.Slots[i%n]
	}
	return (i+n)*width - s.At
}

func (s *state) window() int64 { return s.Rule.Window.Microseconds() }

// ceil is a/b, rounded up, for numbers that are not negative.
func ceil(a, b int64) int64 {
	if a%b == 0 {
		return a / b
	}
	return a/b + 1
}
