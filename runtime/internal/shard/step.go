package shard

import (
	"slices"

	"github.com/holdfast-run/holdfast/placement"
)

// A scene is what the leader of a shard sees: who should hold it, and who does.
type scene struct {
	self    placement.NodeID
	want    placement.Shard
	members []seen
	fit     func(placement.NodeID) bool // may be given something
	settled bool                        // the reign is old enough to be given away without need
	slow    bool                        // this node's disk holds up every commit
}

// seen is a member of the group as its leader sees it.
type seen struct {
	id      placement.NodeID
	voter   bool
	caught  bool // could vote, or lead, now
	stable  bool // has been so for a while
	overdue bool // has been so for long enough not to wait for others
}

// A step is what the leader does next.
type step struct {
	kind stepKind
	node placement.NodeID
}

type stepKind string

const (
	rest     stepKind = "rest" // everything is as it should be, or nothing can be done about it
	wait     stepKind = "wait" // for somebody to catch up, or to become fit
	add      stepKind = "add"
	promote  stepKind = "promote"
	demote   stepKind = "demote"
	remove   stepKind = "remove"
	handOver stepKind = "hand over"
)

// next is the rule by which a group comes to its wanted members. Who is to come gets a
// vote before anybody loses one, and a vote is only given to a member that has had every
// entry for a while. The leader never removes itself: it hands over, and its successor goes on.
func (s scene) next() step {
	for _, rule := range []func() (step, bool){s.give, s.clear, s.add, s.promote, s.demote, s.leave} {
		if st, ok := rule(); ok {
			return st
		}
	}
	if len(s.want.Replicas) > 0 && (s.want.Owner != s.self || s.unwell()) {
		return step{kind: wait}
	}
	return step{kind: rest}
}

// give hands over to the wanted owner, or to anybody when this node had better not lead.
func (s scene) give() (step, bool) {
	if s.able(s.want.Owner) && (s.settled || s.unwell() || !s.wanted(s.self)) {
		return step{handOver, s.want.Owner}, true
	}
	if !s.unwell() {
		return step{}, false
	}
	return s.toAnybody()
}

// unwell reports whether anybody else had better lead.
func (s scene) unwell() bool { return s.slow || !s.fit(s.self) }

// leave hands over when this node should not hold the shard any more.
func (s scene) leave() (step, bool) {
	if s.wanted(s.self) {
		return step{}, false
	}
	return s.toAnybody()
}

func (s scene) toAnybody() (step, bool) {
	i := slices.IndexFunc(s.want.Replicas, s.able)
	if i < 0 {
		return step{}, false
	}
	return step{handOver, s.want.Replicas[i]}, true
}

// clear removes a member without a vote that is not wanted.
func (s scene) clear() (step, bool) {
	if len(s.want.Replicas) == 0 {
		return step{}, false
	}
	for _, m := range s.members {
		if !m.voter && !s.wanted(m.id) {
			return step{remove, m.id}, true
		}
	}
	return step{}, false
}

// add adds a wanted node, one at a time.
func (s scene) add() (step, bool) {
	for _, id := range s.want.Replicas {
		if _, ok := s.member(id); ok || !s.fit(id) {
			continue
		}
		if slices.ContainsFunc(s.coming(), func(m seen) bool { return !m.caught }) {
			return step{kind: wait}, true
		}
		return step{add, id}, true
	}
	return step{}, false
}

// promote gives a wanted member its vote: when all that are to come are there, since with
// two voters the loss of either one stops the group. But it does not wait for them for ever.
func (s scene) promote() (step, bool) {
	coming := s.coming()
	all := !slices.ContainsFunc(coming, func(m seen) bool { return !m.stable })
	voters, live := s.count("")
	for _, m := range coming {
		if m.stable && (all || m.overdue) && live+1 > (voters+1)/2 {
			return step{promote, m.id}, true
		}
	}
	return step{kind: wait}, len(coming) > 0
}

// demote takes a vote away, once all wanted ones have theirs and those that are left can
// commit without it. A voter that is not there goes first, and then one that nothing may be given
// to: it may be gone without being missed yet, and if it then had to agree to the demotion of
// another one, the group would wait for it for ever.
func (s scene) demote() (step, bool) {
	for _, id := range s.want.Replicas {
		if m, ok := s.member(id); !ok || !m.voter {
			return step{}, false
		}
	}
	best, rank := step{}, -1
	for _, m := range s.members {
		if !m.voter || m.id == s.self || s.wanted(m.id) || len(s.want.Replicas) == 0 {
			continue
		}
		if voters, live := s.count(m.id); live <= voters/2 {
			continue
		}
		if r := s.absence(m); r > rank {
			best, rank = step{demote, m.id}, r
		}
	}
	return best, best.kind != ""
}

// absence is the higher the less can be expected of a member.
func (s scene) absence(m seen) int {
	switch {
	case !m.caught:
		return 2
	case !s.fit(m.id):
		return 1
	}
	return 0
}

// coming returns the wanted members without a vote that can be counted on.
func (s scene) coming() (list []seen) {
	for _, m := range s.members {
		if !m.voter && s.wanted(m.id) && s.fit(m.id) {
			list = append(list, m)
		}
	}
	return list
}

// count returns how many voters there are, and how many of them have caught up,
// without one of them.
func (s scene) count(without placement.NodeID) (voters, live int) {
	for _, m := range s.members {
		if !m.voter || m.id == without {
			continue
		}
		voters++
		if m.caught {
			live++
		}
	}
	return voters, live
}

// able reports whether a node could take the leadership now, and should.
func (s scene) able(id placement.NodeID) bool {
	m, ok := s.member(id)
	return ok && id != s.self && m.voter && m.caught && s.wanted(id) && s.fit(id)
}

func (s scene) wanted(id placement.NodeID) bool { return slices.Contains(s.want.Replicas, id) }

func (s scene) member(id placement.NodeID) (seen, bool) {
	i := slices.IndexFunc(s.members, func(m seen) bool { return m.id == id })
	if i < 0 {
		return seen{}, false
	}
	return s.members[i], true
}
