package gateway

import (
	"bufio"
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/runtime/gateway/internal/socket"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// join opens a socket to the object "a" with the library's client.
func join(t testing.TB, addr string, o *websocket.DialOptions) *websocket.Conn {
	t.Helper()
	c, _, err := websocket.Dial(timeout(t), "ws://"+addr+"/objects/room/a/websocket", o)
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadLimit(-1)
	t.Cleanup(func() { _ = c.CloseNow() })
	return c
}

func read(t testing.TB, c *websocket.Conn) string {
	t.Helper()
	_, data, err := c.Read(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func next[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-timeout(t).Done():
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestSocketTalks(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	f.message = func(_ context.Context, to host.Ref, m *host.SocketMessage) error {
		f.gateway.Send(to.ID, m.Socket, host.Message{Data: append([]byte("echo "), m.Data...), Binary: m.Binary})
		return nil
	}
	g, addr := start(t, f, Config{})
	c := join(t, addr, &websocket.DialOptions{Subprotocols: []string{"other", "chat"}})
	if c.Subprotocol() != "chat" {
		t.Errorf("subprotocol %q", c.Subprotocol())
	}
	for _, size := range []int{0, 1, 125, 126, 4095, 4096, 4097, 65535, 65536, 1 << 20} {
		want := strings.Repeat("x", size)
		if err := c.Write(timeout(t), websocket.MessageText, []byte(want)); err != nil {
			t.Fatal(err)
		}
		kind, got, err := c.Read(timeout(t))
		if err != nil || kind != websocket.MessageText || string(got) != "echo "+want {
			t.Fatalf("%d bytes: %v, %d bytes, %v", size, kind, len(got), err)
		}
	}
	if err := c.Write(timeout(t), websocket.MessageBinary, []byte{0xff}); err != nil {
		t.Fatal(err)
	}
	if kind, got, err := c.Read(timeout(t)); err != nil || kind != websocket.MessageBinary || string(got) != "echo \xff" {
		t.Fatalf("%v %q %v", kind, got, err)
	}
	sockets := g.Sockets(named("a"))
	if len(sockets) != 1 || sockets[0].ID != 1 || sockets[0].Closing {
		t.Errorf("sockets: %+v", sockets)
	}
	if err := c.Close(4001, "bye"); err != nil {
		t.Error(err)
	}
	want := &host.SocketClose{Socket: 1, Code: 4001, Reason: "bye", Clean: true}
	if diff := cmp.Diff(want, next(t, f.closed)); diff != "" {
		t.Error(diff)
	}
	if sockets := g.Sockets(named("a")); len(sockets) != 1 || !sockets[0].Closing {
		t.Errorf("until it is forgotten: %+v", sockets)
	}
	g.Forget(named("a"), 1)
	if sockets := g.Sockets(named("a")); len(sockets) != 0 {
		t.Errorf("forgotten: %+v", sockets)
	}
}

func TestFramesBeforeTheHandshakeAreKept(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = func(ctx context.Context, to host.Ref, w http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
		up, err := f.accept(ctx, to, w, r)
		f.gateway.Send(to.ID, up.Socket, host.Message{Data: []byte("one")})
		f.gateway.Broadcast(to.ID, host.Message{Data: []byte("two")}, "", nil)
		f.gateway.Close(to.ID, up.Socket, 4000, "enough")
		f.gateway.Send(to.ID, up.Socket, host.Message{Data: []byte("never")})
		return up, err
	}
	_, addr := start(t, f, Config{})
	c := join(t, addr, nil)
	if got := read(t, c) + read(t, c); got != "onetwo" {
		t.Errorf("got %q", got)
	}
	if _, _, err := c.Read(timeout(t)); websocket.CloseStatus(err) != 4000 {
		t.Errorf("got %v", err)
	}
	want := &host.SocketClose{Socket: 1, Code: 4000, Reason: "enough", Clean: true}
	if diff := cmp.Diff(want, next(t, f.closed)); diff != "" {
		t.Error(diff)
	}
}

func TestBroadcast(t *testing.T) {
	t.Parallel()
	f := &fake{}
	var n atomic.Uint64
	f.serve = func(_ context.Context, to host.Ref, _ http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
		id := host.SocketID(n.Add(1))
		f.gateway.Accept(to, host.Socket{ID: id, Tags: r.URL.Query()["tag"]})
		return host.Upgrade{Socket: id}, nil
	}
	g, addr := start(t, f, Config{})
	var clients []*websocket.Conn
	for _, query := range []string{"?tag=red&tag=big", "?tag=red", "?tag=blue", ""} {
		c, _, err := websocket.Dial(timeout(t), "ws://"+addr+"/objects/room/a"+query, &websocket.DialOptions{CompressionMode: websocket.CompressionNoContextTakeover})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.CloseNow() }()
		clients = append(clients, c)
	}
	long := strings.Repeat("long ", 1000)
	g.Broadcast(named("a"), host.Message{Data: []byte("all")}, "", nil)
	g.Broadcast(named("a"), host.Message{Data: []byte("red")}, "red", []host.SocketID{2})
	g.Broadcast(named("a"), host.Message{Data: []byte("none")}, "green", nil)
	g.Broadcast(named("a"), host.Message{Data: []byte(long)}, "", []host.SocketID{4})
	g.Broadcast(named("a"), host.Message{Data: []byte("end")}, "", nil)
	for i, want := range [][]string{{"all", "red", long, "end"}, {"all", long, "end"}, {"all", long, "end"}, {"all", "end"}} {
		for _, w := range want {
			if got := read(t, clients[i]); got != w {
				t.Errorf("client %d got %.20q, want %.20q", i+1, got, w)
			}
		}
	}
}

// TestCompression looks at the bytes: a compressed broadcast has RSV1 and is short.
func TestCompression(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	g, addr := start(t, f, Config{})
	offer := "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
	with, without := rawSocket(t, addr, offer), rawSocket(t, addr, "")
	text := strings.Repeat("hello ", 200)
	g.Broadcast(named("a"), host.Message{Data: []byte(text)}, "", nil)
	first, payload := with.frame(t)
	if first != 0xc1 || len(payload) > 100 {
		t.Errorf("compressed: first byte %#x, %d bytes", first, len(payload))
	}
	plain, err := io.ReadAll(flate.NewReader(io.MultiReader(bytes.NewReader(payload), strings.NewReader("\x00\x00\xff\xff\x01\x00\x00\xff\xff"))))
	if err != nil || string(plain) != text {
		t.Errorf("inflated: %d bytes, %v", len(plain), err)
	}
	if first, payload := without.frame(t); first != 0x81 || string(payload) != text {
		t.Errorf("plain: first byte %#x, %d bytes", first, len(payload))
	}
}

func TestAutoResponses(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	f.message = func(_ context.Context, to host.Ref, m *host.SocketMessage) error {
		f.gateway.Send(to.ID, m.Socket, host.Message{Data: append([]byte("woke for "), m.Data...)})
		return nil
	}
	g, addr := start(t, f, Config{})
	g.SetAutoResponses(named("a"), []host.AutoResponse{{Request: "ping", Response: "pong"}, {Request: "?", Response: "!"}})
	c := join(t, addr, nil)
	for _, send := range []string{"ping", "x", "?", "ping ", "ping"} {
		if err := c.Write(timeout(t), websocket.MessageText, []byte(send)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Write(timeout(t), websocket.MessageBinary, []byte("ping")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pong", "woke for x", "!", "woke for ping ", "pong", "woke for ping"} {
		if got := read(t, c); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if at := g.Sockets(named("a"))[0].AutoResponse; time.Since(at) > time.Minute {
		t.Errorf("auto-response time %v", at)
	}
	g.SetAutoResponses(named("a"), nil)
	if err := c.Write(timeout(t), websocket.MessageText, []byte("ping")); err != nil {
		t.Fatal(err)
	}
	if got := read(t, c); got != "woke for ping" {
		t.Errorf("after unsetting: %q", got)
	}
}

func TestAttachmentsAndOrder(t *testing.T) {
	t.Parallel()
	f := &fake{}
	g := attached(t, f, Config{})
	to := host.Ref{Class: "room", ID: named("a"), Name: "a", Named: true}
	at := time.Now()
	for i := range 5 {
		g.Accept(to, host.Socket{ID: host.SocketID(100 - i), Tags: []string{"t"}, Attachment: []byte{byte(i)}, Accepted: at})
	}
	g.SetAttachment(to.ID, 98, []byte("new"))
	g.Forget(to.ID, 99)
	g.Forget(to.ID, 1)
	var ids []host.SocketID
	for _, s := range g.Sockets(to.ID) {
		ids = append(ids, s.ID)
		if s.ID == 98 && string(s.Attachment) != "new" {
			t.Errorf("attachment %q", s.Attachment)
		}
	}
	if diff := cmp.Diff([]host.SocketID{100, 98, 97, 96}, ids); diff != "" {
		t.Error(diff)
	}
}

func TestForeignOriginNeverWakes(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	_, addr := start(t, f, Config{OriginPatterns: []string{"app.test"}})
	for origin, want := range map[string]int{"https://evil.test": 403, "https://app.test": 101, "http://" + addr: 101} {
		c, resp, err := websocket.Dial(timeout(t), "ws://"+addr+"/objects/room/a", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {origin}}})
		if c != nil {
			_ = c.CloseNow()
		}
		if resp == nil || resp.StatusCode != want {
			t.Errorf("%s: %v, want %d", origin, err, want)
		}
	}
	if n := f.events(); n != 2 {
		t.Errorf("%d events", n)
	}
}

func TestBadHandshakesNeverWake(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	_, addr := start(t, f, Config{})
	good := map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
	for name, tc := range map[string]struct {
		method, header, value string
		want                  int
	}{
		"version 8": {"GET", "Sec-WebSocket-Version", "8", 426},
		"no key":    {"GET", "Sec-WebSocket-Key", "", 400},
		"short key": {"GET", "Sec-WebSocket-Key", "abcd", 400},
		"POST":      {"POST", "Upgrade", "websocket", 400},
		"body":      {"GET", "Content-Length", "5", 400},
		"mute":      {"GET", "", "", 404},
	} {
		class := "room"
		if name == "mute" {
			class = "mute"
		}
		c := dial(t, addr)
		fmt.Fprintf(c, "%s /objects/%s/a HTTP/1.1\r\nHost: x\r\n", tc.method, class)
		for k, v := range good {
			if k == tc.header {
				v = tc.value
			}
			if v != "" {
				fmt.Fprintf(c, "%s: %s\r\n", k, v)
			}
		}
		if tc.header == "Content-Length" {
			fmt.Fprintf(c, "Content-Length: 5\r\n")
		}
		fmt.Fprint(c, "\r\nhello")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != tc.want {
			t.Errorf("%s: %+v %v, want %d", name, resp, err, tc.want)
		}
	}
	if n := f.events(); n != 0 {
		t.Errorf("%d events", n)
	}
}

func TestUpgradeOfAnOrdinaryRequest(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	g := attached(t, f, Config{})
	f.refs = map[host.SocketID]host.Ref{}
	if w := do(g, "GET", "/objects/room/a", ""); w.Code != 426 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if c := next(t, f.closed); c.Code != 1006 {
		t.Errorf("%+v", c)
	}
}

func TestObjectAnswersAnUpgradeAsHTTP(t *testing.T) {
	t.Parallel()
	f := &fake{serve: func(_ context.Context, _ host.Ref, w http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
		w.WriteHeader(http.StatusTeapot)
		return host.Upgrade{}, nil
	}}
	_, addr := start(t, f, Config{})
	if _, resp, err := websocket.Dial(timeout(t), "ws://"+addr+"/objects/room/a", nil); err == nil || resp.StatusCode != 418 {
		t.Errorf("%v %v", resp, err)
	}
}

func TestAbandonedHandshake(t *testing.T) {
	t.Parallel()
	f := &fake{}
	g := attached(t, f, Config{Sockets: socket.Config{HandshakeTimeout: 20 * time.Millisecond}})
	g.Accept(host.Ref{Class: "room", ID: named("a")}, host.Socket{ID: 7})
	want := &host.SocketClose{Socket: 7, Code: 1006}
	if diff := cmp.Diff(want, next(t, f.closed)); diff != "" {
		t.Error(diff)
	}
}

func TestDropIs1006(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	_, addr := start(t, f, Config{})
	_ = join(t, addr, nil).CloseNow()
	want := &host.SocketClose{Socket: 1, Code: 1006}
	if diff := cmp.Diff(want, next(t, f.closed)); diff != "" {
		t.Error(diff)
	}
}

func TestObjectClosesAndClientNeverAnswers(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	g, addr := start(t, f, Config{Sockets: socket.Config{CloseTimeout: 50 * time.Millisecond}})
	rawSocket(t, addr, "")
	g.Close(named("a"), 1, 4000, "go")
	g.Close(named("a"), 1, 4001, "go again")
	want := &host.SocketClose{Socket: 1, Code: 1006}
	if diff := cmp.Diff(want, next(t, f.closed)); diff != "" {
		t.Error(diff)
	}
}

func TestCloseCodesAreMadeSafe(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	g, addr := start(t, f, Config{})
	for i, tc := range []struct {
		code   int
		reason string
		want   websocket.CloseError
	}{
		{1005, "x", websocket.CloseError{Code: 1011}},
		{70000, "x", websocket.CloseError{Code: 1011}},
		{4999, strings.Repeat("é", 100), websocket.CloseError{Code: 4999, Reason: strings.Repeat("é", 61)}},
	} {
		c := join(t, addr, nil)
		g.Close(named("a"), host.SocketID(i+1), tc.code, tc.reason)
		_, _, err := c.Read(timeout(t))
		var ce websocket.CloseError
		if !errors.As(err, &ce) || ce != tc.want {
			t.Errorf("%d: %v", tc.code, err)
		}
	}
}

func TestSilentPeerIsDropped(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	_, addr := start(t, f, Config{Sockets: socket.Config{PingInterval: 40 * time.Millisecond}})
	live := join(t, addr, nil)
	go live.Read(timeout(t)) // answers pings; ends with the test
	dead := rawSocket(t, addr, "")
	if c := next(t, f.closed); c.Socket != 2 || c.Code != 1006 {
		t.Errorf("%+v", c)
	}
	if first, _, _ := dead.tryFrame(); first != 0x89 {
		t.Errorf("the dead one got %#x, want a ping", first)
	}
	select {
	case c := <-f.closed:
		t.Errorf("closed: %+v", c)
	default:
	}
}

// TestSlowClientIsClosed fills the queue of a client that does not read, while another
// one gets everything.
func TestSlowClientIsClosed(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	g, addr := start(t, f, Config{Sockets: socket.Config{QueueBytes: 1 << 20, WriteTimeout: 200 * time.Millisecond}})
	fast := join(t, addr, nil)
	rawSocket(t, addr, "")
	m := host.Message{Data: bytes.Repeat([]byte("x"), 100_000)}
	var closed *host.SocketClose
	for i := 0; closed == nil; i++ {
		if i == 1000 {
			t.Fatal("100 MB went to a client that does not read")
		}
		g.Broadcast(named("a"), m, "", nil)
		if got := read(t, fast); len(got) != len(m.Data) {
			t.Fatalf("the fast one got %d bytes", len(got))
		}
		select {
		case closed = <-f.closed:
		default:
		}
	}
	want := &host.SocketClose{Socket: 2, Code: 1008, Reason: "the client does not read fast enough"}
	if diff := cmp.Diff(want, closed); diff != "" {
		t.Error(diff)
	}
}

func TestUnavailableObject(t *testing.T) {
	t.Parallel()
	var tries atomic.Int32
	f := &fake{}
	f.serve = f.accept
	f.message = func(_ context.Context, _ host.Ref, m *host.SocketMessage) error {
		switch string(m.Data) {
		case "soon":
			if tries.Add(1) < 3 {
				return &host.Error{Code: host.CodeUnavailable, Retryable: true}
			}
			return nil
		case "broken":
			return errTest
		}
		return &host.Error{Code: host.CodeUnavailable, Retryable: true}
	}
	_, addr := start(t, f, Config{Sockets: socket.Config{RetryFor: 50 * time.Millisecond}})
	c := join(t, addr, nil)
	for _, text := range []string{"broken", "soon", "never"} {
		if err := c.Write(timeout(t), websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := c.Read(timeout(t)); websocket.CloseStatus(err) != websocket.StatusTryAgainLater {
		t.Errorf("got %v", err)
	}
	if tries.Load() != 3 {
		t.Errorf("%d tries", tries.Load())
	}
}

func TestMessagesAreInOrderOneAtATime(t *testing.T) {
	t.Parallel()
	const n = 2000
	f := &fake{}
	f.serve = f.accept
	var running atomic.Int32
	next, done := 0, make(chan struct{})
	f.message = func(_ context.Context, _ host.Ref, m *host.SocketMessage) error {
		if running.Add(1) != 1 {
			t.Error("two at a time")
		}
		defer running.Add(-1)
		if want := fmt.Sprint(next); string(m.Data) != want {
			t.Errorf("got %s, want %s", m.Data, want)
		}
		if next++; next == n {
			close(done)
		}
		return nil
	}
	_, addr := start(t, f, Config{})
	c := join(t, addr, nil)
	for i := range n {
		if err := c.Write(timeout(t), websocket.MessageText, fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	<-done
}

func TestShutdownSaysGoingAway(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	g, addr := start(t, f, Config{})
	c := join(t, addr, nil)
	go func() { _ = g.Shutdown(timeout(t)) }() // waited for by the clean-up
	if _, _, err := c.Read(timeout(t)); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("got %v", err)
	}
	if got := next(t, f.closed); got.Code != 1001 {
		t.Errorf("%+v", got)
	}
}

func TestSocketLimitOfTheNode(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	_, addr := start(t, f, Config{Sockets: socket.Config{MaxSockets: 1}})
	join(t, addr, nil)
	_, resp, err := websocket.Dial(timeout(t), "ws://"+addr+"/objects/room/a", nil)
	if resp == nil || resp.StatusCode != 503 {
		t.Errorf("%v", err)
	}
	if f.events() != 1 {
		t.Errorf("%d events", f.events())
	}
}

// A raw is a WebSocket client of bytes.
type raw struct {
	net.Conn
	r *bufio.Reader
}

func rawSocket(t testing.TB, addr, header string) *raw {
	t.Helper()
	c := dial(t, addr)
	fmt.Fprintf(c, "GET /objects/room/a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n", header)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("handshake: %v %v", resp, err)
	}
	return &raw{c, r}
}

// frame reads one frame from the server that is not a ping: one may come at any time.
func (c *raw) frame(t testing.TB) (first byte, payload []byte) {
	t.Helper()
	for {
		first, payload, err := c.tryFrame()
		if err != nil {
			t.Fatal(err)
		}
		if first != 0x89 {
			return first, payload
		}
	}
}

func (c *raw) tryFrame() (first byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, nil, err
	}
	n := uint64(head[1])
	switch n {
	case 126:
		var b [2]byte
		_, err = io.ReadFull(c.r, b[:])
		n = uint64(binary.BigEndian.Uint16(b[:]))
	case 127:
		var b [8]byte
		_, err = io.ReadFull(c.r, b[:])
		n = binary.BigEndian.Uint64(b[:])
	}
	if err != nil {
		return 0, nil, err
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(c.r, payload)
	return head[0], payload, err
}

// masked is a client's frame with a mask of zeros.
func masked(first byte, payload string) string {
	switch n := len(payload); {
	case n < 126:
		return string([]byte{first, 0x80 | byte(n), 0, 0, 0, 0}) + payload
	case n < 1<<16:
		return string([]byte{first, 0x80 | 126, byte(n >> 8), byte(n), 0, 0, 0, 0}) + payload
	default:
		b := binary.BigEndian.AppendUint64([]byte{first, 0x80 | 127}, uint64(n))
		return string(append(b, 0, 0, 0, 0)) + payload
	}
}

func closing(code uint16) string {
	return masked(0x88, string([]byte{byte(code >> 8), byte(code)}))
}

// deflated is data as one compressed message.
func deflated(data string) string {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.BestSpeed)
	_, _ = io.WriteString(w, data)
	_ = w.Flush()
	return strings.TrimSuffix(b.String(), "\x00\x00\xff\xff")
}

func TestBadFrames(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	_, addr := start(t, f, Config{Sockets: socket.Config{MaxMessageBytes: 1 << 20, CloseTimeout: time.Second}})
	bomb := deflated(strings.Repeat("\x00", 64<<20))
	for name, tc := range map[string]struct {
		send string
		want int // the close code that the client sees
	}{
		"RSV1 without deflate":        {masked(0xc1, "x"), 1002},
		"RSV2":                        {masked(0xa1, "x"), 1002},
		"RSV3":                        {masked(0x91, "x"), 1002},
		"opcode 3":                    {masked(0x83, "x"), 1002},
		"opcode 11":                   {masked(0x8b, "x"), 1002},
		"unmasked":                    {"\x81\x01x", 1002},
		"fragmented ping":             {masked(0x09, "x"), 1002},
		"long ping":                   {masked(0x89, strings.Repeat("x", 126)), 1002},
		"length 2^63":                 {"\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", 1002},
		"length 2^62, no data":        {"\x82\xff\x40\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + strings.Repeat("x", 2<<20), 1009},
		"continuation of nothing":     {masked(0x80, "x"), 1002},
		"text inside a message":       {masked(0x01, "x") + masked(0x81, "y"), 1002},
		"fragments without end":       {masked(0x01, "x") + strings.Repeat(masked(0x00, strings.Repeat("x", 60_000)), 20), 1009},
		"too large":                   {masked(0x82, strings.Repeat("x", 1<<20+1)), 1009},
		"invalid UTF-8":               {masked(0x81, "\xff\xfe"), 1007},
		"invalid UTF-8, split":        {masked(0x01, "\xe2\x82") + masked(0x80, "x"), 1007},
		"surrogate":                   {masked(0x81, "\xed\xa0\x80"), 1007},
		"deflate bomb":                {masked(0xc2, bomb), 1009},
		"not deflate":                 {masked(0xc2, "\xff\xff\xff\xff\xff"), 1002},
		"close code 0":                {closing(0), 1002},
		"close code 999":              {closing(999), 1002},
		"close code 1004":             {closing(1004), 1002},
		"close code 1005":             {closing(1005), 1002},
		"close code 1006":             {closing(1006), 1002},
		"close code 1015":             {closing(1015), 1002},
		"close code 1016":             {closing(1016), 1002},
		"close code 2999":             {closing(2999), 1002},
		"close code 65535":            {closing(65535), 1002},
		"close of one byte":           {masked(0x88, "x"), 1002},
		"close without a code":        {masked(0x88, ""), 1005},
		"close code 3000":             {closing(3000), 3000},
		"close after the largest one": {masked(0x82, strings.Repeat("x", 1<<20)) + closing(1000), 1000},
	} {
		t.Run(name, func(t *testing.T) {
			offer := ""
			if strings.Contains(name, "deflate") && !strings.Contains(name, "without") {
				offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
			}
			c := rawSocket(t, addr, offer)
			go io.WriteString(c, tc.send) // the server may stop reading; ends with c
			first, payload := c.frame(t)
			code := 1005
			if len(payload) >= 2 {
				code = int(binary.BigEndian.Uint16(payload))
			}
			if first != 0x88 || code != tc.want {
				t.Errorf("got %#x %d, want a close of %d", first, code, tc.want)
			}
			c.Close()
			got := next(t, f.closed)
			clean := strings.HasPrefix(name, "close") && tc.want != 1002
			if got.Code != tc.want || got.Clean != clean {
				t.Errorf("the object got %+v", got)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if failed := len(f.failed) > 0; failed == clean {
				t.Errorf("error events: %v", f.failed)
			}
			f.failed = nil
		})
	}
	select {
	case c := <-f.closed:
		t.Errorf("one close event too many: %+v", c)
	default:
	}
}

func TestPingFlood(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.serve = f.accept
	_, addr := start(t, f, Config{})
	c := rawSocket(t, addr, "")
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute)) // the race detector makes it slow
	if _, err := io.WriteString(c, strings.Repeat(masked(0x89, "hi"), 100_000)+masked(0x89, "last")+closing(1000)); err != nil {
		t.Fatal(err)
	}
	last := ""
	for {
		first, payload := c.frame(t)
		if first == 0x88 {
			break
		}
		if last = string(payload); first != 0x8a {
			t.Fatalf("got %#x", first)
		}
	}
	if last != "last" {
		t.Errorf("the last pong is %q", last)
	}
	if got := next(t, f.closed); !got.Clean {
		t.Errorf("%+v", got)
	}
}
