package router

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A cluster of routers over fake engines, connected by real HTTP/2.
type cluster struct {
	table placement.Table
	nodes map[placement.NodeID]*node

	mu    sync.Mutex
	owner placement.NodeID // of every shard
}

type node struct {
	*Router
	engine *fakeEngine
	addr   string
	server *http.Server
	guess  func() placement.NodeID
	c      *cluster
}

func newCluster(t *testing.T, names ...placement.NodeID) *cluster {
	t.Helper()
	table, err := placement.Even(4)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{table: table, nodes: make(map[placement.NodeID]*node), owner: names[0]}
	for _, name := range names {
		n := &node{c: c}
		n.guess = c.leader
		n.engine = &fakeEngine{leads: func() bool { return c.leader() == name }, at: name}
		n.Router = New(Config{Self: name, Table: table, Engine: n.engine, Owners: n, Network: c, RetryFor: 500 * time.Millisecond})
		var lc net.ListenConfig
		l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var p http.Protocols
		p.SetUnencryptedHTTP2(true)
		n.addr = l.Addr().String()
		n.server = &http.Server{Handler: n.Handler(func(context.Context) placement.NodeID { return "peer" }), Protocols: &p, ReadHeaderTimeout: time.Minute}
		go n.server.Serve(l) // ends with Close
		t.Cleanup(func() { n.server.Close() })
		c.nodes[name] = n
	}
	return c
}

func (c *cluster) leader() placement.NodeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owner
}

func (c *cluster) move(to placement.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owner = to
}

func (n *node) Owner(placement.ShardID) (placement.NodeID, bool) {
	g := n.guess()
	return g, g != ""
}

func (c *cluster) RoundTripper(to placement.NodeID) http.RoundTripper {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &http.Transport{Protocols: &p, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", c.nodes[to].addr)
		if err != nil {
			return nil, errors.Join(ErrNotSent, err)
		}
		return conn, nil
	}}
}

type fakeEngine struct {
	leads func() bool
	at    placement.NodeID
	call  func(ctx context.Context, args string) (string, error)
	serve func(ctx context.Context, w http.ResponseWriter, r *http.Request) (host.Upgrade, error)
}

func (e *fakeEngine) Class(string) (host.ClassInfo, bool) { return host.ClassInfo{}, true }
func (e *fakeEngine) Leads(placement.ShardID) bool        { return e.leads() }

func (e *fakeEngine) Call(ctx context.Context, _ host.Ref, method string, args []byte) ([]byte, error) {
	if e.call == nil {
		return fmt.Appendf(nil, "%s %s at %s", method, args, e.at), nil
	}
	reply, err := e.call(ctx, string(args))
	return []byte(reply), err
}

func (e *fakeEngine) Serve(ctx context.Context, _ host.Ref, w http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
	return e.serve(ctx, w, r)
}

func (e *fakeEngine) Fetch(ctx context.Context, to host.Ref, w http.ResponseWriter, r *http.Request) error {
	_, err := e.Serve(ctx, to, w, r)
	return err
}

func (e *fakeEngine) Lookup(_ context.Context, to host.Ref) (host.ObjectInfo, error) {
	if to.Name == "none" {
		return host.ObjectInfo{}, host.Errorf(host.CodeNotFound, "there is no such object")
	}
	return host.ObjectInfo{Ref: to, Created: time.Unix(7, 0).UTC()}, nil
}

func (e *fakeEngine) ListObjects(context.Context, string, host.ListOptions) (host.ListPage, error) {
	return host.ListPage{}, errors.New("asked for all objects")
}

func (e *fakeEngine) ListShards(_ context.Context, shards []placement.ShardID, class string, _ host.ListOptions) (host.ListPage, error) {
	if !e.leads() {
		return host.ListPage{}, errNoOwner()
	}
	var page host.ListPage
	for _, s := range shards {
		page.Objects = append(page.Objects, host.ObjectInfo{Ref: host.Ref{Class: class, Name: fmt.Sprint("o", s)}})
	}
	return page, nil
}

func (e *fakeEngine) Destroy(context.Context, host.Ref) error { return nil }

func room(name string) host.Ref {
	return host.Ref{Class: "room", ID: placement.NamedID("room", name), Name: name, Named: true}
}

