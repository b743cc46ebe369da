// Package gateway is the front door: HTTP requests and WebSockets come in here and
// become events of objects. It promises:
//
//   - bytes from outside are bounded before they cost anything: header, body, message,
//     queue, time and number each have a limit with a name in [Config];
//   - a request reaches its object only when it is complete (up to BufferBytes), so
//     that a slow client never holds an object's turn;
//   - every error is {"error":{"code":"…","message":"…"}}, never a stack;
//   - sockets outlive the sleep of their objects, their messages are events in order,
//     and each socket ends with exactly one close event.
//
// It leans on a [Dispatcher], which finds the object and runs the event.
//
//	GET  /healthz /readyz /metrics
//	POST /objects/{class}                          makes an object with a unique ID
//	POST /objects/{class}/{name}/{method}          calls a public method
//	ANY  /objects/{class}/{name}/{rest...}         everything else goes to Fetch
//	ANY  /objects/{class}/id:{hex}/{rest...}       the same, by ID
//
// {name} is percent-decoded and may hold any valid UTF-8, slashes included; a name
// that begins with "id:" is written with its colon encoded. DESIGN.md beside this
// file says why it is built this way.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-run/holdfast/runtime/gateway/internal/socket"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A Dispatcher runs events on objects, wherever they are. All methods may be called
// from any goroutine.
type Dispatcher interface {
	// Class returns the facts about a class, and whether there is one of that name.
	Class(name string) (host.ClassInfo, bool)
	// Serve runs a fetch event. If it returns nil and the zero Upgrade, the response
	// has been written to w. With a socket in the Upgrade nothing was written but w's header
	// has what the object wants in the handshake's answer, [Gateway.Accept] has been called, and the
	// handshake is ours. With an error
	// nothing was written, unless it matches [http.ErrAbortHandler].
	Serve(ctx context.Context, to host.Ref, w http.ResponseWriter, r *http.Request) (host.Upgrade, error)
	// Call runs a method; arguments and reply are JSON.
	Call(ctx context.Context, to host.Ref, method string, args []byte) ([]byte, error)

	socket.Events
}

// Config says how a [Gateway] is built. Zero values mean the defaults given.
type Config struct {
	Ready   func() error // for /readyz: nil, or why the node takes no traffic; default: always ready
	Metrics http.Handler // for /metrics; default: not found
	Other   http.Handler // every path that is not the gateway's, such as "/"; default: not found
	Logger  *slog.Logger // default: discard

	ReadHeaderTimeout time.Duration // a request's head must arrive within this; 10 s
	IdleTimeout       time.Duration // between two requests of a connection; 2 min
	BodyTimeout       time.Duration // how long we wait for a body, plus one second for each MinBodyRate bytes; 30 s
	MinBodyRate       int           // bytes per second; 16 KiB
	WriteTimeout      time.Duration // one write to a client that does not read; 30 s
	MaxHeaderBytes    int           // 64 KiB
	MaxBodyBytes      int64         // 413 beyond it; 100 MiB
	BufferBytes       int           // bodies up to this are read before the event starts; 1 MiB
	BodiesBytes       int64         // of the node: bodies over 16 KiB that are in memory; 503 beyond it; 512 MiB
	MaxConns          int           // open connections, sockets included; further ones are closed at once; 262,144
	MaxConnsPerClient int           // the same for one client: an IPv4 address or an IPv6 /64. Loopback is not counted; 16,384

	// Hosts lists the names under which clients may address this node, without ports
	// ("app.example.com", "*.example.com"). IP addresses and localhost are always fine. Empty
	// means any name, which is right only where a web page of that name could do no harm.
	Hosts []string

	// OriginPatterns lists the foreign origins whose pages may open sockets, call methods
	// and create objects: hosts ("app.example.com", "*.example.com") or origins with
	// their scheme ("https://app.example.com"). The request's own host always may.
	OriginPatterns []string

	Sockets socket.Config // limits of WebSockets; its Logger is ours
}

