package engine

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// An object is one durable object in this node's memory. There is no goroutine that
// belongs to it: who finds it idle takes the turn and runs its own event; who finds it
// busy queues the event, and when the turn ends a goroutine drains the mailbox.
type object struct {
	reign *reign
	class *class
	gate  gate
	awake atomic.Bool // it has an instance

	mu      sync.Mutex
	ref     host.Ref // the name may be learnt later, by who has the turn; the rest never changes
	busy    bool     // somebody has the turn
	gone    bool     // no longer in the reign's table
	refuse  error    // why no event may start any more
	mailbox queue[*event]
	bytes   int                  // of the events in the mailbox
	resumes queue[chan struct{}] // turns that were given up and are wanted back; they go first
	room    chan struct{}        // closed when the mailbox has room again
	posts   []post               // for the object that will follow this one
	holds   int                  // background work, and turns that were given up
	used    time.Time            // when the last turn ended
	settled chan struct{}        // closed when nothing runs, waits or holds

	// What follows belongs to whoever has the turn.
	inst        host.Instance
	incarnation uint64 // counts the instances that were thrown away
	state       state
	sockets     sockets
	carried     carried
	work        int // background tasks under way or about to start
}

// enter gives the turn to the caller, or queues the event. A patient event waits for
// room in a full mailbox; others are refused.
func (o *object) enter(ctx context.Context, ev *event) (mine bool, err error) {
	cfg := &o.reign.engine.cfg
	o.mu.Lock()
	for {
		switch {
		case o.gone:
			o.mu.Unlock()
			return false, errGone
		case o.refuse != nil:
			err := o.refuse
			o.mu.Unlock()
			return false, err
		case !o.busy:
			o.busy = true
			o.mu.Unlock()
			return true, nil
		case ev.internal || (o.mailbox.len() < cfg.MailboxEvents && o.bytes+ev.size <= max(cfg.MailboxBytes, ev.size)):
			o.enqueue(ev)
			o.mu.Unlock()
			return false, nil
		case !ev.patient:
			err := errOverloaded("too many events are queued for the object")
			if o.mailbox.len() < cfg.MailboxEvents {
				err = errOverloaded("too much data is queued for the object")
			}
			o.mu.Unlock()
			return false, err
		}
		if o.room == nil {
			o.room = make(chan struct{})
		}
		room := o.room
		o.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return false, errCanceled(ctx, true)
		case <-o.reign.ctx.Done():
			return false, errNoOwner()
		}
		o.mu.Lock()
	}
}

// errGone tells that the object left memory between being found and being entered.
var errGone = errors.New("gone")

// push queues an event of the engine's own and sees to it that it runs. It reports
// whether the object still takes events.
func (o *object) push(ev *event) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gone || o.refuse != nil {
		return false
	}
	o.enqueue(ev)
	if !o.busy {
		o.busy = true
		go o.drain()
	}
	return true
}

// post queues a post, or keeps it for the object's successor. It reports false if that is
// there already.
func (o *object) post(p post) bool {
	ev := p.build(o)
	if ev == nil {
		return true
	}
	ev.post = &p
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.gone:
		return false
	case o.refuse != nil:
		o.posts = append(o.posts, p)
		return true
	}
	o.enqueue(ev)
	if !o.busy {
		o.busy = true
		go o.drain()
	}
	return true
}

// takePosts returns what is for the object's successor. The object is gone.
func (o *object) takePosts() []post {
	o.mu.Lock()
	defer o.mu.Unlock()
	posts := o.posts
	o.posts, o.gone = nil, true
	return posts
}

func (o *object) enqueue(ev *event) {
	ev.queued = time.Now()
	o.mailbox.push(ev)
	o.bytes += ev.size
	o.class.metrics.waiting.Inc()
}

// learnName notes a name that the object was called by. The caller has the turn.
func (o *object) learnName(to host.Ref) {
	if to.Named && !o.ref.Named {
		o.mu.Lock()
		o.ref.Name, o.ref.Named = to.Name, true
		o.mu.Unlock()
	}
}

