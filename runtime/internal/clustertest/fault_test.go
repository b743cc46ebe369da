package clustertest_test

import (
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/internal/clustertest"
)

var (
	seeds     = flag.Int("seeds", len(clustertest.Faults()), "how many seeds TestFaults tries; as many as there are faults tries each of them")
	firstSeed = flag.Uint64("first-seed", 0, "the first of them")
	nodes     = flag.Int("nodes", 3, "how many nodes TestFaults begins with")
	rounds    = flag.Int("rounds", 2, "how many rounds of faults a seed means")
	debug     = flag.Bool("debug-log", false, "have the nodes log for debugging")
)

func classes() []durable.Definition { return []durable.Definition{tallyDefinition, shelfDefinition} }

// TestFaults has faults befall clusters that clients are at work on. What the clients saw must be
// linearizable, the cluster must recover, and the replicas must agree. A seed says which
// faults come when, and what the clients want; what it leads to also hangs on how goroutines
// are scheduled, so that a failure need not come again.
func TestFaults(t *testing.T) {
	t.Parallel()
	for seed := *firstSeed; seed < *firstSeed+uint64(*seeds); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			h := newHistory()
			synctest.Test(t, func(t *testing.T) { befall(t, h, seed) })
			h.check(t)
		})
	}
}

func befall(t *testing.T, h *history, seed uint64) {
	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	c := clustertest.New(t, clustertest.Config{Nodes: *nodes, Classes: classes(), LogLevel: level})
	w := newCrowd(t, c, h)
	w.come(seed)
	time.Sleep(time.Second)
	faults, r := clustertest.Faults(), rand.New(rand.NewPCG(seed, 0))
	c.Befall(r, 1, faults[seed%uint64(len(faults)):][:1])
	c.Befall(r, *rounds-1, faults)
	w.leave()
	w.recovered()
	c.Settle()
	c.Agree()
	t.Logf("%d operations happened, %d did not, %d may have", w.done[did], w.done[didNot], w.done[mayHave])
}
