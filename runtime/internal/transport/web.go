package transport

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// web is the HTTP service: HTTP/2 without TLS of its own, over connections that have TLS.
type web struct {
	net      *Network
	server   *http.Server
	incoming chan net.Conn
	closed   chan struct{}
	closing  sync.Once

	mu      sync.Mutex // guards what follows
	members http.Handler
	guests  http.Handler
	peers   map[placement.NodeID]*carrier
	addrs   map[string]*carrier
}

const (
	maxStreams   = 1000        // requests at the same time on one connection
	streamWindow = 128 << 10   // bytes of one request's body that nobody has read yet
	connWindow   = 4<<20 - 1   // likewise of one connection: it takes 31 that stand still to hold up the others
	replyWindow  = 512 << 10   // bytes of one answer's body
	pingAfter    = time.Second // of silence; a peer that is frozen or cut off is given up after both
	pingTimeout  = time.Second
	headTimeout  = 10 * time.Second
	smallBody    = 64 << 10 // a larger one goes on a connection for large ones
	maxWebConns  = 8        // to one peer, of either kind
)

func newWeb(n *Network) *web {
	w := &web{
		net:      n,
		incoming: make(chan net.Conn),
		closed:   make(chan struct{}),
		members:  http.NotFoundHandler(),
		guests:   http.NotFoundHandler(),
		peers:    make(map[placement.NodeID]*carrier),
		addrs:    make(map[string]*carrier),
	}
	w.server = &http.Server{
		Handler:           w,
		Protocols:         onlyHTTP2(),
		ReadHeaderTimeout: headTimeout,
		ErrorLog:          log.New(logWriter{n.log}, "", 0),
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingTimeout,
			WriteByteTimeout:              n.cfg.WriteTimeout,
		},
	}
	return w
}

func onlyHTTP2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

type connKey struct{}

// PeerFrom returns which node a request that [Network.Serve] serves comes from.
func PeerFrom(ctx context.Context) placement.NodeID {
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		return c.peer
	}
	return ""
}

func (w *web) serve(members, guests http.Handler) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if members != nil {
		w.members = members
	}
	if guests != nil {
		w.guests = guests
	}
}

// ServeHTTP serves one request.
func (w *web) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	h := w.members
	if c, ok := r.Context().Value(connKey{}).(*conn); !ok || c.guest {
		h = w.guests
	}
	w.mu.Unlock()
	h.ServeHTTP(rw, r)
}

// run serves until shutdown.
func (w *web) run() {
	if err := w.server.Serve(w); !errors.Is(err, http.ErrServerClosed) {
		w.net.log.Error("the service for other nodes ended", slog.Any("error", err))
	}
}

// shutdown lets requests end as long as ctx lasts.
func (w *web) shutdown(ctx context.Context) {
	if err := w.server.Shutdown(ctx); err != nil {
		_ = w.server.Close()
	}
	_ = w.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range values(w.peers) {
		c.close()
	}
	for _, c := range values(w.addrs) {
		c.close()
	}
}

// add gives the server a connection.
func (w *web) add(c *conn) {
	select {
	case w.incoming <- c:
	case <-w.closed:
		c.kill()
	}
}