func (c Config) withDefaults() Config {
	setDefault(&c.ReadHeaderTimeout, 10*time.Second)
	setDefault(&c.IdleTimeout, 2*time.Minute)
	setDefault(&c.BodyTimeout, 30*time.Second)
	setDefault(&c.MinBodyRate, 16<<10)
	setDefault(&c.WriteTimeout, 30*time.Second)
	setDefault(&c.MaxHeaderBytes, 64<<10)
	setDefault(&c.MaxBodyBytes, 100<<20)
	setDefault(&c.BufferBytes, 1<<20)
	setDefault(&c.BodiesBytes, 1<<29)
	setDefault(&c.MaxConns, 1<<18)
	setDefault(&c.MaxConnsPerClient, 1<<14)
	if c.Ready == nil {
		c.Ready = func() error { return nil }
	}
	if c.Metrics == nil {
		c.Metrics = http.HandlerFunc(notFound)
	}
	if c.Other == nil {
		c.Other = http.HandlerFunc(notFound)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Check returns which setting makes no sense, if one does. [New] does the same.
func (c Config) Check() error {
	_, err := parseHosts(c.Hosts)
	if err == nil {
		_, err = parseOrigins(c.OriginPatterns)
	}
	return err
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// A Gateway serves one node's clients. It holds their sockets, too: the methods of
// the embedded hub are what the engine asks of a gateway.
type Gateway struct {
	*socket.Hub

	cfg     Config
	log     *slog.Logger
	to      Dispatcher
	hosts   hosts
	origins origins
	clients *clients
	refs    *refCache
	metrics *metrics
	held    atomic.Int64 // bytes of bodies in memory
	server  *http.Server
}

// New returns a gateway that serves nobody yet. The error says which setting is wrong.
func New(cfg Config) (*Gateway, error) {
	cfg = cfg.withDefaults()
	hosts, err := parseHosts(cfg.Hosts)
	if err != nil {
		return nil, err
	}
	origins, err := parseOrigins(cfg.OriginPatterns)
	if err != nil {
		return nil, err
	}
	cfg.Sockets.Logger = cfg.Logger
	g := &Gateway{
		Hub:     socket.New(cfg.Sockets),
		cfg:     cfg,
		log:     cfg.Logger,
		hosts:   hosts,
		origins: origins,
		clients: newClients(cfg.MaxConns, cfg.MaxConnsPerClient),
		refs:    newRefCache(),
		metrics: newMetrics(),
	}
	g.server = g.newServer()
	return g, nil
}

func (g *Gateway) newServer() *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           g,
		Protocols:         &protocols,
		ReadHeaderTimeout: g.cfg.ReadHeaderTimeout,
		IdleTimeout:       g.cfg.IdleTimeout,
		MaxHeaderBytes:    g.cfg.MaxHeaderBytes,
		// What net/http has to say is about broken clients: not for the operator.
		ErrorLog:                     slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
		DisableGeneralOptionsHandler: true,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: 250, SendPingTimeout: g.cfg.IdleTimeout},
	}
}

// Attach names the dispatcher that requests go to. It must be called once, before
// the first request.
func (g *Gateway) Attach(to Dispatcher) {
	g.to = to
	g.Hub.Start(to)
}

// Serve takes connections from a listener until [Gateway.Shutdown], and then returns
// nil. It may be called for several listeners at once.
func (g *Gateway) Serve(l net.Listener) error {
	err := g.server.Serve(&listener{Listener: l, gateway: g})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}

// Shutdown stops taking connections, closes the sockets with 1001, and waits for the
// requests under way and the sockets' last events. When ctx ends first, it drops what
// is left and returns ctx's error. It may be called twice.
func (g *Gateway) Shutdown(ctx context.Context) error {
	sockets := make(chan error, 1)
	go func() { sockets <- g.Hub.Shutdown(ctx) }() // ends with ctx at the latest; waited for below
	err := g.server.Shutdown(ctx)
	if err != nil {
		g.server.Close()
	}
	if serr := <-sockets; err == nil {
		err = serr
	}
	if err != nil {
		return fmt.Errorf("stop the gateway: %w", err)
	}
	return nil
}

// Collectors returns the gateway's metrics, to be registered.
func (g *Gateway) Collectors() []prometheus.Collector {
	return append(g.metrics.collectors(), g.Hub.Collectors()...)
}
