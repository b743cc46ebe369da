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

// BenchmarkOpen opens a file with 250,000 objects, and asks it for the first alarm.
func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "shard")
	m := open(b, path, Options{})
	var index uint64
	for first := 0; first < 250_000; first += eventsPerEntry {
		var entry []byte
		for i := range eventsPerEntry {
			name := fmt.Sprint(first + i)
			var batch Batch
			batch.Reset(placement.NamedID("bench", name))
			batch.Create("bench", name, true, 0)
			batch.Put(SpaceKey, "value", []byte("12345678"))
			batch.SetAlarm("", int64(first+i), nil)
			entry = append(entry, batch.Bytes()...)
		}
		index++
		if err := m.Apply(index, 1, entry); err != nil {
			b.Fatal(err)
		}
	}
	flush(b, m)
	if err := m.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		m, err := Open(path, Options{})
		if err != nil {
			b.Fatal(err)
		}
		if due, _, err := m.DueAlarms(0, 1); err != nil || len(due) != 1 {
			b.Fatal(due, err)
		}
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDueAlarms fires alarms one by one: what has fired since the last flush is
// still in the file's index, and must not be passed over each time.
func BenchmarkDueAlarms(b *testing.B) {
	m := open(b, filepath.Join(b.TempDir(), "shard"), Options{})
	id := placement.NamedID("bench", "alarms")
	var batch Batch
	batch.Reset(id)
	for i := range max(b.N, 100_000) {
		batch.SetAlarm(fmt.Sprint(i), int64(i), nil)
	}
	index := uint64(1)
	if err := m.Apply(index, 1, batch.Bytes()); err != nil {
		b.Fatal(err)
	}
	flush(b, m)
	b.ResetTimer()
	for i := range b.N {
		due, _, err := m.DueAlarms(1<<40, 1)
		if err != nil || len(due) != 1 || due[0].Due != int64(i) {
			b.Fatal(due, err)
		}
		batch.Reset(id)
		batch.DeleteAlarm(due[0].Name)
		index++
		if err := m.Apply(index, 1, batch.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
}
