package runtime_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/runtime"
	"github.com/holdfast-run/holdfast/runtime/durable"
)

const (
	greeterClass durable.Class[greeter]                              = "greeter"
	greet        durable.Method[greeter, string, string]             = "greet"
	rest         durable.Method[greeter, durable.None, durable.None] = "rest"

	lastGuest durable.Key[string] = "last"
)

var greeterDefinition = durable.Define(greeterClass, greet.Handle((*greeter).greet), rest.Handle((*greeter).rest))

// A greeter remembers whom it greeted last.
type greeter struct{}

func (*greeter) greet(_ context.Context, tx *durable.Tx, name string) (string, error) {
	before := lastGuest.Get(tx)
	lastGuest.Put(tx, name)
	return before, nil
}

// rest runs until it is told to stop.
func (*greeter) rest(ctx context.Context, _ *durable.Tx, _ durable.None) (durable.None, error) {
	<-ctx.Done()
	return durable.None{}, ctx.Err()
}

func (*greeter) Fetch(_ context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	if r.URL.Path == "/websocket" {
		for name, value := range map[string]string{
			"Set-Cookie": "guest=7", "X-Room": "hall", // wanted
			"Connection": "close", "Sec-Websocket-Accept": "nonsense", "Content-Length": "5", "Transfer-Encoding": "chunked", // not its business
		} {
			w.Header().Set(name, value)
		}
		ws, err := tx.Accept(durable.AcceptOptions{})
		if err != nil {
			return err
		}
		return ws.Send(durable.Text("welcome"))
	}
	_, err := io.WriteString(w, "last was "+lastGuest.Get(tx))
	return err
}

// TestNodeRunsOwnClasses is what a program does that embeds a node.
func TestNodeRunsOwnClasses(t *testing.T) {
	t.Parallel()
	cfg := runtime.Config{Data: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0", Shards: 2}
	n := start(t, cfg)
	id := n.ID()
	before, err := greet.Call(t.Context(), greeterClass.Named(n, "door"), "ada")
	if err != nil || before != "" {
		t.Fatalf("the first guest came after %q, error %v", before, err)
	}
	if got := get(t, n, "/objects/greeter/door/"); got != "last was ada" {
		t.Errorf("over HTTP: %q", got)
	}
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(t.Context()); err != nil {
		t.Errorf("stopped twice: %v", err)
	}

	cfg.Shards = 0
	n = start(t, cfg)
	if n.ID() != id {
		t.Errorf("the node was %s and is %s", id, n.ID())
	}
	before, err = greet.Call(t.Context(), greeterClass.Named(n, "door"), "bob")
	if err != nil || before != "ada" {
		t.Errorf("after a restart: %q, error %v", before, err)
	}
}

func TestHandshakeCarriesTheObjectsHeader(t *testing.T) {
	t.Parallel()
	n := start(t, runtime.Config{Data: t.TempDir(), Listen: "127.0.0.1:0", Shards: 1})
	ws, resp, err := websocket.Dial(t.Context(), "ws://"+n.Addr()+"/objects/greeter/door/websocket", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ws.CloseNow() }()
	resp.Header.Del("Date")
	resp.Header.Del("Sec-Websocket-Accept") // was right, or Dial had failed
	want := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Set-Cookie": {"guest=7"}, "X-Room": {"hall"}}
	if diff := cmp.Diff(want, resp.Header); diff != "" {
		t.Errorf("the handshake's header (-want +got):\n%s", diff)
	}
	if _, text, err := ws.Read(t.Context()); err != nil || string(text) != "welcome" {
		t.Errorf("read %q, %v", text, err)
	}
	// Without the means for a WebSocket nothing of it is left in the refusal.
	refused, err := http.Get("http://" + n.Addr() + "/objects/greeter/door/websocket")
	if err != nil {
		t.Fatal(err)
	}
	refused.Body.Close()
	if refused.StatusCode < 400 || refused.Header.Get("X-Room") != "" {
		t.Errorf("an ordinary request got %s with %v", refused.Status, refused.Header)
	}
}

// TestForeignHostOnLoopback is DNS rebinding: the page's own name means 127.0.0.1 now.
func TestForeignHostOnLoopback(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		listen string
		hosts  []string
		want   int
	}{
		{"127.0.0.1:0", nil, http.StatusMisdirectedRequest},
		{"127.0.0.1:0", []string{"app.test"}, http.StatusMisdirectedRequest},
		{"127.0.0.1:0", []string{"evil.test"}, http.StatusOK},
		{"127.0.0.1:0", []string{"*"}, http.StatusOK},
		{"0.0.0.0:0", nil, http.StatusOK},
		{"0.0.0.0:0", []string{"app.test"}, http.StatusMisdirectedRequest},
	} {
		n := start(t, runtime.Config{Data: t.TempDir(), Listen: c.listen, Hosts: c.hosts, Shards: 1})
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+n.Addr()+"/objects/greeter/door/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = "evil.test:8787"
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("on %s with hosts %v: %s, want %d", c.listen, c.hosts, resp.Status, c.want)
		}
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	data := t.TempDir()
	canceled, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("changed my mind"))

	for name, c := range map[string]struct {
		ctx     context.Context
		cfg     runtime.Config
		classes []durable.Definition
		want    string
	}{
		"an address in use":   {cfg: runtime.Config{Listen: taken.Addr().String()}, want: "address already in use"},
		"an odd shard number": {cfg: runtime.Config{Shards: 3}, want: "want a power of two"},
		"a negative time":     {cfg: runtime.Config{StopTimeout: -1}, want: "is negative"},
		"a bad origin":        {cfg: runtime.Config{Origins: []string{"http://["}}, want: "origin"},
		"a bad host":          {cfg: runtime.Config{Hosts: []string{"http://x"}}, want: `host pattern "http://x" is malformed`},
		"a class twice":       {classes: []durable.Definition{greeterDefinition, greeterDefinition}, want: `class "greeter" is defined twice`},
		"an ended context":    {ctx: canceled, want: "changed my mind"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.ctx == nil {
				c.ctx = t.Context()
			}
			c.cfg.Data = data // the same for all: each must let it go
			if c.cfg.Listen == "" {
				c.cfg.Listen = "127.0.0.1:0"
			}
			n, err := runtime.Start(c.ctx, c.cfg, c.classes...)
			if err == nil {
				n.Stop(t.Context())
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want one sentence with %q", err, c.want)
			}
		})
	}
	start(t, runtime.Config{Data: data, Listen: "127.0.0.1:0"})
}

// TestStopIsBounded stops a node in which a handler does not end.
func TestStopIsBounded(t *testing.T) {
	t.Parallel()
	n := start(t, runtime.Config{Data: t.TempDir(), Listen: "127.0.0.1:0", Shards: 2, StopTimeout: 300 * time.Millisecond})
	if _, err := greet.Call(t.Context(), greeterClass.Named(n, "door"), "ada"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { // ends with the handler, which is waited for below
		_, err := rest.Call(t.Context(), greeterClass.Named(n, "door"), durable.None{})
		done <- err
	}()
	begin := time.Now()
	if err := n.Stop(t.Context()); err != nil {
		t.Errorf("stop: %v", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if err := <-done; err == nil {
		t.Error("the call that was cut off was answered")
	}
}

// BenchmarkHotCounter runs with the setting of the garbage collector that cmd/node has.
func BenchmarkHotCounter(b *testing.B) {
	old := debug.SetGCPercent(400)
	defer debug.SetGCPercent(old)
	n, err := runtime.Start(b.Context(), runtime.Config{Data: b.TempDir(), Listen: "127.0.0.1:0"}, greeterDefinition)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { n.Stop(context.Background()) })
	if err := n.Ready(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(128) // times GOMAXPROCS callers
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := greet.Call(b.Context(), greeterClass.Named(n, "hot"), "ada"); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

func start(t *testing.T, cfg runtime.Config) *runtime.Node {
	t.Helper()
	n, err := runtime.Start(t.Context(), cfg, greeterDefinition)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Stop(context.Background()) })
	if err := n.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

func get(t *testing.T, n *runtime.Node, path string) string {
	t.Helper()
	resp, err := http.Get("http://" + n.Addr() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
