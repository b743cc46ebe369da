package raftlog

import (
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	fsync   prometheus.Histogram
	records prometheus.Counter
	bytes   prometheus.Counter
	disk    prometheus.GaugeFunc

	pace  pace
	start time.Time
}

func newMetrics(slowFsync time.Duration) *metrics {
	return &metrics{
		pace:  pace{limit: slowFsync},
		start: time.Now(),
		fsync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "holdfast_log_fsync_seconds",
			Help:    "Time of one fsync of the write-ahead log.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18),
		}),
		records: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_log_records_total",
			Help: "Records appended to the logs of all groups.",
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_log_bytes_total",
			Help: "Bytes appended to the logs of all groups.",
		}),
	}
}

// observe adds what only an open database can tell.
func (m *metrics) observe(db *pebble.DB) {
	m.disk = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "holdfast_log_disk_bytes",
		Help: "Disk space used by the logs of all groups.",
	}, func() float64 { return float64(db.Metrics().DiskSpaceUsage()) })
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.fsync, m.records, m.bytes, m.disk}
}

// second numbers the seconds of the log's life from 1.
func (m *metrics) second() int64 { return 1 + int64(time.Since(m.start)/time.Second) }

// fsynced notes an fsync of the write-ahead log.
func (m *metrics) fsynced(took time.Duration) {
	m.fsync.Observe(took.Seconds())
	m.pace.observe(m.second(), took)
}

// A measuredFS times the fsyncs of the write-ahead log.
type measuredFS struct {
	vfs.FS
	metrics *metrics
}

func (fs measuredFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, c)
	return fs.measure(f, name, err)
}

func (fs measuredFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.ReuseForWrite(oldname, newname, c)
	return fs.measure(f, newname, err)
}

func (fs measuredFS) Unwrap() vfs.FS { return fs.FS }

func (fs measuredFS) measure(f vfs.File, name string, err error) (vfs.File, error) {
	if err != nil || !strings.HasSuffix(name, walSuffix) {
		return f, err
	}
	return measuredFile{f, fs.metrics}, nil
}

type measuredFile struct {
	vfs.File
	metrics *metrics
}

func (f measuredFile) Sync() error     { return f.time(f.File.Sync) }
func (f measuredFile) SyncData() error { return f.time(f.File.SyncData) }

func (f measuredFile) time(sync func() error) error {
	start := time.Now()
	err := sync()
	f.metrics.fsynced(time.Since(start))
	return err
}
