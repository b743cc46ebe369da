package transport

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
)

// A Group is the transport of one Raft group. Addresses are node IDs: where a node is, is
// found out when it is dialled. Its methods may be called from any goroutine.
type Group struct {
	net  *Network
	id   uint64
	rpcs chan raft.RPC

	control, bulk chan request // to be given to Raft by serve
	current       atomic.Pointer[func() uint64]
	confirmer     confirmer

	closed    chan struct{}
	closing   sync.Once
	mu        sync.Mutex         // guards snapshots
	snapshots map[*conn]struct{} // being sent or received
}

var (
	_ raft.Transport   = (*Group)(nil)
	_ raft.WithPreVote = (*Group)(nil)
	_ raft.WithClose   = (*Group)(nil)
)

// queueLength is how many messages of one kind wait for a group. It is more than the leader's
// pipeline sends; what comes above is refused.
const queueLength = 16

// Raft returns the transport of a group of this node. It takes the place of an earlier one of
// the same number, which is closed. Raft closes it when it shuts down; a goroutine
// serves it until then, or until the Network stops.
func (n *Network) Raft(group uint64) *Group {
	g := &Group{
		net:       n,
		id:        group,
		rpcs:      make(chan raft.RPC),
		control:   make(chan request, queueLength),
		bulk:      make(chan request, queueLength),
		closed:    make(chan struct{}),
		snapshots: make(map[*conn]struct{}),
	}
	g.confirmer.group = g
	n.mu.Lock()
	earlier := n.groups[group]
	n.groups[group] = g
	n.mu.Unlock()
	if earlier != nil {
		_ = earlier.Close()
	}
	if !n.run(g.serve) {
		_ = g.Close()
	}
	return g
}

// Close ends the group: what is under way fails. It may be called before Raft is shut down,
// so that Raft need not wait for a peer, and twice.
func (g *Group) Close() error {
	g.closing.Do(func() {
		close(g.closed)
		g.net.mu.Lock()
		if g.net.groups[g.id] == g {
			delete(g.net.groups, g.id)
		}
		g.net.mu.Unlock()
		g.mu.Lock()
		defer g.mu.Unlock()
		for c := range g.snapshots {
			c.kill()
		}
	})
	return nil
}

func (g *Group) isClosed() bool {
	select {
	case <-g.closed:
		return true
	default:
		return false
	}
}

// SetTerm says how to learn the group's current term, which is [raft.Raft.CurrentTerm] of this
// member. Without it the member confirms no reads, neither its own nor those of others.
func (g *Group) SetTerm(term func() uint64) { g.current.Store(&term) }

func (g *Group) term() (uint64, bool) {
	term := g.current.Load()
	if term == nil {
		return 0, false
	}
	return (*term)(), true
}

// Stand makes this member stand for election now. Elections are always safe; this only saves
// the wait for a leader of whom it is known that there is none.
func (g *Group) Stand(ctx context.Context) error { return stand(ctx, g.rpcs, g.closed) }

// Consumer returns the messages to this member.
func (g *Group) Consumer() <-chan raft.RPC { return g.rpcs }

// LocalAddr returns this node's ID.
func (g *Group) LocalAddr() raft.ServerAddress { return raft.ServerAddress(g.net.cfg.Self) }

// SetHeartbeatHandler does nothing; the package comment says why.
func (g *Group) SetHeartbeatHandler(func(raft.RPC)) {}

// EncodePeer returns an address as Raft stores it.
func (g *Group) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

// DecodePeer is the inverse of EncodePeer.
func (g *Group) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// AppendEntries sends entries, or a heartbeat. Of more entries than Config.AppendBytes it sends the
// first, and shortens the request accordingly: Raft sends the rest next.
func (g *Group) AppendEntries(id raft.ServerID, _ raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if len(req.Entries) == 0 {
		return g.ask(id, kindAppend, req, resp)
	}
	size, err := g.net.shorten(req)
	if err == nil {
		err = g.send(id, g.net.peer(placement.NodeID(id)).bulk, kindAppend, req, resp, g.net.appendTimeout(size))
	}
	return err
}

// RequestVote asks for a vote.
func (g *Group) RequestVote(id raft.ServerID, _ raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return g.ask(id, kindVote, req, resp)
}

// RequestPreVote asks whether there would be a vote.
func (g *Group) RequestPreVote(id raft.ServerID, _ raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return g.ask(id, kindPreVote, req, resp)
}

// TimeoutNow asks a member to stand for election.
func (g *Group) TimeoutNow(id raft.ServerID, _ raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return g.ask(id, kindTimeoutNow, req, resp)
}

// AppendEntriesPipeline sends entries without waiting for the answers to those before.
func (g *Group) AppendEntriesPipeline(id raft.ServerID, _ raft.ServerAddress) (raft.AppendPipeline, error) {
	l, err := g.net.peer(placement.NodeID(id)).bulk.get(g.net.cfg.ControlTimeout)
	if err != nil {
		return nil, describe(id, kindAppend, err)
	}
	return newPipeline(g, l), nil
}

// InstallSnapshot sends a snapshot.
func (g *Group) InstallSnapshot(id raft.ServerID, _ raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if err := g.sendSnapshot(placement.NodeID(id), req, resp, data); err != nil {
		return describe(id, kindSnapshot, err)
	}
	return nil
}

// ask sends a small request, whose answer is awaited no longer than a follower waits for its leader.
func (g *Group) ask(id raft.ServerID, k kind, req, resp any) error {
	return g.send(id, g.net.peer(placement.NodeID(id)).control, k, req, resp, g.net.cfg.ControlTimeout)
}

func (g *Group) send(id raft.ServerID, lane *lane, k kind, req, resp any, timeout time.Duration) error {
	if g.isClosed() {
		return ErrClosed
	}
	l, err := lane.get(timeout)
	if err == nil {
		err = l.ask(g.id, k, req, resp, timeout)
	}
	if err != nil {
		return describe(id, k, err)
	}
	return nil
}

func describe(id raft.ServerID, k kind, err error) error {
	what := map[kind]string{
		kindAppend: "entries", kindVote: "a request for a vote", kindPreVote: "a request for a pre-vote",
		kindTimeoutNow: "a hand-over", kindSnapshot: "a snapshot",
	}[k]
	return fmt.Errorf("send %s to node %s: %w", what, id, err)
}

// shorten leaves as many entries in a request as may go at once, and returns their size. Raft looks
// at the request again when it counts what a follower has.
func (n *Network) shorten(req *raft.AppendEntriesRequest) (size int, err error) {
	for i, e := range req.Entries {
		more := len(e.Data) + len(e.Extensions) + entryOverhead
		if i == 0 && more > maxFrame-frameOverhead {
			return 0, fmt.Errorf("entry %d has %d bytes, more than a message may have", e.Index, more)
		}
		if i > 0 && size+more > n.cfg.AppendBytes {
			req.Entries = req.Entries[:i]
			break
		}
		size += more
	}
	return size, nil
}

const (
	entryOverhead = 48      // what an entry takes besides its data, at most
	frameOverhead = 4 << 10 // likewise a request
)

func (n *Network) appendTimeout(size int) time.Duration {
	return n.cfg.AppendTimeout + time.Duration(size>>20)*time.Second
}
