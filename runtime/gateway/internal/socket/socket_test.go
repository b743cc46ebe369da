package socket

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// These tests run in virtual time over pipes, so they take the way of connections that
// cannot be written to without waiting. The way of real ones is tested by package gateway.

// recorder is where events go.
type recorder struct {
	message func(m *host.SocketMessage) error

	mu     sync.Mutex // guards the following
	closed []host.SocketClose
	failed []host.SocketError
}

func (r *recorder) Message(_ context.Context, _ host.Ref, m *host.SocketMessage) error {
	if r.message == nil {
		return nil
	}
	return r.message(m)
}

func (r *recorder) SocketClosed(_ host.Ref, c *host.SocketClose) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = append(r.closed, *c)
}

func (r *recorder) SocketFailed(_ host.Ref, f *host.SocketError) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = append(r.failed, *f)
}

var object = host.Ref{Class: "room", ID: placement.NamedID("room", "a"), Name: "a", Named: true}

// newHub returns a hub that is shut down at the end of the test, and its recorder.
func newHub(t *testing.T, c Config) (*Hub, *recorder) {
	t.Helper()
	h, r := New(c), &recorder{}
	h.Start(r)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := h.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	return h, r
}

// join opens a socket of the object and returns the client's end.
func join(t *testing.T, h *Hub, id host.SocketID) net.Conn {
	t.Helper()
	server, client := net.Pipe()
	t.Cleanup(func() { client.Close() })
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "websocket")
	r.Header.Set("Sec-WebSocket-Version", "13")
	r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
	h.Accept(object, host.Socket{ID: id, Accepted: time.Now()})
	if err := h.Adopt(&pipeWriter{conn: server, header: http.Header{}}, r, object.ID, host.Upgrade{Socket: id}); err != nil {
		t.Fatal(err)
	}
	return client
}

// A pipeWriter is a response that is hijacked; its head goes nowhere.
type pipeWriter struct {
	conn   net.Conn
	header http.Header
}

func (w *pipeWriter) Header() http.Header         { return w.header }
func (w *pipeWriter) WriteHeader(int)             {}
func (w *pipeWriter) Write(p []byte) (int, error) { return len(p), nil }

func (w *pipeWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.conn, bufio.NewReadWriter(bufio.NewReader(w.conn), bufio.NewWriter(w.conn)), nil
}

// frames are what a client got in one read, as "first-byte payload", a close as its code.
func frames(t *testing.T, c net.Conn) []string {
	t.Helper()
	buf := make([]byte, 1<<20)
	n, err := c.Read(buf)
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for p := buf[:n]; len(p) > 0; {
		size := int(p[1]) // short ones only
		data := p[2 : 2+size]
		text := string(data)
		if p[0] == finBit|opClose && size >= 2 {
			text = fmt.Sprintf("%d %s", binary.BigEndian.Uint16(data), data[2:])
		}
		out = append(out, fmt.Sprintf("%#x %s", p[0], text))
		p = p[2+size:]
	}
	return out
}

// write sends one frame with a mask of zeros.
func write(t *testing.T, c net.Conn, first byte, payload string) {
	t.Helper()
	if _, err := io.WriteString(c, string([]byte{first, 0x80 | byte(len(payload)), 0, 0, 0, 0})+payload); err != nil {
		t.Fatal(err)
	}
}

func TestSilentClientsDie(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, rec := newHub(t, Config{})
		dead, live := join(t, h, 1), join(t, h, 2)
		start := time.Now()
		go func() { // ends with the pipe
			buf := make([]byte, 64)
			for {
				if _, err := live.Read(buf); err != nil {
					return
				}
				if _, err := io.WriteString(live, "\x8a\x80\x00\x00\x00\x00"); err != nil {
					return
				}
			}
		}()
		if got := frames(t, dead); !cmp.Equal(got, []string{"0x89 "}) {
			t.Fatalf("got %q, want a ping", got)
		}
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("the first ping came after %v", d)
		}
		if got := frames(t, dead); !cmp.Equal(got, []string{"EOF"}) {
			t.Fatalf("got %q", got)
		}
		if d := time.Since(start); d > 41*time.Second {
			t.Errorf("dropped after %v", d)
		}
		synctest.Wait()
		if diff := cmp.Diff([]host.SocketClose{{Socket: 1, Code: 1006}}, rec.closed); diff != "" {
			t.Error(diff)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(rec.closed) != 1 {
			t.Errorf("closed: %+v", rec.closed)
		}
	})
}

