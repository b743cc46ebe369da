package engine

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// A turn is one event while it runs; it implements [host.Turn]. Between two commit
// points it gathers one batch of writes, what undoes them, and the outputs that are to
// leave once the batch is durable.
type turn struct {
	o           *object
	ev          *event
	ctx         turnContext
	incarnation uint64 // of the object when the turn began

	segment
	err      error // the event's outcome, once it has ended
	listings []*listing
	nested   int
	upgrade  host.Upgrade

	loading   bool // the turn is that of a Load event
	outside   bool // the turn has been given up for a while
	destroyed bool
	over      bool
}

// A segment is what a turn has done since its last commit point.
type segment struct {
	batch     storage.Batch
	begun     bool  // the batch has its header
	confirmed bool  // a write in it must be waited for
	wiped     bool  // it removes the object
	sends     bool  // it sends something to sockets
	due       int64 // the earliest alarm set in it, Unix milliseconds; 0 if none
	undos     []undo
	outs      outputs
}

// outputs are called when the gate lets them go, or with the reason why it does not.
type outputs []func(broken error)

func (outs outputs) leave(broken error) {
	for _, out := range outs {
		out(broken)
	}
}

// play runs fn as the event and commits what it wrote; if it fails, what was done
// since the last commit point is undone and the instance is thrown away.
func (t *turn) play(fn func() error) error {
	o := t.o
	t.ctx.init(t.ev.ctx, o.reign.ctx)
	err := o.guard(fn)
	if err == nil && t.destroyed {
		err = o.guard(func() error { t.destroy(); return nil })
	}
	if err == nil {
		err = t.submit()
	}
	t.over = true
	t.ctx.end()
	if err != nil {
		t.revert(segment{})
		o.drop()
		return asError(err)
	}
	if t.destroyed {
		o.drop()
	}
	return nil
}

// submit hands the batch, if there is one, to the store.
func (t *turn) submit() error {
	o := t.o
	if !t.begun || t.batch.Empty() {
		t.begun, t.undos = false, nil
		return nil
	}
	if err := o.gate.failure(); err != nil {
		return err
	}
	for _, l := range t.listings {
		if err := l.finish(); err != nil {
			return o.storeFailed(err)
		}
	}
	if err := t.stamp(); err != nil {
		return err
	}
	size, due, now := t.batch.Size(), t.due, time.Now()
	seq := o.gate.submit(size, t.confirmed, now)
	o.class.metrics.commits.Inc()
	o.class.metrics.bytes.Add(float64(size))
	o.reign.store.Commit(t.batch.Bytes(), func(err error) {
		o.class.metrics.held.Observe(time.Since(now).Seconds())
		o.committed(seq, due, err)
	})
	t.begun, t.undos = false, nil
	return nil
}

// committed is told by the store what became of a batch.
func (o *object) committed(seq uint64, due int64, err error) {
	if err == nil {
		o.gate.durable(seq)
		if due != 0 {
			o.reign.clock.set(due)
		}
		return
	}
	o.gate.failed(seq)
	e := *asError(err)
	e.Reset = true
	// A failed commit is the end of the reign. In a cluster the next owner decides, by what
	// was committed, which sockets may stay.
	o.reset(&e, o.reign.engine.cfg.Carrier == nil)
}

// end queues the event's outcome and its last outputs behind the gate. What rests on
// nothing but reads waits for the proof that they were not stale.
func (t *turn) end(err error) {
	if t.loading && len(t.outs) == 0 {
		return
	}
	t.err = err
	if err == nil && t.confirmed {
		t.o.gate.hold(t)
	} else {
		t.o.gate.holdConfirmed(t.o.reign.store, t)
	}
}

// leave is called by the gate.
func (t *turn) leave(broken error) {
	t.outs.leave(broken)
	if broken == nil {
		broken = t.err
	}
	t.ev.finish(broken)
}

// commitPoint ends the segment: what was done so far will not be undone by a later
// error. It does not wait.
func (t *turn) commitPoint() {
	t.check()
	if t.nested > 0 {
		panic(host.Errorf(host.CodeBadRequest, "a nested transaction cannot contain a commit point, such as a call to another object"))
	}
	if err := t.submit(); err != nil {
		panic(asError(err))
	}
	outs := t.outs
	t.segment = segment{}
	if len(outs) > 0 {
		t.o.gate.hold(outs)
	}
}

// passGate is a commit point that waits until everything the event has done and seen
// may leave the object.
func (t *turn) passGate(ctx context.Context) error {
	proven := t.begun && t.confirmed
	t.commitPoint()
	var l latch
	if proven {
		t.o.gate.hold(&l)
	} else {
		t.o.gate.holdConfirmed(t.o.reign.store, &l)
	}
	if !l.wait(ctx.Done()) {
		return errCanceled(ctx, false)
	}
	return l.err
}

