package shard

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// A memTransport carries the messages of one shard's group in memory.
type memTransport struct{ *raft.InmemTransport }

func (m memTransport) Stand(context.Context) error {
	return m.TimeoutNow("", m.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}, &raft.TimeoutNowResponse{})
}

// A cluster is some nodes with a replica of one shard each, and the record of where
// the shard should be.
type cluster struct {
	t     *testing.T
	dir   string
	nodes map[placement.NodeID]*clusterNode

	mu      sync.Mutex // guards what follows
	want    placement.Shard
	changed chan struct{}
	unfit   map[placement.NodeID]bool
}

// A slowFS takes its time for the fsyncs of the log.
type slowFS struct {
	vfs.FS
	fsync *atomic.Int64
}

func (fs slowFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, c)
	return slowFile{f, fs.fsync}, err
}

type slowFile struct {
	vfs.File
	fsync *atomic.Int64
}

func (f slowFile) SyncData() error {
	time.Sleep(time.Duration(f.fsync.Load()))
	return f.File.SyncData()
}

type clusterNode struct {
	*Shard
	cfg    Config
	log    *raftlog.Log
	fsync  atomic.Int64 // how long one takes
	trans  memTransport
	stores chan *Store
	last   *Store
	stop   context.CancelFunc
	steers sync.WaitGroup
}

// newCluster starts nodes, of which the first founds the shard.
func newCluster(t *testing.T, ids ...placement.NodeID) *cluster {
	t.Helper()
	c := &cluster{
		t: t, dir: t.TempDir(), nodes: map[placement.NodeID]*clusterNode{},
		want:    placement.Shard{Replicas: ids[:1], Owner: ids[0]},
		changed: make(chan struct{}), unfit: map[placement.NodeID]bool{},
	}
	for i, id := range ids {
		n := &clusterNode{stores: make(chan *Store, 100)}
		log, err := raftlog.Open("log", raftlog.Options{FS: slowFS{vfs.NewMem(), &n.fsync}, MemTableBytes: 4 << 20})
		if err != nil {
			t.Fatal(err)
		}
		n.log = log
		n.cfg = Config{
			NodeID:  id,
			Path:    filepath.Join(c.dir, string(id), "shard.db"),
			Log:     log,
			Join:    i > 0,
			OnFatal: func(err error) { t.Error(err) },
			Lead: func(ctx context.Context, _ placement.ShardID, store *Store) {
				n.stores <- store
				<-ctx.Done()
			},
		}
		makeDir(t, filepath.Dir(n.cfg.Path))
		c.nodes[id] = n
		c.start(id)
	}
	return c
}

// start opens a node's replica and connects it with the others.
func (c *cluster) start(id placement.NodeID) {
	c.t.Helper()
	n := c.nodes[id]
	_, trans := raft.NewInmemTransport(raft.ServerAddress(id))
	n.trans = memTransport{trans}
	n.cfg.Transport = n.trans
	for _, o := range c.nodes {
		if o.trans.InmemTransport != nil {
			o.trans.Connect(n.trans.LocalAddr(), n.trans.InmemTransport)
			n.trans.Connect(o.trans.LocalAddr(), o.trans.InmemTransport)
		}
	}
	s, err := Open(c.t.Context(), n.cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	n.Shard = s
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	n.steers.Go(func() {
		s.Steer(ctx, Steering{
			Want:    func() placement.Shard { c.mu.Lock(); defer c.mu.Unlock(); return c.want },
			Changed: func() <-chan struct{} { c.mu.Lock(); defer c.mu.Unlock(); return c.changed },
			Fit:     func(id placement.NodeID) bool { c.mu.Lock(); defer c.mu.Unlock(); return !c.unfit[id] },
			Slow:    n.log.Slow,
		})
	})
}

// cut takes a node off the network.
func (c *cluster) cut(id placement.NodeID) {
	for _, o := range c.nodes {
		o.trans.Disconnect(raft.ServerAddress(id))
	}
	c.nodes[id].trans.DisconnectAll()
}

// change changes the record, or what is known of the nodes.
func (c *cluster) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *cluster) wish(owner placement.NodeID, replicas ...placement.NodeID) {
	c.change(func() { c.want = placement.Shard{Replicas: replicas, Owner: owner} })
}

