//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// TestDrain stops a node under load: whoever was answered was told the truth, sockets
// learn that the node goes away, and the process ends well.
func TestDrain(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			data := filepath.Join(t.TempDir(), "data")
			n := start(t, data)
			watcher := dial(t, n, "/objects/counter/c0/watch")
			load := newLoad(n, 16)
			eventually(t, "increments", func() bool { return load.acked() > 200 })
			begin := time.Now()
			if status := n.stop(sig); status != 0 {
				t.Errorf("ended with status %d", status)
			}
			if took := time.Since(begin); took > 8*time.Second {
				t.Errorf("draining took %v", took)
			}
			load.stop()
			if code := watcher.awaitClose(); code != websocket.StatusGoingAway {
				t.Errorf("the socket was closed with %d", code)
			}
			load.check(t, start(t, data))
		})
	}
}

// A load increments counters over HTTP and remembers what it was told.
type load struct {
	counters []*tally
	stopped  atomic.Bool
	wg       sync.WaitGroup
}

// A tally is what the clients of one counter know: how often they asked for an
// increment, how often they were told that it was done, and the highest value they saw.
type tally struct{ asked, acked, highest atomic.Int64 }

// newLoad starts clients, four of them on each counter. They go on until an error, or
// until stop.
func newLoad(n *node, clients int) *load {
	l := &load{counters: make([]*tally, (clients+3)/4)}
	for i := range l.counters {
		l.counters[i] = &tally{}
	}
	for i := range clients {
		l.wg.Go(func() { l.run(n, i%len(l.counters)) })
	}
	return l
}

func (l *load) run(n *node, counter int) {
	c := l.counters[counter]
	path := fmt.Sprintf("/objects/counter/c%d/increment", counter)
	for !l.stopped.Load() {
		c.asked.Add(1)
		status, answer, err := n.try(http.MethodPost, path, "")
		if err != nil || status != http.StatusOK {
			return
		}
		var value int64
		if _, err := fmt.Sscanf(answer, `{"value":%d}`, &value); err != nil {
			return
		}
		c.acked.Add(1)
		for high := c.highest.Load(); value > high && !c.highest.CompareAndSwap(high, value); {
			high = c.highest.Load()
		}
	}
}

func (l *load) acked() (sum int64) {
	for _, c := range l.counters {
		sum += c.acked.Load()
	}
	return sum
}

// stop waits for the clients.
func (l *load) stop() {
	l.stopped.Store(true)
	l.wg.Wait()
}

// check compares what a node has with what its clients were told: every acknowledged
// increment is there, and none that nobody asked for.
func (l *load) check(t *testing.T, n *node) {
	t.Helper()
	for i, c := range l.counters {
		value := n.value(i)
		if value < c.acked.Load() || value < c.highest.Load() || value > c.asked.Load() {
			t.Errorf("counter %d is %d: %d increments were acknowledged, the highest value that was told is %d, %d were asked for",
				i, value, c.acked.Load(), c.highest.Load(), c.asked.Load())
		}
		// What is there is now known: later rounds count on from it.
		c.asked.Store(value)
		c.acked.Store(value)
	}
}

// value returns a counter's value.
func (n *node) value(counter int) (value int64) {
	n.t.Helper()
	answer := n.do(http.MethodGet, fmt.Sprintf("/objects/counter/c%d/", counter), "", http.StatusOK)
	if _, err := fmt.Sscanf(answer, `{"value":%d}`, &value); err != nil {
		n.t.Fatalf("the counter answers %s", answer)
	}
	return value
}
