package topology

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
)

// bubble runs a test in virtual time.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, f)
}

// A memTransport carries the group's messages between the nodes of one test.
type memTransport struct{ *raft.InmemTransport }

func (m memTransport) Stand(context.Context) error {
	return m.TimeoutNow("", m.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}, &raft.TimeoutNowResponse{})
}

// A world is the nodes of one test, their network, and shards that follow the table.
type world struct {
	t   *testing.T
	dir string
	mu  sync.Mutex // guards what follows

	nodes  map[placement.NodeID]*node
	away   map[placement.NodeID]bool // cut off from all others
	shards map[placement.ShardID]*group
}

// A group is a shard that does what the table says, after a moment.
type group struct {
	replicas []placement.NodeID
	owner    placement.NodeID
	epoch    placement.Epoch
}

type node struct {
	*Topology
	world     *world
	self      placement.Node
	fs        *vfs.MemFS
	path      string
	log       *raftlog.Log
	transport memTransport
	guests    http.Handler
	members   http.Handler
	fatal     chan error
}

const clusterID = "cluster-1"

func newWorld(t *testing.T) *world {
	w := &world{
		t:      t,
		dir:    t.TempDir(),
		nodes:  make(map[placement.NodeID]*node),
		away:   make(map[placement.NodeID]bool),
		shards: make(map[placement.ShardID]*group),
	}
	t.Cleanup(w.stop)
	return w
}

func record(name string) placement.Node {
	return placement.Node{ID: placement.NodeID(name), Addr: name + ":7000", Version: "0.1.0", State: placement.NodeUp}
}

// found starts the first node of a cluster.
func (w *world) found(name string, shards int) *node {
	w.t.Helper()
	n := w.prepare(name)
	n.start(func(c *Config) { c.Found, c.Shards = true, shards })
	n.until("the cluster is founded", func(s *State) bool { return s.ID == clusterID })
	return n
}

// join starts another node, which joins at any of those that are there.
func (w *world) join(name string) *node {
	w.t.Helper()
	var addrs []string
	w.mu.Lock()
	for _, n := range w.nodes {
		addrs = append(addrs, n.self.Addr)
	}
	w.mu.Unlock()
	slices.Sort(addrs)
	n := w.prepare(name)
	joined, err := Join(w.t.Context(), w.roundTripperTo(n.self.ID), addrs, n.self)
	if err != nil {
		w.t.Fatal(err)
	}
	n.start(func(c *Config) { c.Members = joined.Members })
	return n
}

