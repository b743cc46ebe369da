package socket

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	open                *prometheus.GaugeVec // by class
	in, inBytes         prometheus.Counter
	out, outBytes       prometheus.Counter
	auto                prometheus.Counter
	writes, slowWriters prometheus.Counter
	overflows, dead     prometheus.Counter
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "holdfast_socket_" + name + "_total", Help: help})
	}
	return &metrics{
		open:        prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "holdfast_sockets_open", Help: "Open WebSockets."}, []string{"class"}),
		in:          counter("messages_received", "Messages from clients."),
		inBytes:     counter("received_bytes", "Bytes of messages from clients, decompressed."),
		out:         counter("frames_sent", "Frames written to clients."),
		outBytes:    counter("sent_bytes", "Bytes written to clients."),
		auto:        counter("auto_responses", "Messages answered without waking their object."),
		writes:      counter("writes", "System calls that wrote frames."),
		slowWriters: counter("slow_writes", "Times that a client's connection was full and got a goroutine of its own."),
		overflows:   counter("queue_overflows", "Sockets closed with 1008 because their client did not read."),
		dead:        counter("dead_peers", "Sockets dropped because their client was silent."),
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.open, m.in, m.inBytes, m.out, m.outBytes, m.auto, m.writes, m.slowWriters, m.overflows, m.dead}
}