// settle waits until the group is as it is wanted, and returns the owner's report.
func (c *cluster) settle(within time.Duration) Report {
	c.t.Helper()
	var last Report
	for began := time.Now(); time.Since(began) < within; time.Sleep(50 * time.Millisecond) {
		for id, n := range c.nodes {
			if r := n.Report(); r.Leads {
				last = r
				voters := r.Voters()
				slices.Sort(voters)
				if id == c.want.Owner && len(r.Members) == len(voters) && slices.Equal(voters, c.want.Replicas) {
					return r
				}
			}
		}
	}
	c.t.Fatalf("after %v the shard is %+v, not %+v", within, last, c.want)
	return last
}

// store returns the store of the last reign that has begun on a node.
func (c *cluster) store(id placement.NodeID) (store *Store) {
	c.t.Helper()
	select {
	case store = <-c.nodes[id].stores:
	case <-time.After(30 * time.Second):
		c.t.Fatalf("%s does not lead", id)
	}
	for len(c.nodes[id].stores) > 0 {
		store = <-c.nodes[id].stores
	}
	return store
}

// storeNow returns the store of a reign that may not be new.
func (c *cluster) storeNow(id placement.NodeID) *Store {
	n := c.nodes[id]
	for len(n.stores) > 0 {
		n.last = <-n.stores
	}
	return n.last
}

func (c *cluster) stop() {
	c.t.Helper()
	for _, n := range c.nodes {
		n.stop()
		n.steers.Wait()
	}
	for _, n := range c.nodes {
		if err := n.Stop(c.t.Context()); err != nil {
			c.t.Error(err)
		}
		if err := n.log.Close(); err != nil {
			c.t.Error(err)
		}
	}
}

// same compares what the wanted replicas have applied.
func (c *cluster) same() {
	c.t.Helper()
	time.Sleep(2 * time.Second)
	synctest.Wait()
	index, hash := c.nodes[c.want.Owner].Digest()
	for _, id := range c.want.Replicas {
		if i, h := c.nodes[id].Digest(); i != index || h != hash {
			c.t.Errorf("%s is at %d %x, %s at %d %x", c.want.Owner, index, hash, id, i, h)
		}
	}
}

// TestSteer takes a shard through the life of a cluster: it grows, a node is replaced, the
// owner leaves, another node dies.
func TestSteer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c", "d", "e")
		id := placement.NamedID("test", "x")
		if err := put(c.store("a"), id, "k", "v"); err != nil {
			t.Fatal(err)
		}
		c.wish("a", "a", "b", "c")
		c.settle(20 * time.Second)
		c.same()

		c.wish("a", "a", "b", "d") // c is replaced
		c.settle(20 * time.Second)
		c.same()

		c.wish("b", "a", "b", "d") // a planned hand-over
		c.settle(10 * time.Second)
		if err := put(c.store("b"), id, "k", "v2"); err != nil {
			t.Fatal(err)
		}

		c.wish("e", "a", "d", "e") // the owner leaves for a new one
		c.settle(30 * time.Second)
		c.same()

		c.change(func() { c.unfit["d"] = true }) // d dies, and b takes its place
		c.cut("d")
		c.wish("e", "a", "b", "e")
		c.settle(30 * time.Second)
		c.same()
		if v, ok, err := c.store("e").Get(id, storage.SpaceKey, "k"); string(v) != "v2" || !ok || err != nil {
			t.Errorf("got %q, %v, %v", v, ok, err)
		}

		c.wish("a", "a")
		c.settle(20 * time.Second)
		c.stop()
	})
}

