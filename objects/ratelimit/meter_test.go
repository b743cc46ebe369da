package ratelimit

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// noon is a time on a boundary of every window used here, in Unix microseconds.
const noon = int64(1_800_000_000_000_000)

func TestMeters(t *testing.T) {
	t.Parallel()
	type step struct {
		after time.Duration // since the step before
		cost  int64
		want  Verdict
	}
	yes := func(remaining int64, reset float64) Verdict {
		return Verdict{Allowed: true, Limit: 3, Remaining: remaining, ResetAfter: reset}
	}
	no := func(remaining int64, reset, retry float64) Verdict {
		return Verdict{Limit: 3, Remaining: remaining, ResetAfter: reset, RetryAfter: retry}
	}
	burstThenSpaced := []step{
		{0, 1, yes(2, 20)},
		{0, 1, yes(1, 40)},
		{0, 1, yes(0, 60)},
		{0, 1, no(0, 60, 20)},
		{19 * time.Second, 1, no(0, 41, 1)},
		{time.Second, 1, yes(0, 60)},
		{40 * time.Second, 3, no(2, 20, 20)},
		{20 * time.Second, 3, yes(0, 60)},
		{time.Hour, 2, yes(1, 40)},
	}
	for name, c := range map[string]struct {
		algorithm Algorithm
		steps     []step
	}{
		"gcra":         {GCRA, burstThenSpaced},
		"token bucket": {TokenBucket, burstThenSpaced},
		"fixed window": {FixedWindow, []step{
			{0, 1, yes(2, 60)},
			{50 * time.Second, 2, yes(0, 10)},
			{5 * time.Second, 1, no(0, 5, 5)},
			{5 * time.Second, 3, yes(0, 60)},
		}},
		"sliding window": {SlidingWindow, []step{
			{0, 1, yes(2, 61)},
			{30 * time.Second, 2, yes(0, 61)},
			{0, 1, no(0, 61, 31)},
			{30 * time.Second, 1, no(0, 31, 1)},
			{time.Second, 1, yes(0, 61)},
			{0, 3, no(0, 61, 61)},
			{61 * time.Second, 3, yes(0, 61)},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rule := Rule{Algorithm: c.algorithm, Limit: 3, Window: time.Minute}
			var s state
			now := noon
			for i, step := range c.steps {
				now += step.after.Microseconds()
				if diff := cmp.Diff(step.want, s.check(rule, step.cost, now)); diff != "" {
					t.Errorf("step %d (-want +got):\n%s", i, diff)
				}
			}
		})
	}
}

// What a client may count on, whatever it does: the promise about the past, and that the
// times in a verdict are true.
func TestMetersKeepTheirPromises(t *testing.T) {
	t.Parallel()
	type taken struct{ at, cost int64 }
	for _, algorithm := range []Algorithm{GCRA, TokenBucket, SlidingWindow, FixedWindow} {
		t.Run(string(algorithm), func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(200) {
				rng := rand.New(rand.NewPCG(seed, 7))
				rule := Rule{
					Algorithm: algorithm,
					Limit:     1 + rng.Int64N(50),
					Window:    time.Duration(1000+rng.Int64N(5_000_000)) * time.Microsecond,
				}
				window := rule.Window.Microseconds()
				most := rule.Limit
				if algorithm != SlidingWindow {
					most *= 2
				}
				var s state
				var log []taken
				now := noon + rng.Int64N(window)
				for range 400 {
					now += rng.Int64N(1 + window/(1+rng.Int64N(4*rule.Limit)))
					cost := 1 + rng.Int64N(rule.Limit)/(1+rng.Int64N(8))
					before := s.peek(rule, cost, now)
					v := s.check(rule, cost, now)
					if before.Allowed != v.Allowed || before.RetryAfter != v.RetryAfter {
						t.Fatalf("seed %d: peek said %+v, check %+v", seed, before, v)
					}
					if v.Remaining < 0 || v.Remaining > rule.Limit {
						t.Fatalf("seed %d: %+v", seed, v)
					}
					if v.Allowed {
						log = append(log, taken{now, cost})
						continue
					}
					retry := int64(v.RetryAfter*1e6 + 0.5)
					if s.peek(rule, cost, now+retry-1).Allowed || !s.peek(rule, cost, now+retry).Allowed {
						t.Fatalf("seed %d: retryAfter %d us is not the first moment", seed, retry)
					}
					reset := int64(v.ResetAfter*1e6 + 0.5)
					if r := s.peek(rule, 1, now+reset); r.Remaining != rule.Limit || r.ResetAfter != 0 {
						t.Fatalf("seed %d: after resetAfter %d us: %+v", seed, reset, r)
					}
				}
				for i, first := range log {
					var sum int64
					for _, l := range log[i:] {
						if l.at-first.at >= window {
							break
						}
						sum += l.cost
					}
					if sum > most {
						t.Fatalf("seed %d: %d of %d allowed within one window of %v", seed, sum, rule.Limit, rule.Window)
					}
				}
			}
		})
	}
}

func TestChangedRuleKeepsWhatWasSpent(t *testing.T) {
	t.Parallel()
	all := []Algorithm{GCRA, TokenBucket, SlidingWindow, FixedWindow}
	for _, from := range all {
		for _, to := range all {
			var s state
			s.check(Rule{from, 10, time.Minute}, 4, noon)
			if v := s.check(Rule{to, 20, time.Hour}, 1, noon); v.Remaining != 15 {
				t.Errorf("%s to a wider %s: %+v", from, to, v)
			}
			if v := s.check(Rule{to, 2, time.Hour}, 1, noon); v.Allowed || v.Remaining != 0 {
				t.Errorf("%s to a narrower %s: %+v", from, to, v)
			}
		}
	}
}

func TestClockSetBack(t *testing.T) {
	t.Parallel()
	for _, a := range []Algorithm{GCRA, SlidingWindow, FixedWindow} {
		rule := Rule{a, 3, time.Minute}
		var s state
		s.check(rule, 3, noon)
		back := noon - (24 * time.Hour).Microseconds()
		if v := s.check(rule, 1, back); v.Allowed || v.RetryAfter > 61 {
			t.Errorf("%s: %+v", a, v)
		}
		if v := s.check(rule, 3, back+61_000_000); !v.Allowed {
			t.Errorf("%s: a window later: %+v", a, v)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	for _, a := range []Algorithm{GCRA, SlidingWindow, FixedWindow} {
		b.Run(string(a), func(b *testing.B) {
			rule := Rule{a, 1000, time.Second}
			var s state
			now := noon
			for b.Loop() {
				now += 500
				s.check(rule, 1, now)
			}
		})
	}
}
