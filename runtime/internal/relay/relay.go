// Package relay carries the sockets of a cluster between the nodes that hold their
// connections (gateways) and the nodes that run their objects (owners). It promises:
//
//   - the messages of one socket reach its object in order and have their effects once, also
//     across a change of the owner; a message that cannot be kept is not lost in silence:
//     its socket is closed with 1012;
//   - what an object sends reaches the client in order, without a hole and at most once, or
//     the socket is closed with 1012;
//   - a broadcast crosses the wire once per gateway, whatever the number of sockets;
//   - every socket gets its close event, also if its gateway dies;
//   - nothing that the engine calls waits for another node;
//   - where owner and gateway are the same node, a message takes no detour.
//
// Each node has both halves: to the engine the relay is the gateway of all sockets
// ([Relay.Send] and so on), to the hub it is where events go ([Relay.Message] and so on).
//
//	client > hub > courier ---------here--------> engine > Send, Broadcast --here--> hub > client
//	                     \--stream--> inbox --^        \-----------stream----------^
//
// DESIGN.md beside this file has the states, the cases of failure, and the order of locks.
//
// Goroutines: one writer (and one reader of acknowledgements) for each peer, one ticker, couriers
// that have to deliver again, and inboxes that are not empty; all ended and waited for by
// [Relay.Stop]. The reader of a stream belongs to who calls [Relay.Serve].
package relay

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// An Engine runs the objects of the shards that this node leads.
type Engine interface {
	// Deliver runs a message event and returns when its handler has ended; settled is
	// called when the message need not be kept any more, or must be delivered again.
	Deliver(ctx context.Context, to host.Ref, m *host.SocketMessage, settled func(error)) error
	SocketClosed(to host.Ref, c *host.SocketClose)
	SocketFailed(to host.Ref, f *host.SocketError)
}

// A Hub holds the sockets of this node's clients. Its methods do not block and call nothing
// of the relay.
type Hub interface {
	Sockets(id placement.ObjectID) []host.Socket
	Accept(ref host.Ref, s host.Socket)
	Send(id placement.ObjectID, to host.SocketID, m host.Message)
	Broadcast(id placement.ObjectID, m host.Message, tag string, except []host.SocketID)
	Close(id placement.ObjectID, s host.SocketID, code int, reason string)
	SetAttachment(id placement.ObjectID, s host.SocketID, attachment []byte)
	SetAutoResponses(id placement.ObjectID, pairs []host.AutoResponse)
	AutoResponse(id placement.ObjectID, s host.SocketID) time.Time
	Forget(id placement.ObjectID, s host.SocketID)
	Release(id placement.ObjectID)
	CloseAll(id placement.ObjectID, code int, reason string)
}

// A Network opens connections to other nodes.
type Network interface {
	Open(ctx context.Context, to placement.NodeID, service byte) (net.Conn, error)
}

// Config says how a [Relay] is built. Zero values mean the defaults given.
type Config struct {
	Self    placement.NodeID
	Table   placement.Table
	Hub     Hub
	Network Network
	Service byte                      // what the network calls the relay
	Live    func() []placement.NodeID // the nodes that are thought to be there
	Logger  *slog.Logger              // default: discard

	GatherTimeout time.Duration // for the gateways to tell their sockets when a reign begins; 500 ms
	PingEvery     time.Duration // something is written at least so often; 250 ms
	SuspectAfter  time.Duration // a peer silent for this long is not waited for; 750 ms
	SilentAfter   time.Duration // a connection on which nothing comes for this long is broken; 3 s
	LostAfter     time.Duration // a peer that cannot be reached for this long has lost its sockets; 10 s
	RetryFor      time.Duration // how long a message waits for an owner before its socket is closed; 15 s
	DialTimeout   time.Duration // for a connection and its greeting; 2 s
	WriteTimeout  time.Duration // for a peer to take a batch of frames; 10 s
	MaxRedial     time.Duration // longest pause between two attempts to connect; 500 ms

	PeerQueueBytes int // waiting for one peer; the object with most of them loses its sockets there; 64 MiB
	WindowBytes    int // written to a peer and not acknowledged; then the writer waits; 4 MiB
	ShardBytes     int // messages on their way to the owner of a shard, or a single one; then readers wait; 16 MiB
	SocketMessages int // of one socket that are not settled; then its reader waits; 256
	SocketBytes    int // likewise, or a single one; 1 MiB
}

