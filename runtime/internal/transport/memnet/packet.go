package memnet

import (
	"net"
	"os"
	"sync"
	"time"
)

// ListenPacket receives datagrams at an address of the host: name:port, or :port. They are
// lost where the way is cut, nobody listens, or the receiver's queue is full.
func (h *Host) ListenPacket(address string) (net.PacketConn, error) {
	a, err := h.own(address)
	if err != nil {
		return nil, err
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	p := &packetConn{stream: newStream(h.net, a, a), addr: a}
	h.net.packets[string(a)] = p
	h.down = false
	return p, nil
}

type packetConn struct {
	*stream // for its condition and its deadlines
	addr    addr
	queue   []datagram
	closed  bool
	once    sync.Once
}

type datagram struct {
	data []byte
	from addr
}

func (p *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	for {
		switch {
		case p.closed:
			return 0, nil, opError("read", p.addr, net.ErrClosed)
		case p.readBy.passed():
			return 0, nil, opError("read", p.addr, os.ErrDeadlineExceeded)
		case len(p.queue) > 0:
			d := p.queue[0]
			p.queue = p.queue[1:]
			return copy(b, d.data), d.from, nil
		}
		p.changed.Wait()
	}
}

func (p *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	if p.closed {
		return 0, opError("write", p.addr, net.ErrClosed)
	}
	d := datagram{append([]byte(nil), b...), p.addr}
	if latency := p.net.latency(); latency > 0 {
		time.AfterFunc(latency, func() {
			p.net.mu.Lock()
			defer p.net.mu.Unlock()
			p.net.deliver(d, addr(to.String()))
		})
	} else {
		p.net.deliver(d, addr(to.String()))
	}
	return len(b), nil
}

func (n *Network) deliver(d datagram, to addr) {
	p := n.packets[string(to)]
	if p == nil || len(p.queue) >= datagrams || n.cuts[link{d.from.host(), to.host()}] {
		return
	}
	p.queue = append(p.queue, d)
	p.changed.Broadcast()
}

func (p *packetConn) Close() error {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	p.close()
	return nil
}

func (p *packetConn) close() {
	p.once.Do(func() {
		p.closed = true
		p.readBy.stop()
		delete(p.net.packets, string(p.addr))
		p.changed.Broadcast()
	})
}

func (p *packetConn) LocalAddr() net.Addr { return p.addr }

func (p *packetConn) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

func (p *packetConn) SetReadDeadline(t time.Time) error {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	p.readBy.set(t, p.stream)
	return nil
}

func (p *packetConn) SetWriteDeadline(time.Time) error { return nil } // writes never wait
