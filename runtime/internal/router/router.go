// Package router finds an object's owner: what is here is delivered to this node's engine,
// the rest is carried to the node that leads the object's shard. It promises:
//
//   - a request is carried whole: streaming both ways with the back-pressure of the
//     connection, with its caller's deadline, and cancelled when its caller goes;
//   - errors keep their identity on the way;
//   - what certainly did not happen is tried again, at whoever is the owner by then, for a
//     bounded time; what may have happened is never tried again, and is told as
//     [host.ErrUnknownOutcome].
//
// Who owns a shard is only a guess here. A node that is asked wrongly answers with its own
// guess; that it owns nothing it makes certain by itself, at the gate of every object.
//
//	Serve, Call, ... --here--> Engine
//	                \--there--> HTTP/2 over the nodes' own connections > Handler > that node's Engine
package router

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/transport"
)

// An Engine runs the objects of the shards that this node leads.
type Engine interface {
	host.Caller
	Class(name string) (host.ClassInfo, bool)
	Leads(shard placement.ShardID) bool
	Serve(ctx context.Context, to host.Ref, w http.ResponseWriter, r *http.Request) (host.Upgrade, error)
	// ListShards is ListObjects for shards that this node leads.
	ListShards(ctx context.Context, shards []placement.ShardID, class string, o host.ListOptions) (host.ListPage, error)
}

// Owners guesses who leads which shard.
type Owners interface {
	// Owner returns the node that is thought to lead a shard, and false if nobody is.
	Owner(shard placement.ShardID) (placement.NodeID, bool)
}

// A Network reaches other nodes.
type Network interface {
	// RoundTripper sends requests to a node. What was never sent fails with an error that
	// matches [ErrNotSent].
	RoundTripper(to placement.NodeID) http.RoundTripper
}

// ErrNotSent marks requests that cannot have had an effect, since they never left.
// It is the transport's own, so that its errors are recognised as they are.
var ErrNotSent = transport.ErrNotSent

// Config says how a [Router] is built.
type Config struct {
	Self    placement.NodeID
	Table   placement.Table
	Engine  Engine
	Owners  Owners
	Network Network
	Logger  *slog.Logger // default: discard

	RetryFor time.Duration // how long to look for an owner; 5 s
}

// A Router delivers to objects wherever they are. Its methods may be called from any goroutine.
type Router struct {
	cfg Config
	log *slog.Logger
}

// New returns a router.
func New(cfg Config) *Router {
	if cfg.RetryFor == 0 {
		cfg.RetryFor = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Router{cfg: cfg, log: cfg.Logger}
}

// Attach names the engine, if Config did not: the engine may have the router for its way to
// others. It must be called before anything else.
func (r *Router) Attach(e Engine) { r.cfg.Engine = e }

// Class returns the facts about a class. All nodes of a cluster run the same classes.
func (r *Router) Class(name string) (host.ClassInfo, bool) { return r.cfg.Engine.Class(name) }

// Call runs a method of an object and returns its reply when it may leave.
func (r *Router) Call(ctx context.Context, to host.Ref, method string, args []byte) (reply []byte, err error) {
	err = r.deliver(ctx, to.ID, place{
		here:  func() error { reply, err = r.cfg.Engine.Call(ctx, to, method, args); return err },
		there: func(n placement.NodeID) error { reply, err = r.carryCall(ctx, n, to, method, args); return err },
	})
	return reply, err
}

// Serve runs a fetch event; see the engine's method of the same name.
func (r *Router) Serve(ctx context.Context, to host.Ref, w http.ResponseWriter, req *http.Request) (up host.Upgrade, err error) {
	body := &onceBody{ReadCloser: req.Body}
	if req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
		req = req.WithContext(ctx)
		req.Body = body
	}
	err = r.deliver(ctx, to.ID, place{
		here:  func() error { up, err = r.cfg.Engine.Serve(ctx, to, w, req); return err },
		there: func(n placement.NodeID) error { up, err = r.carryFetch(ctx, n, to, w, req); return err },
		again: func() bool { return !body.touched.Load() && rewind(req) },
	})
	return up, err
}

// Fetch is Serve without WebSockets.
func (r *Router) Fetch(ctx context.Context, to host.Ref, w http.ResponseWriter, req *http.Request) error {
	if req.Header.Get("Upgrade") != "" {
		req = req.Clone(ctx)
		req.Header.Del("Upgrade")
	}
	_, err := r.Serve(ctx, to, w, req)
	return err
}

// Lookup returns what is stored about an object, or ErrNotFound.
func (r *Router) Lookup(ctx context.Context, to host.Ref) (info host.ObjectInfo, err error) {
	err = r.deliver(ctx, to.ID, place{
		here:  func() error { info, err = r.cfg.Engine.Lookup(ctx, to); return err },
		there: func(n placement.NodeID) error { return r.carryJSON(ctx, n, opLookup, to, &info) },
	})
	return info, err
}

// Destroy removes an object.
func (r *Router) Destroy(ctx context.Context, to host.Ref) error {
	return r.deliver(ctx, to.ID, place{
		here:  func() error { return r.cfg.Engine.Destroy(ctx, to) },
		there: func(n placement.NodeID) error { return r.carryJSON(ctx, n, opDestroy, to, nil) },
	})
}

// A place is an event that can be delivered here or there.
type place struct {
	here  func() error
	there func(placement.NodeID) error
	again func() bool // whether it can be tried another time; nil means always
}

// deliver tries an event where its owner is, and again where it has moved to, until it
// has an outcome that is not "certainly did not happen", or the time for that is over.
func (r *Router) deliver(ctx context.Context, id placement.ObjectID, p place) error {
	shard := r.cfg.Table.ShardOf(id)
	start, wait := time.Now(), firstWait
	hint, hinted := placement.NodeID(""), false
	for {
		owner, known := hint, hinted
		if !known {
			owner, known = r.cfg.Owners.Owner(shard)
		}
		hint, hinted = "", false
		var err error
		switch {
		case r.cfg.Engine.Leads(shard):
			err = p.here()
		case !known || owner == r.cfg.Self:
			err = errNoOwner()
		default:
			err = p.there(owner)
		}
		var wrong *notOwner
		switch {
		case errors.As(err, &wrong):
			hint, hinted = wrong.owner, wrong.owner != "" && wrong.owner != owner
			err = errNoOwner()
		case errors.Is(err, ErrNotSent):
			err = errNoOwner().Because(err)
		case !isUnavailable(err):
			return err
		}
		if time.Since(start) > r.cfg.RetryFor || (p.again != nil && !p.again()) {
			return err
		}
		if hinted {
			continue // at once, since somebody knows better
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
		wait = min(2*wait, maxWait)
	}
}

const (
	firstWait = 5 * time.Millisecond
	maxWait   = 250 * time.Millisecond
)

// isUnavailable reports whether an error says that nothing happened because there was no
// owner, and that another one may be found.
func isUnavailable(err error) bool {
	var e *host.Error
	return errors.As(err, &e) && e.Code == host.CodeUnavailable && e.Retryable
}

// A notOwner is the answer of a node that does not lead the shard.
type notOwner struct{ owner placement.NodeID }

func (n *notOwner) Error() string { return "not the owner of the object's shard" }

func errNoOwner() *host.Error {
	return &host.Error{Code: host.CodeUnavailable, Message: "the object's shard has no owner at the moment; try again soon", Retryable: true, RetryAfter: time.Second}
}
