package topology

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
)

// Timing of the leader's watch.
const (
	roundEvery    = time.Second
	roundsApart   = 100 * time.Millisecond // even if there is news all the time
	askTimeout    = time.Second
	askedAtOnce   = 32
	downAfter     = 3 * time.Second // without an answer; at once, if the node is suspected
	newcomerPause = 3 * time.Second // without plans, after a node has joined
	planTimeout   = 5 * time.Second
	stepTimeout   = 5 * time.Second
	stepsAtOnce   = 16 // changes of the group's members in one round
)

// lead is the reign over the placement group.
func (t *Topology) lead(ctx context.Context, reign *replica.Reign) {
	select {
	case <-t.opened:
	case <-ctx.Done():
		return
	}
	t.reign.Store(reign)
	defer t.reign.Store(nil)
	defer t.health.Store(nil)
	o := &overseer{
		Topology: t,
		since:    time.Now(),
		noticed:  make(map[placement.NodeID]time.Time),
		seen:     make(map[placement.NodeID]time.Time),
		reports:  make(map[placement.NodeID]Report),
		silent:   make(map[placement.NodeID]bool),
		states:   make(map[placement.NodeID]condition),
	}
	for ctx.Err() == nil {
		changed := t.Changed()
		o.round(ctx)
		pause(ctx, roundsApart)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-t.wake:
		case <-time.After(roundEvery - roundsApart):
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// An overseer is what a leader of the placement group remembers during its reign. It
// believes nobody to be down until it has itself missed the node for long enough.
type overseer struct {
	*Topology
	since   time.Time
	noticed map[placement.NodeID]time.Time // when each node was first in the table
	seen    map[placement.NodeID]time.Time // when each node last answered
	reports map[placement.NodeID]Report    // what it then said
	silent  map[placement.NodeID]bool      // did not answer in this round
	states  map[placement.NodeID]condition
}

// A condition is whether a member is caught up, and since when.
type condition struct {
	well  bool
	since time.Time
	was   time.Time // since when it had been well before
}

// blink is how long a member may lag and still have been well all the time: every change of
// the members makes all of them lag for a moment, and those that are to vote together would not.
const blink = 2 * roundEvery

// round looks at everything once, and changes what is to be changed.
func (o *overseer) round(ctx context.Context) {
	if s := o.State(); s.ID == "" {
		o.found(ctx)
		return
	}
	o.ask(ctx)
	if ctx.Err() != nil {
		return
	}
	o.steer(ctx)
	s := o.State()
	view, led := o.view(s)
	o.publish(s, view, led)
	o.plan(ctx, s, view)
	o.bury(ctx, s, view)
}

// found makes the first table.
func (o *overseer) found(ctx context.Context) {
	if !o.cfg.Found {
		return
	}
	self := o.cfg.Self
	self.State = placement.NodeUp
	o.attempt(ctx, "found the cluster", command{Found: &founding{o.cfg.Cluster, o.cfg.Shards, self}})
}

// attempt commits a command of the leader's own. What comes of it the next round will see.
func (o *overseer) attempt(ctx context.Context, what string, c command) {
	ctx, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	if err := o.commit(ctx, c); err != nil && ctx.Err() == nil {
		o.log.Warn("the placement table was not changed", slog.String("change", what), slog.String("reason", err.Error()))
	}
}

// ask asks every node for its report.
func (o *overseer) ask(ctx context.Context) {
	nodes := o.State().Present()
	before := o.suspicions()
	reports, errs := make([]Report, len(nodes)), make([]error, len(nodes))
	slots := make(chan struct{}, askedAtOnce)
	var wg sync.WaitGroup
	for i, n := range nodes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			reports[i], errs[i] = o.report(ctx, n.ID)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	if len(o.noticed) == 0 { // those that were there before
		for _, n := range nodes {
			o.noticed[n.ID] = o.since
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, n := range nodes {
		if _, ok := o.noticed[n.ID]; !ok {
			o.noticed[n.ID] = now
		}
		if o.silent[n.ID] = errs[i] != nil; !o.silent[n.ID] {
			o.seen[n.ID], o.reports[n.ID] = now, reports[i]
			if o.suspects[n.ID] == before[n.ID] { // else it was suspected after it was asked
				delete(o.suspects, n.ID)
			}
		}
	}
	maps.DeleteFunc(o.suspects, func(id placement.NodeID, _ uint64) bool { // of the others nobody asks
		return !slices.ContainsFunc(nodes, func(n placement.Node) bool { return n.ID == id })
	})
}

func (o *overseer) suspicions() map[placement.NodeID]uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.suspects)
}

// lastSeen returns when a node last answered or, if it has not, since when it is missed.
func (o *overseer) lastSeen(id placement.NodeID) time.Time {
	if at, ok := o.seen[id]; ok {
		return at
	}
	return o.noticed[id]
}

// down reports whether a node that does not answer is to be taken for down. One that has
// just joined is, until it answers: nothing is to be given to it before.
func (o *overseer) down(id placement.NodeID, away time.Duration) bool {
	_, answered := o.seen[id]
	return away >= downAfter || o.suspects[id] > 0 || !answered && o.noticed[id] != o.since
}

// view returns what the planner is to know, and who leads each shard.
func (o *overseer) view(s *State) (placement.View, map[placement.ShardID]lead) {
	v := placement.View{
		Lost:   make(map[placement.NodeID]bool),
		Down:   make(map[placement.NodeID]bool),
		Moving: make(map[placement.ShardID]bool),
		Unled:  make(map[placement.ShardID]bool),
	}
	o.mu.Lock()
	for _, n := range s.Present() {
		if _, asked := o.silent[n.ID]; !asked {
			v.Down[n.ID] = true // it has joined a moment ago
			continue
		}
		away := time.Since(o.lastSeen(n.ID))
		v.Lost[n.ID] = o.silent[n.ID] && away >= s.LostAfter()
		v.Down[n.ID] = o.silent[n.ID] && (o.down(n.ID, away) || v.Lost[n.ID])
	}
	o.mu.Unlock()
	led := o.leaders(v)
	for i, want := range s.Shards {
		id := placement.ShardID(i)
		is, ok := led[id]
		switch {
		case !ok:
			v.Unled[id] = true
		case !same(is.Voters, want.Replicas) || !same(is.Members, want.Replicas):
			v.Moving[id] = true
		}
	}
	return v, led
}

// A lead is a shard's leadership, and whose it is.
type lead struct {
	Leadership
	by placement.NodeID
}

// leaders returns who leads each shard, by the reports of nodes that are not down. Two may
// believe it of themselves for a moment: the higher epoch is the newer one.
func (o *overseer) leaders(v placement.View) map[placement.ShardID]lead {
	led := make(map[placement.ShardID]lead)
	for id, r := range o.reports {
		if v.Down[id] {
			continue
		}
		for _, l := range r.Leads {
			if old, ok := led[l.Shard]; !ok || l.Epoch > old.Epoch {
				led[l.Shard] = lead{l, id}
			}
		}
	}
	return led
}

// same reports whether two lists hold the same nodes.
func same(a, b []placement.NodeID) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func (o *overseer) publish(s *State, v placement.View, led map[placement.ShardID]lead) {
	h := &Health{
		Leader: o.cfg.Self.ID,
		At:     time.Now(),
		Nodes:  make(map[placement.NodeID]NodeHealth),
		Shards: make(map[placement.ShardID]Leadership),
		Owners: make(map[placement.ShardID]placement.NodeID),
	}
	voters := o.replica.Members().Voters()
	for _, n := range s.Present() {
		h.Nodes[n.ID] = NodeHealth{
			Seen:  o.lastSeen(n.ID),
			Down:  v.Down[n.ID],
			Lost:  v.Lost[n.ID],
			Voter: slices.Contains(voters, n.ID),
			Holds: o.reports[n.ID].Holds,
		}
	}
	for id, l := range led {
		h.Shards[id], h.Owners[id] = l.Leadership, l.by
		if v.Moving[id] {
			h.Moving = append(h.Moving, id)
		}
	}
	slices.Sort(h.Moving)
	o.health.Store(h)
}

// newcomers reports whether a node has joined a moment ago. More may follow: what was planned for
// two nodes would be undone for three.
func (o *overseer) newcomers(s *State) bool {
	for _, n := range s.Present() {
		at, ok := o.noticed[n.ID]
		if !ok || at != o.since && time.Since(at) < newcomerPause {
			return true
		}
	}
	return false
}

// plan has the records changed as the rules say.
func (o *overseer) plan(ctx context.Context, s *State, v placement.View) {
	if o.newcomers(s) {
		return
	}
	moves := placement.Plan(&s.Cluster, v, s.MaxMoving())
	if len(moves) == 0 {
		return
	}
	for _, m := range moves {
		if !slices.Equal(m.Replicas, s.Shards[m.ID].Replicas) {
			o.log.Info("a shard moves", slog.Int("shard", int(m.ID)),
				slog.Any("from", s.Shards[m.ID].Replicas), slog.Any("to", m.Replicas))
		}
	}
	o.attempt(ctx, "move shards", command{Moves: moves})
}

// bury removes nodes that are lost and whose address another node has: a node that was
// emptied comes back as another one.
func (o *overseer) bury(ctx context.Context, s *State, v placement.View) {
	at := make(map[string]placement.NodeID)
	for _, n := range s.Present() {
		if !v.Down[n.ID] {
			at[n.Addr] = n.ID
		}
	}
	for _, n := range s.Present() {
		if heir, ok := at[n.Addr]; ok && v.Lost[n.ID] {
			o.log.Warn("a lost node is removed: another one has its address",
				slog.String("node", string(n.ID)), slog.String("other", string(heir)))
			o.attempt(ctx, "remove a lost node", command{Mark: &marking{n.ID, placement.NodeRemoved}})
		}
	}
}

// steer changes the members of the placement group.
func (o *overseer) steer(ctx context.Context) {
	for range stepsAtOnce {
		members := o.replica.Members()
		next, ok := nextStep(o.cfg.Self.ID, o.State().MaxVoters(), o.peers(members))
		if !ok {
			return
		}
		if err := o.take(ctx, next, members.Index); err != nil {
			if ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
				o.log.Warn("the placement group's members were not changed", slog.String("reason", err.Error()))
			}
			return
		}
		o.log.Info("the placement group changes", slog.String("change", string(next.do)), slog.String("node", string(next.id)))
		if next.do == handOver {
			return
		}
	}
}

// take makes one change, if the members are still those of an index.
func (o *overseer) take(ctx context.Context, s step, at uint64) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	switch s.do {
	case enlist:
		return o.replica.AddNonvoter(ctx, s.id, at)
	case promote:
		return o.replica.AddVoter(ctx, s.id, at)
	case demote:
		return o.replica.Demote(ctx, s.id, at)
	case dismiss:
		return o.replica.Remove(ctx, s.id, at)
	default:
		return o.replica.HandOver(ctx, s.id)
	}
}

