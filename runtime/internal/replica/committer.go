package replica

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A committer proposes the batches of one reign. While a few entries are in flight,
// batches queue up; what has queued up is the next entry. So under load one fsync, one
// entry and one wake-up serve hundreds of batches, and without load none waits.
//
// It has two goroutines, owned by the reign: propose fills entries, and reply calls
// done in order. What was applied it learns from the state machine's side, not from
// Raft's futures, which stay unanswered for ever if Raft is shut down at the wrong moment.
type committer struct {
	replica *Replica
	term    uint64
	died    chan struct{} // closed at the first error
	begun   chan struct{} // closed when the begin entry has been applied

	mu      sync.Mutex // guards what follows
	work    sync.Cond  // for propose: the queue, the flights or err changed
	answers sync.Cond  // for reply and drain: applied, err or closed changed
	queue   []pending
	taken   []pending // out of the queue, to be proposed next
	flights []flight  // proposed, in order
	applies []flight  // applied, and not answered yet
	bytes   int       // of all these batches
	idle    bool      // reply has nothing in its hands
	err     error     // the cause of death
	closed  bool      // nobody uses it any more
}

// pending is one batch that waits for its commit.
type pending struct {
	batch []byte
	done  func(error)
}

// A flight is one entry on its way through Raft.
type flight struct {
	seq     uint64
	batches []pending
	since   time.Time
}

func newCommitter(r *Replica, term uint64) *committer {
	c := &committer{
		replica: r,
		term:    term,
		died:    make(chan struct{}),
		begun:   make(chan struct{}),
		idle:    true,
	}
	c.work.L, c.answers.L = &c.mu, &c.mu
	return c
}

// commit queues a batch.
func (c *committer) commit(batch []byte, done func(error)) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		done(unavailable(c.err))
		return
	}
	c.queue = append(c.queue, pending{batch, done})
	c.bytes += len(batch)
	if c.err != nil {
		c.answers.Broadcast()
	} else if c.mayFly() {
		c.work.Signal()
	}
	c.mu.Unlock()
}

// queued returns the bytes that wait or are in flight.
func (c *committer) queued() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

// propose is the goroutine that fills entries. Its first one tells the reign's beginning: when
// it has been applied here, so has everything before it.
func (c *committer) propose() {
	alive := c.send(entry{kind: kindBegin}, nil)
	for alive {
		batches, size := c.take()
		switch {
		case batches == nil:
			return
		case size > maxEntry-entryHeader:
			alive = c.sendChunks(batches)
		default:
			alive = c.send(entry{kind: kindBatches}, batches)
		}
	}
}

// take waits for batches, and for their turn, and takes them: as many as fit into one
// entry, or a single large one. It returns nil when the committer has died.
func (c *committer) take() (batches []pending, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.await(func() bool { return len(c.queue) > 0 && c.mayFly() }) {
		return nil, 0
	}
	n := 0
	for n < len(c.queue) && n < c.replica.cfg.EntryBatches {
		if n > 0 && size+len(c.queue[n].batch) > c.replica.cfg.EntryBytes {
			break
		}
		size += len(c.queue[n].batch)
		n++
	}
	c.taken = c.queue[:n:n]
	if c.queue = c.queue[n:]; len(c.queue) == 0 {
		c.queue = nil
	}
	return c.taken, size
}

func (c *committer) mayFly() bool { return len(c.flights) < c.replica.cfg.InFlight }

// await waits with mu held until ready, and returns false if the committer dies before.
func (c *committer) await(ready func() bool) bool {
	for c.err == nil && !ready() {
		c.work.Wait()
	}
	return c.err == nil
}

// sendChunks proposes one large batch in several entries. Raft appends them one after
// another in this order or, when the term ends, only the first few: then the batch is never
// complete, and never happens.
func (c *committer) sendChunks(large []pending) bool {
	batch := large[0].batch
	for offset := 0; ; {
		end := min(offset+maxEntry-chunkHeader, len(batch))
		e := entry{kind: kindChunk, offset: offset, total: len(batch), payload: batch[offset:end]}
		if end == len(batch) {
			return c.send(e, large)
		}
		if !c.send(e, nil) {
			return false
		}
		offset = end
		c.mu.Lock()
		alive := c.await(c.mayFly)
		c.mu.Unlock()
		if !alive {
			return false
		}
	}
}

