// Package memnet is a network in memory, for tests of what runs on networks. It behaves
// as TCP does: connections are streams with bounded buffers (a full one blocks the
// writer), a host that is cut off answers nothing and what was sent to it arrives after
// healing, a host whose process is gone refuses. It works in testing/synctest bubbles,
// where its delays are virtual, and outside.
//
//	n := memnet.New()
//	l, err := n.Host("a").Listen("a:1")
//	c, err := n.Host("b").Dial(ctx, "a:1")
//	n.Partition("a"); n.Heal()
package memnet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	bufferBytes = 256 << 10 // of a connection, in each direction
	backlog     = 128       // connections that a listener has not accepted
	datagrams   = 1024      // that a packet connection has not read; more are dropped
)

// A Network is a set of hosts and the state of the links between them. Its methods may
// be called from any goroutine.
type Network struct {
	mu        sync.Mutex // guards everything in the package
	hosts     map[string]*Host
	cuts      map[link]bool
	delay     time.Duration
	jitter    time.Duration
	rate      int // bytes a second; 0 means no limit
	random    *rand.Rand
	listeners map[string]*listener
	packets   map[string]*packetConn
	conns     map[*conn]struct{}
	dials     sync.Cond // waiting dials: a cut, a listener or a context changed
	port      int
}

// A link is one direction between two hosts.
type link struct{ from, to string }

// New returns a network without hosts, delays or faults.
func New() *Network {
	n := &Network{
		hosts:     make(map[string]*Host),
		cuts:      make(map[link]bool),
		random:    rand.New(rand.NewPCG(1, 1)),
		listeners: make(map[string]*listener),
		packets:   make(map[string]*packetConn),
		conns:     make(map[*conn]struct{}),
		port:      49152,
	}
	n.dials.L = &n.mu
	return n
}

// Host returns the host with the given name, which it makes if there is none.
func (n *Network) Host(name string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[name]
	if h == nil {
		h = &Host{net: n, name: name}
		n.hosts[name] = h
	}
	return h
}

// Partition cuts the named hosts off from all others. Among themselves they stay connected.
func (n *Network) Partition(names ...string) {
	n.change(func() {
		for _, in := range names {
			for out := range n.hosts {
				if !slices.Contains(names, out) {
					n.cuts[link{in, out}] = true
					n.cuts[link{out, in}] = true
				}
			}
		}
	})
}

// Cut cuts both directions between two hosts.
func (n *Network) Cut(a, b string) {
	n.change(func() {
		n.cuts[link{a, b}] = true
		n.cuts[link{b, a}] = true
	})
}

// CutOneWay lets nothing from one host arrive at the other. New connections between them
// cannot be made, in either direction.
func (n *Network) CutOneWay(from, to string) {
	n.change(func() { n.cuts[link{from, to}] = true })
}

// Heal undoes every cut. What was sent meanwhile on connections arrives now.
func (n *Network) Heal() {
	n.change(func() { clear(n.cuts) })
}

// Delay makes everything that is sent from now on take d to arrive, and up to jitter longer.
func (n *Network) Delay(d, jitter time.Duration) {
	n.change(func() { n.delay, n.jitter = d, jitter })
}

// Rate limits each direction of each connection to a number of bytes a second; 0 means no
// limit.
func (n *Network) Rate(bytesPerSecond int) {
	n.change(func() { n.rate = bytesPerSecond })
}

// Refuse makes a host as it is when its process has gone: nothing listens, connections are
// broken, dials are refused. It is there again when something listens on it.
func (n *Network) Refuse(name string) {
	n.change(func() {
		if h := n.hosts[name]; h != nil {
			h.down = true
		}
		for _, l := range n.listeners {
			if l.addr.host() == name {
				l.close()
			}
		}
		for _, p := range n.packets {
			if p.addr.host() == name {
				p.close()
			}
		}
		for c := range n.conns {
			switch name {
			case c.local.host():
				c.gone = true
			case c.remote.host():
				c.peerGone = true
			}
		}
	})
}

