package gateway

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// fake is a dispatcher by hand: one class "room" with Fetch and methods, one class
// "mute" with methods only. It records what reaches it.
type fake struct {
	gateway *Gateway
	serve   func(ctx context.Context, to host.Ref, w http.ResponseWriter, r *http.Request) (host.Upgrade, error)
	call    func(ctx context.Context, to host.Ref, method string, args []byte) ([]byte, error)
	message func(ctx context.Context, to host.Ref, m *host.SocketMessage) error

	mu     sync.Mutex
	served int
	last   host.SocketID
	refs   map[host.SocketID]host.Ref
	failed []*host.SocketError
	closed chan *host.SocketClose
}

var methods = map[string]bool{"add": true, "secret": false}

func (f *fake) Class(name string) (host.ClassInfo, bool) {
	switch name {
	case "room":
		return host.ClassInfo{Fetch: true, Methods: methods}, true
	case "mute":
		return host.ClassInfo{Methods: methods}, true
	}
	return host.ClassInfo{}, false
}

func (f *fake) Serve(ctx context.Context, to host.Ref, w http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
	f.mu.Lock()
	f.served++
	f.mu.Unlock()
	if f.serve == nil {
		return host.Upgrade{}, nil
	}
	return f.serve(ctx, to, w, r)
}

func (f *fake) Call(ctx context.Context, to host.Ref, method string, args []byte) ([]byte, error) {
	return f.call(ctx, to, method, args)
}

func (f *fake) Message(ctx context.Context, to host.Ref, m *host.SocketMessage) error {
	if f.message == nil {
		return nil
	}
	return f.message(ctx, to, m)
}

func (f *fake) SocketClosed(_ host.Ref, c *host.SocketClose) { f.closed <- c }
func (f *fake) SocketFailed(_ host.Ref, e *host.SocketError) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = append(f.failed, e)
}

// accept is a serve that makes every request a socket.
func (f *fake) accept(_ context.Context, to host.Ref, _ http.ResponseWriter, _ *http.Request) (host.Upgrade, error) {
	f.mu.Lock()
	f.last++
	id := f.last
	f.refs[id] = to
	f.mu.Unlock()
	f.gateway.Accept(to, host.Socket{ID: id, Accepted: time.Now()})
	return host.Upgrade{Socket: id, Subprotocols: []string{"chat"}}, nil
}

func (f *fake) events() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.served
}

var errTest = errors.New("a secret detail")

// start returns a gateway that serves f on a loopback port, and its address.
func start(t testing.TB, f *fake, cfg Config) (g *Gateway, addr string) {
	t.Helper()
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.gateway = g
	f.refs = make(map[host.SocketID]host.Ref)
	if f.closed == nil {
		f.closed = make(chan *host.SocketClose, 1024)
	}
	g.Attach(f)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := g.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return g, l.Addr().String()
}

func named(name string) placement.ObjectID { return placement.NamedID("room", name) }
