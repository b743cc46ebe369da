package counter_test

import (
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/holdfast-run/holdfast/objects/counter"
	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

func TestHTTP(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		start  int64
		method string
		path   string
		body   string
		status int
		answer string // a part of it
		allow  string
		after  int64
	}{
		{name: "read", start: 7, method: "GET", path: "/", status: 200, answer: `{"value":7}`, after: 7},
		{name: "increment", start: 7, method: "POST", path: "/increment", status: 200, answer: `{"value":8}`, after: 8},
		{name: "increment by", start: 7, method: "POST", path: "/increment", body: `{"by":5}`, status: 200, answer: `{"value":12}`, after: 12},
		{name: "increment by less than nothing", start: 7, method: "POST", path: "/increment", body: `{"by":-9}`, status: 200, answer: `{"value":-2}`, after: -2},
		{name: "an object without by", start: 7, method: "POST", path: "/increment", body: `{}`, status: 200, answer: `{"value":8}`, after: 8},
		{name: "decrement", start: 7, method: "POST", path: "/decrement", status: 200, answer: `{"value":6}`, after: 6},
		{name: "decrement by", start: 7, method: "POST", path: "/decrement", body: `{"by":5}`, status: 200, answer: `{"value":2}`, after: 2},
		{name: "reset", start: 7, method: "POST", path: "/reset", status: 200, answer: `{"value":0}`},
		{name: "up to the top", start: 1, method: "POST", path: "/increment", body: `{"by":9223372036854775806}`, status: 200, answer: `9223372036854775807`, after: math.MaxInt64},
		{name: "over the top", start: math.MaxInt64, method: "POST", path: "/increment", status: 409, answer: `"overflow"`, after: math.MaxInt64},
		{name: "under the bottom", start: math.MinInt64, method: "POST", path: "/decrement", status: 409, answer: `"overflow"`, after: math.MinInt64},
		{name: "more than 64 bits", start: 7, method: "POST", path: "/increment", body: `{"by":9223372036854775808}`, status: 400, answer: `"bad_request"`, after: 7},
		{name: "without an opposite", start: 7, method: "POST", path: "/decrement", body: `{"by":-9223372036854775808}`, status: 400, answer: `"bad_request"`, after: 7},
		{name: "a fraction", start: 7, method: "POST", path: "/increment", body: `{"by":1.5}`, status: 400, answer: `"bad_request"`, after: 7},
		{name: "no JSON", start: 7, method: "POST", path: "/increment", body: `by=1`, status: 400, answer: `"bad_request"`, after: 7},
		{name: "two values", start: 7, method: "POST", path: "/increment", body: `{"by":1}{"by":1}`, status: 400, answer: `"bad_request"`, after: 7},
		{name: "an array", start: 7, method: "POST", path: "/increment", body: `[1]`, status: 400, answer: `"bad_request"`, after: 7},
		{name: "null", start: 7, method: "POST", path: "/increment", body: `{"by":null}`, status: 200, answer: `{"value":8}`, after: 8},
		{name: "a large body", start: 7, method: "POST", path: "/increment", body: strings.Repeat(" ", durable.MaxJSONBody+1), status: 413, answer: `"too_large"`, after: 7},
		{name: "another path", start: 7, method: "GET", path: "/value", status: 404, answer: `"not_found"`, after: 7},
		{name: "another method", start: 7, method: "GET", path: "/increment", status: 405, answer: `"method_not_allowed"`, allow: "POST", after: 7},
		{name: "another method for the root", start: 7, method: "DELETE", path: "/", status: 405, answer: `"method_not_allowed"`, allow: "GET", after: 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := durabletest.New(t, counter.Definition)
			visits := counter.Class.Named(w, "visits")
			if _, err := counter.Add.Call(t.Context(), visits, c.start); err != nil {
				t.Fatal(err)
			}
			r, err := w.Do(visits, httptest.NewRequestWithContext(t.Context(), c.method, c.path, strings.NewReader(c.body)))
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			if r.StatusCode != c.status || !strings.Contains(string(b), c.answer) || r.Header.Get("Allow") != c.allow {
				t.Errorf("%s, Allow %q: %s", r.Status, r.Header.Get("Allow"), b)
			}
			if r.Header.Get("Content-Type") != "application/json" {
				t.Errorf("content type %q", r.Header.Get("Content-Type"))
			}
			if n, err := counter.Value.Call(t.Context(), visits, durable.None{}); n != c.after || err != nil {
				t.Errorf("then it is %d, %v; want %d", n, err, c.after)
			}
		})
	}
}

func TestMethods(t *testing.T) {
	t.Parallel()
	w := durabletest.New(t, counter.Definition)
	visits := counter.Class.Named(w, "visits")
	if n, err := counter.Add.Call(t.Context(), visits, math.MaxInt64); n != math.MaxInt64 || err != nil {
		t.Errorf("add: %d, %v", n, err)
	}
	if _, err := counter.Add.Call(t.Context(), visits, 1); !errors.Is(err, counter.ErrOverflow) {
		t.Errorf("overflow: %v", err)
	}
	w.Crash()
	if was, err := counter.Reset.Call(t.Context(), visits, durable.None{}); was != math.MaxInt64 || err != nil {
		t.Errorf("reset: %d, %v", was, err)
	}
	if n, err := counter.Value.Call(t.Context(), visits, durable.None{}); n != 0 || err != nil {
		t.Errorf("value: %d, %v", n, err)
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	w := durabletest.New(t, counter.Definition)
	visits := counter.Class.Named(w, "visits")
	watcher := w.Connect(visits, "/watch")
	want := func(value string) {
		t.Helper()
		if got := watcher.Receive(); got != value {
			t.Errorf("the watcher heard %s, want %s", got, value)
		}
	}
	want(`{"value":0}`)
	if _, err := counter.Add.Call(t.Context(), visits, 3); err != nil {
		t.Fatal(err)
	}
	want(`{"value":3}`)
	w.Evict(visits) // the socket stays
	if _, err := w.Do(visits, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/increment", nil)); err != nil {
		t.Fatal(err)
	}
	want(`{"value":4}`)
	if _, err := counter.Reset.Call(t.Context(), visits, durable.None{}); err != nil {
		t.Fatal(err)
	}
	want(`{"value":0}`)
}

func TestWatchersHearOnlyWhatIsDurable(t *testing.T) {
	t.Parallel()
	w := durabletest.New(t, counter.Definition)
	visits := counter.Class.Named(w, "visits")
	watcher := w.Connect(visits, "/watch")
	watcher.Receive()

	w.Hold()
	added := make(chan error, 1)
	go func() {
		_, err := counter.Add.Call(t.Context(), visits, 1)
		added <- err
	}()
	w.Crash()
	if err := <-added; err == nil {
		t.Error("a write that was never durable was acknowledged")
	}
	if heard := watcher.Pending(); len(heard) != 0 {
		t.Errorf("the watcher heard of a value that never was: %s", heard[0].Data)
	}
	if n, err := counter.Value.Call(t.Context(), visits, durable.None{}); n != 0 || err != nil {
		t.Errorf("value: %d, %v", n, err)
	}
}
