package gateway

import (
	"math"
	"net"
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

// Accept returns the next connection. Beyond the limit they are closed at once: a
// client that is told can go elsewhere.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		m := l.gateway.metrics
		if m.conns.Add(1) <= int64(l.gateway.cfg.MaxConns) {
			return &conn{Conn: c, timeout: l.gateway.cfg.WriteTimeout, open: &m.conns}, nil
		}
		m.conns.Add(-1)
		m.refusedConns.Inc()
		c.Close()
	}
}

// A conn is a client's connection while it speaks HTTP.
type conn struct {
	net.Conn
	timeout time.Duration
	arm     atomic.Int64 // when the write deadline must be set anew, in Unix nanoseconds
	once    sync.Once
	open    *atomic.Int64
}

// Write gives each write at least half the time-out. To set a deadline is dear, so a
// busy connection gets a new one only when half of the old one is used up.
func (c *conn) Write(p []byte) (int, error) {
	if now := time.Now(); now.UnixNano() >= c.arm.Load() {
		if err := c.Conn.SetWriteDeadline(now.Add(c.timeout)); err != nil {
			return 0, err
		}
		c.arm.Store(now.Add(c.timeout / 2).UnixNano())
	}
	return c.Conn.Write(p)
}

// SetDeadline is net/http's way to take all deadlines away when it gives up a connection.
func (c *conn) SetDeadline(t time.Time) error {
	c.arm.Store(0)
	return c.Conn.SetDeadline(t)
}

func (c *conn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// SetWriteDeadline leaves the deadlines of writes to its caller from now on.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.arm.Store(math.MaxInt64)
	return c.Conn.SetWriteDeadline(t)
}

// Unwrap returns the connection underneath. The conn must be closed all the same.
func (c *conn) Unwrap() net.Conn { return c.Conn }
