package shard

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// DiskConfig says what is watched. Zero values mean the defaults given.
type DiskConfig struct {
	Dirs   []string     // directories on the file systems that must not fill up
	Logger *slog.Logger // default: discard

	// Writes are refused when less than LowPercent of a file system is free, 10; but not while
	// Plenty is free, 8 GiB, and always when less than Least is, 64 MiB.
	LowPercent int
	Plenty     uint64
	Least      uint64

	// Usage measures a file system; default: the operating system does.
	Usage func(dir string) (free, total uint64, err error)
}

// A Disk watches the free space of the node's file systems. Its methods may be called from
// any goroutine; a nil Disk is never full.
type Disk struct {
	cfg  DiskConfig
	low  atomic.Pointer[host.Error] // why writes are refused
	free []prometheus.Gauge         // by directory

	once    sync.Once
	stop    chan struct{}
	running sync.WaitGroup // the goroutine of run, stopped by Stop
}

// diskTick is how often the free space is measured.
const diskTick = 100 * time.Millisecond

// WatchDisk measures the free space now, and from now on again and again.
func WatchDisk(cfg DiskConfig) (*Disk, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.LowPercent == 0 {
		cfg.LowPercent = 10
	}
	if cfg.Plenty == 0 {
		cfg.Plenty = 8 << 30
	}
	if cfg.Least == 0 {
		cfg.Least = 64 << 20
	}
	if cfg.Usage == nil {
		cfg.Usage = usage
	}
	slices.Sort(cfg.Dirs)
	cfg.Dirs = slices.Compact(cfg.Dirs)
	d := &Disk{cfg: cfg, stop: make(chan struct{})}
	for _, dir := range cfg.Dirs {
		d.free = append(d.free, prometheus.NewGauge(prometheus.GaugeOpts{
			Name:        "holdfast_disk_free_bytes",
			Help:        "Free space of the file system of a data directory.",
			ConstLabels: prometheus.Labels{"dir": dir},
		}))
	}
	if err := d.measure(); err != nil {
		return nil, err
	}
	d.running.Go(d.run)
	return d, nil
}

func usage(dir string) (free, total uint64, err error) {
	u, err := vfs.Default.GetDiskUsage(dir)
	return u.AvailBytes, u.TotalBytes, err
}

// Writable returns nil, or a storage-full error that says how full.
func (d *Disk) Writable() error {
	if d == nil {
		return nil
	}
	if err := d.low.Load(); err != nil {
		return err
	}
	return nil
}

// Collectors returns the metrics for registration.
func (d *Disk) Collectors() []prometheus.Collector {
	list := make([]prometheus.Collector, len(d.free))
	for i, g := range d.free {
		list[i] = g
	}
	return list
}

// Stop ends the watch. It may be called twice.
func (d *Disk) Stop() {
	d.once.Do(func() { close(d.stop) })
	d.running.Wait()
}

func (d *Disk) run() {
	tick := time.NewTicker(diskTick)
	defer tick.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-tick.C:
		}
		if err := d.measure(); err != nil {
			d.cfg.Logger.Error("watch free space", slog.Any("error", err))
		}
	}
}

// measure decides whether writes are refused. Once they are, a fifth more than the limit
// must be free before they are not.
func (d *Disk) measure() error {
	before := d.low.Load()
	for i, dir := range d.cfg.Dirs {
		free, total, err := d.cfg.Usage(dir)
		if err != nil {
			return fmt.Errorf("measure free space of %s: %w", dir, err)
		}
		d.free[i].Set(float64(free))
		limit := max(d.cfg.Least, min(d.cfg.Plenty, total/100*uint64(d.cfg.LowPercent)))
		if before != nil {
			limit += limit / 5
		}
		if free >= limit {
			continue
		}
		d.low.Store(host.Errorf(host.CodeStorageFull,
			"the disk is nearly full (%d of %d MiB free under %s); writes are refused until there is room", free>>20, total>>20, dir))
		if before == nil {
			d.cfg.Logger.Error("the disk is nearly full: writes are refused", slog.String("dir", dir),
				slog.Uint64("free_bytes", free), slog.Uint64("needed_bytes", limit))
		}
		return nil
	}
	d.low.Store(nil)
	if before != nil {
		d.cfg.Logger.Info("the disk has room again: writes are accepted")
	}
	return nil
}
