package replica

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
)

// The members of a group change one at a time, and only by their leader: each change is
// an entry of the log and counts as soon as it is there, and the next one waits until it is
// committed. IDs and addresses of Raft's servers are both node IDs.
//
//	AddNonvoter > Members until CaughtUp > AddVoter > Demote or Remove another one

// Membership is the group as this node knows it.
type Membership struct {
	Index   uint64 // of the entry of the log that made it; a change may insist on it
	Last    uint64 // index of the last entry of this node's log
	Members []Member
}

// A Member is one node of a group.
type Member struct {
	ID    placement.NodeID
	Voter bool

	// What the leader knows of the others, if its transport is one of [Watch]: the index of
	// the last entry of the member's log, and when that was learned, which is when it last answered.
	Last    uint64
	Contact time.Time
}

// Member returns one of the members.
func (m Membership) Member(id placement.NodeID) (Member, bool) {
	i := slices.IndexFunc(m.Members, func(o Member) bool { return o.ID == id })
	if i < 0 {
		return Member{}, false
	}
	return m.Members[i], true
}

// Voters returns the IDs of those that vote.
func (m Membership) Voters() []placement.NodeID {
	var ids []placement.NodeID
	for _, o := range m.Members {
		if o.Voter {
			ids = append(ids, o.ID)
		}
	}
	return ids
}

// A member has caught up if it has answered within contactWithin, lacks no more than
// lagEntries, and has the entry that made the members: then [Replica.Drop] on it knows as much of
// them. A heartbeat, which is how the leader learns of it, is sent several times a second.
const (
	contactWithin = electionTimeout
	lagEntries    = 250
)

// CaughtUp reports whether a member could vote now without holding up commits. Only the
// leader knows it.
func (m Membership) CaughtUp(id placement.NodeID) bool {
	o, ok := m.Member(id)
	return ok && o.Last+lagEntries >= m.Last && o.Last >= m.Index && time.Since(o.Contact) <= contactWithin
}

// Members returns the group as of the last change that was committed and is applied here.
func (r *Replica) Members() Membership {
	index, data := r.cfg.Machine.Configuration()
	m := Membership{Index: index, Last: r.raft.LastIndex()}
	if index == 0 {
		return m
	}
	watch, _ := r.cfg.Transport.(progress)
	for _, s := range raft.DecodeConfiguration(data).Servers {
		o := Member{ID: placement.NodeID(s.ID), Voter: s.Suffrage == raft.Voter}
		if s.ID == r.cfg.NodeID {
			o.Last, o.Contact = m.Last, time.Now()
		} else if watch != nil {
			o.Last, o.Contact = watch.heard(s.ID)
		}
		m.Members = append(m.Members, o)
	}
	return m
}

// AddNonvoter makes a node a member that gets every entry and has no vote. It fails if
// this node does not lead or, unless at is 0, if the members are no longer those of at,
// an index of [Membership]. So do the other changes. When one fails because leadership
// was lost or ctx has ended, it may still come about.
func (r *Replica) AddNonvoter(ctx context.Context, id placement.NodeID, at uint64) error {
	return r.change(ctx, "add", id, func(timeout time.Duration) error {
		return r.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(id), at, timeout).Error()
	})
}

// AddVoter gives a member a vote. It counts at once, so let it catch up before.
func (r *Replica) AddVoter(ctx context.Context, id placement.NodeID, at uint64) error {
	return r.change(ctx, "promote", id, func(timeout time.Duration) error {
		r.alone.addVoter(1)
		defer r.alone.addVoter(-1)
		return r.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(id), at, timeout).Error()
	})
}

// Demote takes a member's vote. A leader does not demote itself: it hands over first.
func (r *Replica) Demote(ctx context.Context, id placement.NodeID, at uint64) error {
	if raft.ServerID(id) == r.cfg.NodeID {
		return fmt.Errorf("demote member %s of %s: %w", id, r.cfg.Name, errSelf)
	}
	return r.change(ctx, "demote", id, func(timeout time.Duration) error {
		return r.raft.DemoteVoter(raft.ServerID(id), at, timeout).Error()
	})
}

// Remove makes a node no member any more. A leader does not remove itself: it hands over
// first.
func (r *Replica) Remove(ctx context.Context, id placement.NodeID, at uint64) error {
	if raft.ServerID(id) == r.cfg.NodeID {
		return fmt.Errorf("remove member %s of %s: %w", id, r.cfg.Name, errSelf)
	}
	return r.change(ctx, "remove", id, func(timeout time.Duration) error {
		return r.raft.RemoveServer(raft.ServerID(id), at, timeout).Error()
	})
}

var errSelf = errors.New("it is the leader itself, which must hand over first")

// change waits for a change of the members. Raft's calls block until the one before is
// committed, hence the goroutine.
func (r *Replica) change(ctx context.Context, what string, id placement.NodeID, propose func(timeout time.Duration) error) error {
	var timeout time.Duration // none
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(deadline), time.Nanosecond)
	}
	answered, err := await(ctx.Done(), func() error { return propose(timeout) })
	if !answered {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s member %s of %s: %w", what, id, r.cfg.Name, err)
	}
	return nil
}

// solitude is whether this node is certainly the only voter of its group, so that nobody
// else can have been elected. It ends before another voter is proposed, which only this node
// can do as long as it lasts; Raft's configuration is the truth, and costs more to ask.
type solitude struct {
	certain atomic.Bool
	mu      sync.Mutex
	adding  int // voters that are being proposed
}

