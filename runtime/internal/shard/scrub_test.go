package shard

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// filled returns a shard that is only a file: some MiB of rows.
func filled(t *testing.T, damaged bool) *Shard {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shard.db")
	m, err := storage.Open(path, storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var b storage.Batch
	b.Reset(placement.NamedID("c", "x"))
	b.Create("c", "x", true, 0)
	for i := range 4 {
		b.Put(storage.SpaceKey, string(rune('a'+i)), bytes.Repeat([]byte("row"), 1<<20/3))
	}
	if err := m.Apply(1, 1, b.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if damaged {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[bytes.LastIndex(data, []byte("rowrow"))] ^= 1
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if m, err = storage.Open(path, storage.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return &Shard{machine: m}
}

// reading returns what a counter or a gauge stands at.
func reading(m prometheus.Metric) float64 {
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		panic(err)
	}
	return d.GetCounter().GetValue() + d.GetGauge().GetValue()
}

func TestEveryFileIsReadOnceADay(t *testing.T) {
	t.Parallel()
	good, bad := filled(t, false), filled(t, true)
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := NewScrubber(ScrubberConfig{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		defer s.Stop()
		defer s.add(good)()
		remove := s.add(bad)
		time.Sleep(3*24*time.Hour + time.Hour) // three or four times, by the hour that chance gave them
		synctest.Wait()
		for _, result := range []string{scrubSound, scrubDamaged} {
			if got := reading(s.scrubs.WithLabelValues(result)); got < 3 || got > 4 {
				t.Errorf("%v scrubs were %s, want 3 or 4", got, result)
			}
		}
		if got := reading(s.scrubs.WithLabelValues(scrubFailed)); got != 0 {
			t.Errorf("%v scrubs failed", got)
		}
		if got := reading(s.damaged); got != 1 {
			t.Errorf("%v shards are damaged, want 1", got)
		}
		if n := strings.Count(log.String(), "level=ERROR"); float64(n) != reading(s.scrubs.WithLabelValues(scrubDamaged)) || !strings.Contains(log.String(), "checksum") {
			t.Errorf("the log says %d times:\n%s", n, &log)
		}
		remove()
		if got := reading(s.damaged); got != 0 {
			t.Errorf("%v shards are damaged after the damaged one has gone", got)
		}
	})
}

func TestScrubsArePaced(t *testing.T) {
	t.Parallel()
	sh := filled(t, false)
	size, err := sh.machine.Size()
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			cfg      ScrubberConfig
			min, max time.Duration
		}{
			{ScrubberConfig{Rate: 1 << 20}, 3 * time.Second, 5 * time.Second}, // 4 MiB of rows
			{ScrubberConfig{Rate: 1}, time.Minute, 2 * time.Minute},           // however large
		} {
			s := NewScrubber(c.cfg)
			start := time.Now()
			if _, err := s.read(t.Context(), sh.machine); err != nil {
				t.Error(err)
			}
			if d := time.Since(start); d < c.min || d > c.max {
				t.Errorf("%d bytes with %+v took %v", size, c.cfg, d)
			}
			s.Stop()
		}

		s := NewScrubber(ScrubberConfig{Rate: 1, Longest: 24 * time.Hour})
		remove := s.add(sh)
		for reading(s.bytes) == 0 {
			time.Sleep(time.Minute)
		}
		start := time.Now()
		remove() // in the middle of the file
		s.Stop()
		if d := time.Since(start); d > 0 {
			t.Errorf("the scrubber let go of the file after %v", d)
		}
	})
}
