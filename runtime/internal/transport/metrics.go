package transport

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	bytesIn, bytesOut   prometheus.Counter
	framesIn, framesOut prometheus.Counter
	refusedIn           prometheus.Counter
	refusedOut          prometheus.Counter
	gone                prometheus.Counter
	rounds, reads       prometheus.Counter
	conns               *prometheus.GaugeVec
	all                 []prometheus.Collector
}

func newMetrics() *metrics {
	bytes := vector("holdfast_transport_bytes_total", "Bytes between this node and others, as they are on the wire.")
	frames := vector("holdfast_transport_frames_total", "Raft's messages between this node and others.")
	refused := vector("holdfast_transport_refused_total", "Connections refused: in by this node, out by or because of the other.")
	m := &metrics{
		bytesIn: bytes.WithLabelValues("in"), bytesOut: bytes.WithLabelValues("out"),
		framesIn: frames.WithLabelValues("in"), framesOut: frames.WithLabelValues("out"),
		refusedIn: refused.WithLabelValues("in"), refusedOut: refused.WithLabelValues("out"),
		gone: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_transport_peers_gone_total", Help: "Peers whose process was found gone.",
		}),
		rounds: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_confirm_rounds_total", Help: "Rounds that confirmed reads.",
		}),
		reads: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_confirm_reads_total", Help: "Reads that a round confirmed or refused.",
		}),
		conns: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "holdfast_transport_connections", Help: "Open connections with other nodes.",
		}, []string{"direction"}),
	}
	m.all = []prometheus.Collector{bytes, frames, refused, m.gone, m.rounds, m.reads, m.conns}
	return m
}

func vector(name, help string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"direction"})
}
