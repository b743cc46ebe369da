package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// attached returns a gateway that is only a handler.
func attached(t testing.TB, f *fake, cfg Config) *Gateway {
	t.Helper()
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.gateway = g
	f.closed = make(chan *host.SocketClose, 16)
	g.Attach(f)
	t.Cleanup(func() {
		if err := g.Shutdown(context.Background()); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	return g
}

func do(g http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	return w
}

func TestPathsReachTheirObjects(t *testing.T) {
	t.Parallel()
	var got host.Ref
	var path, raw, query string
	f := &fake{serve: func(_ context.Context, to host.Ref, _ http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
		got, path, raw, query = to, r.URL.Path, r.URL.EscapedPath(), r.URL.RawQuery
		return host.Upgrade{}, nil
	}}
	g := attached(t, f, Config{})
	for _, tc := range []struct{ target, name, path, raw, query string }{
		{"/objects/room/a", "a", "/", "/", ""},
		{"/objects/room/a/", "a", "/", "/", ""},
		{"/objects/room/a?x=1&y=%2F", "a", "/", "/", "x=1&y=%2F"},
		{"/objects/room/a/b/c?q", "a", "/b/c", "/b/c", "q"},
		{"/objects/room/a//b", "a", "//b", "//b", ""},
		{"/objects/room/a%2Fb/c%2Fd", "a/b", "/c/d", "/c%2Fd", ""},
		{"/objects/room/a%2F%2Fb", "a//b", "/", "/", ""},
		{"/objects/room/./y", ".", "/y", "/y", ""},
		{"/objects/room/../..", "..", "/..", "/..", ""},
		{"/objects/room/..%2F..%2Fetc%2Fpasswd", "../../etc/passwd", "/", "/", ""},
		{"/objects/room/%252e", "%2e", "/", "/", ""},
		{"/objects/room/%00", "\x00", "/", "/", ""},
		{"/objects/room/%F0%9F%98%80", "😀", "/", "/", ""},
		{"/objects/room/%E2%80%AE", "\u202e", "/", "/", ""},
		{"/objects/room/%C3%A9", "é", "/", "/", ""},
		{"/objects/room/e%CC%81", "e\u0301", "/", "/", ""},
		{"/objects/room/id%3Ax", "id:x", "/", "/", ""},
		{"/objects/room/__proto__", "__proto__", "/", "/", ""},
		{"/objects/room/%5C..%5C", `\..\`, "/", "/", ""},
		{"/objects/room/" + strings.Repeat("n", 1024), strings.Repeat("n", 1024), "/", "/", ""},
		{"/objects/room/a" + strings.Repeat("/", 10000), "a", strings.Repeat("/", 10000), strings.Repeat("/", 10000), ""},
	} {
		got = host.Ref{}
		w := do(g, "GET", tc.target, "")
		if w.Code != 200 {
			t.Errorf("%.80s: status %d %s", tc.target, w.Code, w.Body)
			continue
		}
		want := host.Ref{Class: "room", ID: placement.NamedID("room", tc.name), Name: tc.name, Named: true}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%.80s: %s", tc.target, diff)
		}
		if path != tc.path || raw != tc.raw || query != tc.query {
			t.Errorf("%.80s: the object saw %q (%q) ? %q, want %q (%q) ? %q", tc.target, path, raw, query, tc.path, tc.raw, tc.query)
		}
	}

	id := placement.UniqueID("room")
	do(g, "GET", "/objects/room/id:"+id.String()+"/x", "")
	if diff := cmp.Diff(host.Ref{Class: "room", ID: id}, got); diff != "" || path != "/x" {
		t.Errorf("by ID: %s, path %q", diff, path)
	}
}

func TestRefusedBeforeAnyObject(t *testing.T) {
	t.Parallel()
	f := &fake{}
	g := attached(t, f, Config{MaxBodyBytes: 10})
	for _, tc := range []struct {
		method, target, body string
		status               int
		code                 string
	}{
		{"GET", "/objects/nope/a", "", 404, "unknown_class"},
		{"POST", "/objects/nope", "", 404, "unknown_class"},
		{"GET", "/objects/room/", "", 400, "bad_id"},
		{"GET", "/objects/room//x", "", 400, "bad_id"},
		{"GET", "/objects/room/" + strings.Repeat("n", 1025), "", 400, "bad_id"},
		{"GET", "/objects/room/%ff", "", 400, "bad_id"},
		{"GET", "/objects/room/%ED%A0%80", "", 400, "bad_id"},
		{"GET", "/objects/room/id:12", "", 400, "bad_id"},
		{"GET", "/objects/room/id:" + strings.Repeat("zz", 32), "", 400, "bad_id"},
		{"GET", "/objects/room/id:" + placement.UniqueID("mute").String(), "", 400, "bad_id"},
		{"GET", "/objects/room", "", 405, "method_not_allowed"},
		{"TRACE", "/objects/room/a", "", 405, "method_not_allowed"},
		{"CONNECT", "example.com:80", "", 405, "method_not_allowed"},
		{"POST", "/objects/room/a", "01234567890", 413, "too_large"},
		{"POST", "/objects/mute/a/secret", "", 404, "unknown_method"},
		{"POST", "/objects/mute/a/none", "", 404, "unknown_method"},
		{"GET", "/objects/mute/a/add", "", 404, "unknown_method"},
		{"POST", "/objects/mute/a/add/", "", 404, "unknown_method"},
		{"GET", "/objects", "", 404, "not_found"},
		{"GET", "/objects/", "", 404, "not_found"},
		{"GET", "/", "", 404, "not_found"},
		{"GET", "/metrics", "", 404, "not_found"},
	} {
		w := do(g, tc.method, tc.target, tc.body)
		var body struct {
			Error struct{ Code, Message string }
		}
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Error.Message == "" {
			t.Errorf("%s %.60s: body %q: %v", tc.method, tc.target, w.Body, err)
		}
		if w.Code != tc.status || body.Error.Code != tc.code {
			t.Errorf("%s %.60s: %d %s, want %d %s", tc.method, tc.target, w.Code, body.Error.Code, tc.status, tc.code)
		}
	}
	if n := f.events(); n != 0 {
		t.Errorf("%d requests reached an object", n)
	}
}

func TestErrorsBecomeStatuses(t *testing.T) {
	t.Parallel()
	var failure error
	f := &fake{serve: func(context.Context, host.Ref, http.ResponseWriter, *http.Request) (host.Upgrade, error) {
		return host.Upgrade{}, failure
	}}
	g := attached(t, f, Config{})
	for _, tc := range []struct {
		err        error
		status     int
		code       string
		retryAfter string
	}{
		{host.ErrBadRequest, 400, "bad_request", ""},
		{host.ErrUnknownClass, 404, "unknown_class", ""},
		{host.ErrUnknownMethod, 404, "unknown_method", ""},
		{host.ErrNotFound, 404, "not_found", ""},
		{host.ErrTooLarge, 413, "too_large", ""},
		{host.ErrDeadlock, 508, "deadlock", ""},
		{host.ErrInternal, 500, "internal", ""},
		{host.ErrUnavailable, 503, "unavailable", "1"},
		{host.ErrOverloaded, 503, "overloaded", "1"},
		{&host.Error{Code: host.CodeOverloaded, RetryAfter: 2100 * time.Millisecond}, 503, "overloaded", "3"},
		{host.ErrStorageFull, 507, "storage_full", ""},
		{host.ErrUnknownOutcome, 500, "unknown_outcome", ""},
		{host.ErrReset, 503, "reset", "1"},
		{host.Errorf(host.CodeDeadline, "late"), 504, "deadline", ""},
		{host.Errorf(host.CodeNotOwner, "elsewhere"), 503, "not_owner", "1"},
		{host.AsError(host.Refusal("counter: overflow")), 409, "refused", ""},
		{fmt.Errorf("wrapped: %w", host.ErrNotFound), 404, "not_found", ""},
		{errTest, 500, "internal", ""},
	} {
		failure = tc.err
		w := do(g, "GET", "/objects/room/a", "")
		if w.Code != tc.status || !strings.Contains(w.Body.String(), `"code":"`+tc.code+`"`) || w.Header().Get("Retry-After") != tc.retryAfter {
			t.Errorf("%v: %d %s Retry-After %q, want %d %s %q", tc.err, w.Code, w.Body, w.Header().Get("Retry-After"), tc.status, tc.code, tc.retryAfter)
		}
		if strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%v: shown to the client: %s", tc.err, w.Body)
		}
	}
}

func TestPanicIsAnInternalError(t *testing.T) {
	t.Parallel()
	f := &fake{serve: func(context.Context, host.Ref, http.ResponseWriter, *http.Request) (host.Upgrade, error) {
		panic("a secret detail")
	}}
	w := do(attached(t, f, Config{}), "GET", "/objects/room/a", "")
	if w.Code != 500 || strings.Contains(w.Body.String(), "secret") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestMethodCalls(t *testing.T) {
	t.Parallel()
	f := &fake{call: func(_ context.Context, to host.Ref, method string, args []byte) ([]byte, error) {
		return fmt.Appendf(nil, `[%q,%q,%s]`, to.Name, method, args), nil
	}, serve: func(_ context.Context, _ host.Ref, w http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
		_, err := io.WriteString(w, "fetch "+r.Method+" "+r.URL.Path)
		return host.Upgrade{}, err
	}}
	g := attached(t, f, Config{})
	for _, tc := range []struct {
		method, target, body, want string
		status                     int
	}{
		{"POST", "/objects/room/a/add", "", `["a","add",null]`, 200},
		{"POST", "/objects/mute/a/add", ` {"by":9007199254740993} `, `["a","add", {"by":9007199254740993} ]`, 200},
		{"GET", "/objects/room/a/add", "", "fetch GET /add", 200},
		{"POST", "/objects/room/a/add/more", "", "fetch POST /add/more", 200},
		{"POST", "/objects/room/a/secret", "", "fetch POST /secret", 200},
		{"POST", "/objects/room/a/add", `{"by":1} x`, "", 400},
		{"POST", "/objects/room/a/add", `{"by":NaN}`, "", 400},
		{"POST", "/objects/room/a/add", "\ufeff1", "", 400},
		{"POST", "/objects/room/a/add", strings.Repeat("[", 200_000), "", 400},
	} {
		w := do(g, tc.method, tc.target, tc.body)
		if w.Code != tc.status || (tc.want != "" && w.Body.String() != tc.want) {
			t.Errorf("%s %s %.40s: %d %s, want %d %s", tc.method, tc.target, tc.body, w.Code, w.Body, tc.status, tc.want)
		}
	}
}

func TestCreateGivesAUniqueID(t *testing.T) {
	t.Parallel()
	g := attached(t, &fake{}, Config{})
	w := do(g, "POST", "/objects/room", "")
	var got struct{ ID string }
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 201 {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	if _, err := placement.ParseID("room", got.ID); err != nil {
		t.Error(err)
	}
}

func TestHeadersAreStripped(t *testing.T) {
	t.Parallel()
	var got http.Header
	f := &fake{serve: func(_ context.Context, _ host.Ref, _ http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
		got = r.Header
		return host.Upgrade{}, nil
	}}
	do(attached(t, f, Config{}), "GET", "/objects/room/a", "",
		"Connection", "keep-alive, X-Secret", "Connection", "close", "X-Secret", "1", "Keep-Alive", "1", "Te", "trailers", "Upgrade", "h2c",
		"Proxy-Connection", "x", "Proxy-Authorization", "x", "HTTP2-Settings", "x",
		"Holdfast-Node", "evil", "holdfast-epoch", "9", "X-Kept", "yes", "Authorization", "yes")
	if diff := cmp.Diff(http.Header{"X-Kept": {"yes"}, "Authorization": {"yes"}}, got); diff != "" {
		t.Error(diff)
	}
}

func TestOrigins(t *testing.T) {
	t.Parallel()
	g := attached(t, &fake{}, Config{OriginPatterns: []string{"*.Example.com", "https://app.test"}})
	for origin, want := range map[string]int{
		"":                         201,
		"http://example.com":       201, // httptest's own host
		"http://EXAMPLE.com":       201,
		"https://www.example.com":  201,
		"https://app.test":         201,
		"http://app.test":          403,
		"https://evil.test":        403,
		"https://example.com.evil": 403,
		"null":                     403,
		"://":                      403,
	} {
		var header []string
		if origin != "" {
			header = []string{"Origin", origin}
		}
		if w := do(g, "POST", "/objects/room", "", header...); w.Code != want {
			t.Errorf("Origin %q: %d, want %d", origin, w.Code, want)
		}
	}
	if _, err := New(Config{OriginPatterns: []string{"["}}); err == nil {
		t.Error("a malformed pattern was accepted")
	}
}

func TestHealthAndReadiness(t *testing.T) {
	t.Parallel()
	ready := errors.New("not yet")
	g := attached(t, &fake{}, Config{
		Ready:   func() error { return ready },
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics") }),
		Other:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "other "+r.URL.Path) }),
	})
	if w := do(g, "GET", "/healthz", ""); w.Code != 200 {
		t.Errorf("healthz: %d", w.Code)
	}
	if w := do(g, "GET", "/readyz", ""); w.Code != 503 || w.Body.String() != "not yet\n" {
		t.Errorf("readyz: %d %s", w.Code, w.Body)
	}
	ready = nil
	if w := do(g, "GET", "/readyz", ""); w.Code != 200 {
		t.Errorf("readyz: %d", w.Code)
	}
	if w := do(g, "GET", "/metrics", ""); w.Body.String() != "metrics" {
		t.Errorf("metrics: %s", w.Body)
	}
	if w := do(g, "GET", "/console", ""); w.Body.String() != "other /console" {
		t.Errorf("other: %s", w.Body)
	}
}

// echo answers with the body.
func echo(_ context.Context, _ host.Ref, w http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return host.Upgrade{}, err
	}
	_, err = w.Write(data)
	return host.Upgrade{}, err
}

func TestBodies(t *testing.T) {
	t.Parallel()
	_, addr := start(t, &fake{serve: echo}, Config{BufferBytes: 1000, MaxBodyBytes: 100_000})
	for _, n := range []int{0, 1, 999, 1000, 1001, 99_999, 100_000, 100_001} {
		for _, chunked := range []bool{false, true} {
			want := bytes.Repeat([]byte("x"), n)
			var body io.Reader = bytes.NewReader(want)
			if chunked {
				body = io.MultiReader(body)
			}
			resp, err := http.Post("http://"+addr+"/objects/room/a", "text/plain", body)
			if err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			got, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if n > 100_000 {
				if resp.StatusCode != 413 {
					t.Errorf("%d bytes, chunked %t: status %d", n, chunked, resp.StatusCode)
				}
			} else if resp.StatusCode != 200 || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, chunked %t: status %d, %d bytes", n, chunked, resp.StatusCode, len(got))
			}
		}
	}
}

// TestBodiesInMemoryAreBounded has clients that promise much, which costs nothing, and some
// that send it and then wait.
func TestBodiesInMemoryAreBounded(t *testing.T) {
	t.Parallel()
	f := &fake{serve: echo}
	g, addr := start(t, f, Config{BodiesBytes: 1 << 20})
	for range 10 {
		fmt.Fprint(dial(t, addr), "POST /objects/room/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx")
	}
	status := func(body string) int {
		t.Helper()
		resp, err := http.Post("http://"+addr+"/objects/room/a", "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode == 200 && string(got) != body {
			t.Errorf("a body of %d bytes came back as %d, %v", len(body), len(got), err)
		}
		return resp.StatusCode
	}
	large := strings.Repeat("0123456789", 70_000)
	if got := status(large); got != 200 {
		t.Errorf("beside promises: %d", got)
	}
	half := dial(t, addr)
	fmt.Fprint(half, "POST /objects/room/a HTTP/1.1\r\nHost: x\r\nContent-Length: 700001\r\n\r\n"+large)
	for deadline := time.Now().Add(10 * time.Second); g.held.Load() < 700_000 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if got := status(large); got != 503 {
		t.Errorf("beside as much: %d, want 503", got)
	}
	if got := status("small"); got != 200 {
		t.Errorf("a small one: %d", got)
	}
	half.Close()
	for deadline := time.Now().Add(10 * time.Second); g.held.Load() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if got := status(large); got != 200 {
		t.Errorf("when it has gone: %d, %d bytes are counted", got, g.held.Load())
	}
}

func TestUnencryptedHTTP2(t *testing.T) {
	t.Parallel()
	_, addr := start(t, &fake{serve: echo}, Config{})
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: &p}}
	defer client.CloseIdleConnections()
	resp, err := client.Post("http://"+addr+"/objects/room/a", "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, _ := io.ReadAll(resp.Body)
	if resp.ProtoMajor != 2 || string(got) != "hello" {
		t.Errorf("%s: %q", resp.Proto, got)
	}
}

// TestSlowBody has virtual patience only: the limits are short, and the test waits for
// what the server does.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	f := &fake{serve: echo}
	_, addr := start(t, f, Config{BodyTimeout: 50 * time.Millisecond})
	for _, path := range []string{"/objects/room/a", "/objects/nope/a", "/objects/mute/a/add"} {
		c := dial(t, addr)
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", path)
		got, err := io.ReadAll(c) // until the server closes
		if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 4") {
			t.Errorf("%s: %.40q %v", path, got, err)
		}
	}
	if f.events() != 0 {
		t.Error("a request that was not complete reached an object")
	}
}

func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// TestBadHTTP sends raw bytes: each must be refused or closed, and the next request served.
func TestBadHTTP(t *testing.T) {
	t.Parallel()
	f := &fake{serve: echo}
	_, addr := start(t, f, Config{ReadHeaderTimeout: 300 * time.Millisecond, IdleTimeout: time.Second})
	const ok = "ok" // served, and then closed
	for name, tc := range map[string]struct{ send, want string }{
		"length and chunked":    {"POST /objects/room/a HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n", ok},
		"two lengths":           {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400"},
		"length +5":             {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nabcde", "400"},
		"length 5x":             {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5x\r\n\r\nabcde", "400"},
		"length -1":             {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "400"},
		"length 2^64":           {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551616\r\n\r\n", "400"},
		"length 2^62":           {"POST /objects/room/a HTTP/1.1\r\nHost: x\r\nContent-Length: 4611686018427387904\r\n\r\n", "413"},
		"space before colon":    {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "400"},
		"xchunked":              {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "501"},
		"chunked twice":         {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "501"},
		"chunk size zz":         {"POST /objects/room/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "400"},
		"chunk size too long":   {"POST /objects/room/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n11111111111111111\r\n", "400"},
		"chunk longer":          {"POST /objects/room/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabcdef\r\n0\r\n\r\n", "400"},
		"no host":               {"GET / HTTP/1.1\r\n\r\n", "400"},
		"two hosts":             {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"},
		"bad host":              {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400"},
		"NUL in a header":       {"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n", "400"},
		"no colon":              {"GET / HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n", "400"},
		"2 MB head":             {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 2<<20) + "\r\n\r\n", "431"},
		"100,000 headers":       {"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 100_000) + "\r\n", "431"},
		"1 MB URL":              {"GET /" + strings.Repeat("a", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n", "431"},
		"CONNECT":               {"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n", "405"},
		"TRACE":                 {"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", "405"},
		"absolute form":         {"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404"},
		"OPTIONS *":             {"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404"},
		"half a head":           {"GET / HTTP/1.1\r\nHost: x\r\nX-Half", ""},
		"bad percent":           {"GET /objects/room/%zz HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		"a TLS hello":           {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400"},
		"random bytes":          {"\x00\xff\x7f\x80\r\n\r\n", "400"},
		"HTTP/2 half a preface": {"PRI * HTTP/2.0\r\n\r\nS", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, addr)
			go io.WriteString(c, tc.send) // the server may stop reading; ends with c
			got, _ := io.ReadAll(bufio.NewReader(c))
			head := string(got)
			switch {
			case tc.want == ok:
				if !strings.HasPrefix(head, "HTTP/1.1 200") || strings.Count(head, "HTTP/1.1") != 1 {
					t.Errorf("got %.200q", head)
				}
			case tc.want != "" && !strings.HasPrefix(head, "HTTP/1.1 "+tc.want):
				t.Errorf("got %.80q, want %s", head, tc.want)
			case tc.want == "" && strings.HasPrefix(head, "HTTP/1.1 2"):
				t.Errorf("got %.80q", head)
			}
			resp, err := http.Get("http://" + addr + "/healthz")
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("the next request: %v", err)
			}
			resp.Body.Close()
		})
	}
}

func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	g, addr := start(t, &fake{serve: echo}, Config{MaxConns: 1})
	first := dial(t, addr)
	fmt.Fprint(first, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := bufio.NewReader(first).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(dial(t, addr)); len(got) > 0 {
		t.Errorf("the second connection got %q %v", got, err)
	}
	g.clients.mu.Lock()
	defer g.clients.mu.Unlock()
	if g.clients.all != 1 {
		t.Errorf("%d connections are counted", g.clients.all)
	}
}

func TestConnectionsOfOneClient(t *testing.T) {
	t.Parallel()
	from := func(ip string) client { return clientOf(&net.TCPAddr{IP: net.ParseIP(ip), Port: 1}) }
	c := newClients(5, 2)
	for i, step := range []struct{ ip, want string }{
		{"192.0.2.1", ""},
		{"::ffff:192.0.2.1", ""}, // the same
		{"192.0.2.1", limitClient},
		{"2001:db8::1", ""},
		{"2001:db8::2", ""},
		{"2001:db8::ffff:0:0:3", limitClient}, // of the same subscriber
		{"127.0.0.1", ""},
		{"127.0.0.1", limitNode},
	} {
		if got := c.enter(from(step.ip)); got != step.want {
			t.Errorf("%d: %s is limited by %q, want %q", i, step.ip, got, step.want)
		}
	}
	for _, ip := range []string{"192.0.2.1", "192.0.2.1", "2001:db8::9", "2001:db8::1", "::1"} {
		c.leave(from(ip))
	}
	if c.all != 0 || len(c.each) != 0 {
		t.Errorf("when all have left, %d of %v are counted", c.all, c.each)
	}
	if from("::1") != (client{}) || clientOf(&net.UnixAddr{}) != (client{}) {
		t.Error("loopback or a socket without an address is counted")
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	g := attached(t, &fake{}, Config{Hosts: []string{"app.test", "*.Example.com"}})
	for authority, want := range map[string]int{
		"localhost":            200,
		"LOCALHOST.:8787":      200,
		"chat.localhost:8787":  200,
		"127.0.0.1:8787":       200,
		"192.0.2.1":            200,
		"[::1]:8787":           200,
		"[::1]":                200,
		"":                     200,
		"app.test:8787":        200,
		"www.example.COM":      200,
		"evil.test":            421,
		"evil.test:8787":       421,
		"127.0.0.1.evil.test":  421,
		"localhost.evil.test":  421,
		"xlocalhost":           421,
		"example.com":          421,
		"app.test.evil.test":   421,
		"www.example.com.evil": 421,
		"[evil.test]":          421,
	} {
		r := httptest.NewRequest(http.MethodGet, "/healthz", nil)
		r.Host = authority
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		if w.Code != want || want == 421 && !strings.Contains(w.Body.String(), `"misdirected"`) {
			t.Errorf("Host %q: %d %s, want %d", authority, w.Code, w.Body, want)
		}
	}
	for _, pattern := range []string{"", "[", "http://app.test", "app.test:80"} {
		if _, err := New(Config{Hosts: []string{pattern}}); err == nil {
			t.Errorf("the pattern %q was accepted", pattern)
		}
	}
}

func TestShutdownFinishesRequests(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	f := &fake{serve: func(_ context.Context, _ host.Ref, w http.ResponseWriter, _ *http.Request) (host.Upgrade, error) {
		close(entered)
		<-leave
		_, err := io.WriteString(w, "done")
		return host.Upgrade{}, err
	}}
	g, addr := start(t, f, Config{})
	c := dial(t, addr)
	fmt.Fprint(c, "GET /objects/room/a HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- g.Shutdown(context.Background()) }()
	close(leave)
	got, _ := io.ReadAll(c)
	if !strings.HasSuffix(string(got), "done") {
		t.Errorf("got %q", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestAbortedStreamClosesTheConnection(t *testing.T) {
	t.Parallel()
	f := &fake{serve: func(_ context.Context, _ host.Ref, w http.ResponseWriter, _ *http.Request) (host.Upgrade, error) {
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		return host.Upgrade{}, fmt.Errorf("streaming: %w", http.ErrAbortHandler)
	}}
	_, addr := start(t, f, Config{})
	resp, err := http.Get("http://" + addr + "/objects/room/a")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the client took %q for the whole answer", got)
	}
}

func FuzzRoute(f *testing.F) {
	for _, seed := range []string{"/objects/a/b/c", "/objects/a", "/objects//", "/objects/a/%2F//", "/objects/%zz/x", "/objects/a/id:00"} {
		f.Add(seed)
	}
	refs := newRefCache()
	f.Fuzz(func(t *testing.T, path string) {
		r, ok := parseRoute(path)
		if !ok {
			return
		}
		if r.class == "" && !strings.Contains(path, "%") {
			t.Fatalf("%q: no class", path)
		}
		if r.whole {
			return
		}
		if r.rest == "" || r.rest[0] != '/' {
			t.Fatalf("%q: rest %q", path, r.rest)
		}
		ref, err := refs.ref(r.class, r.object)
		if err != nil {
			return
		}
		if ref.Named && ref.ID != placement.NamedID(r.class, ref.Name) {
			t.Fatalf("%q: wrong ID", path)
		}
		if !ref.ID.Of(r.class) || len(ref.Name) > host.MaxNameBytes || ref.Named == (ref.Name == "") {
			t.Fatalf("%q: %+v", path, ref)
		}
	})
}
