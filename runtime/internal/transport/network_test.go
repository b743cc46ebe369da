package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/secret"
	"github.com/holdfast-run/holdfast/runtime/internal/transport/memnet"
)

// A world is nodes of one cluster in one test.
type world struct {
	t     *testing.T
	net   *memnet.Network
	ring  *secret.Ring
	nodes map[placement.NodeID]*Network
	logs  *logs
}

// inWorld runs a test in a bubble, and stops every node at its end.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, err := secret.Parse([]byte(secret.New()))
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, net: memnet.New(), ring: ring, nodes: make(map[placement.NodeID]*Network), logs: new(logs)}
		f(t, w)
		for id, n := range w.nodes {
			w.stop(id, n)
		}
	})
}

func address(id placement.NodeID) string { return string(id) + ":7000" }

// config is what a node of the world is made from.
func (w *world) config(id placement.NodeID) Config {
	host := w.net.Host(string(id))
	l, err := host.Listen(address(id))
	if err != nil {
		w.t.Fatal(err)
	}
	return Config{
		Self: id, Cluster: "blue", Credentials: w.ring, Listener: l,
		Dial:    host.Dial,
		Resolve: func(id placement.NodeID) (string, bool) { return address(id), true },
		Logger:  slog.New(slog.NewTextHandler(w.logs, nil)),
	}
}

// start starts a node; before may change what it is made from, and register what it serves.
func (w *world) start(id placement.NodeID, change func(*Config), before func(*Network)) *Network {
	w.t.Helper()
	cfg := w.config(id)
	if change != nil {
		change(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	if before != nil {
		before(n)
	}
	n.Start()
	w.nodes[id] = n
	return n
}

func (w *world) stop(id placement.NodeID, n *Network) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := n.Stop(ctx); err != nil && !errors.Is(err, net.ErrClosed) {
		w.t.Errorf("stop %s: %v", id, err)
	}
	delete(w.nodes, id)
}

// logs keeps what was logged.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) lines(part string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

func TestOpenAndAccept(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("a", nil, nil)
		w.start("b", nil, func(n *Network) {
			n.Accept('r', func(peer placement.NodeID, c net.Conn) {
				defer c.Close()
				fmt.Fprintf(c, "hello %s, ", peer)
				io.Copy(c, c)
			})
		})
		c, err := a.Open(t.Context(), "b", 'r')
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "how are you?")
		got := make([]byte, len("hello a, how are you?"))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello a, how are you?" {
			t.Errorf("got %q, %v", got, err)
		}
		w.stop("b", w.nodes["b"])
		if _, err := c.Read(got); err == nil {
			t.Error("the connection outlives its node")
		}
		c.Close()
		if _, err := a.Open(t.Context(), "b", 'r'); err == nil {
			t.Error("a stopped node accepts")
		}
	})
}

func TestUnknownService(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("a", nil, nil)
		w.start("b", nil, nil)
		if _, err := a.Open(t.Context(), "b", 'x'); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), `no service 'x'`) {
			t.Errorf("got %v", err)
		}
	})
}

// echo answers with the body, as it comes, and says who asks.
func echo(name string) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Peer", string(PeerFrom(r.Context())))
		rw.Header().Set("Handler", name)
		http.NewResponseController(rw).Flush()
		buf := make([]byte, 1024)
		for {
			n, err := r.Body.Read(buf)
			rw.Write(buf[:n])
			http.NewResponseController(rw).Flush()
			if err != nil {
				return
			}
		}
	})
}

func TestHTTP(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("a", nil, nil)
		w.start("b", nil, func(n *Network) { n.Serve(echo("members"), echo("guests")) })
		for _, rt := range []http.RoundTripper{a.RoundTripper("b"), a.RoundTripperTo(address("b"))} {
			body, feed := io.Pipe()
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://node/x", body)
			resp, err := rt.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			if p, h := resp.Header.Get("Peer"), resp.Header.Get("Handler"); p != "a" || h != "members" || resp.ProtoMajor != 2 {
				t.Errorf("%s for %q over %s", h, p, resp.Proto)
			}
			for range 3 {
				io.WriteString(feed, "ping")
				got := make([]byte, 4)
				if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != "ping" {
					t.Errorf("got %q, %v", got, err)
				}
			}
			feed.Close()
			if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
				t.Errorf("%q and %v at the end", rest, err)
			}
			resp.Body.Close()
		}
	})
}

// TestGuests reaches a node as somebody who has the secret and belongs to no cluster.
func TestGuests(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		guest := w.start("new", func(c *Config) { c.Cluster = "" }, nil)
		w.start("b", nil, func(n *Network) {
			n.Serve(echo("members"), echo("guests"))
			n.Accept('r', func(_ placement.NodeID, c net.Conn) { c.Close() })
		})
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://node/join", strings.NewReader("let me in"))
		resp, err := guest.RoundTripperTo(address("b")).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "let me in" || resp.Header.Get("Handler") != "guests" {
			t.Errorf("got %q, %v from the handler for %s", body, err, resp.Header.Get("Handler"))
		}
		for _, service := range []byte{'r', serviceControl, serviceSnapshot} {
			if _, err := guest.Open(t.Context(), "b", service); !errors.Is(err, ErrRefused) {
				t.Errorf("service %q: %v", service, err)
			}
		}
	})
}

