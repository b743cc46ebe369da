package ratelimit_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/objects/ratelimit"
	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

func do(t *testing.T, w *durabletest.World, method, path string) *http.Response {
	t.Helper()
	r, err := w.Do(ratelimit.Class.Named(w, "ada"), httptest.NewRequestWithContext(t.Context(), method, path, nil))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func verdict(t *testing.T, r *http.Response) ratelimit.Verdict {
	t.Helper()
	var v ratelimit.Verdict
	if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestCheckOverHTTP(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := durabletest.New(t, ratelimit.Definition)
		const path = "/check?limit=2&window=10s&cost=2&algorithm=token-bucket"
		r := do(t, w, "POST", path)
		if diff := cmp.Diff(ratelimit.Verdict{Allowed: true, Limit: 2, ResetAfter: 10}, verdict(t, r)); r.StatusCode != 200 || diff != "" {
			t.Errorf("%s (-want +got):\n%s", r.Status, diff)
		}
		time.Sleep(2500 * time.Millisecond)
		r = do(t, w, "POST", path)
		if diff := cmp.Diff(ratelimit.Verdict{Limit: 2, ResetAfter: 7.5, RetryAfter: 7.5}, verdict(t, r)); r.StatusCode != 429 || diff != "" {
			t.Errorf("%s (-want +got):\n%s", r.Status, diff)
		}
		for name, want := range map[string]string{
			"RateLimit":        `"default";r=0;t=8`,
			"RateLimit-Policy": `"default";q=2;w=10`,
			"Retry-After":      "8",
			"Content-Type":     "application/json",
		} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
	})
}

func TestReadingDoesNotCount(t *testing.T) {
	t.Parallel()
	w := durabletest.New(t, ratelimit.Definition)
	if v := verdict(t, do(t, w, "GET", "/")); !v.Allowed || v.Limit != 100 || v.Remaining != 100 {
		t.Errorf("before the first check: %+v", v)
	}
	do(t, w, "POST", "/check?limit=3&window=1h")
	for range 5 {
		if v := verdict(t, do(t, w, "GET", "/")); !v.Allowed || v.Limit != 3 || v.Remaining != 2 {
			t.Errorf("after it: %+v", v)
		}
	}
	if r := do(t, w, "GET", "/?cost=3"); r.StatusCode != 200 || verdict(t, r).Allowed || r.Header.Get("Retry-After") != "" {
		t.Errorf("for more than is left: %s, %v", r.Status, r.Header)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	w := durabletest.New(t, ratelimit.Definition)
	do(t, w, "POST", "/check?limit=3&window=1h")
	for path, want := range map[string]string{
		"/check?limit=many":                     `the limit is \"many\"`,
		"/check?limit=0":                        "the limit is 0",
		"/check?limit=-1":                       "the limit is -1",
		"/check?limit=9223372036854775807":      "too large",
		"/check?window=soon":                    `the window is \"soon\"`,
		"/check?window=0s":                      "want 1ms to 744h0m0s",
		"/check?window=745h":                    "want 1ms to 744h0m0s",
		"/check?cost=0":                         "the cost is 0",
		"/check?limit=3&cost=4":                 "would never be allowed",
		"/check?algorithm=guess":                `the algorithm is \"guess\"`,
		"/check?limits=3":                       `no parameter \"limits\"`,
		"/check?limit=%zz":                      "limit is not properly escaped",
		"/check?limit=99999999999999999999999x": "want a whole number",
	} {
		r := do(t, w, "POST", path)
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		if r.StatusCode != 400 || !strings.Contains(string(b), want) || !strings.Contains(string(b), `"bad_request"`) {
			t.Errorf("%s: %s %s", path, r.Status, b)
		}
	}
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/check", 405, "POST"},
		{"POST", "/", 405, "GET"},
		{"GET", "/other", 404, ""},
	} {
		if r := do(t, w, c.method, c.path); r.StatusCode != c.status || r.Header.Get("Allow") != c.allow {
			t.Errorf("%s %s: %s, Allow %q", c.method, c.path, r.Status, r.Header.Get("Allow"))
		}
	}
	if v := verdict(t, do(t, w, "GET", "/")); v.Remaining != 2 {
		t.Errorf("what cannot be asked was counted: %+v", v)
	}
}

