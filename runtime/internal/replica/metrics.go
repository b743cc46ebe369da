package replica

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are those of all replicas of a node.
type Metrics struct {
	commit  prometheus.Histogram
	flush   prometheus.Histogram
	entries prometheus.Counter
	batches prometheus.Counter
	fenced  prometheus.Counter
	reigns  prometheus.Counter
}

// NewMetrics returns metrics that are not registered anywhere.
func NewMetrics() *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(100e-6, 2, 18),
		})
	}
	return &Metrics{
		commit:  histogram("holdfast_commit_seconds", "Time from the proposal of an entry until it is applied."),
		flush:   histogram("holdfast_flush_seconds", "Time of one flush of a shard's state."),
		entries: counter("holdfast_commit_entries_total", "Log entries proposed."),
		batches: counter("holdfast_commit_batches_total", "Batches committed."),
		fenced:  counter("holdfast_commit_fenced_total", "Log entries dropped since they were of another term."),
		reigns:  counter("holdfast_reigns_total", "Reigns begun by this node."),
	}
}

// Collectors returns the metrics for registration.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.commit, m.flush, m.entries, m.batches, m.fenced, m.reigns}
}

func (m *Metrics) committed(f flight) {
	m.commit.Observe(time.Since(f.since).Seconds())
	m.batches.Add(float64(len(f.batches)))
}
