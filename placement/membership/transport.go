package membership

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// A Transport carries the gossip over a packet connection and a listener, which have the
// same address.
type Transport struct {
	packets  net.PacketConn
	listener net.Listener
	dial     func(ctx context.Context, addr string) (net.Conn, error)

	received chan *memberlist.Packet
	accepted chan net.Conn
	stopped  chan struct{}
	stop     sync.Once
	stopErr  error
	running  sync.WaitGroup // the goroutines of receive and accept, stopped by Shutdown
}

const (
	maxPacket = 64 << 10
	maxQueue  = 256                    // packets that memberlist has not taken; more are dropped
	afterFail = 100 * time.Millisecond // until the next try to accept
)

// NewTransport returns a Transport, which owns what it is given. The default of dial is
// TCP.
func NewTransport(packets net.PacketConn, listener net.Listener, dial func(ctx context.Context, addr string) (net.Conn, error)) *Transport {
	if dial == nil {
		dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	t := &Transport{
		packets:  packets,
		listener: listener,
		dial:     dial,
		received: make(chan *memberlist.Packet, maxQueue),
		accepted: make(chan net.Conn),
		stopped:  make(chan struct{}),
	}
	t.running.Go(t.receive)
	t.running.Go(t.accept)
	return t
}

// Addr returns the address that it listens on.
func (t *Transport) Addr() net.Addr { return t.listener.Addr() }

func (t *Transport) receive() {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := t.packets.ReadFrom(buf)
		if t.over() {
			return
		}
		if err != nil {
			t.pause()
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: time.Now()}
		select {
		case t.received <- p:
		default: // gossip says everything more than once
		}
	}
}

func (t *Transport) accept() {
	for {
		c, err := t.listener.Accept()
		if err != nil {
			if t.over() {
				return
			}
			t.pause()
			continue
		}
		select {
		case t.accepted <- c:
		case <-t.stopped:
			_ = c.Close() // nobody wants it any more
			return
		}
	}
}

func (t *Transport) pause() {
	select {
	case <-t.stopped:
	case <-time.After(afterFail):
	}
}

func (t *Transport) over() bool {
	select {
	case <-t.stopped:
		return true
	default:
		return false
	}
}

// FinalAdvertiseAddr returns what was configured.
func (t *Transport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return nil, 0, err
	}
	return addr.Unmap().AsSlice(), port, nil
}

// WriteTo sends a packet.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.packets.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return time.Now(), err
}

// WriteToAddress is WriteTo.
func (t *Transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

// PacketCh returns the packets that have come.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.received }

// DialTimeout connects to another node.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return t.dial(ctx, addr)
}

// DialAddressTimeout is DialTimeout.
func (t *Transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// StreamCh returns the connections that others have made.
func (t *Transport) StreamCh() <-chan net.Conn { return t.accepted }

// Shutdown closes everything. It may be called twice.
func (t *Transport) Shutdown() error {
	t.stop.Do(func() {
		close(t.stopped)
		t.stopErr = errors.Join(t.packets.Close(), t.listener.Close())
		t.running.Wait()
	})
	return t.stopErr
}

var _ memberlist.NodeAwareTransport = (*Transport)(nil)
