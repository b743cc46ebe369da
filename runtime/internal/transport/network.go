// Package transport carries bytes between nodes, over one TLS port per node. It promises:
//
//   - whoever is at the other end has proved, by a certificate, that it has the cluster's
//     secret, and which node it is; strangers, other clusters and other versions of the
//     protocol are refused with one clear line on both sides;
//   - every queue, frame and wait has a limit; a peer that is down costs nobody a wait, a peer
//     that hangs costs a time-out, and a broken connection fails at once all that waited on it;
//   - heartbeats never wait behind entries, nor both behind a snapshot: they have
//     connections of their own;
//   - a read is confirmed by answers to questions that were sent after it began
//     ([Group.Confirm]).
//
// The first byte after the handshake names the service:
//
//	TLS 1.3 handshake, both sides with certificates
//	  > hello: service, protocol version, cluster, node    < answer: welcome, or why not
//	service c  Raft's heartbeats, votes, confirmations: frames of all groups
//	        b  Raft's entries, pipelined:               frames of all groups
//	        s  one snapshot
//	        h  HTTP/2
//	        others: [Network.Open] and [Network.Accept]
//
// What a group needs is [raft.Transport], with promises of ours. Heartbeats take no short
// cut: SetHeartbeatHandler does nothing, so that they pass through the group's main loop
// like every other message (hashicorp/raft issue 695: handled on the transport's goroutine
// they race the main loop, and logs can diverge). And a group can be made to stand for
// election at once ([Group.Stand]) where waiting for a time-out would only cost time.
//
// [Local] is the transport of a group whose only member is this node.
package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-run/holdfast/placement"
)

// Why something was not sent, or got no answer.
var (
	// ErrNotSent marks what cannot have had an effect, since it never left this node.
	ErrNotSent = errors.New("not sent")
	// ErrNoPeer means that this node has no connection to the one addressed.
	ErrNoPeer = errors.New("no such peer")
	// ErrClosed means that the Network, or the Group, has been stopped.
	ErrClosed = errors.New("closed")
	// ErrTimeout means that no answer came in time.
	ErrTimeout = errors.New("no answer in time")
)

var (
	errBroken = errors.New("the connection broke")
	errBusy   = errors.New("too much waits to be sent")
)

// Credentials prove a node to others, and check their proofs.
type Credentials interface {
	// Certificate returns the node's certificate; cluster is empty before it has joined one.
	Certificate(cluster string, node placement.NodeID) (tls.Certificate, error)
	// Verify checks a peer's chain, and returns the names in it, as far as it has any.
	Verify(chain []*x509.Certificate) (cluster string, node placement.NodeID, err error)
}

// Config says how a [Network] is built. Zero limits mean the defaults given.
type Config struct {
	Self        placement.NodeID
	Cluster     string // empty: this node has not joined one yet, and is a guest everywhere
	Credentials Credentials

	// Listener accepts TCP connections and belongs to the Network from New on. Without one
	// nobody can reach this node: enough for a tool, and for a node that asks to join.
	Listener net.Listener
	// Dial connects to an address; a net.Dialer's by default.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Resolve returns where a node is. It is asked for each connection, and must not block.
	Resolve func(placement.NodeID) (addr string, ok bool)
	// OnRefused is called when the process of a peer is gone: a connection with it broke and a
	// new one was refused. It is called once per loss, and must not block.
	OnRefused func(placement.NodeID)

	Logger *slog.Logger // default: discard

	DialTimeout      time.Duration // TCP, TLS and hello together; 2 s
	HandshakeTimeout time.Duration // of a connection that was accepted; 5 s
	WriteTimeout     time.Duration // of one write; 10 s
	ControlTimeout   time.Duration // of a heartbeat or vote; 1 s, as long as a follower's patience
	AppendTimeout    time.Duration // of entries, and a second more for each MiB; 5 s
	ConfirmTimeout   time.Duration // of a confirmation; 1 s
	SnapshotTimeout  time.Duration // of a snapshot that does not advance; 10 s
	RestoreTimeout   time.Duration // of the receiver, from a snapshot's last byte to its answer; 10 min

	AppendBytes  int // entries in one message; at least one entry is sent; 1 MiB
	MaxConns     int // connections accepted; 4096
	MaxSnapshots int // snapshots received at the same time; 4
}

