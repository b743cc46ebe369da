package membership

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
)

// A testNet carries packets and streams between the nodes of one test.
type testNet struct {
	mu    sync.Mutex // guards what follows
	ends  map[string]*testEnd
	apart []string // cut off from all others
}

// A testEnd is what listens at one address.
type testEnd struct {
	net     *testNet
	addr    testAddr
	packets chan testPacket
	streams chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

type testPacket struct {
	data []byte
	from net.Addr
}

type testAddr string

func (a testAddr) Network() string { return "test" }
func (a testAddr) String() string  { return string(a) }

func newNet() *testNet { return &testNet{ends: make(map[string]*testEnd)} }

func (n *testNet) listen(addr string) *testEnd {
	e := &testEnd{
		net: n, addr: testAddr(addr),
		packets: make(chan testPacket, 1000), streams: make(chan net.Conn), closed: make(chan struct{}),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ends[addr] = e
	return e
}

// partition cuts an address off; none heals.
func (n *testNet) partition(addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.apart = addrs
}

// crash makes an address as it is when its process has gone.
func (n *testNet) crash(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.ends, addr)
}

func (n *testNet) way(from, to string) *testEnd {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Contains(n.apart, from) != slices.Contains(n.apart, to) || n.ends[from] == nil {
		return nil
	}
	return n.ends[to]
}

func (e *testEnd) dial(ctx context.Context, addr string) (net.Conn, error) {
	to := e.net.way(string(e.addr), addr)
	if to == nil {
		return nil, errors.New("nobody is there")
	}
	here, there := net.Pipe()
	select {
	case to.streams <- there:
		return here, nil
	case <-to.closed:
		return nil, errors.New("refused")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// A testListener and a testPacketConn are the two sides of a testEnd.
type (
	testListener   struct{ *testEnd }
	testPacketConn struct {
		net.PacketConn // nil: for what nobody calls
		*testEnd
	}
)

func (e testListener) Accept() (net.Conn, error) {
	select {
	case c := <-e.streams:
		return c, nil
	case <-e.closed:
		return nil, net.ErrClosed
	}
}

func (e testPacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case p := <-e.packets:
		return copy(b, p.data), p.from, nil
	case <-e.closed:
		return 0, nil, net.ErrClosed
	}
}

func (e testPacketConn) WriteTo(b []byte, to net.Addr) (int, error) {
	if end := e.net.way(string(e.addr), to.String()); end != nil {
		select {
		case end.packets <- testPacket{slices.Clone(b), e.addr}:
		default:
		}
	}
	return len(b), nil
}

func (e *testEnd) close() error {
	e.once.Do(func() { close(e.closed) })
	return nil
}

func (e testListener) Close() error   { return e.close() }
func (e testListener) Addr() net.Addr { return e.addr }
func (e testPacketConn) Close() error { return e.close() }
func (e *testEnd) transport() *Transport {
	return NewTransport(testPacketConn{testEnd: e}, testListener{e}, e.dial)
}