// revert undoes what was done since the segment looked like to.
func (t *turn) revert(to segment) {
	for i := len(t.undos) - 1; i >= len(to.undos); i-- {
		t.o.state.undo(t.undos[i])
	}
	t.undos = t.undos[:len(to.undos)]
	t.outs = t.outs[:len(to.outs)]
	if to.begun {
		t.batch.Truncate(to.batch.Size())
	}
	t.begun, t.confirmed, t.due = to.begun, to.confirmed, to.due
	t.wiped, t.sends = to.wiped, to.sends
}

// check panics if the turn may not be used now.
func (t *turn) check() {
	if t.over {
		panic("durable: a Tx was used after its event had ended")
	}
	if t.outside {
		panic("durable: a Tx was used inside Outside, where the event does not have the turn")
	}
}

// begin prepares a write. One that grows the object is refused on a full disk.
func (t *turn) begin(grows bool, unconfirmed bool) {
	t.check()
	o, s := t.o, &t.o.state
	if grows {
		if err := o.reign.store.Writable(); err != nil {
			panic(asError(err))
		}
	}
	if !t.begun {
		t.batch.Reset(o.ref.ID)
		t.begun, t.confirmed, t.wiped, t.due = true, false, false, 0
	}
	if !s.exists || (o.ref.Named && !s.named) {
		was := [2]bool{s.exists, s.named}
		if !s.exists {
			s.created = time.Now()
		}
		s.exists, s.named = true, o.ref.Named
		t.undos = append(t.undos, undo{fn: func() { s.exists, s.named = was[0], was[1] }})
		t.batch.Create(o.class.name, o.ref.Name, o.ref.Named, s.created.UnixMilli())
	}
	if !unconfirmed {
		t.confirmed = true
	}
}

func (t *turn) room(size int) {
	if t.begun && t.batch.Size()+size > host.MaxBatchBytes {
		panic(host.Errorf(host.CodeTooLarge, "the event writes more than %d MiB before a commit point", host.MaxBatchBytes>>20))
	}
}

// batchSeq is the number of the batch that is being made.
func (t *turn) batchSeq() uint64 { return t.o.gate.submitted + 1 }

func (t *turn) Ref() host.Ref { return t.o.ref }

func (t *turn) Get(key string) ([]byte, bool) {
	t.check()
	c, err := t.o.get(key)
	if err != nil {
		panic(t.o.storeFailed(err))
	}
	return c.value, c.present
}

func (t *turn) Put(key string, value []byte, unconfirmed bool) {
	if len(key) > host.MaxKeyBytes {
		panic(host.Errorf(host.CodeTooLarge, "the key is %d bytes long, more than %d", len(key), host.MaxKeyBytes))
	}
	if len(value) > host.MaxValueBytes {
		panic(host.Errorf(host.CodeTooLarge, "the value of key %.64q is %d bytes long, more than %d", key, len(value), host.MaxValueBytes))
	}
	t.begin(true, unconfirmed)
	t.room(len(key) + len(value) + 16)
	t.batch.Put(storage.SpaceKey, key, value)
	t.undos = append(t.undos, t.o.state.set(key, cell{value: value, present: true, batch: t.batchSeq()}))
}

func (t *turn) Delete(key string, unconfirmed bool) bool {
	if _, ok := t.Get(key); !ok {
		return false
	}
	t.begin(false, unconfirmed)
	t.room(len(key) + 16)
	t.batch.Delete(storage.SpaceKey, key)
	t.undos = append(t.undos, t.o.state.set(key, cell{batch: t.batchSeq()}))
	t.o.state.shrunk = true
	return true
}

func (t *turn) List(r host.Range) iter.Seq2[string, []byte] {
	t.check()
	return t.list(r)
}

func (t *turn) DeleteAll() {
	t.check()
	if !t.o.state.exists {
		return
	}
	t.begin(false, false)
	t.batch.Clear()
	t.undos = append(t.undos, t.o.state.clear(t.batchSeq()))
}

func (t *turn) Nested(fn func() error) error {
	t.check()
	if t.nested == host.MaxNested {
		panic(host.Errorf(host.CodeBadRequest, "transactions are nested more than %d deep", host.MaxNested))
	}
	t.nested++
	mark, upgrade, destroyed := t.segment, t.upgrade, t.destroyed
	ok := false
	defer func() {
		t.nested--
		if !ok {
			t.revert(mark)
			t.upgrade, t.destroyed = upgrade, destroyed
		}
	}()
	err := fn()
	ok = err == nil
	return err
}

func (t *turn) Commit() { t.commitPoint() }

func (t *turn) Sync(ctx context.Context) error {
	if err := t.passGate(ctx); err != nil {
		return err
	}
	return t.o.gate.await(true, ctx.Done())
}

func (t *turn) Outside(ctx context.Context, fn func(ctx context.Context) error) error {
	if err := t.passGate(ctx); err != nil {
		return err
	}
	if t.loading {
		return fn(ctx) // there is no instance that other events could run on
	}
	t.outside = true
	t.o.leaveTurn()
	defer func() {
		t.o.takeTurn()
		t.outside = false
		t.o.state.settle(t.o.gate.committed.Load())
		if t.incarnation != t.o.incarnation {
			panic(&host.Error{Code: host.CodeReset, Message: "the object was reset while the event was outside its turn", Reset: true})
		}
	}()
	return fn(ctx)
}

