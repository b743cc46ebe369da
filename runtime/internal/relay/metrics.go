package relay

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	frames, fenced, again, shed, lost, orphans, missed prometheus.Counter
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "holdfast", Subsystem: "relay", Name: name, Help: help})
	}
	return &metrics{
		frames:  counter("frames_sent_total", "Frames written to other nodes."),
		fenced:  counter("fenced_total", "Frames and outputs of an older epoch that were dropped."),
		again:   counter("redeliveries_total", "Times that a socket's messages were delivered again."),
		shed:    counter("shed_objects_total", "Times that an object's sockets at a slow node were closed."),
		lost:    counter("lost_sessions_total", "Streams to other nodes that were given up."),
		orphans: counter("closed_sockets_total", "Sockets closed with 1012 because something may have been lost."),
		missed:  counter("missed_gateways_total", "Nodes that did not tell their sockets to a new owner in time."),
	}
}

// Collectors returns the relay's metrics, to be registered.
func (r *Relay) Collectors() []prometheus.Collector {
	m := r.metrics
	return []prometheus.Collector{m.frames, m.fenced, m.again, m.shed, m.lost, m.orphans, m.missed}
}
