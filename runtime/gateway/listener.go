package gateway

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// A listener bounds the number of connections, and the patience with clients that do
// not read.
type listener struct {
	net.Listener
	gateway *Gateway
}

// Accept returns the next connection. Beyond the limits they are closed at once: a
// client that is told can go elsewhere.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		g := l.gateway
		from := clientOf(c.RemoteAddr())
		if limit := g.clients.enter(from); limit != "" {
			g.metrics.refusedConns.WithLabelValues(limit).Inc()
			c.Close()
			continue
		}
		g.metrics.openConns.Inc()
		return &conn{Conn: c, gateway: g, from: from}, nil
	}
}

// A client is whoever shares a cap of connections: an IPv4 address, or an IPv6 /64, since
// that is what one subscriber has. The zero client is whoever is not counted: loopback, where
// a proxy speaks for many, and what has no IP address.
type client struct{ netip.Prefix }

func clientOf(a net.Addr) client {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return client{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if !ip.IsValid() || ip.IsLoopback() {
		return client{}
	}
	p, err := ip.Prefix(min(ip.BitLen(), 64))
	if err != nil {
		panic(fmt.Sprintf("gateway: the prefix of %v: %v", ip, err)) // it has enough bits
	}
	return client{p}
}

// clients counts open connections.
type clients struct {
	max, maxEach int

	mu   sync.Mutex // guards the following
	all  int
	each map[client]int
}

// The limits of clients, as metrics name them.
const (
	limitNode   = "node"
	limitClient = "client"
)

func newClients(limit, limitEach int) *clients {
	return &clients{max: limit, maxEach: limitEach, each: make(map[client]int)}
}

// enter counts a connection, or says which limit is against it.
func (c *clients) enter(from client) (limit string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= c.max {
		return limitNode
	}
	if from != (client{}) {
		if c.each[from] >= c.maxEach {
			return limitClient
		}
		c.each[from]++
	}
	c.all++
	return ""
}

func (c *clients) leave(from client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.each[from]--; c.each[from] <= 0 { // also the zero client's, which has no count
		delete(c.each, from)
	}
}

// A conn is a client's connection while it speaks HTTP.
type conn struct {
	net.Conn
	gateway *Gateway
	from    client
	arm     atomic.Int64 // when the write deadline must be set anew, in Unix nanoseconds
	once    sync.Once
}

// Write gives each write at least half the time-out. To set a deadline is dear, so a
// busy connection gets a new one only when half of the old one is used up.
func (c *conn) Write(p []byte) (int, error) {
	if now := time.Now(); now.UnixNano() >= c.arm.Load() {
		if err := c.Conn.SetWriteDeadline(now.Add(c.gateway.cfg.WriteTimeout)); err != nil {
			return 0, err
		}
		c.arm.Store(now.Add(c.gateway.cfg.WriteTimeout / 2).UnixNano())
	}
	return c.Conn.Write(p)
}

// SetDeadline is net/http's way to take all deadlines away when it gives up a connection.
func (c *conn) SetDeadline(t time.Time) error {
	c.arm.Store(0)
	return c.Conn.SetDeadline(t)
}

func (c *conn) Close() error {
	c.once.Do(func() {
		c.gateway.clients.leave(c.from)
		c.gateway.metrics.openConns.Dec()
	})
	return c.Conn.Close()
}

// SetWriteDeadline leaves the deadlines of writes to its caller from now on.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.arm.Store(math.MaxInt64)
	return c.Conn.SetWriteDeadline(t)
}

// Unwrap returns the connection underneath. The conn must be closed all the same.
func (c *conn) Unwrap() net.Conn { return c.Conn }
