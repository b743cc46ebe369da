// Package topology is the cluster's table: which nodes there are, who should hold each
// shard, and what an operator has set. The table is replicated by a Raft group of its own,
// the placement group; every node has it whole. It promises:
//
//   - a change that was answered with nil is on the disks of a quorum of the group;
//   - every node comes to the same tables in the same order; a [State] never changes;
//   - a node that was removed stays removed: its ID is never used again;
//   - the table only says who should hold and lead a shard. Who does, Raft alone
//     decides; nothing here makes a node an owner.
//
// The group's leader looks at all nodes once a second, asks the pure rules of package
// placement what should change, and proposes that. It also decides who votes in the group
// itself; every other node is a member without a vote.
//
//	PutNode, Drain, ... > leader > entry > quorum > State.with > Changed
//	leader, once a second: ask every node > View > placement.Plan > moves
//	                                      > nextStep > one change of the group's members
//
// A cluster begins with one node that founds it ([Config.Found]); which one, if several
// start together, [Forming] decides. The others [Join].
package topology

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
)

// Group is the number of the placement group in the node's log and its transport.
const Group = 0

// Config says what a [Topology] is part of. All fields without a default are required.
type Config struct {
	Self    placement.Node // as the others are to know it
	Cluster string         // the ID of the cluster
	Path    string         // of the table's file

	// Found makes this node the first of a new cluster with that many shards, all of which it holds. It
	// does nothing once there is a table.
	Found  bool
	Shards int
	// Members are the nodes named in the answer to [Join]. They are asked until the table has come.
	Members []placement.Node

	Log       *raftlog.Log
	Transport replica.Transport // of the placement group
	Flusher   *replica.Flusher  // default: the table is flushed by Stop only
	// RoundTripper returns the way to another member's [Topology.Handler]. Without it the node
	// runs alone: Open fails with [ErrOthers] if the table names other nodes.
	RoundTripper func(placement.NodeID) http.RoundTripper
	Reporter     Reporter // what this node says of itself; default: nothing

	// OnFatal is called when the node cannot go on in this cluster: its disk failed, or it was
	// removed. Default: exit with status 1.
	OnFatal func(error)

	Logger  *slog.Logger     // default: discard
	Metrics *replica.Metrics // default: not registered anywhere
}

// A Topology is this node's copy of the table, and its part in the placement group. Its
// methods may be called from any goroutine.
type Topology struct {
	cfg     Config
	log     *slog.Logger
	machine *machine
	replica *replica.Replica

	reign  atomic.Pointer[replica.Reign] // while this node leads the group
	health atomic.Pointer[Health]        // what it then sees
	wake   chan struct{}                 // makes the leader look at once
	opened chan struct{}                 // closed when replica is set

	mu        sync.Mutex                  // guards what follows
	suspicion uint64                      // number of the last one
	suspects  map[placement.NodeID]uint64 // and each node's last one

	retract context.CancelFunc // ends announce
	running sync.WaitGroup     // the goroutine of announce, stopped by Stop
	stop    sync.Once
	stopErr error
}

// Open brings up this node's part of the placement group. It returns before there is a
// leader, or a table if the node has just joined: use [Topology.Wait]. Whenever it starts, the
// node tells the others where it is, and that it is there.
func Open(ctx context.Context, cfg Config) (*Topology, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.OnFatal == nil {
		cfg.OnFatal = func(error) { os.Exit(1) }
	}
	if cfg.Reporter == nil {
		cfg.Reporter = silent{cfg.Self.ID}
	}
	t := &Topology{
		cfg:      cfg,
		log:      cfg.Logger,
		wake:     make(chan struct{}, 1),
		opened:   make(chan struct{}),
		suspects: make(map[placement.NodeID]uint64),
	}
	if err := t.open(ctx); err != nil {
		return nil, fmt.Errorf("open the placement table: %w", err)
	}
	close(t.opened)
	var announcing context.Context
	announcing, t.retract = context.WithCancel(context.WithoutCancel(ctx))
	t.running.Go(func() { t.announce(announcing) })
	return t, nil
}

func (t *Topology) open(ctx context.Context) (err error) {
	if t.machine, err = openMachine(t.cfg.Path); err != nil {
		return err
	}
	if others := len(t.State().Present()) - 1; others > 0 && t.cfg.RoundTripper == nil {
		return fmt.Errorf("%w: %d", ErrOthers, others)
	}
	if t.cfg.RoundTripper == nil {
		t.cfg.RoundTripper = nowhere
	}
	if id := t.State().ID; id != "" && id != t.cfg.Cluster {
		return fmt.Errorf("%s is of cluster %s, and this node of cluster %s", t.cfg.Path, id, t.cfg.Cluster)
	}
	t.replica, err = replica.Open(ctx, replica.Config{
		Name:      "placement",
		NodeID:    raft.ServerID(t.cfg.Self.ID),
		Log:       t.cfg.Log.Group(Group),
		Transport: replica.Watch(t.cfg.Transport),
		Machine:   t.machine,
		Flusher:   t.cfg.Flusher,
		Join:      !t.cfg.Found,
		Lead:      t.lead,
		OnFatal:   t.cfg.OnFatal,
		Logger:    t.cfg.Logger,
		Metrics:   t.cfg.Metrics,

		LogBytes:    logBytes,
		SnapshotDir: filepath.Dir(t.cfg.Path),
	})
	return err
}

