package chatroom_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/objects/chatroom"
	"github.com/holdfast-run/holdfast/objects/ratelimit"
	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

// A frame is whatever a room sends.
type frame struct {
	Type       string
	Code       string
	Name       string
	Members    []string
	Messages   []frame
	More       bool
	Seq        int64
	From       string
	Text       string
	At         time.Time
	ID         string
	Message    string
	RetryAfter float64
}

// A client is a tab in which somebody has joined.
type client struct {
	*durabletest.Conn
	t *testing.T
}

// enter joins a room and returns what the member is told at once.
func enter(t *testing.T, w *durabletest.World, name string) (c client, welcome, history frame) {
	t.Helper()
	c = client{w.Connect(lobby(w), "/websocket?name="+name), t}
	welcome, history = c.next(), c.next()
	if welcome.Type != "welcome" || history.Type != "history" {
		t.Fatalf("%s was told %+v and %+v", name, welcome, history)
	}
	return c, welcome, history
}

func (c client) next() frame {
	c.t.Helper()
	var f frame
	c.ReceiveJSON(&f)
	return f
}

func (c client) wants(want frame) {
	c.t.Helper()
	got := c.next()
	got.At, got.Message = time.Time{}, ""
	if diff := cmp.Diff(want, got); diff != "" {
		c.t.Errorf("frame (-want +got):\n%s", diff)
	}
}

func (c client) wantsNothing() {
	c.t.Helper()
	for _, m := range c.Pending() {
		c.t.Errorf("unwanted frame %s", m.Data)
	}
}

func (c client) say(text, id string) {
	c.SendJSON(map[string]string{"type": "message", "text": text, "id": id})
}

func lobby(w *durabletest.World) durable.Stub[chatroom.Room] {
	return chatroom.Class.Named(w, "lobby")
}

func newWorld(t *testing.T) *durabletest.World {
	t.Helper()
	return durabletest.New(t, chatroom.Definition, ratelimit.Definition)
}

