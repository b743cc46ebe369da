package runtime

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/console"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
	"github.com/holdfast-run/holdfast/runtime/internal/shard"
	"github.com/holdfast-run/holdfast/runtime/internal/topology"
)

// shards are the replicas that a node holds: those that the table gives it, and those
// that it has still to give up. The goroutine of follow opens and drops them as the table
// changes; each replica has one more, which steers it.
type shards struct {
	node     *Node
	disk     *shard.Disk
	flusher  *replica.Flusher
	scrubber *shard.Scrubber
	sending  *replica.Limiter // of snapshots
	metrics  *replica.Metrics

	mu   sync.Mutex // guards held
	held map[placement.ShardID]*holding

	cancel  context.CancelFunc
	running sync.WaitGroup // follow, stopped by stop
}

// A holding is one replica, and the goroutines that steer it: one for its life, and one
// more for each loss of another node.
type holding struct {
	*shard.Shard
	ctx      context.Context // ends when the replica is given up
	cancel   context.CancelFunc
	steering sync.WaitGroup // added to with shards.mu held, and not after ctx has ended
}

func newShards(n *Node) (*shards, error) {
	disk, err := shard.WatchDisk(shard.DiskConfig{Dirs: []string{n.dirs.data, n.dirs.log}, Logger: n.cfg.Logger})
	if err != nil {
		return nil, err
	}
	return &shards{
		node:     n,
		disk:     disk,
		flusher:  replica.NewFlusher(replica.FlusherConfig{Logger: n.cfg.Logger}),
		scrubber: shard.NewScrubber(shard.ScrubberConfig{Logger: n.cfg.Logger}),
		sending:  replica.NewLimiter(replica.DefaultSnapshots),
		metrics:  replica.NewMetrics(),
		held:     make(map[placement.ShardID]*holding),
	}, nil
}

// start opens what the node holds, or should: all at once, since each waits for its own
// file. Then it follows the table.
func (s *shards) start(ctx context.Context) error {
	if err := s.open(ctx); err != nil {
		return err
	}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.running.Go(func() { s.follow(ctx) })
	return nil
}

// followEvery is how often is looked for replicas to drop, beside each change of the table.
const followEvery = time.Second