// TestSlowClientIsNotADeadOne has a client that only listens, and for whom something is queued
// whenever it would be pinged.
func TestSlowClientIsNotADeadOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, rec := newHub(t, Config{})
		c := join(t, h, 1)
		const size, messages = writeBytes, 12
		for range messages {
			h.Send(object.ID, 1, host.Message{Data: make([]byte, size), Binary: true})
		}
		r, received := bufio.NewReader(c), 0
		for {
			time.Sleep(15 * time.Second) // less than the write deadline, and three minutes in all
			first, err := r.ReadByte()
			if err != nil {
				t.Fatalf("after %d messages: %v", received, err)
			}
			if first == 0x89 {
				break
			}
			if _, err := r.Discard(9 + size); err != nil {
				t.Fatalf("in message %d: %v", received, err)
			}
			received++
		}
		if received != messages || len(rec.closed) != 0 {
			t.Errorf("pinged after %d messages; closed: %+v", received, rec.closed)
		}
		if _, err := r.Discard(1); err != nil {
			t.Fatal(err)
		}
		for range 5 { // it is silent, and answers
			write(t, c, 0x8a, "")
			if got := frames(t, c); !cmp.Equal(got, []string{"0x89 "}) {
				t.Fatalf("got %q, want a ping", got)
			}
		}
		if got := frames(t, c); !cmp.Equal(got, []string{"EOF"}) {
			t.Fatalf("a client that does not answer got %q", got)
		}
	})
}

func TestBusyObjectIsNotADeadClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, rec := newHub(t, Config{})
		rec.message = func(*host.SocketMessage) error {
			time.Sleep(10 * time.Minute)
			return nil
		}
		c := join(t, h, 1)
		write(t, c, 0x81, "work")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if len(rec.closed) != 0 {
			t.Errorf("closed: %+v", rec.closed)
		}
	})
}

func TestRetriesAreBounded(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		away time.Duration
		want string
	}{
		{"back in time", 14 * time.Second, "0x81 handled"},
		{"too late", 16 * time.Second, "0x88 1013 the object cannot take messages now"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h, rec := newHub(t, Config{})
				start := time.Now()
				rec.message = func(m *host.SocketMessage) error {
					if time.Since(start) < tc.away {
						return &host.Error{Code: host.CodeUnavailable, Retryable: true}
					}
					h.Send(object.ID, m.Socket, host.Message{Data: []byte("handled")})
					return nil
				}
				c := join(t, h, 1)
				write(t, c, 0x81, "x")
				if got := frames(t, c); !cmp.Equal(got, []string{tc.want}) {
					t.Errorf("got %q", got)
				}
			})
		})
	}
}

func TestLargeBroadcastsGather(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, _ := newHub(t, Config{PingInterval: time.Hour})
		var clients []net.Conn
		for i := range gatherSockets {
			clients = append(clients, join(t, h, host.SocketID(i+1)))
		}
		start := time.Now()
		say := func(text string) { h.Broadcast(object.ID, host.Message{Data: []byte(text)}, "", nil) }
		got := make(chan string, 100)
		for i, c := range clients {
			go func() { // ends with the pipe
				for {
					f := frames(t, c)
					if i == 0 {
						got <- fmt.Sprintf("%v %v", time.Since(start), f)
					}
					if strings.HasPrefix(f[0], "0x88") || strings.HasPrefix(f[0], "EOF") || strings.HasPrefix(f[0], "io:") {
						return
					}
				}
			}()
		}
		say("one") // at once
		time.Sleep(500 * time.Microsecond)
		say("two")
		time.Sleep(500 * time.Microsecond)
		say("three")
		time.Sleep(100 * time.Millisecond)
		say("four") // after a pause: at once
		time.Sleep(time.Millisecond)
		say("five")
		h.Send(object.ID, 1, host.Message{Data: []byte("six")}) // takes five along
		synctest.Wait()
		for _, want := range []string{"0s [0x81 one]", "2ms [0x81 two 0x81 three]", "101ms [0x81 four]", "102ms [0x81 five 0x81 six]"} {
			if g := <-got; g != want {
				t.Errorf("got %s, want %s", g, want)
			}
		}
	})
}