func get(t *testing.T, w *durabletest.World, path string, v any) *http.Response {
	t.Helper()
	r, err := w.Do(lobby(w), httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	if err != nil {
		t.Fatal(err)
	}
	if v != nil {
		if err := json.NewDecoder(r.Body).Decode(v); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func TestConversation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada, welcome, history := enter(t, w, "ada")
	if diff := cmp.Diff([]string{"ada"}, welcome.Members); diff != "" || len(history.Messages) != 0 || history.More {
		t.Errorf("the first one was told %+v and %+v", welcome, history)
	}
	bob, welcome, _ := enter(t, w, "bob")
	if diff := cmp.Diff([]string{"ada", "bob"}, welcome.Members); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	ada.wants(frame{Type: "join", Name: "bob"})

	ada.say("hi", "a1")
	for _, c := range []client{ada, bob} {
		c.wants(frame{Type: "message", Seq: 1, From: "ada", Text: "hi", ID: "a1"})
	}
	w.Evict(lobby(w)) // whoever sleeps does not lose the thread
	bob.say("<b>hello</b>", "")
	for _, c := range []client{ada, bob} {
		c.wants(frame{Type: "message", Seq: 2, From: "bob", Text: "<b>hello</b>"})
	}
	bob.Close(1000, "")
	ada.wants(frame{Type: "leave", Name: "bob"})

	w.Crash()
	_, _, history = enter(t, w, "eve")
	if len(history.Messages) != 2 || history.Messages[0].Text != "hi" || history.Messages[1].Seq != 2 || history.Messages[1].At.IsZero() {
		t.Errorf("after a crash the history is %+v", history)
	}
}

func TestMessageFrame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ada, _, _ := enter(t, w, "ada")
		ada.say("hi", "a1")
		if got, want := ada.Receive(), `{"type":"message","seq":1,"from":"ada","text":"hi","at":"2000-01-01T00:00:00Z","id":"a1"}`; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}

func TestTwoTabsAreOneMember(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	bob, _, _ := enter(t, w, "bob")
	first, _, _ := enter(t, w, "ada")
	bob.wants(frame{Type: "join", Name: "ada"})
	second, welcome, _ := enter(t, w, "ada")
	if diff := cmp.Diff([]string{"ada", "bob"}, welcome.Members); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	first.Close(1000, "")
	var here struct{ Members []string }
	get(t, w, "/members", &here)
	if diff := cmp.Diff([]string{"ada", "bob"}, here.Members); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	bob.wantsNothing()
	second.Drop()
	bob.wants(frame{Type: "leave", Name: "ada"})
}

func TestRepeatedIDIsPostedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada, _, _ := enter(t, w, "ada")
	ada.say("hi", "x")
	ada.wants(frame{Type: "message", Seq: 1, From: "ada", Text: "hi", ID: "x"})
	ada.Drop()
	w.Crash()
	ada, _, _ = enter(t, w, "ada")
	bob, _, _ := enter(t, w, "bob")
	ada.wants(frame{Type: "join", Name: "bob"})
	ada.say("hi", "x") // the client cannot know that it had arrived
	ada.wants(frame{Type: "message", Seq: 1, From: "ada", Text: "hi", ID: "x"})
	bob.wantsNothing()
	bob.say("hi", "x") // another member's ids are other ids
	bob.wants(frame{Type: "message", Seq: 2, From: "bob", Text: "hi", ID: "x"})
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, name := range []string{"", "%20", strings.Repeat("a", 33), "a%0Ab", "a%E2%80%8Bb", "%ff"} {
		c := client{w.Connect(lobby(w), "/websocket?name="+name), t}
		c.wants(frame{Type: "error", Code: "bad_name"})
		if end := c.Closed(); end.Code != 1008 {
			t.Errorf("name %q: closed with %+v", name, end)
		}
	}
	ada, welcome, _ := enter(t, w, strings.Repeat("%C3%A4", 32))
	if len(welcome.Members) != 1 {
		t.Errorf("the refused are members: %v", welcome.Members)
	}
	for _, c := range []struct{ sent, code, id string }{
		{`hello`, "bad_frame", ""},
		{`{"type":"shout","text":"hi"}`, "bad_frame", ""},
		{`{"type":"message","text":7}`, "bad_frame", ""},
		{`{"type":"message","text":" \n","id":"a"}`, "empty_text", "a"},
		{`{"type":"message","text":"` + strings.Repeat("ä", 4001) + `","id":"a"}`, "text_too_long", "a"},
		{`{"type":"message","text":"hi","id":"` + strings.Repeat("a", 65) + `"}`, "bad_id", ""},
	} {
		ada.Send(c.sent)
		ada.wants(frame{Type: "error", Code: c.code, ID: c.id})
	}
	long := strings.Repeat("ä", 4000)
	ada.say(long, "")
	ada.wants(frame{Type: "message", Seq: 1, From: strings.Repeat("ä", 32), Text: long})
}

func TestPingIsAnsweredWithoutTheRoom(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada, _, _ := enter(t, w, "ada")
	w.Evict(lobby(w))
	ada.Send("ping")
	if got := ada.Receive(); got != "pong" {
		t.Errorf("got %s", got)
	}
}

func TestMembersAreLimitedOneByOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ada, _, _ := enter(t, w, "ada")
		for i := range 20 {
			ada.say("hi", fmt.Sprint(i))
			ada.next()
		}
		ada.say("hi", "more")
		ada.wants(frame{Type: "error", Code: "rate_limited", ID: "more", RetryAfter: 0.5})
		ada.say("hi", "7") // has been posted: costs nothing
		ada.wants(frame{Type: "message", Seq: 8, From: "ada", Text: "hi", ID: "7"})
		bob, _, _ := enter(t, w, "bob")
		ada.wants(frame{Type: "join", Name: "bob"})
		bob.say("hi", "")
		bob.wants(frame{Type: "message", Seq: 21, From: "bob", Text: "hi"})
		ada.next()
		time.Sleep(500 * time.Millisecond)
		ada.say("hi", "more")
		ada.wants(frame{Type: "message", Seq: 22, From: "ada", Text: "hi", ID: "more"})
	})
}