// Accept, Close and Addr make a listener for the server.
func (w *web) Accept() (net.Conn, error) {
	select {
	case c := <-w.incoming:
		return c, nil
	case <-w.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (w *web) Close() error {
	w.closing.Do(func() { close(w.closed) })
	return nil
}

// Addr returns where the node listens.
func (w *web) Addr() net.Addr { return w.net.cfg.Listener.Addr() }

// RoundTripper sends HTTP requests to a node; the host in their URLs does not matter. What was
// certainly not sent, or not accepted, fails with an error that matches [ErrNotSent].
func (n *Network) RoundTripper(to placement.NodeID) http.RoundTripper {
	return carrierOf(n.web, n.web.peers, to, func(ctx context.Context) (*conn, error) { return n.open(ctx, to, serviceWeb) })
}

// RoundTripperTo is RoundTripper for whoever is at an address.
func (n *Network) RoundTripperTo(addr string) http.RoundTripper {
	return carrierOf(n.web, n.web.addrs, addr, func(ctx context.Context) (*conn, error) {
		c, err := n.dial(ctx, addr, "", serviceWeb)
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", addr, err)
		}
		return c, nil
	})
}

func carrierOf[K comparable](w *web, all map[K]*carrier, key K, dial func(context.Context) (*conn, error)) *carrier {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := all[key]
	if c == nil {
		c = &carrier{small: newRoad(w.net, dial), large: newRoad(w.net, dial)}
		all[key] = c
	}
	return c
}

// A carrier sends requests to one place. Those with large bodies have a connection of their
// own, so that small ones do not wait behind them.
type carrier struct{ small, large *road }

// RoundTrip sends a request.
func (c *carrier) RoundTrip(req *http.Request) (*http.Response, error) {
	road := c.small
	if req.ContentLength < 0 || req.ContentLength > smallBody || req.ContentLength == 0 && req.Body != nil && req.Body != http.NoBody {
		road = c.large
	}
	cc, err := road.reserve(req.Context())
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	resp, err := cc.RoundTrip(req)
	if err != nil && untouched(err) {
		return nil, fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	return resp, err
}

func (c *carrier) close() {
	c.small.close()
	c.large.close()
}

// untouched reports whether an error of HTTP/2 says that the server has not begun with the
// request. What is not recognised counts as begun.
func untouched(err error) bool {
	var reset streamReset
	if errors.As(err, &reset) {
		return reset.Code == refusedStream
	}
	switch err.Error() {
	case "http2: client conn not usable", "http2: Transport received Server's graceful shutdown GOAWAY":
		return true
	}
	return false
}

// A streamReset is what net/http's own error, which it does not export, can be read as: errors.As
// fills a struct with the same fields.
type streamReset struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

const refusedStream = 7 // RFC 9113: nothing of the request has been processed

func (streamReset) Error() string { return "the stream was reset" }

// A road is the connections of a carrier for one kind of requests: mostly one.
type road struct {
	net  *Network
	http *http.Transport

	mu      sync.Mutex // guards what follows
	conns   []*http.ClientConn
	dialing *attempt
}

// An attempt to connect, which several requests wait for.
type attempt struct {
	done chan struct{}
	err  error
}

func newRoad(n *Network, dial func(context.Context) (*conn, error)) *road {
	return &road{net: n, http: &http.Transport{
		Protocols:          onlyHTTP2(),
		DisableCompression: true,
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream: replyWindow,
			SendPingTimeout:           pingAfter,
			PingTimeout:               pingTimeout,
			WriteByteTimeout:          n.cfg.WriteTimeout,
		},
	}}
}

// reserve returns a connection with a place for one request. It connects if there is none;
// whoever comes meanwhile waits for the same attempt.
func (r *road) reserve(ctx context.Context) (*http.ClientConn, error) {
	for {
		c, a, err := r.pick()
		if c != nil || err != nil {
			return c, err
		}
		select {
		case <-a.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if a.err != nil {
			return nil, a.err
		}
	}
}

// pick returns a connection, or the attempt to make one.
func (r *road) pick() (*http.ClientConn, *attempt, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	usable := r.conns[:0]
	var picked *http.ClientConn
	for _, c := range r.conns {
		switch {
		case picked != nil:
		case c.Reserve() == nil:
			picked = c
		case c.Err() != nil:
			continue
		case c.InFlight() == 0: // the other side ends it
			_ = c.Close()
			continue
		}
		usable = append(usable, c)
	}
	clear(r.conns[len(usable):])
	r.conns = usable
	switch {
	case picked != nil:
		return picked, nil, nil
	case r.dialing != nil:
		return nil, r.dialing, nil
	case len(r.conns) >= maxWebConns:
		return nil, nil, errBusy
	}
	a := &attempt{done: make(chan struct{})}
	if !r.net.run(func() { r.connect(a) }) {
		return nil, nil, ErrClosed
	}
	r.dialing = a
	return nil, a, nil
}

func (r *road) connect(a *attempt) {
	c, err := r.http.NewClientConn(r.net.ctx, "http", "node:80")
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.err = err; err == nil {
		r.conns = append(r.conns, c)
	}
	r.dialing = nil
	close(a.done)
}

func (r *road) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.conns = nil
}

// A logWriter is where net/http writes its complaints.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Debug("HTTP between nodes", slog.String("message", string(p)))
	return len(p), nil
}