// TestClientThatDoesNotRead fills the queue by number and by bytes. The pipe has no
// buffer at all, so that it is exact.
func TestClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		config   Config
		size     int
		survives int // messages beyond the one that is being written
	}{
		"frames":           {Config{QueueFrames: 10}, 10, 10},
		"bytes":            {Config{QueueBytes: 1000}, 98, 10},
		"one large":        {Config{QueueBytes: 1000}, 1 << 20, 1},
		"write time-out":   {Config{WriteTimeout: time.Second}, 10, -1},
		"default is large": {Config{}, 100, 16 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h, rec := newHub(t, tc.config)
				join(t, h, 1)
				m := host.Message{Data: make([]byte, tc.size), Binary: true}
				h.Send(object.ID, 1, host.Message{Data: []byte("in the writer's hands")})
				synctest.Wait()
				for range tc.survives {
					h.Send(object.ID, 1, m)
				}
				if h.Sockets(object.ID)[0].Closing {
					t.Fatal("closed too early")
				}
				if tc.survives >= 0 {
					h.Send(object.ID, 1, m)
					if !h.Sockets(object.ID)[0].Closing {
						t.Fatal("still open")
					}
				}
				time.Sleep(10 * time.Second)
				synctest.Wait()
				want := []host.SocketClose{{Socket: 1, Code: 1008, Reason: tooSlow}}
				if diff := cmp.Diff(want, rec.closed); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

func TestLargeMessagesUnderWayAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, rec := newHub(t, Config{PartialBytes: 100_000, CloseTimeout: time.Second})
		first, second := join(t, h, 1), join(t, h, 2)
		head := "\x82\xff\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00" // 16 MiB follow
		go io.WriteString(first, head+strings.Repeat("x", 40_000))
		synctest.Wait()
		go io.WriteString(second, head+strings.Repeat("x", 200_000))
		if got := frames(t, second); !cmp.Equal(got, []string{"0x88 1013 too many large messages at once"}) {
			t.Errorf("got %q", got)
		}
		first.Close()
		second.Close()
		synctest.Wait()
		if n := h.partial.Load(); n != 0 || len(rec.closed) != 2 {
			t.Errorf("%d bytes are counted after the end, closed %+v", n, rec.closed)
		}
	})
}

func TestShutdownDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, rec := newHub(t, Config{})
		join(t, h, 1)
		h.Accept(object, host.Socket{ID: 2})
		start := time.Now()
		if err := h.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d > 7*time.Second {
			t.Errorf("took %v", d)
		}
		synctest.Wait()
		if len(rec.closed) != 2 || h.open.Load() != 0 || h.HasRoom() {
			t.Errorf("closed: %+v", rec.closed)
		}
	})
}

func TestRoomsGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, _ := newHub(t, Config{})
		h.SetAutoResponses(object.ID, []host.AutoResponse{{Request: "ping", Response: "pong"}})
		c := join(t, h, 1)
		h.Release(object.ID) // asleep, but the pairs hold for its sockets
		write(t, c, 0x81, "ping")
		if got := frames(t, c); !cmp.Equal(got, []string{"0x81 pong"}) {
			t.Errorf("got %q", got)
		}
		c.Close()
		synctest.Wait()
		h.Forget(object.ID, 1)
		if h.room(object.ID) == nil {
			t.Error("the pairs of an object that may be awake are gone")
		}
		h.Release(object.ID)
		if h.room(object.ID) != nil {
			t.Error("an empty room is left")
		}
		h.Release(object.ID)
		h.CloseAll(object.ID, 1000, "")
		h.Broadcast(object.ID, host.Message{}, "", nil)
	})
}
