package engine

import (
	"bytes"
	"context"
	"encoding/base64"
	"net/http"
	"slices"
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

// ListObjects returns one page of the stored objects of a class, by name, then by ID.
func (e *Engine) ListObjects(ctx context.Context, class string, o host.ListOptions) (host.ListPage, error) {
	if _, ok := e.classes[class]; !ok {
		return host.ListPage{}, host.Errorf(host.CodeUnknownClass, "there is no class %q", class)
	}
	limit := o.Limit
	if limit <= 0 || limit > host.MaxListLimit {
		limit = host.MaxListLimit
	}
	after, err := decodeCursor(o.Cursor)
	if err != nil {
		return host.ListPage{}, err
	}
	var all []storage.Object
	for i := range e.reigns {
		r := e.reigns[i].Load()
		if r == nil {
			return host.ListPage{}, errNoOwner()
		}
		part, err := r.store.Objects(class, o.Prefix, after, limit+1)
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
		all = append(all, part...)
	}
	slices.SortFunc(all, func(a, b storage.Object) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return bytes.Compare(a.ID[:], b.ID[:])
	})
	var page host.ListPage
	if len(all) > limit {
		all = all[:limit]
		page.Cursor = encodeCursor(all[limit-1])
	}
	for _, s := range all {
		page.Objects = append(page.Objects, host.ObjectInfo{
			Ref:     host.Ref{Class: s.Class, ID: s.ID, Name: s.Name, Named: s.Named},
			Created: millis(s.Created),
		})
	}
	return page, nil
}

func encodeCursor(last storage.Object) string {
	return base64.RawURLEncoding.EncodeToString(append(last.ID[:], last.Name...))
}

func decodeCursor(s string) (storage.Position, error) {
	if s == "" {
		return storage.Position{}, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) < len(placement.ObjectID{}) || len(b) > len(placement.ObjectID{})+host.MaxNameBytes {
		return storage.Position{}, host.Errorf(host.CodeBadRequest, "the cursor is not one that a list returned")
	}
	return storage.Position{ID: placement.ObjectID(b[:32]), Name: string(b[32:])}, nil
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
	err = t.reach(ctx, to, func(left func(error)) error {
		reply, err = t.o.reign.engine.call(ctx, to, method, args, left)
		return err
	})
	return reply, err
}

func (t *turn) Fetch(ctx context.Context, to host.Ref, w http.ResponseWriter, r *http.Request) error {
	return t.reach(ctx, to, func(left func(error)) error {
		up, err := t.o.reign.engine.serve(ctx, to, w, r, false, left)
		if err == nil && up.Socket != 0 {
			return host.Errorf(host.CodeInternal, "a fetch that cannot be upgraded was")
		}
		return err
	})
}

func (t *turn) Lookup(ctx context.Context, to host.Ref) (info host.ObjectInfo, err error) {
	if to.ID == t.o.ref.ID {
		t.check()
		return t.info()
	}
	err = t.reach(ctx, to, func(left func(error)) error {
		info, err = t.o.reign.engine.lookup(ctx, to, left)
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
	return t.o.reign.engine.ListObjects(ctx, class, o)
}

func (t *turn) Destroy(ctx context.Context, to host.Ref) error {
	if to.ID == t.o.ref.ID {
		t.DestroySelf()
		return nil
	}
	return t.reach(ctx, to, func(left func(error)) error { return t.o.reign.engine.destroy(ctx, to, left) })
}

// reach passes the gate and runs fn, which waits for another object while this one
// keeps its turn. It fails at once if that object is waiting for this one. fn must
// have left called when the other object lets go of the event. Inside Outside the gate
// has been passed, and nobody waits for a turn that has been given up.
func (t *turn) reach(ctx context.Context, to host.Ref, fn func(left func(error)) error) error {
	if t.outside {
		return fn(func(error) {})
	}
	if err := t.passGate(ctx); err != nil {
		return err
	}
	waits := &t.o.reign.engine.waits
	w, err := waits.begin(t.o.ref, to)
	if err != nil {
		return err
	}
	defer waits.end(w)
	return fn(func(error) { waits.end(w) })
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