// change changes the network, and wakes all who might be concerned.
func (n *Network) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	n.dials.Broadcast()
	for c := range n.conns {
		c.in.changed.Broadcast()
		c.out.changed.Broadcast()
	}
}

// latency returns how long the next thing takes to arrive.
func (n *Network) latency() time.Duration {
	d := n.delay
	if n.jitter > 0 {
		d += time.Duration(n.random.Int64N(int64(n.jitter)))
	}
	return d
}

// A Host is one end of connections.
type Host struct {
	net  *Network
	name string
	down bool // its process has gone
}

// Listen accepts connections at an address of the host: name:port, or :port.
func (h *Host) Listen(address string) (net.Listener, error) {
	a, err := h.own(address)
	if err != nil {
		return nil, err
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.net.listeners[string(a)] != nil {
		return nil, opError("listen", a, syscall.EADDRINUSE)
	}
	l := &listener{net: h.net, addr: a}
	l.changed.L = &h.net.mu
	h.net.listeners[string(a)] = l
	h.down = false
	return l, nil
}

func (h *Host) own(address string) (addr, error) {
	name, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if name != "" && name != h.name {
		return "", opError("listen", addr(address), syscall.EADDRNOTAVAIL)
	}
	return addr(net.JoinHostPort(h.name, port)), nil
}

// Dial connects the host to an address. While the way there is cut it waits for ctx.
func (h *Host) Dial(ctx context.Context, address string) (net.Conn, error) {
	n, to := h.net, addr(address)
	n.mu.Lock()
	latency := 2 * n.latency()
	n.mu.Unlock()
	if latency > 0 {
		select {
		case <-time.After(latency):
		case <-ctx.Done():
		}
	}
	stop := context.AfterFunc(ctx, func() { n.change(func() {}) })
	defer stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		l := n.listeners[address]
		switch {
		case ctx.Err() != nil:
			return nil, opError("dial", to, context.Cause(ctx))
		case h.down:
			return nil, opError("dial", to, syscall.ENETDOWN)
		case n.hosts[to.host()] == nil:
			return nil, opError("dial", to, &net.DNSError{Err: "no such host", Name: to.host(), IsNotFound: true})
		case n.cuts[link{h.name, to.host()}] || n.cuts[link{to.host(), h.name}]:
		case l == nil:
			return nil, opError("dial", to, syscall.ECONNREFUSED)
		case len(l.waiting) < backlog:
			n.port++
			ours, theirs := n.pair(addr(net.JoinHostPort(h.name, fmt.Sprint(n.port))), to)
			l.waiting = append(l.waiting, theirs)
			l.changed.Signal()
			return ours, nil
		}
		n.dials.Wait()
	}
}

type listener struct {
	net     *Network
	addr    addr
	waiting []*conn
	closed  bool
	changed sync.Cond
}

func (l *listener) Accept() (net.Conn, error) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	for len(l.waiting) == 0 && !l.closed {
		l.changed.Wait()
	}
	if l.closed {
		return nil, opError("accept", l.addr, net.ErrClosed)
	}
	c := l.waiting[0]
	l.waiting = l.waiting[1:]
	l.net.dials.Broadcast()
	return c, nil
}

func (l *listener) Close() error {
	l.net.change(l.close)
	return nil
}

// close breaks the connections that nobody accepted.
func (l *listener) close() {
	if l.closed {
		return
	}
	l.closed = true
	delete(l.net.listeners, string(l.addr))
	l.changed.Broadcast()
	for _, c := range l.waiting {
		c.gone = true
		c.peer.peerGone = true
	}
}

func (l *listener) Addr() net.Addr { return l.addr }

// An addr is host:port.
type addr string

func (addr) Network() string  { return "memnet" }
func (a addr) String() string { return string(a) }

func (a addr) host() string {
	host, _, _ := net.SplitHostPort(string(a))
	return host
}

func opError(op string, a addr, err error) error {
	if errno, ok := err.(syscall.Errno); ok { //nolint:errorlint // made here, never wrapped
		err = os.NewSyscallError(op, errno)
	}
	return &net.OpError{Op: op, Net: a.Network(), Addr: a, Err: err}
}
