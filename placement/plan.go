package placement

import (
	"cmp"
	"maps"
	"slices"
)

// MaxAutoReplicas is the most replicas that a shard gets by itself: more cost
// throughput and save from nothing that five do not.
const MaxAutoReplicas = 5

// NodeState says what a node is meant to be.
type NodeState string

// The states of a node.
const (
	NodeUp       NodeState = "up"       // holds replicas and owns shards
	NodeLeaving  NodeState = "leaving"  // gives up what it owns, and keeps its replicas: it will be back
	NodeDraining NodeState = "draining" // gives up what it owns, and its replicas if there is another place for them
	NodeRemoved  NodeState = "removed"  // will not come back; its ID is never used again
)

// A Node is what the cluster knows of one of its nodes.
type Node struct {
	ID      NodeID    `json:"id"`
	Addr    string    `json:"addr"`             // host:port that other nodes reach it at
	Gossip  string    `json:"gossip,omitempty"` // host:port of its gossip
	Zone    string    `json:"zone,omitempty"`
	Version string    `json:"version"`
	State   NodeState `json:"state"`
}

// A Shard is who should hold a shard, which its leader brings about step by step.
type Shard struct {
	Replicas []NodeID `json:"replicas"` // in order of their IDs
	Owner    NodeID   `json:"owner"`    // the replica that should lead
	Version  uint64   `json:"version"`  // of this record: a change of it raises it by one
}

// A Cluster is the whole of what placement decides about.
type Cluster struct {
	Nodes    map[NodeID]Node `json:"nodes"`
	Shards   []Shard         `json:"shards"`
	Replicas int             `json:"replicas"` // of each shard; 0 means by the number of nodes
}

// A View is what a planner sees of the cluster's health.
type View struct {
	Lost   map[NodeID]bool  // not seen for so long that its replicas are to be made anew elsewhere
	Down   map[NodeID]bool  // not seen at the moment, lost nodes included
	Moving map[ShardID]bool // the replicas are not yet those that are wanted
	Unled  map[ShardID]bool // nobody is known to lead it: its replicas are left alone, and it does not count as moving
}

// A Move is a change of one shard's record. Its Version is that of the record it is based
// upon; if the shard has another one by now, the move is not to be made.
type Move struct {
	ID ShardID `json:"id"`
	Shard
}

// Want returns how many replicas each shard should have.
func (c *Cluster) Want() int {
	nodes := 0
	for _, n := range c.Nodes {
		if n.State != NodeRemoved {
			nodes++
		}
	}
	if c.Replicas > 0 {
		return min(c.Replicas, max(nodes, 1))
	}
	n := min(nodes, MaxAutoReplicas)
	return max(n-1+n%2, 1) // odd: an even number survives no more than the odd one below it
}

// Plan returns what should change now, given a bound on how many shards may be moving
// at once. It is a pure function, and applied again and again it comes to rest: then every
// shard has its replicas, over as many zones as there are, with replicas and owners spread
// evenly.
//
// Nothing is taken from a node that could lose data by it: a replica is only dropped for
// another one, and the shard's leader adds that before it removes this.
func Plan(c *Cluster, v View, maxMoving int) []Move {
	p := newPlanner(c, v)
	p.mend(maxMoving)
	p.widen(maxMoving)
	p.level(maxMoving)
	p.owners()
	return p.moves()
}

type planner struct {
	c      *Cluster
	v      View
	nodes  []NodeID // those whose replicas may stay, in order
	shards []Shard  // as they will be
	held   map[NodeID]int
	owned  map[NodeID]int
	moving int
}

func newPlanner(c *Cluster, v View) *planner {
	p := &planner{c: c, v: v, held: make(map[NodeID]int), owned: make(map[NodeID]int), moving: len(v.Moving)}
	for _, id := range slices.Sorted(maps.Keys(c.Nodes)) {
		if keeps(c.Nodes[id].State) && !v.Lost[id] {
			p.nodes = append(p.nodes, id)
		}
	}
	for _, s := range c.Shards {
		s.Replicas = slices.Clone(s.Replicas)
		p.shards = append(p.shards, s)
		for _, id := range s.Replicas {
			p.held[id]++
		}
		p.owned[s.Owner]++
	}
	return p
}

// keeps reports whether a node in that state may keep its replicas.
func keeps(s NodeState) bool { return s == NodeUp || s == NodeLeaving }

// takes reports whether a node may be given replicas.
func (p *planner) takes(n NodeID) bool { return p.c.Nodes[n].State == NodeUp && !p.v.Down[n] }

// may reports whether a shard may begin to move, and notes that it does.
func (p *planner) may(id ShardID, maxMoving int) bool {
	if p.busy(id) || p.moving >= maxMoving {
		return false
	}
	p.moving++
	return true
}

