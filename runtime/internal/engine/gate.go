package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A gate is an object's output gate. Every batch the object commits has a sequence
// number; an output is held until the batches it rests on are durable. Outputs leave in
// the order in which they were held, whoever lets them go.
type gate struct {
	committed atomic.Uint64 // all batches up to this one are durable

	mu        sync.Mutex
	submitted uint64 // the newest batch handed to the store
	need      uint64 // the newest batch that later outputs must wait for
	bytes     int    // of the batches that are not durable
	flights   queue[flight]
	held      queue[held]
	letting   bool  // somebody is letting outputs go
	broken    error // nothing leaves any more
}

// A flight is one batch between the store and the quorum.
type flight struct {
	seq   uint64
	bytes int
	since time.Time
}

// held is one output behind the gate.
type held struct {
	need    uint64
	confirm *confirmation // if it rests on reads only: the proof that they were not stale
	output  leaver
}

// A leaver is an output: it leaves when the gate lets it go, or is told why it may not.
// It must not block.
type leaver interface{ leave(broken error) }

// leave makes a latch an output: it is closed by it.
func (l *latch) leave(broken error) { l.finish(broken) }

// A confirmation is pending until the store has confirmed the reign.
type confirmation struct {
	done bool
	err  error
}

// submit takes the next sequence number for a batch.
func (g *gate) submit(size int, confirmed bool, now time.Time) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.submitted++
	if confirmed {
		g.need = g.submitted
	}
	g.bytes += size
	g.flights.push(flight{g.submitted, size, now})
	return g.submitted
}

// durable notes that the batch seq is durable, and lets go what waited for it.
func (g *gate) durable(seq uint64) {
	g.mu.Lock()
	g.landed(seq)
	g.committed.Store(seq)
	g.mu.Unlock()
	g.letGo()
}

// hold queues an output behind everything that was held before it.
func (g *gate) hold(out leaver) {
	g.mu.Lock()
	g.held.push(held{need: g.need, output: out})
	g.mu.Unlock()
	g.letGo()
}

// holdConfirmed is hold for an output that rests on reads: it also waits until the
// store has confirmed that the reign was not over.
func (g *gate) holdConfirmed(store Store, out leaver) {
	c := &confirmation{}
	g.mu.Lock()
	g.held.push(held{need: g.need, confirm: c, output: out})
	g.mu.Unlock()
	store.Confirm(func(err error) {
		g.mu.Lock()
		c.done, c.err = true, err
		g.mu.Unlock()
		g.letGo()
	})
}

// holdAll is hold that waits for unconfirmed writes, too.
func (g *gate) holdAll(out leaver) {
	g.mu.Lock()
	g.held.push(held{need: g.submitted, output: out})
	g.mu.Unlock()
	g.letGo()
}

// letGo runs the outputs at the head of the queue whose time has come. Only one
// goroutine does so at a time, so their order is kept.
func (g *gate) letGo() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.letting {
		return
	}
	g.letting = true
	for g.held.len() > 0 {
		h := g.held.first()
		err := g.broken
		if err == nil {
			if h.need > g.committed.Load() || (h.confirm != nil && !h.confirm.done) {
				break
			}
			if h.confirm != nil {
				err = h.confirm.err
			}
		}
		out := g.held.pop().output
		g.mu.Unlock()
		out.leave(err)
		g.mu.Lock()
	}
	g.letting = false
}

// failed notes that the batch seq, and so every one before it, has an outcome that is
// not success.
func (g *gate) failed(seq uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.landed(seq)
}

// landed takes flights off the list. The caller holds mu.
func (g *gate) landed(seq uint64) {
	for g.flights.len() > 0 && g.flights.first().seq <= seq {
		g.bytes -= g.flights.pop().bytes
	}
}

// breakWith makes every output that is held, and every later one, an error. It reports
// whether the gate was whole before.
func (g *gate) breakWith(err error) bool {
	g.mu.Lock()
	first := g.broken == nil
	if first {
		g.broken = err
	}
	g.mu.Unlock()
	g.letGo()
	return first
}

// failure returns why the gate is broken, or nil.
func (g *gate) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.broken
}

// quiet reports whether nothing is under way.
func (g *gate) quiet() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held.len() == 0 && g.flights.len() == 0 && !g.letting
}

// holding returns how many outputs wait.
func (g *gate) holding() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held.len()
}

// stuck reports whether the oldest commit has been under way since before a time.
func (g *gate) stuck(before time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.flights.len() > 0 && g.flights.first().since.Before(before)
}

// uncommitted returns the bytes that are not durable yet.
func (g *gate) uncommitted() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.bytes
}

// await blocks until every write so far is durable, or done is closed.
func (g *gate) await(all bool, done <-chan struct{}) error {
	var l latch
	if all {
		g.holdAll(&l)
	} else {
		g.hold(&l)
	}
	if !l.wait(done) {
		return host.Errorf(host.CodeDeadline, "the writes so far are not durable yet").Because(host.ErrUnknownOutcome)
	}
	return l.err
}

// A queue is a first-in, first-out list that reuses its memory.
type queue[T any] struct {
	items []T
	head  int
}

func (q *queue[T]) len() int  { return len(q.items) - q.head }
func (q *queue[T]) first() *T { return &q.items[q.head] }
func (q *queue[T]) push(v T)  { q.items = append(q.items, v) }

// unpush takes back the last push.
func (q *queue[T]) unpush() {
	var zero T
	q.items[len(q.items)-1] = zero
	q.items = q.items[:len(q.items)-1]
}

func (q *queue[T]) pop() T {
	var zero T
	v := q.items[q.head]
	q.items[q.head] = zero
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
		if cap(q.items) > 1024 {
			q.items = nil
		}
	} else if q.head > 256 && q.head > len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	return v
}
