// Package engine runs objects. It promises:
//
//   - one event at a time on one object, in the order of arrival;
//   - an event is all or nothing: its writes since the last commit point are one
//     batch, and are dropped if its handler fails;
//   - the output gate: nothing leaves an object (reply, streamed chunk, socket
//     message, call, schedule, background work) before the writes that came before it are
//     durable on a quorum, though the next event starts at once on the state that
//     the last one left;
//   - nothing of an object survives the reign (one term of its shard's leader) under
//     which it ran, except what was committed.
//
// It leans on a [Store] for each shard this node leads, and on a [Gateway] that
// holds the clients' sockets. An object's states:
//
//	         first event              idle, nothing held
//	asleep ---------------> awake ------------------------> asleep
//	                          |  ^
//	  handler failed, panic   |  | next event: a new instance, Load first
//	                          v  |
//	                       no instance
//	                          |
//	  commit failed or took   v
//	  over CommitTimeout:   reset: held outputs become errors, sockets are closed
//	                        with 1012, and events wait until the outcome of every
//	                        commit is known
//
// DESIGN.md beside this file says why it is built this way.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// Config says how an [Engine] is built. Zero values mean the defaults given.
type Config struct {
	Table   placement.Table // which shard owns which slot
	Classes []host.Class
	Gateway Gateway
	Carrier Carrier      // in a cluster
	Far     host.Caller  // reaches objects wherever they are; default: all are here
	Logger  *slog.Logger // default: discard
	Metrics *Metrics     // default: not registered anywhere

	IdleAfter      time.Duration // memory is given up after this long unused; 10 s
	CommitTimeout  time.Duration // an object whose commit takes longer is reset; 30 s
	AlarmTimeout   time.Duration // one run of a schedule's handler; 15 min
	StopTimeout    time.Duration // how long Lead waits for handlers when a reign ends; 10 s
	MailboxEvents  int           // events that wait for one object; 8,192
	MailboxBytes   int           // their arguments and messages; 64 MiB
	MailboxAge     time.Duration // an event that waited longer is refused; 30 s
	MaxUncommitted int           // bytes written by one object and not durable yet; 8 MiB
	MaxWork        int           // background tasks of one object; 64
	ResponseBuffer int           // bytes of a response kept before they are a chunk; 256 KiB
}

func (c Config) withDefaults() Config {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	dur := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	dur(&c.IdleAfter, 10*time.Second)
	dur(&c.CommitTimeout, 30*time.Second)
	dur(&c.AlarmTimeout, 15*time.Minute)
	dur(&c.StopTimeout, 10*time.Second)
	def(&c.MailboxEvents, 8192)
	def(&c.MailboxBytes, 64<<20)
	dur(&c.MailboxAge, 30*time.Second)
	def(&c.MaxUncommitted, 8<<20)
	def(&c.MaxWork, 64)
	def(&c.ResponseBuffer, 256<<10)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
	return c
}

// An Engine runs the objects of the shards that this node leads.
type Engine struct {
	cfg     Config
	classes map[string]*class
	reigns  []atomic.Pointer[reign] // by shard; nil where this node does not lead

	sweepEvery time.Duration
	stopping   atomic.Bool
	waits      waitGraph

	mu   sync.Mutex
	kept map[placement.ShardID][]post
}

// A class is what the engine keeps of a host.Class: its facts, looked up once.
type class struct {
	host.Class
	name    string
	info    host.ClassInfo
	idle    time.Duration
	metrics classMetrics
}

// New returns an engine that leads no shard yet. The error says which class is wrong.
func New(cfg Config) (*Engine, error) {
	cfg = cfg.withDefaults()
	if cfg.Table.Shards() == 0 {
		return nil, errors.New("engine: no shard table")
	}
	e := &Engine{
		cfg:     cfg,
		classes: make(map[string]*class, len(cfg.Classes)),
		reigns:  make([]atomic.Pointer[reign], cfg.Table.Shards()),
		kept:    make(map[placement.ShardID][]post),

		sweepEvery: sweepEvery(cfg.IdleAfter),
	}
	for _, c := range cfg.Classes {
		if _, ok := e.classes[c.Name()]; ok {
			return nil, fmt.Errorf("class %q is defined twice", c.Name())
		}
		info := c.Info()
		idle := info.IdleAfter
		if idle == 0 {
			idle = cfg.IdleAfter
		}
		e.sweepEvery = min(e.sweepEvery, sweepEvery(idle))
		e.classes[c.Name()] = &class{Class: c, name: c.Name(), info: info, idle: idle, metrics: cfg.Metrics.class(c.Name())}
	}
	return e, nil
}