// busy reports whether a shard's replicas are to be left alone for now.
func (p *planner) busy(id ShardID) bool { return p.v.Moving[id] || p.v.Unled[id] }

// mayMend is may for a shard with that many replicas in bad places. It may change its mind while it
// moves: the node that it moves to may be the one that was lost, and then it would never arrive.
func (p *planner) mayMend(id ShardID, bad, maxMoving int) bool {
	if p.v.Moving[id] && bad > 0 {
		return true // it is counted already
	}
	return p.may(id, maxMoving)
}

// mend gives every shard as many replicas as it should have, on nodes that are there.
func (p *planner) mend(maxMoving int) {
	want := p.c.Want()
	for i := range p.shards {
		s, id := &p.shards[i], ShardID(i)
		bad := 0
		for _, r := range s.Replicas {
			if !slices.Contains(p.nodes, r) {
				bad++
			}
		}
		want := p.keep(want, len(s.Replicas)-bad)
		if bad == 0 && len(s.Replicas) == want {
			continue
		}
		next, misplaced := slices.Clone(s.Replicas), bad
		for len(next) < want {
			if !p.grow(&next) {
				break
			}
		}
		for ; bad > 0; bad-- {
			if len(next) > want {
				p.drop(&next, p.worst(next))
			} else if b := p.bad(next); b == "" || !p.grow(&next) {
				break // there is no other place: it stays where it is
			} else {
				p.drop(&next, b)
			}
		}
		for len(next) > want {
			p.drop(&next, p.worst(next))
		}
		slices.Sort(next)
		if slices.Equal(next, s.Replicas) {
			continue
		}
		if !p.mayMend(id, misplaced, maxMoving) {
			p.restore(next, s.Replicas)
			continue
		}
		s.Replicas = next
	}
}

// keep returns how many replicas a shard should have that has so many good ones. Of several
// not all but one are given up by themselves, when all but two nodes have gone: then a single disk
// would be all that is left of what is safe now.
func (p *planner) keep(want, good int) int {
	if p.c.Replicas == 0 && want == 1 && good > 1 {
		return good
	}
	return want
}

// restore counts as if the replicas were still old.
func (p *planner) restore(next, old []NodeID) {
	for _, r := range next {
		p.held[r]--
	}
	for _, r := range old {
		p.held[r]++
	}
}

// grow adds the best node that is not in the list, and reports whether there was one.
func (p *planner) grow(list *[]NodeID) bool {
	zones := p.zones(*list)
	best, found := NodeID(""), false
	for _, n := range p.nodes {
		if slices.Contains(*list, n) || !p.takes(n) {
			continue
		}
		if !found || p.better(n, best, zones) {
			best, found = n, true
		}
	}
	if found {
		*list = append(*list, best)
		p.held[best]++
	}
	return found
}

// better reports whether a is the better place than b beside replicas in those zones.
func (p *planner) better(a, b NodeID, zones map[string]int) bool {
	return cmp.Or(
		cmp.Compare(zones[p.c.Nodes[a].Zone], zones[p.c.Nodes[b].Zone]),
		cmp.Compare(p.held[a], p.held[b]),
		cmp.Compare(a, b),
	) < 0
}

func (p *planner) zones(list []NodeID) map[string]int {
	zones := make(map[string]int)
	for _, n := range list {
		zones[p.c.Nodes[n].Zone]++
	}
	return zones
}

func (p *planner) drop(list *[]NodeID, n NodeID) {
	*list = slices.DeleteFunc(*list, func(m NodeID) bool { return m == n })
	p.held[n]--
}

// bad returns a replica on a node that should hold none, or "".
func (p *planner) bad(list []NodeID) NodeID {
	for _, n := range list {
		if !slices.Contains(p.nodes, n) {
			return n
		}
	}
	return ""
}

// worst returns the replica that can best be done without.
func (p *planner) worst(list []NodeID) NodeID {
	if b := p.bad(list); b != "" {
		return b
	}
	zones := p.zones(list)
	return slices.MaxFunc(list, func(a, b NodeID) int {
		return cmp.Or(
			cmp.Compare(zones[p.c.Nodes[a].Zone], zones[p.c.Nodes[b].Zone]),
			cmp.Compare(p.held[a], p.held[b]),
			cmp.Compare(b, a),
		)
	})
}

// widen moves replicas that share a zone to zones that have none.
func (p *planner) widen(maxMoving int) {
	for i := range p.shards {
		s := &p.shards[i]
		if p.changed(i) || p.busy(ShardID(i)) {
			continue
		}
		next := slices.Clone(s.Replicas)
		if !p.grow(&next) {
			continue
		}
		p.drop(&next, p.worst(next))
		slices.Sort(next)
		if p.spread(next, "", "") <= p.spread(s.Replicas, "", "") || !p.may(ShardID(i), maxMoving) {
			p.restore(next, s.Replicas)
			continue
		}
		s.Replicas = next
	}
}