func (s *solitude) addVoter(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.certain.Store(false)
	s.adding += n
}

// renew asks whether it has begun, or is still so.
func (s *solitude) renew(ask func() bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.certain.Store(s.adding == 0 && ask())
}

// await waits for an answer of Raft, which takes no context. If done is closed first, the
// goroutine stays until Raft answers, at the latest when leadership or Raft itself ends.
func await(done <-chan struct{}, answer func() error) (answered bool, err error) {
	answers := make(chan error, 1)
	go func() { answers <- answer() }()
	select {
	case err := <-answers:
		return true, err
	case <-done:
		return false, nil
	}
}

// HandOver makes another voter the leader, and returns when this node does not lead any
// more. What was proposed before is committed first; what waits for its turn meanwhile is
// refused with [host.ErrUnavailable], or goes on here if the other does not take over.
// There is one hand-over at a time.
func (r *Replica) HandOver(ctx context.Context, to placement.NodeID) error {
	if err := r.handOver(ctx, to); err != nil {
		return fmt.Errorf("hand %s over to %s: %w", r.cfg.Name, to, err)
	}
	return nil
}

func (r *Replica) handOver(ctx context.Context, to placement.NodeID) error {
	c := r.committer.Load()
	if _, leads := r.Reign(); !leads {
		return raft.ErrNotLeader
	}
	if m, ok := r.Members().Member(to); !ok || !m.Voter {
		return errors.New("it is no voter of the group")
	}
	// Raft refuses proposals during the transfer. Nobody would hear that, so there are none.
	if err := c.occupy(ctx); err != nil {
		return err
	}
	if r.cfg.OnHandOver != nil {
		r.cfg.OnHandOver(ctx)
	}
	f := r.raft.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to))
	answered, err := await(r.stopping, f.Error) // it takes no longer than an election
	if !answered {
		return ErrStopped
	}
	if err == nil {
		return nil // the end of the reign ends the committer
	}
	r.awaitProposals()
	c.vacate()
	return err
}

// awaitProposals returns when Raft accepts proposals again after a transfer that failed,
// or does not lead any more.
func (r *Replica) awaitProposals() {
	for {
		_, err := await(r.stopping, func() error { return r.raft.Barrier(0).Error() })
		if !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
			return
		}
		time.Sleep(retryAfterTransfer)
	}
}

// retryAfterTransfer is how often it is asked whether a failed transfer is over. Raft
// tells the caller of the failure a moment before.
const retryAfterTransfer = 5 * time.Millisecond

// standstill is the number of flights that never take off; every entry's is lower.
const standstill = math.MaxUint64

// occupy takes every place in flight, each as it becomes free, so that in the end
// everything proposed has been applied and nothing is proposed any more. Batches queue up behind.
func (c *committer) occupy(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.answers.Broadcast()
	})()
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.flights); n > 0 && c.flights[n-1].seq == standstill {
		return raft.ErrLeadershipTransferInProgress
	}
	for c.err == nil && ctx.Err() == nil {
		for c.taken == nil && c.mayFly() { // what is taken has a right to its place
			c.flights = append(c.flights, flight{seq: standstill})
		}
		if len(c.flights) > 0 && c.flights[0].seq == standstill {
			return nil
		}
		c.answers.Wait()
	}
	c.leave()
	return errors.Join(c.err, context.Cause(ctx))
}

// vacate undoes occupy.
func (c *committer) vacate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave()
}

func (c *committer) leave() {
	c.flights = slices.DeleteFunc(c.flights, func(f flight) bool { return f.seq == standstill })
	c.work.Broadcast()
	c.answers.Broadcast()
}

// progress is what a transport of [Watch] adds.
type progress interface {
	heard(id raft.ServerID) (last uint64, contact time.Time)
}

// Watch returns a transport that notes how far the members' logs have come: they say so in
// each answer to a heartbeat, and Raft tells nobody. [Replica.Members] needs it.
func Watch(t Transport) Transport {
	w := &watched{Transport: t, members: make(map[raft.ServerID]heard)}
	if c, ok := t.(Confirmer); ok {
		return watchedConfirmer{w, c}
	}
	return w
}

type watched struct {
	Transport

	mu      sync.Mutex // guards members
	members map[raft.ServerID]heard
}

type heard struct {
	last    uint64
	contact time.Time
}

type watchedConfirmer struct {
	*watched
	Confirmer
}

// AppendEntries sends entries, or a heartbeat.
func (w *watched) AppendEntries(id raft.ServerID, to raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := w.Transport.AppendEntries(id, to, req, resp); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.members[id] = heard{resp.LastLog, time.Now()}
	return nil
}

// Close closes the transport beneath, if it can be closed.
func (w *watched) Close() error {
	if c, ok := w.Transport.(raft.WithClose); ok {
		return c.Close()
	}
	return nil
}

// SetTerm tells the transport beneath how to learn the group's term, if it wants to know:
// it answers the confirmations of others with it.
func (w *watched) SetTerm(term func() uint64) {
	if t, ok := w.Transport.(termed); ok {
		t.SetTerm(term)
	}
}

type termed interface{ SetTerm(term func() uint64) }

func (w *watched) heard(id raft.ServerID) (uint64, time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.members[id]
	return h.last, h.contact
}