func (c Config) withDefaults() Config {
	times := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	times(&c.DialTimeout, 2*time.Second)
	times(&c.HandshakeTimeout, 5*time.Second)
	times(&c.WriteTimeout, 10*time.Second)
	times(&c.ControlTimeout, time.Second)
	times(&c.AppendTimeout, 5*time.Second)
	times(&c.ConfirmTimeout, time.Second)
	times(&c.SnapshotTimeout, 10*time.Second)
	times(&c.RestoreTimeout, 10*time.Minute)
	numbers := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	numbers(&c.AppendBytes, 1<<20)
	numbers(&c.MaxConns, 4096)
	numbers(&c.MaxSnapshots, 4)
	if c.Dial == nil {
		dialer := new(net.Dialer)
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) }
	}
	if c.Resolve == nil {
		c.Resolve = func(placement.NodeID) (string, bool) { return "", false }
	}
	if c.OnRefused == nil {
		c.OnRefused = func(placement.NodeID) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.Self == "" || len(c.Self) > maxName:
		return fmt.Errorf("the node's ID has %d bytes, want 1 to %d", len(c.Self), maxName)
	case len(c.Cluster) > maxName:
		return fmt.Errorf("the cluster's name has %d bytes, want at most %d", len(c.Cluster), maxName)
	case c.Credentials == nil:
		return errors.New("there are no credentials")
	case c.AppendBytes < 0 || c.AppendBytes > maxFrame/2:
		return fmt.Errorf("AppendBytes is %d, want at most %d", c.AppendBytes, maxFrame/2)
	}
	return nil
}

// A Network is one node's connections with all others. Its methods may be called from any
// goroutine.
type Network struct {
	cfg      Config
	log      *slog.Logger
	metrics  *metrics
	refusals refusals
	web      *web
	services map[byte]func(placement.NodeID, net.Conn) // fixed from Start on
	greeting chan struct{}                             // a place for each handshake under way
	receives chan struct{}                             // a place for each snapshot being received

	ctx     context.Context // the Network's lifetime, ended by Stop
	cancel  context.CancelFunc
	running sync.WaitGroup // everything that run started, awaited by Stop
	stop    sync.Once
	stopErr error

	mu      sync.Mutex // guards what follows
	started bool
	stopped bool
	conns   map[*conn]struct{}
	inbound int // of conns
	peers   map[placement.NodeID]*peer
	groups  map[uint64]*Group
}

// Handshakes under way at the same time; what comes above is closed.
const maxGreetings = 256

// New returns a Network, which may reach others at once and is reached from Start on.
func New(cfg Config) (*Network, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("connect with other nodes: %w", err)
	}
	n := &Network{
		cfg:      cfg,
		log:      cfg.Logger,
		metrics:  newMetrics(),
		greeting: make(chan struct{}, maxGreetings),
		receives: make(chan struct{}, cfg.MaxSnapshots),
		services: make(map[byte]func(placement.NodeID, net.Conn)),
		conns:    make(map[*conn]struct{}),
		peers:    make(map[placement.NodeID]*peer),
		groups:   make(map[uint64]*Group),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.web = newWeb(n)
	n.services[serviceControl] = n.serveControl
	n.services[serviceBulk] = n.serveBulk
	n.services[serviceSnapshot] = n.serveSnapshot
	return n, nil
}

// Collectors returns the Network's metrics for registration.
func (n *Network) Collectors() []prometheus.Collector { return n.metrics.all }

// Accept says who serves the connections of a service that has a name of its own. It must
// be called before Start. serve runs on a goroutine of the Network and must close c, which breaks
// when the Network stops; Stop waits for serve.
func (n *Network) Accept(service byte, serve func(peer placement.NodeID, c net.Conn)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.started || service == serviceWeb || n.services[service] != nil {
		panic(fmt.Sprintf("transport: service %q is taken, or the network has been started", service))
	}
	n.services[service] = serve
}

// Serve says who serves HTTP requests: of nodes of this cluster, and of guests, who have the
// secret but belong to no cluster: nodes that want to join, and tools. It must be called
// before Start.
func (n *Network) Serve(members, guests http.Handler) { n.web.serve(members, guests) }

