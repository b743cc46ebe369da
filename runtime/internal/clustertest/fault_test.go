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
	seeds     = flag.Int("seeds", 12, "how many seeds TestFaults tries")
	firstSeed = flag.Uint64("first-seed", 1, "the first of them")
	debug     = flag.Bool("debug-log", false, "keep the nodes' logs down to debug")
)

const rounds = 3

func classes() []durable.Definition { return []durable.Definition{tallyDefinition, shelfDefinition} }

// TestFaults has faults befall clusters that clients are at work on. What the clients saw must be
// linearizable, the cluster must recover, and the replicas must agree.
func TestFaults(t *testing.T) {
	t.Parallel()
	for seed := *firstSeed; seed < *firstSeed+uint64(*seeds); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			h := newHistory()
			synctest.Test(t, func(t *testing.T) { befall(t, h, seed, 3, rounds, clustertest.Faults()) })
			h.check(t)
		})
	}
}

// TestEachFault is TestFaults with one kind of fault at a time.
func TestEachFault(t *testing.T) {
	t.Parallel()
	for _, f := range clustertest.Faults() {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			h := newHistory()
			synctest.Test(t, func(t *testing.T) { befall(t, h, *firstSeed, 3, 2, []clustertest.Fault{f}) })
			h.check(t)
		})
	}
}

func befall(t *testing.T, h *history, seed uint64, nodes, rounds int, faults []clustertest.Fault) {
	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	c := clustertest.New(t, clustertest.Config{Nodes: nodes, Classes: classes(), LogLevel: level})
	w := newCrowd(t, c, h)
	w.come(seed)
	time.Sleep(time.Second)
	c.Befall(rand.New(rand.NewPCG(seed, 0)), rounds, faults)
	w.leave()
	w.recovered()
	c.Settle()
	c.Agree()
	t.Logf("%d operations happened, %d did not, %d may have", w.done[did], w.done[didNot], w.done[mayHave])
}
