package engine

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// Metrics are the engine's figures, by class. Classes are few and fixed, so that their
// names are bounded labels.
type Metrics struct {
	events   *prometheus.CounterVec
	duration *prometheus.HistogramVec
	refused  *prometheus.CounterVec
	resets   *prometheus.CounterVec
	commits  *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	awake    *prometheus.GaugeVec
	waiting  *prometheus.GaugeVec
	held     *prometheus.HistogramVec
}

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "holdfast", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "holdfast", Name: name, Help: help}, []string{"class"})
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "holdfast", Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(1e-5, 4, 10),
		}, []string{"class"})
	}
	return &Metrics{
		events:   counter("object_events_total", "Events that objects have run, by kind and outcome.", "class", "kind", "outcome"),
		duration: histogram("object_event_seconds", "Time that events ran, without the wait at the output gate."),
		refused:  counter("object_refused_total", "Events that were refused: mailbox full, waited too long, object reset.", "class"),
		resets:   counter("object_resets_total", "Objects that were reset because a commit failed or took too long.", "class"),
		commits:  counter("object_commits_total", "Batches of writes handed to storage.", "class"),
		bytes:    counter("object_commit_bytes_total", "Bytes of those batches.", "class"),
		awake:    gauge("objects_awake", "Objects in memory."),
		waiting:  gauge("object_mailbox_events", "Events that wait in the mailboxes of objects."),
		held:     histogram("object_gate_seconds", "Time from the hand-over of a batch to its being durable."),
	}
}

// Collectors returns what is to be registered.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.events, m.duration, m.refused, m.resets, m.commits, m.bytes, m.awake, m.waiting, m.held}
}

// classMetrics are the figures of one class, looked up once.
type classMetrics struct {
	events   [kinds][outcomes]prometheus.Counter
	loads    [outcomes]prometheus.Counter
	duration prometheus.Observer
	refused  prometheus.Counter
	resets   prometheus.Counter
	commits  prometheus.Counter
	bytes    prometheus.Counter
	awake    prometheus.Gauge
	waiting  prometheus.Gauge
	held     prometheus.Observer
}

// outcome says how an event ended.
type outcome uint8

const (
	outcomeOK outcome = iota
	outcomeRefused
	outcomeError
	outcomes
)

var outcomeNames = [outcomes]string{"ok", "refused", "error"}

func (m *Metrics) class(name string) classMetrics {
	c := classMetrics{
		duration: m.duration.WithLabelValues(name),
		refused:  m.refused.WithLabelValues(name),
		resets:   m.resets.WithLabelValues(name),
		commits:  m.commits.WithLabelValues(name),
		bytes:    m.bytes.WithLabelValues(name),
		awake:    m.awake.WithLabelValues(name),
		waiting:  m.waiting.WithLabelValues(name),
		held:     m.held.WithLabelValues(name),
	}
	for o := range outcomes {
		for k := range kinds {
			c.events[k][o] = m.events.WithLabelValues(name, kindNames[k], outcomeNames[o])
		}
		c.loads[o] = m.events.WithLabelValues(name, "load", outcomeNames[o])
	}
	return c
}

func (c *classMetrics) observe(k kind, err error, d time.Duration) {
	c.events[k][outcomeOf(err)].Inc()
	c.duration.Observe(d.Seconds())
}

func (c *classMetrics) observeLoad(err error, d time.Duration) {
	c.loads[outcomeOf(err)].Inc()
	c.duration.Observe(d.Seconds())
}

func outcomeOf(err error) outcome {
	if err == nil {
		return outcomeOK
	}
	var e *host.Error
	if errors.As(err, &e) && e.Code == host.CodeRefused {
		return outcomeRefused
	}
	return outcomeError
}

// An ObjectStatus is what the console shows of an object in memory.
type ObjectStatus struct {
	host.Ref
	Awake   bool
	Running bool
	Mailbox int       // events that wait
	Held    int       // outputs behind the gate
	Used    time.Time // when its last event ended
}

// Awake returns up to limit objects that are in memory, in no order.
func (e *Engine) Awake(limit int) []ObjectStatus {
	var list []ObjectStatus
	for i := range e.reigns {
		r := e.reigns[i].Load()
		if r == nil {
			continue
		}
		for _, o := range r.all() {
			if len(list) == limit {
				return list
			}
			list = append(list, o.status())
		}
	}
	return list
}

func (o *object) status() ObjectStatus {
	held := o.gate.holding()
	o.mu.Lock()
	defer o.mu.Unlock()
	return ObjectStatus{Ref: o.ref, Awake: o.awake.Load(), Running: o.busy, Mailbox: o.mailbox.len(), Held: held, Used: o.used}
}
