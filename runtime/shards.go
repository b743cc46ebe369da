package runtime

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/console"
	"github.com/holdfast-run/holdfast/runtime/internal/engine"
	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
	"github.com/holdfast-run/holdfast/runtime/internal/shard"
	"github.com/holdfast-run/holdfast/runtime/internal/transport"
)

// shards are the replicas that a node holds, and what they share: the watch over the
// disks, the flusher, and the scrubber.
type shards struct {
	disk     *shard.Disk
	flusher  *replica.Flusher
	scrubber *shard.Scrubber
	metrics  *replica.Metrics
	list     []*shard.Shard // by ID; nil where it could not be opened
}

// openShards opens all shards at once: each waits for its own file.
func openShards(ctx context.Context, cfg Config, d *dirs, table placement.Table, log *raftlog.Log, e *engine.Engine) (*shards, error) {
	disk, err := shard.WatchDisk(shard.DiskConfig{Dirs: []string{d.data, d.log}, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	s := &shards{
		disk:     disk,
		flusher:  replica.NewFlusher(replica.FlusherConfig{Logger: cfg.Logger}), //nolint:contextcheck // it lives until stop
		scrubber: shard.NewScrubber(shard.ScrubberConfig{Logger: cfg.Logger}),   //nolint:contextcheck // it lives until stop
		metrics:  replica.NewMetrics(),
		list:     make([]*shard.Shard, table.Shards()),
	}
	errs := make([]error, len(s.list))
	var wg sync.WaitGroup
	for i := range s.list {
		wg.Go(func() {
			s.list[i], errs[i] = shard.Open(ctx, shard.Config{
				ID:        placement.ShardID(i),
				NodeID:    d.id.Node,
				Path:      filepath.Join(d.shards(), fmt.Sprintf("%04d.db", i)),
				Log:       log,
				Transport: transport.NewLocal(raft.ServerAddress(d.id.Node)),
				Flusher:   s.flusher,
				Disk:      s.disk,
				Scrubber:  s.scrubber,
				Lead: func(ctx context.Context, id placement.ShardID, store *shard.Store) {
					e.Lead(ctx, id, store)
				},
				OnFatal: cfg.OnFatal,
				Logger:  cfg.Logger,
				Metrics: s.metrics,
			})
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil { // one is enough to act upon
			return nil, errors.Join(err, s.stop(ctx))
		}
	}
	return s, nil
}

// stop ends the reigns and makes everything applied durable. Flushing is not given up
// when ctx ends: what is in memory only would have to be replayed.
func (s *shards) stop(ctx context.Context) error {
	const flushTimeout = time.Minute
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	errs := make([]error, len(s.list))
	var wg sync.WaitGroup
	for i, sh := range s.list {
		if sh != nil {
			wg.Go(func() { errs[i] = sh.Stop(ctx) })
		}
	}
	wg.Wait()
	s.scrubber.Stop()
	s.flusher.Stop()
	s.disk.Stop()
	return errors.Join(errs...)
}

func (s *shards) collectors() []prometheus.Collector {
	return slices.Concat(s.metrics.Collectors(), s.disk.Collectors(), s.scrubber.Collectors())
}

func (s *shards) status() []console.Shard {
	list := make([]console.Shard, len(s.list))
	for i, sh := range s.list {
		epoch, leads := sh.Reign()
		applied, _ := sh.Applied()
		list[i] = console.Shard{ID: uint32(sh.ID()), Leader: string(sh.Leader()), Leads: leads, Epoch: uint64(epoch), Applied: applied}
	}
	return list
}
