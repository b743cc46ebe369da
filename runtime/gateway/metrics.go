package gateway

import (
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what passes the door.
type metrics struct {
	requests     *prometheus.CounterVec // by class and status class
	bytesOut     prometheus.Counter
	refusedConns *prometheus.CounterVec // by whose limit it was
	openConns    prometheus.Gauge
	byClass      sync.Map // of class to *[6]prometheus.Counter, so that the hot path looks up one key
}

func newMetrics() *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_http_requests_total",
			Help: "HTTP requests, by class of objects (empty for others) and class of status.",
		}, []string{"class", "status"}),
		bytesOut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_http_response_bytes_total",
			Help: "Bytes of HTTP response bodies.",
		}),
		refusedConns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_connections_refused_total",
			Help: "Connections closed at once because there were too many, of the node or of one client.",
		}, []string{"limit"}),
		openConns: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "holdfast_connections_open",
			Help: "Open client connections, WebSockets included.",
		}),
	}
	for _, limit := range []string{limitNode, limitClient} {
		m.refusedConns.WithLabelValues(limit) // 0 is worth seeing, too
	}
	return m
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.bytesOut, m.refusedConns, m.openConns}
}

// request counts an answer. class is one that exists, or empty.
func (m *metrics) request(class string, status int) {
	if status == 0 {
		status = http.StatusOK // nothing was written: net/http does it
	}
	byStatus, ok := m.byClass.Load(class)
	if !ok {
		counters := new([6]prometheus.Counter)
		for i, label := range [6]string{"0xx", "1xx", "2xx", "3xx", "4xx", "5xx"} {
			counters[i] = m.requests.WithLabelValues(class, label)
		}
		byStatus, _ = m.byClass.LoadOrStore(class, counters)
	}
	byStatus.(*[6]prometheus.Counter)[min(status/100, 5)].Inc()
}
