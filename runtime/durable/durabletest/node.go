package durabletest

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/engine"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// A node is one process's life: an engine that leads every shard, and the clients that
// are connected to it.
type node struct {
	world   *World
	engine  *engine.Engine
	gateway *gateway
	epoch   atomic.Uint64 // the newest reign's

	mu     sync.Mutex
	reigns []*reign // by shard
}

// boot starts a node whose reigns are newer than an epoch.
func (w *World) boot(epoch uint64) *node {
	n := &node{world: w, gateway: newGateway(w), reigns: make([]*reign, len(w.disks))}
	n.epoch.Store(epoch)
	classes := make([]host.Class, len(w.defs))
	for i, d := range w.defs {
		classes[i] = d
	}
	e, err := engine.New(engine.Config{Table: w.table, Classes: classes, Gateway: n.gateway, Logger: w.logger()})
	if err != nil {
		w.fatalf("%v", err)
	}
	n.engine, n.gateway.engine = e, e
	for shard := range n.reigns {
		n.lead(shard)
	}
	return n
}

// drain ends the node in order, if its commits still succeed.
func (n *node) drain() {
	if n.world.currentFaults().err != nil {
		n.crash()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n.gateway.closeAll(closeGoingAway, "the node stops")
	n.gateway.wait()
	if err := n.engine.Stop(ctx); err != nil {
		n.world.errorf("stop the node: %v", err)
	}
	n.endReigns(errOver)
}

// crash ends the node without a word to anybody.
func (n *node) crash() {
	for _, r := range n.leading() {
		r.store.fail(errOver) // from here on nothing becomes durable
	}
	n.gateway.drop()
	n.endReigns(errOver)
	n.gateway.wait()
}

// recover begins a new reign over every shard whose reign has seen a commit fail.
func (n *node) recover() {
	for shard, r := range n.leading() {
		if r.store.failed() {
			r.end(errOver)
			n.lead(shard)
		}
	}
	n.gateway.remind()
}

func (n *node) nudge() {
	for _, r := range n.leading() {
		r.store.nudge()
	}
}

func (n *node) endReigns(cause error) {
	for _, r := range n.leading() {
		r.end(cause)
	}
}

// leading returns the reigns.
func (n *node) leading() []*reign {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []*reign
	for _, r := range n.reigns {
		if r != nil {
			all = append(all, r)
		}
	}
	return all
}

// A reign is an engine that leads one shard. Its goroutines are ended by end.
type reign struct {
	store  *store
	cancel context.CancelFunc
	done   chan struct{}
}

// lead begins a reign over a shard, and returns when the engine takes events for it.
func (n *node) lead(shard int) {
	w := n.world
	ctx, cancel := context.WithCancel(context.Background())
	r := &reign{store: newStore(w, w.disks[shard], n.epoch.Add(1)), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		n.engine.Lead(ctx, placement.ShardID(shard), r.store)
		r.store.stop()
	}()
	n.mu.Lock()
	n.reigns[shard] = r
	n.mu.Unlock()
	for !n.engine.Leads(placement.ShardID(shard)) {
		runtime.Gosched() // and not sleep: the clock of a bubble must not move
	}
}

func (r *reign) end(cause error) {
	r.store.fail(cause)
	r.cancel()
	<-r.done
}

// errOver is what becomes of commits when the node is gone.
var errOver = host.Errorf(host.CodeUnknownOutcome, "the node went away before the outcome was known: it may have happened")

// faults say what becomes of commits.
type faults struct {
	held bool
	err  error
}

// A store is a shard's storage during one reign. One goroutine makes its commits
// durable, in order.
type store struct {
	*storage.Machine
	world *World
	epoch uint64
	wake  chan struct{} // has room for one
	over  chan struct{} // closed by stop
	ended chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	waiting []commit
	broken  error // every commit fails from here on
}

type commit struct {
	batch []byte
	done  func(error)
}

func newStore(w *World, disk *storage.Machine, epoch uint64) *store {
	s := &store{Machine: disk, world: w, epoch: epoch, wake: make(chan struct{}, 1), over: make(chan struct{}), ended: make(chan struct{})}
	go s.run()
	return s
}

func (s *store) Epoch() placement.Epoch { return placement.Epoch(s.epoch) }

func (s *store) Commit(batch []byte, done func(error)) {
	s.mu.Lock()
	s.waiting = append(s.waiting, commit{batch, done})
	s.mu.Unlock()
	s.nudge()
}

func (s *store) Confirm(done func(error)) {
	s.mu.Lock()
	err := s.broken
	s.mu.Unlock()
	done(err)
}

func (s *store) Writable() error { return nil }

// fail ends the reign as far as storage is concerned.
func (s *store) fail(err error) {
	s.mu.Lock()
	if s.broken == nil {
		s.broken = err
	}
	s.mu.Unlock()
	s.nudge()
}

func (s *store) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken != nil
}

func (s *store) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// stop ends the goroutine, and returns when it has ended.
func (s *store) stop() {
	close(s.over)
	<-s.ended
}

func (s *store) run() {
	defer close(s.ended)
	for {
		select {
		case <-s.wake:
			s.flush()
		case <-s.over:
			s.fail(errOver)
			s.flush()
			return
		}
	}
}

// flush commits what waits, as the faults allow.
func (s *store) flush() {
	for {
		f := s.world.currentFaults()
		s.mu.Lock()
		if s.broken == nil && f.err != nil && len(s.waiting) > 0 {
			s.broken = f.err
		}
		err := s.broken
		if len(s.waiting) == 0 || err == nil && f.held {
			s.mu.Unlock()
			return
		}
		next := s.waiting[0]
		s.waiting = s.waiting[1:]
		if err == nil {
			err = s.apply(next.batch)
		}
		s.mu.Unlock()
		next.done(err)
	}
}

// apply makes a batch durable. The caller holds mu, so that a crash comes before or after.
func (s *store) apply(batch []byte) error {
	index, _ := s.Applied()
	if err := s.Apply(index+1, s.epoch, batch); err != nil {
		s.broken = errors.Join(errors.New("apply a batch"), err)
	}
	return s.broken
}