// send proposes one entry; with it, the batches that were taken are committed. It
// returns false if the committer died before.
func (c *committer) send(e entry, batches []pending) bool {
	r := c.replica
	if r.cfg.Flusher != nil && !r.cfg.Flusher.wait(c.died) {
		return false
	}
	r.seq++
	e.term, e.seq = c.term, r.seq
	data := e.encode(batches)
	if !c.launch(flight{e.seq, batches, time.Now()}) {
		return false
	}
	r.cfg.Metrics.entries.Inc()
	r.raft.ApplyLog(raft.Log{Data: data}, 0)
	return true
}

// encode returns the entry; the payload of one that is not a chunk are the batches.
func (e entry) encode(batches []pending) []byte {
	size := chunkHeader + len(e.payload)
	if e.kind != kindChunk {
		for _, p := range batches {
			size += len(p.batch)
		}
	}
	data := append(e.appendHeader(make([]byte, 0, size)), e.payload...)
	if e.kind != kindChunk {
		for _, p := range batches {
			data = append(data, p.batch...)
		}
	}
	return data
}

// launch notes that an entry is about to be proposed: from now on its outcome is unknown
// until it is applied.
func (c *committer) launch(f flight) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return false
	}
	if f.batches != nil {
		c.taken = nil
	}
	c.flights = append(c.flights, f)
	return true
}

// applied is told by the state machine's side that an entry of this term was applied.
func (c *committer) applied(seq uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.flights) == 0 || seq < c.flights[0].seq {
		return // an earlier committer's, or too late
	}
	f := c.flights[0]
	if f.seq != seq {
		panic("replica: entries of one term were applied out of order")
	}
	if c.flights = c.flights[1:]; len(c.flights) == 0 {
		c.flights = nil
	}
	select {
	case <-c.begun:
	default:
		close(c.begun)
	}
	c.applies = append(c.applies, f)
	c.work.Signal()
	c.answers.Broadcast()
}

// reply is the goroutine that calls done, in order. It ends when the committer is closed.
func (c *committer) reply() {
	for {
		applied, unknown, refused, cause := c.outcomes()
		if cause == nil && applied == nil {
			return
		}
		for _, f := range applied {
			c.replica.cfg.Metrics.committed(f)
			for _, p := range f.batches {
				p.done(nil)
			}
		}
		for _, f := range unknown {
			for _, p := range f.batches {
				p.done(unknownOutcome(cause))
			}
		}
		for _, p := range refused {
			p.done(unavailable(cause))
		}
	}
}

// outcomes waits for batches whose outcome is known, or known to stay unknown. It
// returns nothing when the committer is closed.
func (c *committer) outcomes() (applied, unknown []flight, refused []pending, cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = true
	for {
		applied, c.applies = c.applies, nil
		if c.err != nil {
			unknown, c.flights = c.flights, nil
			refused = append(c.taken[:len(c.taken):len(c.taken)], c.queue...)
			c.taken, c.queue = nil, nil
		}
		if len(applied)+len(unknown)+len(refused) > 0 {
			break
		}
		if c.closed {
			return nil, nil, nil, nil
		}
		c.answers.Broadcast() // to drain: nothing is left
		c.answers.Wait()
	}
	c.idle = false
	for _, f := range append(applied[:len(applied):len(applied)], unknown...) {
		for _, p := range f.batches {
			c.bytes -= len(p.batch)
		}
	}
	for _, p := range refused {
		c.bytes -= len(p.batch)
	}
	return applied, unknown, refused, c.err
}

// drain waits until everything committed so far has been answered, the committer has
// died, or ctx has ended.
func (c *committer) drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.answers.Broadcast()
	})
	defer stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && ctx.Err() == nil && !(c.idle && len(c.queue)+len(c.taken)+len(c.flights)+len(c.applies) == 0) {
		c.answers.Wait()
	}
}

// die makes all that is not applied fail, and everything later.
func (c *committer) die(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = cause
	close(c.died)
	c.work.Broadcast()
	c.answers.Broadcast()
}

// close ends reply, once nobody uses the committer any more.
func (c *committer) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.answers.Broadcast()
}

func unknownOutcome(cause error) error {
	e := host.Errorf(host.CodeUnknownOutcome, "the node lost the object's shard before the write was confirmed; it may have happened or not")
	return e.Because(cause)
}

func unavailable(cause error) error {
	e := &host.Error{
		Code:       host.CodeUnavailable,
		Message:    "the object's shard has no owner at the moment; try again soon",
		Retryable:  true,
		RetryAfter: time.Second,
	}
	return e.Because(cause)
}