func TestMethod(t *testing.T) {
	t.Parallel()
	w := durabletest.New(t, ratelimit.Definition)
	ada := ratelimit.Class.Named(w, "ada")
	v, err := ratelimit.Check.Call(t.Context(), ada, ratelimit.Request{})
	if err != nil || !v.Allowed || v.Limit != 100 || v.Remaining != 99 {
		t.Errorf("with the defaults: %+v, %v", v, err)
	}
	if _, err := ratelimit.Check.Call(t.Context(), ada, ratelimit.Request{Cost: 101}); !errors.Is(err, ratelimit.ErrBadRequest) {
		t.Errorf("more than the limit: %v", err)
	}
	v, err = ratelimit.Check.Call(t.Context(), ada, ratelimit.Request{Rule: ratelimit.Rule{Limit: 10, Window: time.Hour}, Cost: 9})
	if err != nil || !v.Allowed || v.Remaining != 0 {
		t.Errorf("the mistake cost it its memory: %+v, %v", v, err)
	}
}

// What a limiter has counted survives its sleep exactly, and its owner's death but for
// the last second.
func TestWhatIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := durabletest.New(t, ratelimit.Definition)
		ada := ratelimit.Class.Named(w, "ada")
		take := func(cost, want int64) {
			t.Helper()
			v, err := ratelimit.Check.Call(t.Context(), ada, ratelimit.Request{
				Rule: ratelimit.Rule{Algorithm: ratelimit.SlidingWindow, Limit: 100, Window: time.Hour},
				Cost: cost,
			})
			if err != nil || v.Remaining != want {
				t.Errorf("%d remain, %v; want %d", v.Remaining, err, want)
			}
		}
		take(1, 99)
		w.Evict(ada)
		take(1, 98)
		take(10, 88)
		time.Sleep(1500 * time.Millisecond)
		w.Crash()
		take(10, 78)
		w.Crash() // within the second
		take(1, 87)
		time.Sleep(1500 * time.Millisecond)
		w.Crash() // which was not worth it
		take(1, 87)
		w.Restart()
		take(1, 86)
	})
}

// Nobody waits for a disk.
func TestChecksDoNotWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := durabletest.New(t, ratelimit.Definition)
		ada := ratelimit.Class.Named(w, "ada")
		w.Hold()
		for range 5 {
			if _, err := ratelimit.Check.Call(t.Context(), ada, ratelimit.Request{Cost: 20}); err != nil {
				t.Fatal(err)
			}
		}
		w.Release()
	})
}

func TestIdleLimitersDeleteThemselves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := durabletest.New(t, ratelimit.Definition)
		stored := func() int {
			n := 0
			for _, err := range ratelimit.Class.List(t.Context(), w, durable.ListOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
			return n
		}
		// One that was hardly used, and is free again before it sleeps, was never stored.
		do(t, w, "POST", "/check?limit=50&window=5s")
		time.Sleep(20 * time.Second)
		if n := stored(); n != 0 {
			t.Errorf("%d limiters are stored", n)
		}
		// One that is not, is, until it is free.
		do(t, w, "POST", "/check?limit=5&window=1h&cost=5")
		time.Sleep(20 * time.Second)
		if n := stored(); n != 1 {
			t.Errorf("%d limiters are stored while one is not free", n)
		}
		time.Sleep(50 * time.Minute)
		do(t, w, "POST", "/check?limit=5&window=1h&cost=4") // and takes longer than the alarm knows
		time.Sleep(15 * time.Minute)
		if n := stored(); n != 1 {
			t.Errorf("%d limiters are stored while one is not free", n)
		}
		time.Sleep(time.Hour)
		if n := stored(); n != 0 {
			t.Errorf("%d limiters are stored when all are free", n)
		}
	})
}

func FuzzQuery(f *testing.F) {
	for _, q := range []string{"", "limit=100&window=60s&cost=1&algorithm=gcra", "window=90s", "limit=%31", "&&=&limit", "window=1e9h"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		r, err := ratelimit.ParseQuery(query)
		if err == nil && (r.Cost < 1 || r.Cost > r.Limit || r.Window < time.Millisecond) {
			t.Errorf("%q was accepted as %+v", query, r)
		}
	})
}
