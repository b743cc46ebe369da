package topology

import (
	"cmp"
	"slices"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// The placement group votes with an odd number of nodes, and has all others as members
// without a vote. The rules below say what to change next. Each answer is one change, which
// must be made before they are asked again:
//
//	node of the table, no member           > enlist
//	caught up for stableAfter, vote free   > promote
//	voter dead for deadAfter, substitute   > promote that, then demote the dead one
//	more voters than wanted                > demote the worst
//	member that was removed, without vote  > dismiss
//	leader that leaves                     > hand over
const (
	stableAfter = 5 * time.Second
	deadAfter   = 10 * time.Second
)

// A peer is what the rules know of one node.
type peer struct {
	id     placement.NodeID
	zone   string
	state  placement.NodeState // removed, if the table does not have it
	member bool
	voter  bool
	well   time.Duration // for how long it has been caught up and answering; 0 if it is not
	ill    time.Duration // for how long it has not
}

// A step is one change of the group's members.
type step struct {
	do action
	id placement.NodeID
}

type action string

const (
	enlist   action = "enlist"    // as a member without a vote
	promote  action = "promote"   // to a voter
	demote   action = "demote"    // to a member without a vote
	dismiss  action = "dismiss"   // from the group
	handOver action = "hand over" // the leadership
)

// wantVoters returns how many nodes should vote: an odd number, since an even one
// survives no more than the odd one below it.
func wantVoters(nodes, most int) int {
	n := min(nodes, most)
	return max(n-1+n%2, 1)
}

// nextStep returns what to change next in a group that self leads, if anything.
func nextStep(self placement.NodeID, most int, peers []peer) (step, bool) {
	g := newElectorate(self, most, peers)
	for _, rule := range []func() (step, bool){g.abdicate, g.enlist, g.dismiss, g.promote, g.demote} {
		if s, ok := rule(); ok {
			return s, true
		}
	}
	return step{}, false
}

// An electorate is the group as the rules see it.
type electorate struct {
	self       placement.NodeID
	want       int
	peers      []peer
	voters     []peer
	candidates []peer         // could vote; the best first
	zones      map[string]int // voters in each
}

func newElectorate(self placement.NodeID, most int, peers []peer) *electorate {
	g := &electorate{self: self, peers: peers, zones: make(map[string]int)}
	nodes := 0
	for _, p := range peers {
		if p.state != placement.NodeRemoved {
			nodes++
		}
		if p.voter {
			g.voters = append(g.voters, p)
			g.zones[p.zone]++
		}
		if p.member && !p.voter && p.state == placement.NodeUp && p.well >= stableAfter {
			g.candidates = append(g.candidates, p)
		}
	}
	g.want = wantVoters(nodes, most)
	slices.SortFunc(g.candidates, func(a, b peer) int {
		return cmp.Or(cmp.Compare(g.zones[a.zone], g.zones[b.zone]), cmp.Compare(a.id, b.id))
	})
	return g
}

// abdicate hands over if the leader is not to stay.
func (g *electorate) abdicate() (step, bool) {
	i := slices.IndexFunc(g.peers, func(p peer) bool { return p.id == g.self })
	if i < 0 || g.peers[i].state == placement.NodeUp {
		return step{}, false
	}
	for _, p := range g.voters {
		if p.id != g.self && p.state == placement.NodeUp && p.well > 0 {
			return step{handOver, p.id}, true
		}
	}
	return step{}, false
}

func (g *electorate) enlist() (step, bool) {
	for _, p := range g.peers {
		if !p.member && p.state != placement.NodeRemoved {
			return step{enlist, p.id}, true
		}
	}
	return step{}, false
}

func (g *electorate) dismiss() (step, bool) {
	for _, p := range g.peers {
		if p.member && !p.voter && p.state == placement.NodeRemoved {
			return step{dismiss, p.id}, true
		}
	}
	return step{}, false
}

// promote never makes the number of voters even for long: it begins only with what it can
// end. A substitute is promoted before the one that it replaces is demoted, which needs no more
// voters alive than there are.
func (g *electorate) promote() (step, bool) {
	n := len(g.voters)
	if len(g.candidates) == 0 || n > g.want {
		return step{}, false
	}
	completes := n < g.want && ((n+1)%2 == 1 || len(g.candidates) > 1)
	replaces := n == g.want && slices.ContainsFunc(g.voters, replaceable)
	if !completes && !replaces {
		return step{}, false
	}
	return step{promote, g.candidates[0].id}, true
}

// replaceable reports whether a voter should make room, if there is a substitute.
func replaceable(p peer) bool {
	return p.ill >= deadAfter || p.state == placement.NodeRemoved || p.state == placement.NodeDraining
}

// demote takes the vote of one that is too many, if those that are left are a quorum of
// the remaining voters.
func (g *electorate) demote() (step, bool) {
	n := len(g.voters)
	if n <= g.want || n == 1 {
		return step{}, false
	}
	victims := slices.DeleteFunc(slices.Clone(g.voters), func(p peer) bool { return p.id == g.self })
	worst := slices.MaxFunc(victims, g.compare)
	alive := 0
	for _, p := range g.voters {
		if p.id != worst.id && (p.well > 0 || p.id == g.self) {
			alive++
		}
	}
	if alive < (n-1)/2+1 {
		return step{}, false
	}
	return step{demote, worst.id}, true
}

// compare orders voters: the last one can best be done without.
func (g *electorate) compare(a, b peer) int {
	rank := func(p peer) int {
		switch {
		case p.state == placement.NodeRemoved:
			return 4
		case p.ill >= deadAfter:
			return 3
		case p.state == placement.NodeDraining:
			return 2
		case p.ill > 0:
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(rank(a), rank(b)),
		cmp.Compare(a.ill, b.ill),
		cmp.Compare(g.zones[a.zone], g.zones[b.zone]),
		cmp.Compare(a.id, b.id),
	)
}
