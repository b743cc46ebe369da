package console_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/runtime/console"
)

type source console.Status

func (s source) Status(context.Context) console.Status { return console.Status(s) }

func get(t *testing.T, s source, method, path string) *http.Response {
	t.Helper()
	w := httptest.NewRecorder()
	console.Handler(s).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
	return w.Result()
}

func TestStatus(t *testing.T) {
	t.Parallel()
	want := console.Status{
		Version: "v0.1.0",
		Node:    "4f1e",
		DataDir: "data",
		Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Now:     time.Date(2026, 1, 2, 3, 5, 5, 0, time.UTC),
		Classes: []console.Class{{Name: "counter", Fetch: true, WebSocket: true, Methods: []string{"add"}}},
		Awake:   1,
		Objects: []console.Object{{Class: "counter", ID: "00ff", Name: "visits", Mailbox: 2, Sockets: 3, Held: 1}},
		Shards:  []console.Shard{{ID: 7, Leader: "4f1e", Leads: true, Epoch: 3, Applied: 1042}},
	}
	r := get(t, source(want), "GET", "/console/api/status")
	var got console.Status
	if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestEmptyStatusHasLists(t *testing.T) {
	t.Parallel()
	var body strings.Builder
	if err := get(t, source{Classes: []console.Class{{}}}, "GET", "/console/api/status").Write(&body); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(body.String(), "null") {
		t.Errorf("a list is null: %s", body.String())
	}
}

func TestPageIsSealed(t *testing.T) {
	t.Parallel()
	r := get(t, source{}, "GET", "/")
	policy := r.Header.Get("Content-Security-Policy")
	if strings.Contains(policy, "unsafe") || strings.Count(policy, "'sha256-") != 2 {
		t.Errorf("policy: %s", policy)
	}
	var body strings.Builder
	if err := r.Write(&body); err != nil {
		t.Fatal(err)
	}
	if m := regexp.MustCompile(`(?i)(src|href)=["']?(https?:)?//|innerHTML|\son\w+=|\sstyle=|@import|url\(`).FindString(body.String()); m != "" {
		t.Errorf("the page has %q", m)
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]int{"/": 405, "/console/api/status": 405, "/other": 404} {
		r := get(t, source{}, "POST", path)
		var body struct {
			Error struct{ Code, Message string }
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.StatusCode != want || body.Error.Code == "" {
			t.Errorf("POST %s: %s %+v, %v", path, r.Status, body, err)
		}
	}
}