func (s *shards) follow(ctx context.Context) {
	timer := time.NewTimer(followEvery)
	defer timer.Stop()
	for {
		changed := s.node.topology.Changed()
		if err := s.open(ctx); err != nil && ctx.Err() == nil {
			s.node.cfg.OnFatal(err)
			return
		}
		s.drop(ctx)
		timer.Reset(followEvery)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

// open opens the replicas that are missing. One error is enough to act upon.
func (s *shards) open(ctx context.Context) error {
	table := s.node.topology.State()
	errs := make([]error, len(table.Shards))
	var wg sync.WaitGroup
	for i, record := range table.Shards {
		id := placement.ShardID(i)
		if s.get(id) != nil {
			continue
		}
		wg.Go(func() { errs[i] = s.openOne(ctx, id, record) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *shards) openOne(ctx context.Context, id placement.ShardID, record placement.Shard) error {
	n := s.node
	path := n.dirs.shard(id)
	held, err := shard.Holds(n.log, id, path)
	if err != nil {
		return err
	}
	if !held && !slices.Contains(record.Replicas, n.dirs.id.Node) {
		return nil
	}
	sh, err := shard.Open(ctx, shard.Config{
		ID:         id,
		NodeID:     n.dirs.id.Node,
		Path:       path,
		Log:        n.log,
		Transport:  n.raft(shard.Group(id)),
		Flusher:    s.flusher,
		Disk:       s.disk,
		Scrubber:   s.scrubber,
		Snapshots:  s.sending,
		Join:       !n.founds(record),
		Lead:       n.lead,
		OnHandOver: n.flushSockets,
		OnFatal:    n.cfg.OnFatal,
		Logger:     n.cfg.Logger,
		Metrics:    s.metrics,
	})
	if err != nil {
		return err
	}
	s.hold(id, sh) //nolint:contextcheck // it lives until release
	return nil
}

// founds reports whether a shard begins its life on this node: its record is still the one
// that the founder of the cluster wrote, and this node is the founder.
func (n *Node) founds(record placement.Shard) bool {
	return !n.dirs.id.Joined && record.Version == 1
}

// hold begins to steer a replica.
func (s *shards) hold(id placement.ShardID, sh *shard.Shard) {
	ctx, cancel := context.WithCancel(context.Background())
	h := &holding{Shard: sh, ctx: ctx, cancel: cancel}
	h.steering.Go(func() {
		sh.Steer(ctx, shard.Steering{
			Want: func() placement.Shard {
				record, _ := s.node.topology.State().Shard(id)
				return record
			},
			Changed: s.node.topology.Changed,
			Fit:     s.node.fit,
			Slow:    s.node.log.Slow,
		})
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[id] = h
}

// drop gives up the replicas that the table gives to others, once their owner says that this
// node is no member of their group any more.
func (s *shards) drop(ctx context.Context) {
	table := s.node.topology.State()
	for id, h := range s.all() {
		record, ok := table.Shard(id)
		if !ok || slices.Contains(record.Replicas, s.node.dirs.id.Node) {
			continue
		}
		owner, known := s.Owner(id)
		if !known || owner == s.node.dirs.id.Node {
			continue
		}
		report, err := s.node.cluster.report(ctx, owner, id)
		if err != nil || !report.Lacks(s.node.dirs.id.Node) {
			continue
		}
		s.release(h)
		err = h.Drop(ctx, report)
		s.mu.Lock()
		delete(s.held, id) // with an error it is opened again
		s.mu.Unlock()
		log := s.node.cfg.Logger.With(slog.Uint64("shard", uint64(id)), slog.String("owner", string(owner)))
		if err != nil {
			log.Warn("a replica could not be given up yet", slog.String("reason", err.Error()))
		} else {
			log.Info("gave up a replica")
		}
	}
}

// release ends the steering.
func (s *shards) release(h *holding) {
	s.mu.Lock()
	h.cancel()
	s.mu.Unlock()
	h.steering.Wait()
}

func (s *shards) get(id placement.ShardID) *shard.Shard {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.held[id]; h != nil {
		return h.Shard
	}
	return nil
}

// all returns a copy of what is held.
func (s *shards) all() map[placement.ShardID]*holding {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[placement.ShardID]*holding, len(s.held))
	for id, h := range s.held {
		all[id] = h
	}
	return all
}

// Owner implements [router.Owners]: who leads a shard, as far as its replica here knows, or
// who should according to the table.
func (s *shards) Owner(id placement.ShardID) (placement.NodeID, bool) {
	if sh := s.get(id); sh != nil {
		if leader := sh.Leader(); leader != "" {
			return leader, true
		}
	}
	record, ok := s.node.topology.State().Shard(id)
	return record.Owner, ok && record.Owner != "" && record.Owner != s.node.dirs.id.Node
}

// Report implements [topology.Reporter].
func (s *shards) Report() topology.Report {
	r := topology.Report{Node: s.node.dirs.id.Node}
	for id, h := range s.all() {
		r.Holds = append(r.Holds, id)
		if _, leads := h.Reign(); leads {
			r.Leads = append(r.Leads, leadership(h.Shard.Report()))
		}
	}
	slices.Sort(r.Holds)
	return r
}

func leadership(r shard.Report) topology.Leadership {
	l := topology.Leadership{Shard: r.ID, Epoch: r.Epoch, Applied: r.Applied, Voters: r.Voters()}
	for _, m := range r.Members {
		l.Members = append(l.Members, m.ID)
		if m.CaughtUp {
			l.CaughtUp = append(l.CaughtUp, m.ID)
		}
	}
	return l
}

// leads returns how many shards this node leads.
func (s *shards) leads() (count int) {
	for _, h := range s.all() {
		if _, leads := h.Reign(); leads {
			count++
		}
	}
	return count
}

// peerGone has the successors of a node whose process is gone stand for election.
func (s *shards) peerGone(peer placement.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		if h.ctx.Err() == nil {
			h.steering.Go(func() { h.LeaderGone(h.ctx, peer, s.node.fit) })
		}
	}
}

// unowned returns a shard of which no owner is known.
func (s *shards) unowned(count int) (placement.ShardID, bool) {
	for i := range count {
		id := placement.ShardID(i)
		if s.node.engine.Leads(id) {
			continue
		}
		if owner, known := s.Owner(id); !known || owner == s.node.dirs.id.Node {
			return id, true
		}
	}
	return 0, false
}

// stop ends the reigns and makes everything applied durable. Flushing is not given up
// when ctx ends: what is in memory only would have to be replayed.
func (s *shards) stop(ctx context.Context) error {
	const flushTimeout = time.Minute
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	if s.cancel != nil {
		s.cancel()
	}
	s.running.Wait()
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for _, h := range s.all() {
		wg.Go(func() {
			s.release(h)
			err := h.Stop(ctx)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// close stops what the replicas share.
func (s *shards) close() {
	s.scrubber.Stop()
	s.flusher.Stop()
	s.disk.Stop()
}

func (s *shards) collectors() []prometheus.Collector {
	return slices.Concat(s.metrics.Collectors(), s.disk.Collectors(), s.scrubber.Collectors())
}

func (s *shards) status() []console.Shard {
	all := s.all()
	list := make([]console.Shard, 0, len(all))
	for id, h := range all {
		r := h.Shard.Report()
		list = append(list, console.Shard{ID: uint32(id), Leader: string(r.Leader), Leads: r.Leads, Epoch: uint64(r.Epoch), Applied: r.Applied})
	}
	slices.SortFunc(list, func(a, b console.Shard) int { return int(a.ID) - int(b.ID) })
	return list
}