func (c Config) withDefaults() Config {
	setDefault(&c.GatherTimeout, 500*time.Millisecond)
	setDefault(&c.PingEvery, 250*time.Millisecond)
	setDefault(&c.SuspectAfter, 750*time.Millisecond)
	setDefault(&c.SilentAfter, 3*time.Second)
	setDefault(&c.LostAfter, 10*time.Second)
	setDefault(&c.RetryFor, 15*time.Second)
	setDefault(&c.DialTimeout, 2*time.Second)
	setDefault(&c.WriteTimeout, 10*time.Second)
	setDefault(&c.MaxRedial, 500*time.Millisecond)
	setDefault(&c.PeerQueueBytes, 64<<20)
	setDefault(&c.WindowBytes, 4<<20)
	setDefault(&c.ShardBytes, 16<<20)
	setDefault(&c.SocketMessages, 256)
	setDefault(&c.SocketBytes, 1<<20)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

const closeServiceRestart = 1012

// A Relay joins one node's engine and hub with those of the others. Its methods may be called
// from any goroutine.
type Relay struct {
	cfg         Config
	log         *slog.Logger
	hub         Hub
	engine      Engine
	incarnation uint64
	metrics     *metrics

	areas  []area                  // by shard
	reigns []atomic.Pointer[reign] // by shard; nil where this node does not own

	ctx     context.Context // the relay's lifetime
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex // guards the following, and the start of goroutines against Stop
	stopped bool
	peers   map[placement.NodeID]*peer
}

// New returns a relay that carries nothing yet. The error says which setting is wrong.
func New(cfg Config) (*Relay, error) {
	cfg = cfg.withDefaults()
	switch {
	case cfg.Self == "":
		return nil, errors.New("relay: no node ID")
	case cfg.Table.Shards() == 0:
		return nil, errors.New("relay: no shard table")
	case cfg.Hub == nil || cfg.Network == nil || cfg.Live == nil:
		return nil, errors.New("relay: it needs a hub, a network, and who is there")
	}
	r := &Relay{
		cfg:         cfg,
		log:         cfg.Logger,
		hub:         cfg.Hub,
		incarnation: rand.Uint64() | 1,
		metrics:     newMetrics(),
		areas:       make([]area, cfg.Table.Shards()),
		reigns:      make([]atomic.Pointer[reign], cfg.Table.Shards()),
		peers:       make(map[placement.NodeID]*peer),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	for i := range r.areas {
		r.areas[i].init(r, placement.ShardID(i))
	}
	return r, nil
}

// Start names the engine, and starts the relay. It must be called once, before the first
// event.
func (r *Relay) Start(engine Engine) {
	r.engine = engine
	r.spawn(r.tick)
}

// Stop waits until the close events of this node's sockets have reached their objects, and then
// ends all connections. When ctx ends first, what is left is dropped: the owners then see
// these sockets drop. The hub must have been shut down before, and the reigns must have ended.
// It may be called twice.
func (r *Relay) Stop(ctx context.Context) error {
	var err error
	for !r.settled() && err == nil {
		if !pause(ctx, 5*time.Millisecond) {
			err = ctx.Err()
		}
	}
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
	r.cancel()
	r.running.Wait()
	return err
}

// Flush waits until the nodes that can be reached have processed all that has been sent to them so
// far. Before an owner hands a shard over, this spares the sockets whose last frames would
// otherwise come behind the new owner's.
func (r *Relay) Flush(ctx context.Context) error {
	for _, p := range r.allPeers() {
		if err := p.link.flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

// settled reports whether nothing need be said to anybody.
func (r *Relay) settled() bool {
	for i := range r.areas {
		if !r.areas[i].settled() {
			return false
		}
	}
	for _, p := range r.allPeers() {
		if !p.link.idle() && !p.link.suspect() {
			return false
		}
	}
	return true
}

// Gone tells that the process of a node is known to be gone: its connections broke and
// new ones are refused.
func (r *Relay) Gone(node placement.NodeID) {
	r.mu.Lock()
	p := r.peers[node]
	r.mu.Unlock()
	if p != nil {
		p.forget()
	}
}

// begin counts something that Stop waits for. It reports false if that has begun.
func (r *Relay) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return false
	}
	r.running.Add(1)
	return true
}

// spawn runs fn on a goroutine that Stop waits for.
func (r *Relay) spawn(fn func(context.Context)) {
	if !r.begin() {
		return
	}
	go func() { // ends with r.ctx at the latest
		defer r.running.Done()
		fn(r.ctx)
	}()
}

func (r *Relay) closeWithMe(c net.Conn) (stop func() bool) {
	return context.AfterFunc(r.ctx, func() { c.Close() })
}

// peer returns another node, to which a link is begun if there is none.
func (r *Relay) peer(id placement.NodeID) *peer {
	r.mu.Lock()
	p := r.peers[id]
	fresh := p == nil
	if fresh {
		p = &peer{id: id, r: r}
		p.link = newLink(r, p)
		r.peers[id] = p
	}
	r.mu.Unlock()
	if fresh {
		r.spawn(p.link.run)
	}
	return p
}

func (r *Relay) allPeers() []*peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*peer, 0, len(r.peers))
	for _, p := range r.peers {
		all = append(all, p)
	}
	return all
}

func (r *Relay) area(id placement.ObjectID) *area { return &r.areas[r.cfg.Table.ShardOf(id)] }

// tick looks after what only time tells.
func (r *Relay) tick(ctx context.Context) {
	t := time.NewTicker(r.cfg.PingEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		for i := range r.areas {
			r.areas[i].look()
		}
		r.tellNewcomers()
	}
}

// handle takes one frame from a peer. It does not block.
func (r *Relay) handle(p *peer, f *frame) {
	switch f.kind {
	case kindGather:
		r.gathered(p, f)
	case kindReign:
		r.ruled(p, f)
	case kindSockets:
		r.joined(p, f)
	case kindMessage, kindClosed, kindFailed:
		r.arrived(p, f)
	case kindEnded, kindSettled, kindRefused, kindUnknown:
		r.answered(p, f)
	default:
		r.output(p, f)
	}
}