func (t *turn) Go(work func(ctx context.Context) error, then func(ctx context.Context, turn host.Turn, err error) error) error {
	t.check()
	o := t.o
	if limit := o.reign.engine.cfg.MaxWork; o.work >= limit {
		return errOverloaded(fmt.Sprintf("the object has %d background tasks under way", limit))
	}
	o.work++
	o.hold()
	t.undos = append(t.undos, undo{fn: func() { o.work--; o.unhold() }})
	t.outs = append(t.outs, func(broken error) {
		if broken != nil {
			go o.endWork(broken, nil)
			return
		}
		go func() {
			err := o.guard(func() error { return work(o.reign.ctx) })
			o.endWork(err, then)
		}()
	})
	return nil
}

// endWork runs the event that ends a background task. Its goroutine is the task's own.
func (o *object) endWork(err error, then func(ctx context.Context, turn host.Turn, err error) error) {
	defer o.unhold()
	ev := &event{kind: kindWork, ctx: o.reign.ctx, to: o.self(), internal: true}
	if then == nil {
		ev.bare = true
		ev.direct = func(*turn) error { o.work--; return nil }
	} else {
		what := &host.Work{Err: err, Then: then}
		ev.direct = func(t *turn) error {
			o.work--
			return o.inst.Handle(&t.ctx, t, what)
		}
	}
	if o.push(ev) {
		if err := ev.wait(context.Background()); err != nil {
			o.reign.engine.cfg.Logger.Warn("background work ended with an error", slog.String("class", o.class.name), slog.Any("object", o.ref.ID), slog.Any("err", err))
		}
	}
}

func (t *turn) DestroySelf() {
	t.check()
	t.destroyed = true
}

// destroy writes what DestroySelf asked for.
func (t *turn) destroy() {
	o, s := t.o, &t.o.state
	if s.exists {
		t.begin(false, false)
		t.batch.Destroy()
		t.wiped = true
		t.undos = append(t.undos, s.clear(t.batchSeq()))
		s.exists, s.named = false, false // the undo of clear restores them
	}
	if o.sockets.len() > 0 {
		gateway, id := o.reign.engine.cfg.Gateway, o.ref.ID
		t.outs = append(t.outs, func(broken error) {
			if broken == nil {
				gateway.CloseAll(id, closeGoingAway, "the object was destroyed")
			}
		})
	}
}

// ceaseIfEmpty removes the metadata of an object that has nothing left.
func (t *turn) ceaseIfEmpty() error {
	o, s := t.o, &t.o.state
	if !s.exists || !s.shrunk || o.sockets.len() > 0 {
		return nil
	}
	if err := o.readSchedules(); err != nil {
		return o.storeFailed(err)
	}
	if len(s.schedules) > 0 {
		return nil
	}
	for range t.list(host.Range{Limit: 1}) {
		return nil
	}
	t.destroy()
	return nil
}

func (t *turn) Abort(reason error) {
	t.check()
	if reason == nil {
		reason = host.Errorf(host.CodeReset, "the object reset itself")
	}
	panic(aborted{reason})
}

// A turnContext is the context that a handler gets: the caller's, ended also by the
// end of the turn and of the reign. The merged context is made when it is first asked
// for, since most handlers never do.
type turnContext struct {
	caller, reign context.Context

	mu     sync.Mutex
	merged context.Context
	cancel context.CancelFunc
	ended  bool
}

func (c *turnContext) init(caller, reign context.Context) { c.caller, c.reign = caller, reign }

func (c *turnContext) Deadline() (time.Time, bool) { return c.caller.Deadline() }

func (c *turnContext) Value(key any) any {
	c.mu.Lock()
	merged := c.merged
	c.mu.Unlock()
	if merged != nil {
		return merged.Value(key)
	}
	return c.caller.Value(key)
}

func (c *turnContext) Done() <-chan struct{} { return c.merge().Done() }

func (c *turnContext) Err() error {
	c.mu.Lock()
	merged, ended := c.merged, c.ended
	c.mu.Unlock()
	switch {
	case merged != nil:
		return merged.Err()
	case ended:
		return context.Canceled
	case c.reign.Err() != nil:
		return c.reign.Err()
	default:
		return c.caller.Err()
	}
}

func (c *turnContext) merge() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.merged == nil {
		ctx, cancel := context.WithCancelCause(c.caller)
		stop := context.AfterFunc(c.reign, func() { cancel(context.Cause(c.reign)) })
		c.merged, c.cancel = ctx, func() { stop(); cancel(context.Canceled) }
		if c.ended {
			c.cancel()
		}
	}
	return c.merged
}

func (c *turnContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.cancel != nil {
		c.cancel()
	}
}

// asError is host.AsError that keeps what is an *host.Error already.
func asError(err error) *host.Error { return host.AsError(err) }

const closeGoingAway = 1001
