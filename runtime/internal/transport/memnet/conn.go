package memnet

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A conn is one end of a connection.
type conn struct {
	net           *Network
	local, remote addr
	in, out       *stream
	peer          *conn
	closed        bool
	gone          bool // our process has gone
	peerGone      bool // theirs has; we know it when the news can arrive
}

func (n *Network) pair(from, to addr) (ours, theirs *conn) {
	there, back := newStream(n, from, to), newStream(n, to, from)
	ours = &conn{net: n, local: from, remote: to, in: back, out: there}
	theirs = &conn{net: n, local: to, remote: from, in: there, out: back}
	ours.peer, theirs.peer = theirs, ours
	n.conns[ours], n.conns[theirs] = struct{}{}, struct{}{}
	return ours, theirs
}

func (c *conn) Read(p []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for {
		if err := c.broken("read", c.in.readBy); err != nil {
			return 0, err
		}
		if n, err := c.in.read(p); n > 0 || err != nil {
			return n, err
		}
		if len(p) == 0 {
			return 0, nil
		}
		c.in.changed.Wait()
	}
}

func (c *conn) Write(p []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	written := 0
	for {
		if err := c.broken("write", c.out.writeBy); err != nil {
			return written, err
		}
		if c.peer.closed && !c.in.cut() {
			return written, opError("write", c.remote, syscall.EPIPE)
		}
		n := c.out.write(p[written:])
		written += n
		if written == len(p) {
			return written, nil
		}
		if n == 0 {
			c.out.changed.Wait()
		}
	}
}

// broken says why nothing can be read or written.
func (c *conn) broken(op string, deadline deadline) error {
	switch {
	case c.closed:
		return opError(op, c.remote, net.ErrClosed)
	case c.gone, c.peerGone && !c.in.cut():
		return opError(op, c.remote, syscall.ECONNRESET)
	case deadline.passed():
		return opError(op, c.remote, os.ErrDeadlineExceeded)
	}
	return nil
}

// Close ends both directions. The other end reads what was written before, then EOF.
func (c *conn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return opError("close", c.remote, net.ErrClosed)
	}
	c.closed = true
	c.out.end()
	c.in.readBy.stop()
	c.out.writeBy.stop()
	c.in.changed.Broadcast()
	c.out.changed.Broadcast()
	delete(c.net.conns, c)
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.in.readBy.set(t, c.in)
	c.out.writeBy.set(t, c.out)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.in.readBy.set(t, c.in)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.out.writeBy.set(t, c.out)
	return nil
}

// A stream is one direction of a connection.
type stream struct {
	net             *Network
	link            link
	segments        []segment
	bytes           int
	last            time.Time // when the newest segment arrives; nothing overtakes
	ended           bool      // no more is written
	changed         sync.Cond
	readBy, writeBy deadline
}

// A segment is what one write left to be read, from a time on.
type segment struct {
	data []byte
	at   time.Time
}

func newStream(n *Network, from, to addr) *stream {
	s := &stream{net: n, link: link{from.host(), to.host()}}
	s.changed.L = &n.mu
	return s
}

func (s *stream) cut() bool { return s.net.cuts[s.link] }

func (s *stream) read(p []byte) (int, error) {
	if s.cut() {
		return 0, nil
	}
	if len(s.segments) == 0 {
		if s.ended && !time.Now().Before(s.last) {
			return 0, io.EOF
		}
		return 0, nil
	}
	n, now := 0, time.Now()
	for n < len(p) && len(s.segments) > 0 && !now.Before(s.segments[0].at) {
		first := &s.segments[0]
		k := copy(p[n:], first.data)
		n += k
		first.data = first.data[k:]
		if len(first.data) == 0 {
			s.segments = s.segments[1:]
		}
	}
	if n > 0 {
		s.bytes -= n
		s.changed.Broadcast()
	}
	return n, nil
}

func (s *stream) write(p []byte) int {
	n := min(len(p), bufferBytes-s.bytes)
	if n <= 0 {
		return 0
	}
	s.bytes += n
	s.segments = append(s.segments, segment{append([]byte(nil), p[:n]...), s.arrival(n)})
	s.changed.Broadcast()
	return n
}

func (s *stream) end() {
	s.ended = true
	s.arrival(0)
}

// arrival returns when n bytes that are sent now can be read, and wakes the reader then.
func (s *stream) arrival(n int) time.Time {
	now := time.Now()
	at := now.Add(s.net.latency())
	if s.net.rate > 0 {
		at = at.Add(time.Duration(n) * time.Second / time.Duration(s.net.rate))
		if s.last.After(now) {
			at = at.Add(s.last.Sub(now))
		}
	}
	if at.Before(s.last) {
		at = s.last
	}
	s.last = at
	if at.After(now) {
		time.AfterFunc(at.Sub(now), s.wake)
	}
	return at
}

func (s *stream) wake() {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	s.changed.Broadcast()
}

// A deadline is when reads or writes give up.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) set(t time.Time, s *stream) {
	d.stop()
	d.at = t
	if t.IsZero() {
		return
	}
	d.timer = time.AfterFunc(time.Until(t), s.wake)
	s.changed.Broadcast()
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}

func (d deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }
