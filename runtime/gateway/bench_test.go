package gateway

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// sink is a response that goes nowhere and allocates nothing.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }

func (s *sink) SetReadDeadline(time.Time) error { return nil }

var (
	hello     = []byte(`{"value":1}`)
	benchJSON = []string{"application/json"}
)

func answerHello(w http.ResponseWriter) {
	w.Header()["Content-Type"] = benchJSON
	_, _ = w.Write(hello)
}

// BenchmarkHandler is what the gateway itself costs, without a network: compare it with
// nothing, since a bare handler here is a few nanoseconds.
func BenchmarkHandler(b *testing.B) {
	f := &fake{}
	f.serve = func(_ context.Context, _ host.Ref, w http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
		answerHello(w)
		return host.Upgrade{}, nil
	}
	f.call = func(context.Context, host.Ref, string, []byte) ([]byte, error) { return hello, nil }
	g := attached(b, f, Config{})
	for _, bc := range []struct{ name, method, target, body string }{
		{"get", "GET", "/objects/room/visits", ""},
		{"post", "POST", "/objects/room/visits/increment", `{"by":1}`},
		{"method", "POST", "/objects/room/visits/add", `{"by":1}`},
		{"by-id", "GET", "/objects/room/id:" + named("visits").String(), ""},
	} {
		b.Run(bc.name, func(b *testing.B) {
			r := httptest.NewRequest(bc.method, bc.target, bytes.NewReader([]byte(bc.body)))
			r.Header = http.Header{"User-Agent": {"bench"}, "Accept": {"*/*"}, "Accept-Encoding": {"gzip"}}
			body := bytes.NewReader(nil)
			closer := io.NopCloser(body)
			w := &sink{header: make(http.Header)}
			b.ReportAllocs()
			for b.Loop() {
				body.Reset([]byte(bc.body))
				r.Body = closer
				if bc.body == "" {
					r.Body = http.NoBody
				}
				g.ServeHTTP(w, r)
			}
		})
	}
}

// BenchmarkLoopback is one client on one connection: the gateway next to a bare handler.
func BenchmarkLoopback(b *testing.B) {
	f := &fake{serve: func(_ context.Context, _ host.Ref, w http.ResponseWriter, _ *http.Request) (host.Upgrade, error) {
		answerHello(w)
		return host.Upgrade{}, nil
	}}
	_, addr := start(b, f, Config{})
	bare := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answerHello(w) }))
	defer bare.Close()
	for _, bc := range []struct{ name, url string }{{"bare", bare.URL}, {"gateway", "http://" + addr}} {
		b.Run(bc.name, func(b *testing.B) {
			c := dial(b, bc.url[len("http://"):])
			request := []byte("GET /objects/room/visits HTTP/1.1\r\nHost: x\r\nUser-Agent: bench\r\n\r\n")
			buf := make([]byte, 4096)
			for b.Loop() {
				if _, err := c.Write(request); err != nil {
					b.Fatal(err)
				}
				if _, err := c.Read(buf); err != nil { // the answer is one packet
					b.Fatal(err)
				}
			}
		})
	}
}