// self returns what names the object, for those who do not have the turn.
func (o *object) self() host.Ref {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ref
}

// release ends the caller's turn. Whatever waits is run by a goroutine that ends when
// the mailbox is empty; [object.whenSettled] tells when it has.
func (o *object) release() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mailbox.len() > 0 || o.resumes.len() > 0 {
		go o.drain()
		return
	}
	o.rest()
}

// rest leaves the object without a turn. The caller holds mu.
func (o *object) rest() {
	o.busy = false
	o.used = time.Now()
	o.checkSettled()
}

// drain runs what waits until nothing does, or until the turn went back to an event
// that had given it up.
func (o *object) drain() {
	for {
		o.mu.Lock()
		if o.resumes.len() > 0 {
			back := o.resumes.pop()
			o.mu.Unlock()
			close(back)
			return
		}
		if o.mailbox.len() == 0 {
			o.rest()
			o.mu.Unlock()
			return
		}
		ev := o.mailbox.pop()
		o.bytes -= ev.size
		o.class.metrics.waiting.Dec()
		if cfg := &o.reign.engine.cfg; o.room != nil && o.mailbox.len() <= cfg.MailboxEvents/2 && o.bytes <= cfg.MailboxBytes/2 {
			close(o.room)
			o.room = nil
		}
		o.mu.Unlock()
		o.run(ev)
	}
}

// leaveTurn gives the turn up in the middle of an event; takeTurn takes it back.
func (o *object) leaveTurn() {
	o.mu.Lock()
	o.holds++
	o.mu.Unlock()
	o.release()
}

func (o *object) takeTurn() {
	o.mu.Lock()
	o.holds--
	if !o.busy {
		o.busy = true
		o.mu.Unlock()
		return
	}
	back := make(chan struct{})
	o.resumes.push(back)
	o.mu.Unlock()
	<-back
}

// hold keeps the object in memory until as many calls of unhold.
func (o *object) hold() {
	o.mu.Lock()
	o.holds++
	o.mu.Unlock()
}

func (o *object) unhold() {
	o.mu.Lock()
	o.holds--
	o.checkSettled()
	o.mu.Unlock()
}

func (o *object) checkSettled() {
	if o.settled != nil && o.isSettled() {
		close(o.settled)
		o.settled = nil
	}
}

func (o *object) isSettled() bool {
	return !o.busy && o.holds == 0 && o.mailbox.len() == 0 && o.resumes.len() == 0
}

// whenSettled returns a channel that is closed when nothing runs, waits or holds.
func (o *object) whenSettled() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.isSettled() {
		return closed
	}
	if o.settled == nil {
		o.settled = make(chan struct{})
	}
	return o.settled
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// run runs one event from its start to the output gate. The caller has the turn, and
// has it still when run returns.
func (o *object) run(ev *event) {
	if !ev.start() {
		return // its caller has gone
	}
	o.learnName(ev.to)
	began := time.Now()
	if err := o.ready(ev, began); err != nil {
		ev.refused(err)
		o.class.metrics.refused.Inc()
		return
	}
	t := &turn{o: o, ev: ev, incarnation: o.incarnation}
	if ev.resp != nil {
		ev.resp.turn = t
	}
	err := t.play(func() error {
		if ev.direct != nil {
			return ev.direct(t)
		}
		return o.inst.Handle(&t.ctx, t, ev.what)
	})
	o.class.metrics.observe(ev.kind, err, time.Since(began))
	if ev.ended != nil {
		ev.ended(err)
	}
	t.end(err)
}

