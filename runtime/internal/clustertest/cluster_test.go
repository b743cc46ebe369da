package clustertest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/internal/clustertest"
	"github.com/holdfast-run/holdfast/objects/counter"
)

func TestStory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c := clustertest.New(t, clustertest.Config{Classes: []durable.Definition{counter.Definition}})
		t.Logf("formed in %v", time.Since(start))
		add := func(m *clustertest.Member) int64 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			start := time.Now()
			n, err := counter.Add.Call(ctx, counter.Class.Named(m.Life(), "visits"), 1)
			t.Logf("%s: %d %v after %v", m, n, err, time.Since(start))
			return n
		}
		for _, m := range c.Members() {
			add(m)
		}
		owner := c.Owner("counter", "visits")
		c.Partition(owner)
		for _, m := range c.Members() {
			if m != owner {
				add(m)
			}
		}
		c.Heal()
		add(owner)
		owner = c.Owner("counter", "visits")
		c.Crash(owner)
		add(c.Live()[0])
		c.Restart(owner)
		if n := add(owner); n != 8 {
			t.Errorf("%d", n)
		}
		c.Settle()
	})
}
