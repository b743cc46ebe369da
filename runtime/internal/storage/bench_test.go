package storage

import (
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/holdfast-run/holdfast/placement"
)

const eventsPerEntry = 8000

// benchEntries returns a function that makes entries of 8,000 events, each of which puts
// one key of one of a number of objects.
func benchEntries(objects int) func() []byte {
	ids := make([]placement.ObjectID, objects)
	for i := range ids {
		ids[i] = placement.NamedID("bench", fmt.Sprint(i))
	}
	n := uint64(0)
	return func() (entry []byte) {
		for range eventsPerEntry {
			n++
			var b Batch
			b.Reset(ids[n*0x9E3779B97F4A7C15%uint64(objects)])
			b.Put(SpaceKey, "value", binary.BigEndian.AppendUint64(nil, n))
			entry = append(entry, b.Bytes()...)
		}
		return entry
	}
}

func BenchmarkApply(b *testing.B) {
	for _, objects := range []int{1, 100, 10_000, 1_000_000} {
		b.Run(fmt.Sprintf("objects=%d", objects), func(b *testing.B) {
			m := open(b, filepath.Join(b.TempDir(), "shard"), Options{})
			next := benchEntries(objects)
			entry := next()
			b.ReportAllocs()
			index := uint64(0)
			for b.Loop() {
				index++
				if err := m.Apply(index, 1, entry); err != nil {
					b.Fatal(err)
				}
				if objects > 1 {
					b.StopTimer()
					entry = next()
					b.StartTimer()
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*eventsPerEntry), "ns/event")
		})
	}
}

func BenchmarkGet(b *testing.B) {
	const objects = 10_000
	run := func(name string, m *Machine, key string) {
		b.Run(name, func(b *testing.B) {
			ids := make([]placement.ObjectID, objects)
			for i := range ids {
				ids[i] = placement.NamedID("bench", fmt.Sprint(i))
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n++
				if _, _, err := m.Get(ids[n*7919%objects], SpaceKey, key); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	m := open(b, filepath.Join(b.TempDir(), "shard"), Options{})
	next := benchEntries(objects)
	for i := range uint64(4) {
		if err := m.Apply(i+1, 1, next()); err != nil {
			b.Fatal(err)
		}
	}
	run("table", m, "value")
	flush(b, m)
	run("file", m, "value")
	run("absent", m, "other")
}

func BenchmarkList(b *testing.B) {
	m := open(b, filepath.Join(b.TempDir(), "shard"), Options{})
	id := placement.NamedID("bench", "list")
	var batch Batch
	batch.Reset(id)
	for i := range 10_000 {
		batch.Put(SpaceKey, fmt.Sprintf("%08d", i), []byte("some value of a row"))
	}
	if err := m.Apply(1, 1, batch.Bytes()); err != nil {
		b.Fatal(err)
	}
	run := func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := m.List(id, SpaceKey, Range{Start: "00005000"}, 100); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("table", run)
	flush(b, m)
	b.Run("file", run)
}

// BenchmarkFlush flushes 10,000 rows: of one object, or of as many, among a million.
func BenchmarkFlush(b *testing.B) {
	for _, objects := range []int{1, 10_000, 1_000_000} {
		b.Run(fmt.Sprintf("objects=%d", objects), func(b *testing.B) {
			m := open(b, filepath.Join(b.TempDir(), "shard"), Options{})
			next, index := benchEntries(objects), uint64(0)
			apply := func(entries int) {
				for range entries {
					index++
					if err := m.Apply(index, 1, next()); err != nil {
						b.Fatal(err)
					}
				}
			}
			apply(max(1, objects/eventsPerEntry))
			flush(b, m)
			for b.Loop() {
				b.StopTimer()
				apply(1)
				b.StartTimer()
				if err := m.Flush(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*eventsPerEntry), "ns/event")
		})
	}
}
