package ratelimit

import (
	"net/http"
	"testing"
)

type nowhere struct{ h http.Header }

func (w nowhere) Header() http.Header         { return w.h }
func (w nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (w nowhere) WriteHeader(int)             {}

// What a check over HTTP costs beside the engine and the network.
func BenchmarkHTTP(b *testing.B) {
	b.ReportAllocs()
	l, w, now := &Limiter{}, nowhere{http.Header{}}, noon
	for b.Loop() {
		req, err := parse("limit=1000000000&window=60s", Rule{})
		if err != nil {
			b.Fatal(err)
		}
		now += 10
		answer(w, http.StatusOK, req.Rule, l.state.check(req.Rule, req.Cost, now))
	}
}
