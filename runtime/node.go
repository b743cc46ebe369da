// Package runtime is a node: it builds the parts, starts them upward, and stops them
// downward. It promises:
//
//   - [Start] either returns a node that serves, or an error of one sentence and leaves
//     nothing running;
//   - what a client was told is on disk, whatever happens to the process next;
//   - [Node.Stop] lets running events finish, for a bounded time, before anything
//     underneath them goes away.
//
// The parts, from the top; each one knows those below it only:
//
//	gateway   HTTP and WebSockets of clients        console   what this node does, to look at
//	cluster   the way to objects and sockets on other nodes; missing if the node runs alone
//	engine    objects in memory, one event at a time
//	shards    one Raft group and one state file each
//	topology  the table: which nodes there are, and who should hold which shard
//	log       the Raft log of all groups, one fsync for many
//	dirs      who this node is, and the locks on its two directories
//
// A program that runs classes of its own calls Start with their definitions:
//
//	node, err := runtime.Start(ctx, runtime.Config{Data: "data"}, greeter.Definition)
package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/gateway"
	"github.com/holdfast-run/holdfast/runtime/internal/engine"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
	"github.com/holdfast-run/holdfast/runtime/internal/shard"
	"github.com/holdfast-run/holdfast/runtime/internal/topology"
)

// Version is the version of this program.
const Version = "0.1.0"

// A Node runs objects in this process. It is a [durable.Scope]: stubs made with it call
// objects from outside of any object. All methods may be called from any goroutine.
type Node struct {
	cfg     Config
	classes []durable.Definition
	started time.Time
	table   placement.Table

	dirs        *dirs
	listener    net.Listener
	clusterAddr string   // where it listens for other nodes
	cluster     *cluster // nil if it runs alone
	registry    *prometheus.Registry
	log         *raftlog.Log
	shards      *shards
	topology    *topology.Topology
	engine      *engine.Engine
	gateway     *gateway.Gateway

	serving sync.WaitGroup // the goroutine of the front door
	stop    sync.Once
	stopErr error
}

// Start starts a node that runs the given classes. It returns when the front door is
// open; the shards come up behind it, see [Node.Ready]. If ctx ends before, Start gives
// up; afterwards ctx means nothing to the node.
func Start(ctx context.Context, cfg Config, classes ...durable.Definition) (*Node, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	n := &Node{cfg: cfg, classes: classes, started: time.Now(), registry: newRegistry()}
	for _, build := range []func(context.Context) error{n.openDirs, n.listen, n.enterCluster, n.openLog, n.openTopology, n.buildEngine, n.openShards, n.serve} {
		err := context.Cause(ctx)
		if err == nil {
			err = build(ctx)
		}
		if err != nil {
			return nil, errors.Join(err, n.close(ctx))
		}
	}
	return n, nil
}

func (n *Node) openDirs(context.Context) (err error) {
	n.dirs, err = openDirs(n.cfg.Data, n.cfg.Log, n.cfg.Shards)
	return err
}

// listen takes the address early: what is wrong with it is known before the disk works.
func (n *Node) listen(ctx context.Context) (err error) {
	if n.listener = n.cfg.Listener; n.listener != nil {
		return nil
	}
	var lc net.ListenConfig
	if n.listener, err = lc.Listen(ctx, "tcp", n.cfg.Listen); err != nil {
		return fmt.Errorf("listen on %s: %w", n.cfg.Listen, socketReason(err))
	}
	return nil
}

func (n *Node) openLog(context.Context) (err error) {
	n.log, err = raftlog.Open(n.dirs.wal(), raftlog.Options{Logger: n.cfg.Logger, OnFatal: n.cfg.OnFatal})
	return err
}

