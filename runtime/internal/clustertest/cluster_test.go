package clustertest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/clustertest"
)

// TestStory is what the package comment tells.
func TestStory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, clustertest.Config{Classes: classes()})
		others := func(m *clustertest.Member) (others []*clustertest.Member) {
			for _, o := range c.Members() {
				if o != m {
					others = append(others, o)
				}
			}
			return others
		}
		owner := c.Owner("tally", "visits")
		add(t, owner, 1)
		c.Partition(owner)
		add(t, others(owner)[0], 2) // somebody else owns it by now
		c.Heal()
		add(t, owner, 4)
		owner = c.Owner("tally", "visits")
		c.Crash(owner)
		start := time.Now()
		add(t, others(owner)[0], 8)
		if took := time.Since(start); took > time.Second {
			t.Errorf("the loss of a process was noticed after %v only", took)
		}
		c.Restart(owner)
		if got := add(t, owner, 16); got != 31 {
			t.Errorf("the sum is %d", got)
		}
		c.Settle()
		c.Agree()
	})
}

// add adds a power of two that was not added before, until that has happened once.
func add(t *testing.T, m *clustertest.Member, by int64) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	object := tallyClass.Named(m.Life(), "visits")
	for {
		if n, err := tallyAdd.Call(ctx, object, by); err == nil {
			return n
		} else if ctx.Err() != nil {
			t.Fatalf("add at %s: %v", m, err)
		}
		for { // it may have happened
			n, err := call(ctx, m.Life(), operation{class: "tally", name: "visits", method: "read"})
			if err == nil && n[0]&by != 0 {
				return n[0]
			}
			if err == nil || ctx.Err() != nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}