// ErrOthers means that a node that is one of several was told to run alone.
var ErrOthers = errors.New("the cluster has other nodes")

// nowhere is the way to others of a node that runs alone. It is only asked for if the log knows
// of others and the table's file does not yet.
func nowhere(placement.NodeID) http.RoundTripper { return unreachable{} }

type unreachable struct{}

func (unreachable) RoundTrip(*http.Request) (*http.Response, error) { return nil, ErrOthers }

// logBytes is the log kept for members that lag. The whole table is not much larger.
const logBytes = 4 << 20

// announce puts this node's record into the table. It is not enough that the table known
// here has it: the others may have removed the node meanwhile.
func (t *Topology) announce(ctx context.Context) {
	self := t.cfg.Self
	self.State = placement.NodeUp
	for {
		switch err := t.introduce(ctx, self); {
		case err == nil || ctx.Err() != nil:
			return
		case errors.As(err, new(Refusal)):
			t.fatal(err)
			return
		default:
			t.log.Warn("the cluster does not know yet that this node is here", slog.String("reason", err.Error()))
		}
	}
}

func (t *Topology) introduce(ctx context.Context, self placement.Node) error {
	if t.cfg.Found { // the founding itself may be under way
		if err := t.Wait(ctx, func(s *State) bool { return s.ID != "" }); err != nil {
			return err
		}
	}
	return t.PutNode(ctx, self)
}

func (t *Topology) fatal(err error) {
	t.log.Error("this node cannot be part of the cluster", slog.String("reason", err.Error()))
	t.cfg.OnFatal(err)
}

// State returns the table as it is known here. It is never nil.
func (t *Topology) State() *State {
	s, _ := t.machine.state()
	return s
}

// Changed returns a channel that is closed when the table known here is another one than
// now. Ask for it before State.
func (t *Topology) Changed() <-chan struct{} {
	_, changed := t.machine.state()
	return changed
}

// Wait waits until the table known here is good enough, or ctx ends.
func (t *Topology) Wait(ctx context.Context, good func(*State) bool) error {
	for {
		s, changed := t.machine.state()
		if good(s) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the placement table: %w", context.Cause(ctx))
		}
	}
}

// Node returns what is known of a node: from the table or, until that has come, from the
// answer to Join.
func (t *Topology) Node(id placement.NodeID) (placement.Node, bool) {
	s := t.State()
	if n, ok := s.Nodes[id]; ok || s.ID != "" {
		return n, ok
	}
	for _, n := range t.cfg.Members {
		if n.ID == id {
			return n, true
		}
	}
	return placement.Node{}, false
}

// Leader returns the node that is known to lead the placement group, if one is.
func (t *Topology) Leader() (placement.NodeID, bool) {
	id, _ := t.replica.Leader()
	return placement.NodeID(id), id != ""
}

// Members returns the placement group as it is known here.
func (t *Topology) Members() replica.Membership { return t.replica.Members() }

// Suspect tells that a node may be gone: a connection to it was refused, or the gossip
// says so. If this node leads the placement group, it asks the suspect at once, and without an answer
// takes it for down.
func (t *Topology) Suspect(id placement.NodeID) {
	t.mu.Lock()
	t.suspicion++
	t.suspects[id] = t.suspicion
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Stop waits so long for another one to lead the group, and asks so often who could.
const (
	handOverTimeout = 2 * time.Second
	heirPause       = 20 * time.Millisecond
)

// Stop hands over the group's leadership, if it has it and there is an heir, and makes the
// table durable. It waits no longer than ctx lasts for changes under way. It may be called twice.
func (t *Topology) Stop(ctx context.Context) error {
	t.stop.Do(func() {
		t.retract()
		t.running.Wait()
		t.abdicate(ctx)
		t.stopErr = t.replica.Stop(ctx)
	})
	return t.stopErr
}

// abdicate hands over to a voter that has caught up. If this node was elected a moment ago,
// the others have yet to say that they have.
func (t *Topology) abdicate(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	for t.reign.Load() != nil && ctx.Err() == nil {
		members := t.replica.Members()
		if len(members.Voters()) < 2 {
			return
		}
		if heir, ok := t.heir(members); ok {
			if err := t.replica.HandOver(ctx, heir); err != nil {
				t.log.Warn("the placement group must elect a leader", slog.String("reason", err.Error()))
			}
			return
		}
		pause(ctx, heirPause)
	}
}

// heir returns who should lead after this node: preferably one that does not leave itself.
func (t *Topology) heir(members replica.Membership) (heir placement.NodeID, ok bool) {
	s := t.State()
	for _, id := range members.Voters() {
		if id == t.cfg.Self.ID || !members.CaughtUp(id) {
			continue
		}
		if heir, ok = id, true; s.Nodes[id].State == placement.NodeUp {
			break
		}
	}
	return heir, ok
}
