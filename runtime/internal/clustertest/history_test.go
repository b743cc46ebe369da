package clustertest_test

import (
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// An operation is what a client asks of an object.
type operation struct {
	class, name string
	method      string // add, put, swap or read
	args        [2]int64
}

func (o operation) writes() bool { return o.method != "read" }

// An outcome is what is known of an operation: a state of the object, or nothing.
type outcome struct {
	unknown bool
	state   books // of a tally only the first is used
}

// A history is what clients saw, in an order that a counter gives: the clock of a bubble
// stands still while things happen, and would hide stale reads.
type history struct {
	clock atomic.Int64

	mu  sync.Mutex // guards ops
	ops map[string][]porcupine.Operation
}

func newHistory() *history { return &history{ops: make(map[string][]porcupine.Operation)} }

// record runs an operation. One that certainly did not happen, or a read without an answer, leaves
// no trace; a write without one may happen at any time until the end.
func (h *history) record(client int, op operation, run func() (outcome, verdict)) verdict {
	call := h.clock.Add(1)
	out, v := run()
	end := h.clock.Add(1)
	if v == didNot || v == mayHave && !op.writes() {
		return v
	}
	if v == mayHave {
		end = math.MaxInt64
		out = outcome{unknown: true}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	key := op.class + "/" + op.name
	h.ops[key] = append(h.ops[key], porcupine.Operation{ClientId: client, Input: op, Call: call, Output: out, Return: end})
	return v
}

// A verdict says whether an operation has happened.
type verdict int

const (
	did verdict = iota
	didNot
	mayHave
)

const checkTimeout = 20 * time.Second

// check fails the test if no order of the operations explains what the clients saw. It must
// be called outside of the bubble, since it takes real time.
func (h *history) check(t *testing.T) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(h.ops)) {
		model := model()
		result, info := porcupine.CheckOperationsVerbose(model, h.ops[key], checkTimeout)
		if result == porcupine.Ok {
			continue
		}
		path := filepath.Join(t.ArtifactDir(), filepath.Base(key)+".html")
		t.Errorf("the history of %s is %s; a picture of its %d operations is in %s", key, result, len(h.ops[key]), path)
		if err := porcupine.VisualizePath(model, info, path); err != nil {
			t.Error(err)
		}
	}
}

// model is both classes: a tally is a shelf of which one place is used. A write without a known
// outcome need not fork the model: it may come after everything else.
func model() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return books{} },
		Step: func(state, input, output any) (bool, any) {
			s, op, out := state.(books), input.(operation), output.(outcome)
			next, answer := op.apply(s)
			return out.unknown || out.state == answer, next
		},
		DescribeOperation: func(input, output any) string {
			op, out := input.(operation), output.(outcome)
			if out.unknown {
				return fmt.Sprintf("%s%v > ?", op.method, op.args)
			}
			return fmt.Sprintf("%s%v > %v", op.method, op.args, out.state)
		},
	}
}

// apply returns the state after an operation, and its answer.
func (o operation) apply(s books) (next, answer books) {
	next, answer = s, s
	switch o.method {
	case "add":
		next[0] += o.args[0]
		answer = next
	case "put":
		next[o.args[0]] = o.args[1]
	case "swap":
		next[o.args[0]], next[o.args[1]] = s[o.args[1]], s[o.args[0]]
	}
	return next, answer
}