func TestChatGoesOnWithoutTheLimiter(t *testing.T) {
	t.Parallel()
	w := durabletest.New(t, chatroom.Definition) // the node has no class ratelimit
	ada, _, _ := enter(t, w, "ada")
	for i := range 30 {
		ada.say("hi", "")
		ada.wants(frame{Type: "message", Seq: int64(i + 1), From: "ada", Text: "hi"})
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ada, _, _ := enter(t, w, "ada")
		for i := range 60 {
			ada.say(fmt.Sprint(i+1), "")
			ada.next()
			time.Sleep(time.Second)
		}
		_, _, history := enter(t, w, "bob")
		if n := len(history.Messages); n != 50 || history.Messages[0].Seq != 11 || history.Messages[49].Seq != 60 || !history.More {
			t.Errorf("history: %d, more %v", n, history.More)
		}
		for query, want := range map[string]struct {
			first, last int64
			more        bool
		}{
			"":                    {11, 60, true},
			"?before=11":          {1, 10, false},
			"?before=11&limit=10": {1, 10, false},
			"?before=11&limit=9":  {2, 10, true},
			"?before=1":           {0, 0, false},
			"?before=1000":        {11, 60, true},
			"?limit=200":          {1, 60, false},
		} {
			var got frame
			get(t, w, "/messages"+query, &got)
			var first, last int64
			if n := len(got.Messages); n > 0 {
				first, last = got.Messages[0].Seq, got.Messages[n-1].Seq
			}
			if first != want.first || last != want.last || got.More != want.more || got.Messages == nil {
				t.Errorf("%q: %d to %d, more %v; want %+v", query, first, last, got.More, want)
			}
		}
		for _, query := range []string{"?before=0", "?before=x", "?limit=0", "?limit=201", "?limit=x"} {
			if r := get(t, w, "/messages"+query, nil); r.StatusCode != 400 {
				t.Errorf("%q: %s", query, r.Status)
			}
		}
	})
}

func TestRetentionByAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ada, _, _ := enter(t, w, "ada")
		ada.say("old", "1")
		ada.next()
		time.Sleep(10 * 24 * time.Hour)
		ada.say("young", "2")
		ada.next()
		time.Sleep(20*24*time.Hour + time.Minute)
		var got frame
		get(t, w, "/messages", &got)
		if len(got.Messages) != 1 || got.Messages[0].Text != "young" {
			t.Errorf("after 30 days: %+v", got.Messages)
		}
		ada.say("again", "1") // its id is forgotten with it
		ada.wants(frame{Type: "message", Seq: 3, From: "ada", Text: "again", ID: "1"})
	})
}

func TestRetentionByCount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := durabletest.New(t, chatroom.Definition) // without a limiter
		ada, _, _ := enter(t, w, "ada")
		for i := range 11_000 {
			ada.say("hi", fmt.Sprint(i))
			ada.next()
		}
		time.Sleep(time.Second)
		var got frame
		get(t, w, "/messages?before=1005", &got)
		if len(got.Messages) != 4 || got.Messages[0].Seq != 1001 || got.More {
			t.Errorf("after 11,000 messages there is %+v", got)
		}
	})
}

func TestPage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	resp := get(t, w, "/", nil)
	policy := resp.Header.Get("Content-Security-Policy")
	if strings.Contains(policy, "unsafe") || strings.Count(policy, "'sha256-") != 2 || !strings.HasPrefix(policy, "default-src 'none'") {
		t.Errorf("policy: %s", policy)
	}
	var body strings.Builder
	if err := resp.Write(&body); err != nil {
		t.Fatal(err)
	}
	if m := regexp.MustCompile(`(?i)(src|href)=["']?(https?:)?//|innerHTML|outerHTML|insertAdjacentHTML|\son\w+=|\sstyle=|@import|url\(`).FindString(body.String()); m != "" {
		t.Errorf("the page has %q", m)
	}
}

func TestOtherRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if r := get(t, w, "/other", nil); r.StatusCode != 404 {
		t.Errorf("GET /other: %s", r.Status)
	}
	r, err := w.Do(lobby(w), httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/messages", nil))
	if err != nil || r.StatusCode != 405 || r.Header.Get("Allow") != "GET" {
		t.Errorf("POST /messages: %+v, %v", r, err)
	}
}