// Start begins to accept connections.
func (n *Network) Start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.started || n.stopped {
		return
	}
	n.started = true
	if n.cfg.Listener != nil {
		n.running.Go(n.web.run)
		n.running.Go(n.accept)
	}
}

// Stop ends everything: HTTP requests being served may end by themselves as long as ctx
// lasts, then all connections are broken. It may be called twice.
func (n *Network) Stop(ctx context.Context) error {
	n.stop.Do(func() { n.stopErr = n.end(ctx) })
	return n.stopErr
}

func (n *Network) end(ctx context.Context) error {
	n.mu.Lock()
	n.stopped = true
	n.mu.Unlock()
	var err error
	if n.cfg.Listener != nil {
		err = n.cfg.Listener.Close()
	}
	n.web.shutdown(ctx)
	n.cancel()
	n.mu.Lock()
	groups, conns := values(n.groups), make([]*conn, 0, len(n.conns))
	for c := range n.conns {
		conns = append(conns, c)
	}
	n.mu.Unlock()
	for _, g := range groups {
		_ = g.Close()
	}
	for _, c := range conns {
		c.kill()
	}
	n.running.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("stop listening: %w", err)
	}
	return nil
}

func values[K comparable, V any](m map[K]V) []V {
	list := make([]V, 0, len(m))
	for _, v := range m {
		list = append(list, v)
	}
	return list
}

// run starts a goroutine that Stop waits for, unless the Network has been stopped.
func (n *Network) run(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return false
	}
	n.running.Go(f)
	return true
}

// Open connects to a service of a node. The connection breaks when the Network stops.
func (n *Network) Open(ctx context.Context, to placement.NodeID, service byte) (net.Conn, error) {
	c, err := n.open(ctx, to, service)
	if err != nil {
		return nil, err // not a *conn that is nil
	}
	return c, nil
}

func (n *Network) open(ctx context.Context, to placement.NodeID, service byte) (*conn, error) {
	addr, ok := n.cfg.Resolve(to)
	if !ok {
		return nil, fmt.Errorf("connect to node %s: %w: its address is not known", to, ErrNoPeer)
	}
	c, err := n.dial(ctx, addr, to, service)
	if err != nil {
		return nil, fmt.Errorf("connect to node %s at %s: %w", to, addr, err)
	}
	return c, nil
}

// accept serves what comes in.
func (n *Network) accept() {
	for {
		raw, err := n.cfg.Listener.Accept()
		switch {
		case err == nil:
			n.greet(raw)
		case n.isStopped():
			return
		default: // too many open files, or a connection that was broken before it was accepted
			n.log.Error("cannot accept a connection of another node", slog.Any("error", err))
			select {
			case <-time.After(acceptPause):
			case <-n.ctx.Done():
			}
		}
	}
}

const acceptPause = 50 * time.Millisecond

func (n *Network) isStopped() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stopped
}

// greet gives a new connection its goroutine, or closes it if there are too many.
func (n *Network) greet(raw net.Conn) {
	select {
	case n.greeting <- struct{}{}:
		if n.run(func() { n.receive(raw) }) {
			return
		}
		<-n.greeting
	default:
	}
	n.metrics.refusedIn.Inc()
	_ = raw.Close()
}

// receive is the life of a connection that was accepted.
func (n *Network) receive(raw net.Conn) {
	c, service, err := n.welcome(raw)
	if err != nil {
		n.refusedIn(raw.RemoteAddr(), err)
		n.linger(raw)
	}
	<-n.greeting
	if err != nil {
		return
	}
	if service == serviceWeb {
		n.web.add(c)
		return
	}
	n.services[service](c.peer, c)
}

// linger closes a connection that was refused. It reads a little before: closed with something
// unread, TCP would throw away the reason that is on its way to the other side.
func (n *Network) linger(raw net.Conn) {
	defer raw.Close()
	if raw.SetDeadline(time.Now().Add(lingerTime)) == nil && n.ctx.Err() == nil {
		_, _ = io.CopyN(io.Discard, raw, lingerBytes)
	}
}

const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 64 << 10
)

// peer returns a peer, which need not be connected.
func (n *Network) peer(id placement.NodeID) *peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peers[id]
	if p == nil {
		p = newPeer(n, id)
		n.peers[id] = p
	}
	return p
}

// group returns a group that is open here, or nil.
func (n *Network) group(id uint64) *Group {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.groups[id]
}