func (w *world) prepare(name string) *node {
	n := &node{
		world: w,
		self:  record(name),
		fs:    vfs.NewCrashableMem(),
		path:  filepath.Join(w.dir, name),
		fatal: make(chan error, 10),
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[n.self.ID] = n
	return n
}

// start starts a node, or starts it again.
func (n *node) start(change func(*Config)) {
	n.world.t.Helper()
	if err := n.tryStart(change); err != nil {
		n.world.t.Fatal(err)
	}
}

func (n *node) tryStart(change func(*Config)) (err error) {
	if n.log, err = raftlog.Open("log", raftlog.Options{FS: n.fs, MemTableBytes: 4 << 20}); err != nil {
		return err
	}
	_, inmem := raft.NewInmemTransport(raft.ServerAddress(n.self.ID))
	cfg := Config{
		Self:         n.self,
		Cluster:      clusterID,
		Path:         n.path,
		Log:          n.log,
		Transport:    memTransport{inmem},
		RoundTripper: func(to placement.NodeID) http.RoundTripper { return n.world.way(n.self.ID, to) },
		Reporter:     n,
		OnFatal:      func(err error) { n.fatal <- err },
		Logger:       slog.New(slog.NewTextHandler(testLog{n.world.t, n.self.ID}, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	n.transport = memTransport{inmem}
	n.world.heal(n)
	topology, err := Open(context.Background(), cfg)
	if err != nil {
		return errors.Join(err, n.log.Close())
	}
	n.world.mu.Lock()
	defer n.world.mu.Unlock()
	n.Topology, n.members, n.guests = topology, topology.Handler(), topology.Guests()
	return nil
}

// connect makes the way to all that are there.
func (w *world) connect(n *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.nodes {
		if o.transport.InmemTransport == nil || w.away[o.self.ID] {
			continue
		}
		o.transport.Connect(n.transport.LocalAddr(), n.transport.InmemTransport)
		n.transport.Connect(o.transport.LocalAddr(), o.transport.InmemTransport)
	}
}

// cut cuts a node off.
func (w *world) cut(n *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away[n.self.ID] = true
	for _, o := range w.nodes {
		if o != n && o.transport.InmemTransport != nil {
			o.transport.Disconnect(n.transport.LocalAddr())
			n.transport.Disconnect(o.transport.LocalAddr())
		}
	}
}

// heal undoes cut.
func (w *world) heal(n *node) {
	w.mu.Lock()
	delete(w.away, n.self.ID)
	w.mu.Unlock()
	w.connect(n)
}

// stop stops a node in good order.
func (n *node) halt() {
	n.world.t.Helper()
	n.world.cut(n)
	if err := errors.Join(n.Stop(context.Background()), n.log.Close()); err != nil {
		n.world.t.Errorf("stop %s: %v", n.self.ID, err)
	}
	n.world.mu.Lock()
	defer n.world.mu.Unlock()
	n.Topology, n.members, n.guests, n.transport = nil, nil, nil, memTransport{}
}

func (w *world) stop() {
	w.t.Helper()
	for _, n := range w.running() {
		n.halt()
	}
}

func (w *world) running() []*node {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*node
	for _, n := range w.nodes {
		if n.Topology != nil {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b *node) int { return strings.Compare(string(a.self.ID), string(b.self.ID)) })
	return list
}

type roundTripperFunc func(*http.Request) (*http.Response, error)

func (f roundTripperFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// way is the network between two members.
func (w *world) way(from, to placement.NodeID) http.RoundTripper {
	return roundTripperFunc(func(r *http.Request) (*http.Response, error) {
		w.mu.Lock()
		var handler http.Handler
		if n := w.nodes[to]; n != nil && !w.away[from] && !w.away[to] {
			handler = n.members
		}
		w.mu.Unlock()
		return serve(handler, r)
	})
}

// roundTripperTo is the network between a guest and whoever has an address.
func (w *world) roundTripperTo(from placement.NodeID) func(addr string) http.RoundTripper {
	return func(addr string) http.RoundTripper {
		return roundTripperFunc(func(r *http.Request) (*http.Response, error) {
			w.mu.Lock()
			var handler http.Handler
			for _, n := range w.nodes {
				if n.self.Addr == addr && !w.away[from] && !w.away[n.self.ID] {
					handler = n.guests
				}
			}
			w.mu.Unlock()
			return serve(handler, r)
		})
	}
}

func serve(handler http.Handler, r *http.Request) (*http.Response, error) {
	if handler == nil {
		return nil, errors.New("nobody is there")
	}
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, r)
	return answer.Result(), nil
}

// Report makes the node's shards follow the table.
func (n *node) Report() Report {
	w := n.world
	w.mu.Lock()
	defer w.mu.Unlock()
	r := Report{Node: n.self.ID}
	if n.Topology == nil {
		return r
	}
	for i, want := range n.State().Shards {
		g := w.group(placement.ShardID(i), want)
		if g.owner == n.self.ID || w.nodes[g.owner] == nil || w.nodes[g.owner].Topology == nil || w.away[g.owner] {
			g.follow(n.self.ID, want)
		}
		if slices.Contains(g.replicas, n.self.ID) {
			r.Holds = append(r.Holds, placement.ShardID(i))
		}
		if g.owner == n.self.ID {
			r.Leads = append(r.Leads, Leadership{Shard: placement.ShardID(i), Epoch: g.epoch, Members: g.replicas, Voters: g.replicas, CaughtUp: g.replicas})
		}
	}
	return r
}

func (w *world) group(id placement.ShardID, want placement.Shard) *group {
	if w.shards[id] == nil {
		w.shards[id] = &group{slices.Clone(want.Replicas), want.Owner, 1}
	}
	return w.shards[id]
}

// follow is what the owner does, or whoever takes its place.
func (g *group) follow(by placement.NodeID, want placement.Shard) {
	if by != g.owner {
		if !slices.Contains(g.replicas, by) {
			return
		}
		g.owner = by
		g.epoch++
		return
	}
	if !slices.Equal(g.replicas, want.Replicas) {
		g.replicas = slices.Clone(want.Replicas)
	} else if g.owner != want.Owner {
		g.owner = want.Owner
		g.epoch++
	}
}

// until waits for the table of a node, for a bounded time.
func (n *node) until(what string, good func(*State) bool) {
	n.world.t.Helper()
	ctx, cancel := context.WithTimeout(n.world.t.Context(), 5*time.Minute)
	defer cancel()
	if err := n.Wait(ctx, good); err != nil {
		n.world.t.Fatalf("%s: %s: %v", n.self.ID, what, err)
	}
}

// eventually waits for anything else.
func (w *world) eventually(what string, good func() bool) {
	w.t.Helper()
	for range 3000 {
		if good() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.t.Fatalf("not after 5 minutes: %s", what)
}

// leader returns the node that leads the placement group.
func (w *world) leader() *node {
	w.t.Helper()
	var found *node
	w.eventually("the placement group has a leader", func() bool {
		for _, n := range w.running() {
			if n.reign.Load() != nil && !w.away[n.self.ID] {
				found = n
			}
		}
		return found != nil
	})
	return found
}

// voters waits until so many vote in the placement group.
func (w *world) voters(want int) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%d nodes vote", want), func() bool {
		return len(w.leader().Members().Voters()) == want
	})
}

// settled waits until every shard has so many replicas on nodes that are up, and its group
// is as the table says.
func (w *world) settled(replicas int) {
	w.t.Helper()
	w.eventually("the shards have settled", func() bool {
		s := w.leader().State()
		for i, want := range s.Shards {
			w.mu.Lock()
			is := *w.group(placement.ShardID(i), want)
			w.mu.Unlock()
			if len(want.Replicas) != replicas || !slices.Equal(is.replicas, want.Replicas) || is.owner != want.Owner {
				return false
			}
			for _, r := range want.Replicas {
				if s.Nodes[r].State != placement.NodeUp {
					return false
				}
			}
		}
		return true
	})
}

// testLog writes what a node logs into the test's log.
type testLog struct {
	t    *testing.T
	node placement.NodeID
}

func (l testLog) Write(p []byte) (int, error) {
	if testing.Verbose() {
		l.t.Logf("%s %s", l.node, p)
	}
	return len(p), nil
}

var _ replica.Transport = memTransport{}
