package engine

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A reign is one term in which this node leads a shard: the objects that are in
// memory under it, and the clock of their schedules. Two goroutines belong to it: the
// sweeper (run) and the clock; [Engine.Lead] owns both.
type reign struct {
	engine *Engine
	shard  placement.ShardID
	store  Store
	ctx    context.Context // ends with the reign
	clock  clock

	peopled chan struct{} // told when there is a first object

	mu      sync.Mutex
	over    bool
	objects map[placement.ObjectID]*object
}

func newReign(ctx context.Context, e *Engine, shard placement.ShardID, store Store) *reign {
	r := &reign{engine: e, shard: shard, store: store, ctx: ctx, objects: make(map[placement.ObjectID]*object), peopled: make(chan struct{}, 1)}
	r.clock.init(r)
	return r
}

// run sweeps until the reign is over: objects that were not used for a while leave
// memory, and those whose commits hang are reset. While there are no objects it sleeps.
func (r *reign) run() {
	var wg sync.WaitGroup
	wg.Go(r.clock.run)
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case now := <-timer.C:
			for _, o := range r.all() {
				o.sweep(now)
			}
		case <-r.peopled:
		case <-r.ctx.Done():
			return
		}
		if r.empty() {
			timer.Stop()
		} else {
			timer.Reset(r.engine.sweepEvery)
		}
	}
}

func (r *reign) empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.objects) == 0
}

// all returns the objects in memory.
func (r *reign) all() []*object {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.objects) == 0 {
		return nil
	}
	all := make([]*object, 0, len(r.objects))
	for _, o := range r.objects {
		all = append(all, o)
	}
	return all
}

// object returns the object that to names, which may be new in memory.
func (r *reign) object(c *class, to host.Ref) (*object, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o, ok := r.objects[to.ID]; ok {
		return o, nil
	}
	if r.over {
		return nil, errNoOwner()
	}
	o := &object{reign: r, class: c, ref: to}
	r.objects[to.ID] = o
	c.metrics.awake.Inc()
	if len(r.objects) == 1 {
		select {
		case r.peopled <- struct{}{}:
		default:
		}
	}
	return o, nil
}

// remove forgets an object that is gone, and hands what it could not take to the next.
func (r *reign) remove(o *object) {
	r.mu.Lock()
	if r.objects[o.ref.ID] == o {
		delete(r.objects, o.ref.ID)
		o.class.metrics.awake.Dec()
	}
	r.mu.Unlock()
	for _, p := range o.takePosts() {
		r.engine.post(p)
	}
}

func (r *reign) isOver() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over
}

// drain sends every object to sleep once its events have ended, and returns when all
// their writes are durable.
func (r *reign) drain(ctx context.Context) error {
	for {
		// Objects that are being reset hold nothing that could still be acknowledged.
		all := slices.DeleteFunc(r.all(), (*object).refusing)
		if len(all) == 0 {
			return nil
		}
		for _, o := range all {
			select {
			case <-o.whenSettled():
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		var wg sync.WaitGroup
		errs := make([]error, len(all))
		for i, o := range all {
			wg.Go(func() { errs[i] = o.evict(ctx, "shutdown") })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
}

// end waits, for a bounded time, until nothing of the reign runs any more. Its
// context has ended: handlers have been told, and the store commits nothing more.
func (r *reign) end() {
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
	timeout := time.NewTimer(r.engine.cfg.StopTimeout)
	defer timeout.Stop()
	all := r.all()
	for _, o := range all {
		o.refuseWith(errNoOwner())
	}
	for _, o := range all {
		select {
		case <-o.whenSettled():
		case <-timeout.C:
			timeout.Reset(0) // the others get no more time
			r.engine.cfg.Logger.Error("an object's handler went on after its reign had ended", slog.String("class", o.class.name), slog.Any("object", o.ref.ID), slog.Any("shard", r.shard), slog.Any("epoch", r.store.Epoch()))
		}
		o.gate.breakWith(errReignOver())
		r.remove(o)
	}
}

func errNoOwner() *host.Error {
	return &host.Error{Code: host.CodeUnavailable, Message: "the object's shard has no owner at the moment; try again soon", Retryable: true, RetryAfter: time.Second}
}

func errReignOver() *host.Error {
	return &host.Error{Code: host.CodeUnknownOutcome, Message: "this node lost the object's shard before the outcome was known: it may have happened", Reset: true}
}
