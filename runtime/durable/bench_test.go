package durable_test

import (
	"testing"

	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

// One increment, from the typed call to the durable answer, over the real engine with
// commits that cost nothing: what remains is the runtime's own work.
func BenchmarkCall(b *testing.B) {
	w := durabletest.New(b, CounterDefinition)
	visits := Visits.Named(w, "visits")
	b.ReportAllocs()
	b.SetParallelism(128) // 256 callers on two cores
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := Add.Call(b.Context(), visits, 1); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