// peers returns what the rules of the group's members are to know.
func (o *overseer) peers(members replica.Membership) []peer {
	s := o.State()
	var peers []peer
	for _, n := range s.Present() {
		peers = append(peers, peer{id: n.ID, zone: n.Zone, state: n.State})
	}
	for _, m := range members.Members {
		i := slices.IndexFunc(peers, func(p peer) bool { return p.id == m.ID })
		if i < 0 {
			i = len(peers)
			peers = append(peers, peer{id: m.ID, zone: s.Nodes[m.ID].Zone, state: placement.NodeRemoved})
		}
		peers[i].member, peers[i].voter = true, m.Voter
		o.judge(&peers[i], members.CaughtUp(m.ID))
	}
	return peers
}

// judge says how long a member has been well, or not.
func (o *overseer) judge(p *peer, well bool) {
	now := time.Now()
	was, known := o.states[p.id]
	switch {
	case !known:
		was = condition{well: well, since: now}
	case well && !was.well && !was.was.IsZero() && now.Sub(was.since) < blink:
		was = condition{well: true, since: was.was}
	case well && !was.well:
		was = condition{well: true, since: now}
	case was.well && !well:
		was = condition{since: now, was: was.since}
	}
	o.states[p.id] = was
	// Never 0, which would mean neither.
	if lasts := max(time.Since(was.since), 1); well {
		p.well = lasts
	} else {
		p.ill = lasts
	}
}