// ready brings the object into the state in which an event can start: room for its
// writes, metadata known, an instance that has loaded.
func (o *object) ready(ev *event, now time.Time) error {
	cfg := &o.reign.engine.cfg
	if !ev.internal && !ev.queued.IsZero() && now.Sub(ev.queued) > cfg.MailboxAge {
		return errOverloaded("the event was queued for too long")
	}
	if o.gate.uncommitted() > cfg.MaxUncommitted {
		if err := o.gate.await(true, ev.ctx.Done()); err != nil {
			return err
		}
	}
	o.state.settle(o.gate.committed.Load())
	if !o.state.known {
		if err := o.look(); err != nil {
			return err
		}
	}
	if ev.bare || o.inst != nil {
		return nil
	}
	return o.load(ev)
}

// look reads the object's metadata, and the list of its sockets.
func (o *object) look() error {
	meta, ok, err := o.reign.store.Lookup(o.ref.ID)
	if err != nil {
		return o.storeFailed(err)
	}
	o.state.known, o.state.exists = true, ok
	if ok {
		o.state.named, o.state.created = meta.Named, time.UnixMilli(meta.Created)
		o.learnName(host.Ref{Name: meta.Name, Named: meta.Named})
	}
	o.sockets.set(o.reign.engine.cfg.Gateway.Sockets(o.ref.ID))
	return nil
}

// load makes an instance and lets it load, as an event of its own.
func (o *object) load(ev *event) error {
	inst := o.class.New()
	t := &turn{o: o, ev: &event{ctx: ev.ctx, to: ev.to, kind: kindSystem}, incarnation: o.incarnation, loading: true}
	began := time.Now()
	err := t.play(func() error { return inst.Handle(&t.ctx, t, &host.Load{}) })
	o.class.metrics.observeLoad(err, time.Since(began))
	t.end(err)
	if err != nil {
		ev.unloaded = true
		return err
	}
	o.inst = inst
	o.awake.Store(true)
	return nil
}

// drop throws the instance away.
func (o *object) drop() {
	o.inst = nil
	o.incarnation++
	o.awake.Store(false)
}

// evict sends the object to sleep and, when all it wrote is durable, out of memory.
func (o *object) evict(ctx context.Context, reason string) error {
	ev := o.sleepEvent(ctx, reason)
	if !o.push(ev) {
		return nil
	}
	err := ev.wait(ctx)
	o.forget()
	return err
}

func (o *object) sleepEvent(ctx context.Context, reason string) *event {
	return &event{kind: kindSystem, ctx: ctx, to: o.self(), internal: true, bare: true, direct: func(t *turn) error {
		var err error
		if o.inst != nil && o.class.info.Stopping {
			err = o.inst.Handle(&t.ctx, t, &host.Stopping{Reason: reason})
		}
		if err == nil {
			err = t.ceaseIfEmpty()
		}
		if o.inst != nil {
			o.drop()
			t.incarnation = o.incarnation
		}
		o.state.clean, o.state.cleanBytes = nil, 0
		return err
	}}
}

// forget takes a sleeping object out of memory, if nothing has come up.
func (o *object) forget() {
	o.mu.Lock()
	out := !o.gone && o.isSettled() && (!o.awake.Load() || o.refuse != nil) && o.gate.quiet()
	if out {
		o.gone = true
	}
	o.mu.Unlock()
	if out { // events find it gone until it is removed, so that no successor can run before
		o.reign.engine.cfg.Gateway.Release(o.ref.ID)
		o.reign.remove(o)
	}
}

// sweep is called from time to time: it evicts the object if it was not used for long,
// and resets it if its commit hangs.
func (o *object) sweep(now time.Time) {
	cfg := &o.reign.engine.cfg
	if o.gate.stuck(now.Add(-cfg.CommitTimeout)) {
		o.reset(&host.Error{
			Code: host.CodeUnknownOutcome, Overloaded: true, Reset: true,
			Message: "storage took too long and the object was reset: it may have happened",
		}, true)
		return
	}
	o.mu.Lock()
	over := !o.awake.Load() || o.refuse != nil
	idle := o.isSettled() && now.Sub(o.used) >= o.class.idle
	o.mu.Unlock()
	if over {
		o.forget()
		return
	}
	if idle {
		o.push(o.sleepEvent(o.reign.ctx, "idle"))
	}
}

