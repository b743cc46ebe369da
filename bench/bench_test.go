//go:build linux

package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestHistogramQuantiles(t *testing.T) {
	t.Parallel()
	var h histogram
	for us := range 100_000 {
		h.record(time.Duration(us) * time.Microsecond)
	}
	for _, q := range []float64{0.0001, 0.5, 0.99, 0.9999} {
		want := time.Duration(q*100_000) * time.Microsecond
		got := h.quantile(q)
		if got < want || got > want+want/16+2*time.Microsecond {
			t.Errorf("quantile %v is %v, want %v and at most a sixteenth more", q, got, want)
		}
	}
	h.record(1000 * time.Hour) // beyond the last bucket, and counted in it
	if h.total != 100_001 {
		t.Errorf("%d durations were counted", h.total)
	}
}

func TestLoadAgainstEveryYardstick(t *testing.T) {
	t.Parallel()
	l, err := newGroupLog(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	for name, handler := range map[string]http.Handler{
		bareHTTP:   new(bareCounter),
		fsyncHTTP:  &durableCounter{log: l},
		bareSocket: &hub{clients: map[*client]bool{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testServer(t, name, handler)
			sample, err := load{conns: 3, requests: [][]byte{increment("a"), increment("b")}}.run(t.Context(), s, 20*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			if sample.ops == 0 {
				t.Error("nothing was measured")
			}
			all := load{conns: 3, requests: [][]byte{increment("a"), increment("b"), request("GET", "/"), increment("c")}}
			if sample, err = all.once(t.Context(), s); err != nil || sample.ops != 4 {
				t.Errorf("%d requests were made, error %v", sample.ops, err)
			}
		})
	}
}

func TestFanOutAgainstTheYardstick(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	b := &bench{out: &out, turn: 20 * time.Millisecond, rounds: 1}
	for name, publish := range map[string]func(*members, int) error{"say": say, "increment": incrementOver} {
		fan := func() fanOut {
			return fanOut{
				server:  testServer(t, bareSocket, &hub{clients: map[*client]bool{}}),
				path:    func(int) string { return "/" },
				publish: publish,
				counts:  func([]byte) bool { return true },
			}
		}
		if err := b.compareFanOut(t.Context(), name, fan(), fan()); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(out.String(), "of the CPU time per delivered message") {
		t.Errorf("reported %q", out.String())
	}
}

func TestAnErrorStatusStopsTheLoad(t *testing.T) {
	t.Parallel()
	s := testServer(t, "refusing", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no room", http.StatusInsufficientStorage)
	}))
	_, err := load{conns: 2, requests: [][]byte{increment("a")}}.run(t.Context(), s, time.Minute)
	if err == nil || !strings.Contains(err.Error(), "507: no room") {
		t.Errorf("the load ended with %v", err)
	}
}

func testServer(t *testing.T, name string, h http.Handler) *server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return &server{name: name, addr: strings.TrimPrefix(s.URL, "http://"), pid: os.Getpid()}
}