// openTopology brings up the node's copy of the table.
func (n *Node) openTopology(ctx context.Context) (err error) {
	id := n.dirs.id
	if n.table, err = placement.Even(id.Shards); err != nil {
		return err
	}
	self, err := n.self()
	if err != nil {
		return err
	}
	if n.shards, err = newShards(n); err != nil { //nolint:contextcheck // what it starts lives until close
		return err
	}
	cfg := topology.Config{
		Self:      self,
		Cluster:   id.Cluster,
		Path:      n.dirs.table(),
		Found:     !id.Joined,
		Shards:    id.Shards,
		Log:       n.log,
		Transport: n.raft(topology.Group),
		Flusher:   n.shards.flusher,
		Reporter:  n.shards,
		OnFatal:   n.cfg.OnFatal,
		Logger:    n.cfg.Logger,
	}
	if n.cluster != nil {
		cfg.Members = n.cluster.joined
		cfg.RoundTripper = n.cluster.network.RoundTripper
	}
	n.topology, err = topology.Open(ctx, cfg)
	if errors.Is(err, topology.ErrOthers) {
		return errNotAlone
	}
	if err == nil && n.cluster != nil {
		n.cluster.table.Store(n.topology)
	}
	return err
}

var errNotAlone = errors.New("the node is one of several of a cluster: start it with the cluster's secret (--cluster-secret-file)")

// buildEngine builds the engine and the gateway around each other: the gateway hands
// requests to the engine, the engine hands what leaves the sockets' objects to the gateway.
func (n *Node) buildEngine(ctx context.Context) (err error) {
	door := n.cfg.door()
	door.Ready, door.Metrics, door.Other, door.Hosts = n.ready, metricsHandler(n.registry), n.console(), n.hosts()
	if n.cluster != nil {
		door.Sockets.AcceptWait = acceptWait
	}
	if n.gateway, err = gateway.New(door); err != nil {
		return err
	}
	metrics := engine.NewMetrics()
	ecfg := engine.Config{
		Table:     n.table,
		Gateway:   n.gateway,
		Logger:    n.cfg.Logger,
		Metrics:   metrics,
		IdleAfter: n.cfg.IdleAfter,
	}
	for _, c := range n.classes {
		ecfg.Classes = append(ecfg.Classes, c)
	}
	if n.cluster != nil {
		if err := n.cluster.wrap(&ecfg); err != nil {
			return err
		}
	}
	if n.engine, err = engine.New(ecfg); err != nil {
		return err
	}
	if n.cluster != nil {
		if err := n.cluster.attach(ctx); err != nil {
			return err
		}
	} else {
		n.gateway.Attach(n.engine)
	}
	if n.cluster != nil {
		if err := register(n.registry, n.cluster.network.Collectors(), n.cluster.relay.Collectors()); err != nil {
			return err
		}
	}
	return register(n.registry, n.gateway.Collectors(), metrics.Collectors(), n.log.Collectors())
}

// hosts returns the names that the gateway answers to; none means any.
func (n *Node) hosts() []string {
	if len(n.cfg.Hosts) > 0 {
		return n.cfg.Hosts
	}
	if a, ok := n.listener.Addr().(*net.TCPAddr); ok && a.IP.IsLoopback() {
		return []string{"localhost"}
	}
	return nil
}

// openShards brings up the shards, once the table says which. From here on the engine leads
// what this node owns.
func (n *Node) openShards(ctx context.Context) error {
	known := func(s *topology.State) bool { return s.ID != "" }
	if err := n.topology.Wait(ctx, known); err != nil {
		return err
	}
	if nodes := n.topology.State().Present(); n.cluster == nil && len(nodes) > 1 {
		return errNotAlone
	}
	if err := n.shards.start(ctx); err != nil {
		return err
	}
	return register(n.registry, n.shards.collectors())
}

// lead runs the objects of a shard that this node has become the owner of, once the sockets
// are known that other nodes hold for them.
func (n *Node) lead(ctx context.Context, id placement.ShardID, store *shard.Store) {
	if n.cluster == nil {
		n.engine.Lead(ctx, id, store)
		return
	}
	defer n.cluster.relay.End(id, store.Epoch())
	if err := n.cluster.relay.Gather(ctx, id, store.Epoch()); err != nil {
		n.cfg.Logger.Debug("a reign ended before it began", slog.Uint64("shard", uint64(id)), slog.Any("error", err))
		<-ctx.Done() // another owner is known, so this is soon
		return
	}
	n.engine.Lead(ctx, id, store)
}