// reset gives the object up: its held outputs become errors, its sockets are closed (if
// closing is set) so that their clients connect again and see the durable state, and no event starts
// until the outcome of every commit is known; then the next one finds a new object.
func (o *object) reset(cause *host.Error, closing bool) {
	o.refuseWith(&host.Error{
		Code: host.CodeUnavailable, Retryable: true, RetryAfter: time.Second,
		Message: "the object is being reset; try again soon",
	})
	if !o.gate.breakWith(cause) {
		return
	}
	o.class.metrics.resets.Inc()
	o.reign.engine.cfg.Logger.Error("object reset", slog.String("class", o.class.name), slog.Any("object", o.ref.ID), slog.Any("shard", o.reign.shard), slog.Any("epoch", o.reign.store.Epoch()), slog.Any("err", cause))
	if closing {
		o.reign.engine.cfg.Gateway.CloseAll(o.ref.ID, closeServiceRestart, "the object was reset")
	}
}

func (o *object) refusing() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.refuse != nil
}

// refuseWith fails the events that wait and every later one.
func (o *object) refuseWith(err error) {
	o.mu.Lock()
	if o.refuse == nil {
		o.refuse = err
	}
	var waiting []*event
	for o.mailbox.len() > 0 {
		ev := o.mailbox.pop()
		waiting = append(waiting, ev)
		if ev.post != nil {
			o.posts = append(o.posts, *ev.post)
		}
	}
	o.bytes = 0
	o.class.metrics.waiting.Sub(float64(len(waiting)))
	if o.room != nil {
		close(o.room)
		o.room = nil
	}
	o.checkSettled()
	o.mu.Unlock()
	for _, ev := range waiting {
		switch {
		case ev.post != nil: // its successor will run it
		case ev.start():
			ev.refused(err)
		}
	}
}

// storeFailed is what an event sees of a store that cannot read.
func (o *object) storeFailed(err error) error {
	o.reign.engine.cfg.Logger.Error("read storage", slog.String("class", o.class.name), slog.Any("object", o.ref.ID), slog.Any("shard", o.reign.shard), slog.Any("err", err))
	var e *host.Error
	if errors.As(err, &e) {
		return e
	}
	return host.Errorf(host.CodeInternal, "the object's storage cannot be read").Because(err)
}

// guard runs an author's code and turns its panics into errors.
func (o *object) guard(fn func() error) (err error) {
	returned := false
	defer func() {
		if returned {
			return
		}
		switch v := recover().(type) {
		case *host.Error: // a turn's own way to end the event
			err = v
		case aborted:
			err = v.err
		default:
			o.reign.engine.cfg.Logger.Error("an object panicked", slog.String("class", o.class.name), slog.Any("object", o.ref.ID), slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
			err = &host.Error{Code: host.CodeInternal, Message: "the object failed with an internal error", Remote: true, Reset: true}
		}
	}()
	err = fn()
	returned = true
	return err
}

// aborted is the panic that ends an event by [host.Turn.Abort].
type aborted struct{ err error }

func errOverloaded(why string) *host.Error {
	return &host.Error{Code: host.CodeOverloaded, Message: why + "; slow down", Overloaded: true, RetryAfter: time.Second}
}

func errCanceled(ctx context.Context, before bool) *host.Error {
	code, verb := host.CodeCanceled, "the caller went away"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code, verb = host.CodeDeadline, "the deadline passed"
	}
	if before {
		e := host.Errorf(code, "%s before the event started: it did not happen", verb).Because(ctx.Err())
		e.Retryable = true
		return e
	}
	return host.Errorf(code, "%s while the event ran: it may have happened", verb).
		Because(errors.Join(host.ErrUnknownOutcome, ctx.Err()))
}

const closeServiceRestart = 1012
