//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

func TestCounter(t *testing.T) {
	t.Parallel()
	n := start(t, filepath.Join(t.TempDir(), "data"))
	watcher := dial(t, n, "/objects/counter/visits/watch")
	watcher.expect(`{"value":0}`)
	for _, c := range []struct {
		method, path, body, want string
	}{
		{http.MethodGet, "", "", `{"value":0}`},
		{http.MethodPost, "/increment", "", `{"value":1}`},
		{http.MethodPost, "/increment", `{"by":41}`, `{"value":42}`},
		{http.MethodPost, "/decrement", `{"by":2}`, `{"value":40}`},
		{http.MethodGet, "/", "", `{"value":40}`},
		{http.MethodPost, "/reset", "", `{"value":0}`},
	} {
		if got := n.do(c.method, "/objects/counter/visits"+c.path, c.body, http.StatusOK); strings.TrimSpace(got) != c.want {
			t.Errorf("%s %s %s answers %s, want %s", c.method, c.path, c.body, got, c.want)
		}
	}
	for _, want := range []string{`{"value":1}`, `{"value":42}`, `{"value":40}`, `{"value":0}`} {
		watcher.expect(want)
	}
	n.do(http.MethodPost, "/objects/counter/visits/increment", `{"by":9223372036854775807}`, http.StatusOK)
	answer := n.do(http.MethodPost, "/objects/counter/visits/increment", "", http.StatusConflict)
	if code := errorCode(t, answer); code != "overflow" {
		t.Errorf("an overflow is refused with %q", code)
	}
	for path, status := range map[string]int{"/objects/nothing/x/": http.StatusNotFound, "/objects/counter/id:00/": http.StatusBadRequest} {
		errorCode(t, n.do(http.MethodGet, path, "", status))
	}
	if got := n.do(http.MethodPost, "/objects/ratelimit/ada/check?limit=1&window=60s", "", http.StatusOK); !strings.Contains(got, `"allowed":true`) {
		t.Errorf("the first check answers %s", got)
	}
	n.do(http.MethodPost, "/objects/ratelimit/ada/check?limit=1&window=60s", "", http.StatusTooManyRequests)
}

// TestChatSurvivesKill has two people talk, kills the node, and reads on.
func TestChatSurvivesKill(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	n := start(t, data)
	ada := dial(t, n, "/objects/chatroom/lobby/websocket?name=ada")
	bob := dial(t, n, "/objects/chatroom/lobby/websocket?name=bob")
	ada.say("hello, bob")
	bob.expectMessage("ada", "hello, bob")
	bob.say("hello, ada")
	ada.expectMessage("ada", "hello, bob")
	ada.expectMessage("bob", "hello, ada")
	n.kill()

	n = start(t, data)
	eve := dial(t, n, "/objects/chatroom/lobby/websocket?name=eve")
	eve.say("what did I miss?")
	eve.expectMessage("eve", "what did I miss?")
	history := n.do(http.MethodGet, "/objects/chatroom/lobby/messages?limit=10", "", http.StatusOK)
	at := 0
	for _, text := range []string{"hello, bob", "hello, ada", "what did I miss?"} {
		i := strings.Index(history[at:], text)
		if i < 0 {
			t.Fatalf("the history lacks %q, or has it in another order: %s", text, history)
		}
		at += i
	}
}

// A socket is a client's WebSocket.
type socket struct {
	t    *testing.T
	conn *websocket.Conn
}

func dial(t *testing.T, n *node, path string) *socket {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(n.base, "http")+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.CloseNow() })
	return &socket{t: t, conn: conn}
}

// read returns the next message.
func (s *socket) read() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, message, err := s.conn.Read(ctx)
	return string(message), err
}

func (s *socket) expect(want string) {
	s.t.Helper()
	got, err := s.read()
	if err != nil {
		s.t.Fatal(err)
	}
	if got != want {
		s.t.Errorf("the socket got %s, want %s", got, want)
	}
}

func (s *socket) say(text string) {
	s.t.Helper()
	frame, err := json.Marshal(map[string]string{"type": "message", "text": text})
	must(s.t, err)
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	must(s.t, s.conn.Write(ctx, websocket.MessageText, frame))
}

// expectMessage reads until somebody says something, past all other frames.
func (s *socket) expectMessage(from, text string) {
	s.t.Helper()
	for {
		frame, err := s.read()
		if err != nil {
			s.t.Fatalf("waiting for %s to say %q: %v", from, text, err)
		}
		var m struct{ Type, From, Text string }
		must(s.t, json.Unmarshal([]byte(frame), &m))
		if m.Type != "message" {
			continue
		}
		if m.From != from || m.Text != text {
			s.t.Fatalf("got %s, want %q from %s", frame, text, from)
		}
		return
	}
}

// awaitClose reads until the socket is closed, and returns with which code.
func (s *socket) awaitClose() websocket.StatusCode {
	s.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if _, err := s.read(); err != nil {
			return websocket.CloseStatus(err)
		}
	}
	return -1
}

func (s *socket) trySay(text string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return s.conn.Write(ctx, websocket.MessageText, []byte(`{"type":"message","text":"`+text+`"}`)) == nil
}