// flushSockets waits until other nodes have what objects here sent to sockets there.
func (n *Node) flushSockets(ctx context.Context) {
	if n.cluster == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flushSocketsTimeout)
	defer cancel()
	if err := n.cluster.relay.Flush(ctx); err != nil {
		n.cfg.Logger.Debug("sockets may be closed by a hand-over", slog.Any("error", err))
	}
}

// acceptWait is how long a client's handshake waits for what its object on another node sends
// first; the two come on different connections.
const acceptWait = 5 * time.Second

const flushSocketsTimeout = 200 * time.Millisecond

func (n *Node) serve(context.Context) error {
	n.serving.Go(func() { // until the gateway shuts down
		if err := n.gateway.Serve(n.listener); err != nil {
			n.cfg.OnFatal(err)
		}
	})
	return nil
}

// Stop stops the node: it takes no more requests, lets those under way finish, closes the
// sockets with 1001 and makes everything durable. It waits for them no longer than
// [Config.StopTimeout], or until ctx ends, and then cuts them off; their writes
// since the last commit point did not happen. The error says what could not be stopped in good order.
func (n *Node) Stop(ctx context.Context) error {
	n.stop.Do(func() { n.stopErr = n.close(ctx) })
	return n.stopErr
}

// close stops whatever has been started, from the top.
func (n *Node) close(ctx context.Context) error {
	n.leave(ctx)
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.StopTimeout, fmt.Errorf("events are still running after %v", n.cfg.StopTimeout))
	defer cancel()
	var errs []error
	if n.gateway != nil {
		if err := n.gateway.Shutdown(ctx); err != nil {
			n.cfg.Logger.Warn("cut off requests under way", slog.String("reason", err.Error()))
		}
	}
	if n.listener != nil {
		_ = n.listener.Close() // the gateway has closed it, if it got that far
	}
	n.serving.Wait()
	if n.engine != nil {
		if err := n.engine.Stop(ctx); err != nil {
			n.cfg.Logger.Warn("cut off events under way", slog.String("reason", err.Error()))
		}
	}
	if n.shards != nil {
		errs = append(errs, n.shards.stop(ctx))
	}
	if n.cluster != nil {
		n.cluster.relieve(ctx)
	}
	if n.topology != nil {
		errs = append(errs, n.topology.Stop(ctx))
	}
	if n.cluster != nil {
		n.cluster.stop(ctx)
	}
	if n.shards != nil {
		n.shards.close()
	}
	if n.log != nil {
		errs = append(errs, n.log.Close())
	}
	if n.dirs != nil {
		n.dirs.close()
	}
	return errors.Join(errs...)
}

// Caller makes a Node a [durable.Scope].
func (n *Node) Caller() host.Caller {
	if n.cluster != nil {
		return n.cluster.router
	}
	return n.engine
}

// Addr returns the address of the front door.
func (n *Node) Addr() string { return n.listener.Addr().String() }

// ID returns the node's ID, which is as old as its data directory.
func (n *Node) ID() string { return string(n.dirs.id.Node) }

// DataDir returns the directory that the node lives in.
func (n *Node) DataDir() string { return n.dirs.data }

// LogDir returns the directory of the Raft log.
func (n *Node) LogDir() string { return n.dirs.log }

// Ready waits until every shard has an owner, or ctx ends.
func (n *Node) Ready(ctx context.Context) error {
	const step = 2 * time.Millisecond
	tick := time.NewTicker(step)
	defer tick.Stop()
	for {
		if err := n.ready(); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ready returns nil, or which shard has no owner.
func (n *Node) ready() error {
	if id, none := n.shards.unowned(n.table.Shards()); none {
		return fmt.Errorf("shard %d has no owner yet", id)
	}
	return nil
}

// socketReason returns what is wrong without the address, which the sentence has named.
func socketReason(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

var _ durable.Scope = (*Node)(nil)

func register(registry *prometheus.Registry, groups ...[]prometheus.Collector) error {
	for _, g := range groups {
		for _, c := range g {
			if err := registry.Register(c); err != nil {
				return fmt.Errorf("register metrics: %w", err)
			}
		}
	}
	return nil
}