func TestCallIsCarried(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b", "c")
	for _, from := range []placement.NodeID{"a", "b"} {
		reply, err := c.nodes[from].Call(t.Context(), room("x"), "say", []byte("hi"))
		if string(reply) != "say hi at a" || err != nil {
			t.Errorf("from %s the reply is %q, %v", from, reply, err)
		}
	}
	// c believes that b owns the shard; b knows better.
	c.nodes["c"].guess = func() placement.NodeID { return "b" }
	if reply, err := c.nodes["c"].Call(t.Context(), room("x"), "say", nil); string(reply) != "say  at a" || err != nil {
		t.Errorf("over a wrong guess the reply is %q, %v", reply, err)
	}
	info, err := c.nodes["b"].Lookup(t.Context(), room("ü/ x"))
	if want := (host.ObjectInfo{Ref: room("ü/ x"), Created: time.Unix(7, 0).UTC()}); !reflect.DeepEqual(info, want) || err != nil {
		t.Errorf("lookup gives %+v, %v", info, err)
	}
	if _, err := c.nodes["b"].Lookup(t.Context(), room("none")); !errors.Is(err, host.ErrNotFound) {
		t.Errorf("lookup of nothing gives %v", err)
	}
	page, err := c.nodes["b"].ListObjects(t.Context(), "room", host.ListOptions{Limit: 3})
	if len(page.Objects) != 3 || page.Cursor == "" || err != nil {
		t.Errorf("the list is %+v, %v", page, err)
	}
}

func TestErrorsKeepTheirIdentity(t *testing.T) {
	t.Parallel()
	const full host.Refusal = "room: full"
	c := newCluster(t, "a", "b")
	times := 0
	c.nodes["a"].engine.call = func(_ context.Context, args string) (string, error) {
		times++
		if args == "full" {
			return "", fmt.Errorf("join: %w", full)
		}
		return "", &host.Error{Code: host.CodeOverloaded, Message: "slow down", Overloaded: true, RetryAfter: time.Second}
	}
	_, err := c.nodes["b"].Call(t.Context(), room("x"), "join", []byte("full"))
	if e := host.AsError(err); !errors.Is(err, full) || e.Message != "join: room: full" || !e.Remote {
		t.Errorf("the refusal became %#v", err)
	}
	_, err = c.nodes["b"].Call(t.Context(), room("x"), "join", nil)
	if e := host.AsError(err); !errors.Is(err, host.ErrOverloaded) || !e.Overloaded || e.RetryAfter != time.Second {
		t.Errorf("the overload became %#v", err)
	}
	if times != 2 {
		t.Errorf("errors that are final were tried %d times", times)
	}
}

// What certainly did not happen is tried again where the owner is by then; what may have
// happened is not.
func TestRetries(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b", "c")
	c.nodes["a"].server.Close()
	time.AfterFunc(50*time.Millisecond, func() { c.move("b") })
	reply, err := c.nodes["c"].Call(t.Context(), room("x"), "say", nil)
	if string(reply) != "say  at b" || err != nil {
		t.Errorf("after the owner has moved the reply is %q, %v", reply, err)
	}
	c.move("")
	start := time.Now()
	if _, err := c.nodes["c"].Call(t.Context(), room("x"), "say", nil); !errors.Is(err, host.ErrUnavailable) {
		t.Errorf("without an owner the call ended in %v", err)
	}
	if d := time.Since(start); d < 400*time.Millisecond || d > 5*time.Second {
		t.Errorf("an owner was looked for during %v", d)
	}
	c.move("b")
	var times atomic.Int32
	c.nodes["b"].engine.call = func(context.Context, string) (string, error) {
		times.Add(1)
		c.nodes["b"].server.Close() // the connection breaks while the event runs
		return "done", nil
	}
	if _, err := c.nodes["c"].Call(t.Context(), room("x"), "say", nil); !errors.Is(err, host.ErrUnknownOutcome) || times.Load() != 1 {
		t.Errorf("a call that may have happened ended in %v and ran %d times", err, times.Load())
	}
}

func TestDeadlineAndChainTravel(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b")
	chain := []host.Ref{room("p"), {Class: "r m", ID: placement.UniqueID("r m")}}
	var seen []host.Ref
	ended := make(chan error, 1)
	c.nodes["a"].engine.call = func(ctx context.Context, _ string) (string, error) {
		seen = host.ChainOf(ctx)
		<-ctx.Done()
		ended <- ctx.Err()
		return "", ctx.Err()
	}
	ctx, cancel := context.WithTimeout(host.WithChain(t.Context(), chain), 100*time.Millisecond)
	defer cancel()
	_, err := c.nodes["b"].Call(ctx, room("x"), "wait", nil)
	if e := host.AsError(err); e.Code != host.CodeDeadline && e.Code != host.CodeInternal {
		t.Errorf("after its deadline the call ended in %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the callee's context did not end")
	}
	if !reflect.DeepEqual(seen, chain) {
		t.Errorf("the chain became %+v", seen)
	}
}

