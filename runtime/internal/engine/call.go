package engine

import (
	"context"
	"net/http"
	"strings"
	"sync"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// An Engine and a turn reach objects in the same way; a turn first passes its gate.
var (
	_ host.Caller = (*Engine)(nil)
	_ host.Turn   = (*turn)(nil)
)

// Call runs a method of an object and returns its reply when it may leave.
func (e *Engine) Call(ctx context.Context, to host.Ref, method string, args []byte) ([]byte, error) {
	return e.call(ctx, to, method, args, nil)
}

func (e *Engine) call(ctx context.Context, to host.Ref, method string, args []byte, left func(error)) ([]byte, error) {
	if c, ok := e.classes[to.Class]; ok {
		if _, ok := c.info.Methods[method]; !ok {
			return nil, host.Errorf(host.CodeUnknownMethod, "class %q has no method %q", to.Class, method)
		}
	}
	if len(args) > host.MaxCallBytes {
		return nil, host.Errorf(host.CodeTooLarge, "the arguments are %d bytes long, more than %d", len(args), host.MaxCallBytes)
	}
	call := &struct {
		event
		host.Call
	}{}
	call.Call = host.Call{Method: method, Args: args}
	call.event = event{kind: kindCall, ctx: ctx, to: to, what: &call.Call, size: len(args) + eventOverhead, left: left, called: left != nil}
	if err := e.do(ctx, to, &call.event); err != nil {
		return nil, err
	}
	if len(call.Reply) > host.MaxCallBytes {
		return nil, host.Errorf(host.CodeTooLarge, "the reply is %d bytes long, more than %d; the call has happened", len(call.Reply), host.MaxCallBytes)
	}
	return call.Reply, nil
}

// Lookup returns what is stored about an object, or ErrNotFound.
func (e *Engine) Lookup(ctx context.Context, to host.Ref) (host.ObjectInfo, error) {
	return e.lookup(ctx, to, nil)
}

func (e *Engine) lookup(ctx context.Context, to host.Ref, left func(error)) (info host.ObjectInfo, err error) {
	err = e.system(ctx, to, left, func(t *turn) (err error) {
		info, err = t.info()
		return err
	})
	return info, err
}

// Destroy removes an object, as [host.Turn.DestroySelf] does.
func (e *Engine) Destroy(ctx context.Context, to host.Ref) error { return e.destroy(ctx, to, nil) }

func (e *Engine) destroy(ctx context.Context, to host.Ref, left func(error)) error {
	return e.system(ctx, to, left, func(t *turn) error {
		t.DestroySelf()
		return nil
	})
}

// system runs an event that needs no instance.
func (e *Engine) system(ctx context.Context, to host.Ref, left func(error), fn func(*turn) error) error {
	return e.do(ctx, to, &event{kind: kindSystem, ctx: ctx, to: to, size: eventOverhead, bare: true, direct: fn, left: left, called: left != nil})
}

// ListObjects returns one page of the stored objects of a class, by name, then by ID. This
// node must lead every shard.
func (e *Engine) ListObjects(ctx context.Context, class string, o host.ListOptions) (host.ListPage, error) {
	all := make([]placement.ShardID, len(e.reigns))
	for i := range all {
		all[i] = placement.ShardID(i)
	}
	return e.ListShards(ctx, all, class, o)
}

// ListShards is ListObjects for some shards, which this node must lead.
func (e *Engine) ListShards(ctx context.Context, shards []placement.ShardID, class string, o host.ListOptions) (host.ListPage, error) {
	if _, ok := e.classes[class]; !ok {
		return host.ListPage{}, host.Errorf(host.CodeUnknownClass, "there is no class %q", class)
	}
	limit := o.Limit
	if limit <= 0 || limit > host.MaxListLimit {
		limit = host.MaxListLimit
	}
	name, id, err := host.DecodeCursor(o.Cursor)
	if err != nil {
		return host.ListPage{}, err
	}
	var all host.ListPage
	for _, shard := range shards {
		r := e.reigns[shard].Load()
		if r == nil {
			return host.ListPage{}, errNoOwner()
		}
		part, err := r.store.Objects(class, o.Prefix, storage.Position{Name: name, ID: id}, limit+1)
		if err != nil {
			return host.ListPage{}, host.Errorf(host.CodeInternal, "the list of objects cannot be read").Because(err)
		}
		var l latch
		r.store.Confirm(l.finish)
		if !l.wait(ctx.Done()) {
			return host.ListPage{}, errCanceled(ctx, true)
		}
		if l.err != nil {
			return host.ListPage{}, l.err
		}
		for _, s := range part {
			all.Objects = append(all.Objects, host.ObjectInfo{
				Ref:     host.Ref{Class: s.Class, ID: s.ID, Name: s.Name, Named: s.Named},
				Created: millis(s.Created),
			})
		}
	}
	return host.MergePages(limit, all), nil
}

// Evict sends an object to sleep, if it is awake, when its events have ended.
func (e *Engine) Evict(ctx context.Context, to host.Ref) error {
	o := e.find(to)
	if o == nil {
		return nil
	}
	return o.evict(ctx, "evicted")
}

// find returns an object that is in memory, or nil.
func (e *Engine) find(to host.Ref) *object {
	r := e.reigns[e.cfg.Table.ShardOf(to.ID)].Load()
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.objects[to.ID]
}

func (t *turn) Call(ctx context.Context, to host.Ref, method string, args []byte) (reply []byte, err error) {
	err = t.reach(ctx, to, func(ctx context.Context, far host.Caller, left func(error)) error {
		if far != nil {
			reply, err = far.Call(ctx, to, method, args)
		} else {
			reply, err = t.o.reign.engine.call(ctx, to, method, args, left)
		}
		return err
	})
	return reply, err
}

func (t *turn) Fetch(ctx context.Context, to host.Ref, w http.ResponseWriter, r *http.Request) error {
	return t.reach(ctx, to, func(ctx context.Context, far host.Caller, left func(error)) error {
		if far != nil {
			return far.Fetch(ctx, to, w, r)
		}
		_, err := t.o.reign.engine.serve(ctx, to, w, r, false, left)
		return err
	})
}

func (t *turn) Lookup(ctx context.Context, to host.Ref) (info host.ObjectInfo, err error) {
	if to.ID == t.o.ref.ID {
		t.check()
		return t.info()
	}
	err = t.reach(ctx, to, func(ctx context.Context, far host.Caller, left func(error)) error {
		if far != nil {
			info, err = far.Lookup(ctx, to)
		} else {
			info, err = t.o.reign.engine.lookup(ctx, to, left)
		}
		return err
	})
	return info, err
}

func (t *turn) info() (host.ObjectInfo, error) {
	if !t.o.state.exists {
		return host.ObjectInfo{}, host.Errorf(host.CodeNotFound, "there is no such object")
	}
	return host.ObjectInfo{Ref: t.o.ref, Created: t.o.state.created}, nil
}

func (t *turn) ListObjects(ctx context.Context, class string, o host.ListOptions) (host.ListPage, error) {
	if !t.outside {
		if err := t.passGate(ctx); err != nil {
			return host.ListPage{}, err
		}
	}
	if far := t.o.reign.engine.cfg.Far; far != nil {
		return far.ListObjects(ctx, class, o)
	}
	return t.o.reign.engine.ListObjects(ctx, class, o)
}

func (t *turn) Destroy(ctx context.Context, to host.Ref) error {
	if to.ID == t.o.ref.ID {
		t.DestroySelf()
		return nil
	}
	return t.reach(ctx, to, func(ctx context.Context, far host.Caller, left func(error)) error {
		if far != nil {
			return far.Destroy(ctx, to)
		}
		return t.o.reign.engine.destroy(ctx, to, left)
	})
}

// reach passes the gate and runs fn, which waits for another object while this one
// keeps its turn. It fails at once if that object is waiting for this one. If the object is
// not here, fn is told who reaches it; otherwise it must have left called when the other object
// lets go of the event. Inside Outside the gate has been passed, and nobody waits for a
// turn that has been given up.
func (t *turn) reach(ctx context.Context, to host.Ref, fn func(ctx context.Context, far host.Caller, left func(error)) error) error {
	e := t.o.reign.engine
	far := e.cfg.Far
	if far != nil && e.Leads(e.cfg.Table.ShardOf(to.ID)) {
		far = nil
	}
	if t.outside {
		return fn(ctx, far, func(error) {})
	}
	if err := t.passGate(ctx); err != nil {
		return err
	}
	w, err := e.waits.begin(t.o.ref, to)
	if err != nil {
		return err
	}
	defer e.waits.end(w)
	if e.cfg.Far != nil {
		chain := host.ChainOf(t.ev.ctx)
		ctx = host.WithChain(ctx, append(chain[:len(chain):len(chain)], t.o.ref))
	}
	return fn(ctx, far, func(error) { e.waits.end(w) })
}

// A waitGraph says which object's turn waits for which other object. Each waits for at
// most one, so a cycle is found by walking.
type waitGraph struct {
	mu    sync.Mutex
	edges map[placement.ObjectID]*wait
}

type wait struct{ from, to host.Ref }

// begin notes that from waits for to, unless to waits for from.
func (g *waitGraph) begin(from, to host.Ref) (*wait, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	cycle := []string{label(from), label(to)}
	for at := to.ID; at != from.ID; {
		next, ok := g.edges[at]
		if !ok {
			if g.edges == nil {
				g.edges = make(map[placement.ObjectID]*wait)
			}
			w := &wait{from, to}
			g.edges[from.ID] = w
			return w, nil
		}
		cycle = append(cycle, label(next.to))
		at = next.to.ID
	}
	return nil, host.Errorf(host.CodeDeadlock, "deadlock: %s", strings.Join(cycle, " calls "))
}

// inChain fails if the object that an event is for waits, through other nodes, for the event.
func inChain(ctx context.Context, to host.Ref) error {
	chain := host.ChainOf(ctx)
	for i, ref := range chain {
		if ref.ID == to.ID {
			var cycle []string
			for _, r := range append(chain[i:len(chain):len(chain)], to) {
				cycle = append(cycle, label(r))
			}
			return host.Errorf(host.CodeDeadlock, "deadlock: %s", strings.Join(cycle, " calls "))
		}
	}
	if len(chain) >= host.MaxChain {
		return host.Errorf(host.CodeDeadlock, "%d objects wait for each other in one chain of calls", len(chain))
	}
	return nil
}

// end takes the edge away, if it is still there.
func (g *waitGraph) end(w *wait) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.edges[w.from.ID] == w {
		delete(g.edges, w.from.ID)
	}
}

func label(r host.Ref) string {
	if r.Named {
		return r.Class + "/" + r.Name
	}
	return r.Class + "/id:" + r.ID.String()
}