// TestSlowOwnerHandsOver while its disk is slow and gets the shard back when it is not any
// more. As the nodes tell each other, a slow one is not fit.
func TestSlowOwnerHandsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c")
		c.wish("a", "a", "b", "c")
		c.settle(20 * time.Second)
		a := c.nodes["a"]
		id := placement.NamedID("test", "x")
		work := func(d time.Duration) (owner placement.NodeID, slowest time.Duration) {
			for began := time.Now(); time.Since(began) < d; time.Sleep(10 * time.Millisecond) {
				c.change(func() { c.unfit["a"] = a.log.Slow() })
				for node, n := range c.nodes {
					if _, leads := n.Reign(); !leads {
						continue
					}
					if node != owner {
						owner, slowest = node, 0
					}
					start := time.Now()
					if put(c.storeNow(node), id, "k", "v") == nil {
						slowest = max(slowest, time.Since(start))
					}
				}
			}
			return owner, slowest
		}
		if owner, _ := work(10 * time.Second); owner != "a" {
			t.Errorf("%s leads", owner)
		}
		a.fsync.Store(int64(60 * time.Millisecond))
		if owner, took := work(time.Minute); owner == "a" || took > 10*time.Millisecond {
			t.Errorf("%s leads, and a commit takes %v", owner, took)
		}
		a.fsync.Store(0)
		if owner, _ := work(30 * time.Second); owner != "a" {
			t.Errorf("%s leads though the owner's disk is fast again", owner)
		}
		c.stop()
	})
}

func TestReport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "a", "b")
		c.store("a")
		r := c.nodes["a"].Report()
		if !r.Leads || r.Leader != "a" || r.Epoch == 0 || r.Index == 0 || fmt.Sprint(r.Members) != "[{a true true}]" {
			t.Errorf("the owner reports %+v", r)
		}
		if r.Lacks("a") || !r.Lacks("b") {
			t.Error("the owner does not know its members")
		}
		if r := c.nodes["b"].Report(); r.Leads || r.Lacks("b") || len(r.Members) != 0 {
			t.Errorf("a node without anything reports %+v", r)
		}
		c.stop()
	})
}

// TestDropAndComeBack: a replica that was dropped is made anew when it is wanted again.
func TestDropAndComeBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c")
		id := placement.NamedID("test", "x")
		store := c.store("a")
		c.wish("a", "a", "b", "c")
		c.settle(20 * time.Second)
		if err := put(store, id, "k", "v"); err != nil {
			t.Fatal(err)
		}
		c.wish("a", "a", "b")
		r := c.settle(20 * time.Second)
		if !r.Lacks("c") {
			t.Fatalf("the owner reports %+v", r)
		}
		n := c.nodes["c"]
		n.stop()
		n.steers.Wait()
		if held, err := Holds(n.log, 0, n.cfg.Path); !held || err != nil {
			t.Errorf("before: %v, %v", held, err)
		}
		if err := n.Drop(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if held, err := Holds(n.log, 0, n.cfg.Path); held || err != nil {
			t.Errorf("after: %v, %v", held, err)
		}
		c.start("c")
		if index, _ := n.Digest(); index != 0 {
			t.Errorf("it is at %d", index)
		}
		c.wish("c", "a", "b", "c")
		c.settle(20 * time.Second)
		c.same()
		if v, ok, err := c.store("c").Get(id, storage.SpaceKey, "k"); string(v) != "v" || !ok || err != nil {
			t.Errorf("got %q, %v, %v", v, ok, err)
		}
		// Dropping it with the old report is refused, and nothing is lost.
		n.stop()
		n.steers.Wait()
		if err := n.Drop(t.Context(), r); !errors.Is(err, replica.ErrMember) {
			t.Errorf("a voter was dropped: %v", err)
		}
		c.start("c")
		time.Sleep(10 * time.Second)
		c.settle(20 * time.Second)
		c.same()
		c.stop()
	})
}

// TestYield: a node that stops gives what it owns to another one, or says that there is none.
func TestYield(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c")
		c.store("a")
		if err := c.nodes["a"].Yield(t.Context(), nil); !errors.Is(err, errNobody) {
			t.Errorf("got %v", err)
		}
		c.wish("a", "a", "b", "c")
		c.settle(20 * time.Second)
		time.Sleep(time.Second) // until c is known to have caught up
		began := time.Now()
		if err := c.nodes["a"].Yield(t.Context(), func(id placement.NodeID) bool { return id != "b" }); err != nil {
			t.Error(err)
		}
		c.store("c")
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		if err := c.nodes["a"].Yield(t.Context(), nil); err != nil {
			t.Errorf("a node that does not lead: %v", err)
		}
		c.stop()
	})
}