// A request and its answer stream at the same time.
func TestFetchStreamsBothWays(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b")
	c.nodes["a"].engine.serve = func(ctx context.Context, w http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
		if host.GatewayOf(ctx) != "peer" || r.Header.Get("X-Client") != "yes" || r.Host != "example.com" {
			return host.Upgrade{}, fmt.Errorf("the request arrived as %v %v", r.Host, r.Header)
		}
		w.Header().Set("X-Object", r.URL.RequestURI())
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintln(w, strings.ToUpper(lines.Text()))
			w.(http.Flusher).Flush()
		}
		return host.Upgrade{}, nil
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("X-Client", "yes")
		r.Host = "example.com"
		if _, err := c.nodes["b"].Serve(r.Context(), room("x"), w, r); err != nil {
			t.Error(err)
		}
	}))
	defer front.Close()
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", front.URL+"/a%2Fb?q=1", pr)
	if err != nil {
		t.Fatal(err)
	}
	go fmt.Fprintln(pw, "one")
	resp, err := front.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("X-Object"); got != "/a%2Fb?q=1" {
		t.Errorf("the URL became %q", got)
	}
	answers := bufio.NewReader(resp.Body)
	for _, line := range []string{"ONE\n", "TWO\n"} {
		if got, err := answers.ReadString('\n'); got != line || err != nil {
			t.Fatalf("the answer is %q, %v", got, err)
		}
		if line == "ONE\n" {
			fmt.Fprintln(pw, "two")
		}
	}
	pw.Close()
	if rest, err := io.ReadAll(answers); len(rest) > 0 || err != nil {
		t.Errorf("the rest is %q, %v", rest, err)
	}
}

func TestUpgradeIsCarried(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b")
	c.nodes["a"].engine.serve = func(_ context.Context, w http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
		w.Header().Set("X-Room", "hall")
		if r.Header.Get("Upgrade") != "websocket" || r.Method != "GET" {
			return host.Upgrade{}, fmt.Errorf("%s %v", r.Method, r.Header)
		}
		return host.Upgrade{Socket: 77, Subprotocols: []string{"x", "y"}}, nil
	}
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
	r.Header.Set("Upgrade", "websocket")
	w := httptest.NewRecorder()
	up, err := c.nodes["b"].Serve(t.Context(), room("x"), w, r)
	if want := (host.Upgrade{Socket: 77, Subprotocols: []string{"x", "y"}}); !reflect.DeepEqual(up, want) || err != nil {
		t.Errorf("the upgrade became %+v, %v", up, err)
	}
	if h := w.Header(); h.Get("X-Room") != "hall" || h.Get("Content-Length") != "" || h.Get(headerUpgrade) != "" {
		t.Errorf("its header became %v", h)
	}
}

func TestBrokenAnswerIsBrokenOff(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b")
	c.nodes["a"].engine.serve = func(_ context.Context, w http.ResponseWriter, _ *http.Request) (host.Upgrade, error) {
		fmt.Fprint(w, "half")
		w.(http.Flusher).Flush()
		return host.Upgrade{}, errors.Join(http.ErrAbortHandler, errors.New("no"))
	}
	_, err := c.nodes["b"].Serve(t.Context(), room("x"), httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "GET", "/", nil))
	if !errors.Is(err, http.ErrAbortHandler) {
		t.Errorf("an answer that broke off ended in %v", err)
	}
}

func FuzzDecodeChain(f *testing.F) {
	f.Add(encodeChain([]host.Ref{room("x")}))
	f.Fuzz(func(t *testing.T, s string) {
		chain, err := decodeChain(s)
		if err != nil {
			return
		}
		again, err := decodeChain(encodeChain(chain))
		if err != nil || !reflect.DeepEqual(chain, again) {
			t.Errorf("%q became %+v, then %+v, %v", s, chain, again, err)
		}
	})
}

func FuzzDecodeUpgrade(f *testing.F) {
	f.Add("4d x y")
	f.Fuzz(func(t *testing.T, s string) {
		if up, err := decodeUpgrade(s); err == nil && up.Socket == 0 {
			t.Errorf("%q is socket 0", s)
		}
	})
}