// TestNotSent tells what never left from what may have happened.
func TestNotSent(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("a", nil, nil)
		arrived := make(chan struct{})
		w.start("b", nil, func(n *Network) {
			n.Serve(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				arrived <- struct{}{}
				<-r.Context().Done()
			}), nil)
		})
		post := func() error {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://node/x", strings.NewReader("x"))
			resp, err := a.RoundTripper("b").RoundTrip(req)
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		sent := make(chan error, 1)
		go func() { sent <- post() }()
		<-arrived
		w.net.Refuse("b")
		if err := <-sent; err == nil || errors.Is(err, ErrNotSent) {
			t.Errorf("it arrived: %v", err)
		}
		start := time.Now()
		if err := post(); !errors.Is(err, ErrNotSent) || time.Since(start) > 0 {
			t.Errorf("nobody was there: %v after %v", err, time.Since(start))
		}
		w.net.Partition("a")
		if err := post(); !errors.Is(err, ErrNotSent) || time.Since(start) > 3*time.Second {
			t.Errorf("nobody could be reached: %v after %v", err, time.Since(start))
		}
	})
}

// TestSharedAttempt makes many requests at once to a node that is not connected.
func TestSharedAttempt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		dials := 0
		var mu sync.Mutex
		a := w.start("a", func(c *Config) {
			dial := c.Dial
			c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
				mu.Lock()
				dials++
				mu.Unlock()
				return dial(ctx, addr)
			}
		}, nil)
		w.start("b", nil, func(n *Network) { n.Serve(echo("members"), nil) })
		var all sync.WaitGroup
		for range 90 {
			all.Go(func() {
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://node/x", strings.NewReader("x"))
				resp, err := a.RoundTripper("b").RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			})
		}
		all.Wait()
		if dials != 1 {
			t.Errorf("%d connections for 90 requests at once", dials)
		}
	})
}

// TestCancel checks that a caller who goes away ends the request at the other side.
func TestCancel(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("a", nil, nil)
		arrived, ended := make(chan struct{}), make(chan struct{})
		w.start("b", nil, func(n *Network) {
			n.Serve(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				close(arrived)
				<-r.Context().Done()
				close(ended)
			}), nil)
		})
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/x", nil)
		go func() { <-arrived; cancel() }()
		if _, err := a.RoundTripper("b").RoundTrip(req); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		<-ended
	})
}

// TestStopLetsRequestsEnd stops a node that is serving a request.
func TestStopLetsRequestsEnd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("a", nil, nil)
		arrived := make(chan struct{})
		b := w.start("b", nil, func(n *Network) {
			n.Serve(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				close(arrived)
				time.Sleep(time.Second)
				io.WriteString(rw, "done")
			}), nil)
		})
		stopped := make(chan struct{})
		defer func() { <-stopped }()
		go func() { defer close(stopped); <-arrived; w.stop("b", b) }()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://node/x", nil)
		resp, err := a.RoundTripper("b").RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); string(body) != "done" {
			t.Errorf("got %q, %v", body, err)
		}
	})
}

// TestLoopback does the most important things over TCP.
func TestLoopback(t *testing.T) {
	t.Parallel()
	told := make(chan placement.NodeID, 1)
	all := loopback(t, func(c *Config) {
		if c.Self == "a" {
			c.OnRefused = func(id placement.NodeID) { told <- id }
		}
	}, "a", "b")
	a, b := all["a"], all["b"]
	a.Raft(1)
	go accept(b.Raft(1))
	if err := a.group(1).AppendEntries("b", "b", appendRequest(3, 10), new(raft.AppendEntriesResponse)); err != nil {
		t.Error(err)
	}
	b.Serve(echo("members"), nil)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://node/x", strings.NewReader("hello"))
	resp, err := a.RoundTripper("b").RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); string(body) != "hello" || err != nil {
		t.Errorf("%q, %v", body, err)
	}
	resp.Body.Close()
	if err := b.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	select {
	case id := <-told:
		if id != "b" {
			t.Errorf("%s is gone", id)
		}
	case <-time.After(20 * time.Second):
		t.Error("nobody noticed that b is gone")
	}
}

// loopback makes nodes that reach each other over TCP.
func loopback(t testing.TB, change func(*Config), ids ...placement.NodeID) map[placement.NodeID]*Network {
	t.Helper()
	ring, err := secret.Parse([]byte(secret.New()))
	if err != nil {
		t.Fatal(err)
	}
	addrs, all := make(map[placement.NodeID]string), make(map[placement.NodeID]*Network)
	for _, id := range ids {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addrs[id] = l.Addr().String()
		cfg := Config{
			Self: id, Cluster: "blue", Credentials: ring, Listener: l,
			Resolve: func(id placement.NodeID) (string, bool) { a, ok := addrs[id]; return a, ok },
		}
		if change != nil {
			change(&cfg)
		}
		if all[id], err = New(cfg); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range all {
		n.Start()
		t.Cleanup(func() {
			if err := n.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	return all
}

// count returns what a counter has counted.
func count(c prometheus.Counter) int {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		return -1
	}
	return int(m.GetCounter().GetValue())
}