// level moves replicas from nodes with many to nodes with few, without making the
// spread over zones worse.
func (p *planner) level(maxMoving int) {
	for p.moving < maxMoving {
		if !p.levelOne(maxMoving) {
			return
		}
	}
}

func (p *planner) levelOne(maxMoving int) bool {
	byLoad := slices.Clone(p.nodes)
	slices.SortStableFunc(byLoad, func(a, b NodeID) int { return cmp.Compare(p.held[a], p.held[b]) })
	for _, to := range byLoad {
		if !p.takes(to) {
			continue
		}
		for _, from := range slices.Backward(byLoad) {
			if p.held[from] < p.held[to]+2 {
				break
			}
			for i := range p.shards {
				s := &p.shards[i]
				if !slices.Contains(s.Replicas, from) || slices.Contains(s.Replicas, to) || p.busy(ShardID(i)) {
					continue
				}
				if p.changed(i) || p.spread(s.Replicas, from, to) < p.spread(s.Replicas, "", "") || !p.may(ShardID(i), maxMoving) {
					continue
				}
				p.drop(&s.Replicas, from)
				s.Replicas = append(s.Replicas, to)
				p.held[to]++
				slices.Sort(s.Replicas)
				return true
			}
		}
	}
	return false
}

// changed reports whether the shard's replicas are not those that they were.
func (p *planner) changed(i int) bool {
	return !slices.Equal(p.shards[i].Replicas, p.c.Shards[i].Replicas)
}

// spread returns over how many zones a list is spread, with one node in the place of another.
func (p *planner) spread(list []NodeID, from, to NodeID) int {
	zones := make(map[string]bool)
	for _, n := range list {
		if n == from {
			n = to
		}
		zones[p.c.Nodes[n].Zone] = true
	}
	return len(zones)
}

// owners gives every shard an owner that can lead it, and spreads them evenly. It costs
// no more than an election, so it is not bounded.
func (p *planner) owners() {
	for i := range p.shards {
		s := &p.shards[i]
		if slices.Contains(s.Replicas, s.Owner) && p.fit(s.Owner) {
			continue
		}
		if best, ok := p.least(s.Replicas); ok && best != s.Owner {
			p.own(s, best)
		}
	}
	for range p.shards { // each round helps one node
		if !p.levelOwner() {
			return
		}
	}
}

// levelOwner takes one shard from a node that owns more than its part, and reports
// whether it could. The node that owns too little may have no replica of it; then the
// shard goes to one in between, which gives another one on.
func (p *planner) levelOwner() bool {
	byLoad := slices.Clone(p.nodes)
	slices.SortStableFunc(byLoad, func(a, b NodeID) int { return cmp.Compare(p.owned[b], p.owned[a]) })
	for _, from := range byLoad {
		if path := p.pathFrom(from); path != nil {
			for _, step := range path {
				p.own(&p.shards[step.shard], step.to)
			}
			return true
		}
	}
	return false
}

// A step gives a shard to another of its replicas.
type step struct {
	shard int
	from  NodeID
	to    NodeID
}

// pathFrom finds the shortest way from a node to one that owns at least two less.
func (p *planner) pathFrom(from NodeID) []step {
	came := map[NodeID]step{from: {}}
	for queue := []NodeID{from}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if p.owned[at]+2 <= p.owned[from] {
			var path []step
			for ; at != from; at = came[at].from {
				path = append(path, came[at])
			}
			return path
		}
		for i := range p.shards {
			if p.shards[i].Owner != at {
				continue
			}
			for _, to := range p.shards[i].Replicas {
				if _, seen := came[to]; !seen && p.fit(to) {
					came[to] = step{shard: i, from: at, to: to}
					queue = append(queue, to)
				}
			}
		}
	}
	return nil
}

func (p *planner) own(s *Shard, n NodeID) {
	p.owned[s.Owner]--
	p.owned[n]++
	s.Owner = n
}

// fit reports whether a node can own shards.
func (p *planner) fit(n NodeID) bool { return p.c.Nodes[n].State == NodeUp && !p.v.Down[n] }

// least returns the fit replica that owns least.
func (p *planner) least(list []NodeID) (best NodeID, ok bool) {
	for _, n := range list {
		if p.fit(n) && (!ok || p.owned[n] < p.owned[best]) {
			best, ok = n, true
		}
	}
	return best, ok
}

func (p *planner) moves() []Move {
	var moves []Move
	for i, s := range p.shards {
		if p.changed(i) || s.Owner != p.c.Shards[i].Owner {
			moves = append(moves, Move{ShardID(i), s})
		}
	}
	return moves
}