// sweepEvery returns how often to look for objects that are idle for a time.
func sweepEvery(idle time.Duration) time.Duration {
	return min(max(idle/4, 10*time.Millisecond), 2*time.Second)
}

// Class returns the facts about a class, and whether there is one of that name.
func (e *Engine) Class(name string) (host.ClassInfo, bool) {
	c, ok := e.classes[name]
	if !ok {
		return host.ClassInfo{}, false
	}
	return c.info, true
}

// Lead runs the objects of a shard over a store for as long as ctx lasts: the
// shard's owner calls it when it has become leader, and ends ctx when it no longer
// is. It returns when nothing of the reign runs any more.
func (e *Engine) Lead(ctx context.Context, shard placement.ShardID, store Store) {
	r := newReign(ctx, e, shard, store)
	if !e.reigns[shard].CompareAndSwap(nil, r) {
		panic(fmt.Sprintf("engine: shard %d is led already", shard))
	}
	r.checkSockets()
	e.unkeep(shard)
	r.run()
	e.reigns[shard].Store(nil)
	r.end()
}

// Leads reports whether this node leads a shard.
func (e *Engine) Leads(shard placement.ShardID) bool { return e.reigns[shard].Load() != nil }

// Stop drains the engine: new events from outside are refused, those that wait or run
// finish, every instance gets its Stopping event, and all writes become durable. It
// returns early, with ctx's cause, if ctx ends first. The reigns go on until their contexts end.
func (e *Engine) Stop(ctx context.Context) error {
	e.stopping.Store(true)
	var wg sync.WaitGroup
	errs := make([]error, len(e.reigns))
	for i := range e.reigns {
		if r := e.reigns[i].Load(); r != nil {
			wg.Go(func() { errs[i] = r.drain(ctx) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// object returns the object that to names, awake or to be woken by its next event.
func (e *Engine) object(to host.Ref) (*object, error) {
	c, ok := e.classes[to.Class]
	if !ok {
		return nil, host.Errorf(host.CodeUnknownClass, "there is no class %q", to.Class)
	}
	r := e.reigns[e.cfg.Table.ShardOf(to.ID)].Load()
	if r == nil {
		return nil, errNoOwner()
	}
	return r.object(c, to)
}

// enter finds the object that to names and gives its turn to the caller, or queues the event.
func (e *Engine) enter(ctx context.Context, to host.Ref, ev *event) (mine bool, o *object, err error) {
	for {
		o, err := e.object(to)
		if err != nil {
			return false, nil, err
		}
		mine, err := o.enter(ctx, ev)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			o.class.metrics.refused.Inc()
			return false, nil, err
		}
		return mine, o, nil
	}
}

// do runs one event on an object and waits until its output may leave, or ctx ends.
func (e *Engine) do(ctx context.Context, to host.Ref, ev *event) error {
	if e.stopping.Load() && !ev.internal && !ev.called {
		return errStopping()
	}
	if e.cfg.Far != nil {
		if err := inChain(ctx, to); err != nil {
			return err
		}
	}
	mine, o, err := e.enter(ctx, to, ev)
	if err != nil {
		return err
	}
	if mine {
		if ev.resp != nil {
			ev.resp.inline = true
		}
		o.run(ev)
		o.release()
	}
	return ev.wait(ctx)
}

// A post is an event that must reach its object, whatever becomes of the one in memory:
// the end of a socket.
type post struct {
	to    host.Ref
	build func(o *object) *event // nil if the object has no use for it
}

// post queues an event without waiting for it. While the object is being reset, or its
// shard has no owner here, it is kept until there is a new one.
func (e *Engine) post(p post) {
	for {
		o, err := e.object(p.to)
		if errors.Is(err, host.ErrUnknownClass) {
			return
		}
		if err != nil {
			if e.keep(p) {
				return
			}
			continue
		}
		if o.post(p) {
			return
		}
	}
}

// keep keeps a post for the next reign over its shard. It reports false if that has begun.
// In a cluster the next one may be anywhere: there the gateway delivers again.
func (e *Engine) keep(p post) bool {
	shard := e.cfg.Table.ShardOf(p.to.ID)
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := e.reigns[shard].Load(); r != nil && !r.isOver() {
		return false
	}
	if e.cfg.Carrier == nil {
		e.kept[shard] = append(e.kept[shard], p)
	}
	return true
}

// unkeep posts what was kept for a shard.
func (e *Engine) unkeep(shard placement.ShardID) {
	e.mu.Lock()
	kept := e.kept[shard]
	delete(e.kept, shard)
	e.mu.Unlock()
	for _, p := range kept {
		e.post(p)
	}
}

func errStopping() *host.Error {
	return &host.Error{Code: host.CodeUnavailable, Message: "the node is stopping; try again soon", Retryable: true, RetryAfter: time.Second}
}
