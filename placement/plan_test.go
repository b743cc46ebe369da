package placement_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// cluster returns a cluster of the given size with all shards on its first node.
func cluster(nodes, shards, zones int) *placement.Cluster {
	c := &placement.Cluster{Nodes: make(map[placement.NodeID]placement.Node)}
	for i := range nodes {
		add(c, i, zones)
	}
	for range shards {
		c.Shards = append(c.Shards, placement.Shard{Replicas: []placement.NodeID{name(0)}, Owner: name(0)})
	}
	return c
}

func name(i int) placement.NodeID { return placement.NodeID(fmt.Sprintf("n%02d", i)) }

func add(c *placement.Cluster, i, zones int) {
	c.Nodes[name(i)] = placement.Node{ID: name(i), Zone: fmt.Sprint("z", i%zones), State: placement.NodeUp}
}

// settle applies plans until there is nothing to do, each move being done at once.
func settle(t *testing.T, c *placement.Cluster, v placement.View) (moves int) {
	t.Helper()
	for range 10_000 {
		plan := placement.Plan(c, v, 4)
		if len(plan) == 0 {
			return moves
		}
		moved := 0
		for _, m := range plan {
			if !slices.Equal(c.Shards[m.ID].Replicas, m.Replicas) {
				moved++
			}
			c.Shards[m.ID] = m.Shard
		}
		if moved > 4 {
			t.Fatalf("a plan moves %d shards at once, want at most 4", moved)
		}
		moves += moved
	}
	t.Fatal("plans do not come to rest")
	return 0
}

// check verifies what Plan promises of a cluster at rest.
func check(t *testing.T, c *placement.Cluster, v placement.View, want int) {
	t.Helper()
	held, owned := map[placement.NodeID]int{}, map[placement.NodeID]int{}
	zones := map[string]bool{}
	for id, n := range c.Nodes {
		if n.State == placement.NodeUp && !v.Down[id] {
			held[id], owned[id] = 0, 0
			zones[n.Zone] = true
		}
	}
	for i, s := range c.Shards {
		if len(s.Replicas) != want {
			t.Errorf("shard %d has replicas %v, want %d", i, s.Replicas, want)
		}
		in := map[string]bool{}
		for _, r := range s.Replicas {
			if _, ok := held[r]; !ok {
				t.Errorf("shard %d has a replica on %s, which is not up", i, r)
			}
			held[r]++
			in[c.Nodes[r].Zone] = true
		}
		if len(in) < min(want, len(zones)) {
			t.Errorf("shard %d is in %d zones: %v", i, len(in), s.Replicas)
		}
		if !slices.Contains(s.Replicas, s.Owner) {
			t.Errorf("shard %d belongs to %s, which has no replica", i, s.Owner)
		}
		owned[s.Owner]++
	}
	if lo, hi := bounds(owned); hi-lo > 1 {
		t.Errorf("owners are spread %v", owned)
	}
	if lo, hi := bounds(held); len(zones) <= 1 && hi-lo > 1 {
		t.Errorf("replicas are spread %v", held)
	}
}

func bounds(m map[placement.NodeID]int) (lo, hi int) {
	first := true
	for _, n := range m {
		if first || n < lo {
			lo = n
		}
		hi, first = max(hi, n), false
	}
	return lo, hi
}

func TestWant(t *testing.T) {
	t.Parallel()
	for nodes, want := range map[int]int{1: 1, 2: 1, 3: 3, 4: 3, 5: 5, 6: 5, 9: 5} {
		if got := cluster(nodes, 0, 1).Want(); got != want {
			t.Errorf("%d nodes want %d replicas, not %d", nodes, got, want)
		}
	}
	c := cluster(3, 0, 1)
	if c.Replicas = 7; c.Want() != 3 {
		t.Errorf("7 replicas on 3 nodes are %d", c.Want())
	}
}

func TestClusterGrows(t *testing.T) {
	t.Parallel()
	c := cluster(1, 32, 1)
	for nodes := 2; nodes <= 7; nodes++ {
		add(c, nodes-1, 1)
		moves := settle(t, c, placement.View{})
		check(t, c, placement.View{}, c.Want())
		if most := 3 * 32; moves > most {
			t.Errorf("with node %d came %d moves", nodes, moves)
		}
	}
}

func TestZones(t *testing.T) {
	t.Parallel()
	c := cluster(6, 32, 3)
	c.Replicas = 3
	settle(t, c, placement.View{})
	check(t, c, placement.View{}, 3)
}

// A node that is down keeps its replicas until it is lost; then they are made anew.
func TestLostNode(t *testing.T) {
	t.Parallel()
	c := cluster(4, 32, 1)
	settle(t, c, placement.View{})
	v := placement.View{Down: map[placement.NodeID]bool{name(1): true}}
	if moves := settle(t, c, v); moves != 0 {
		t.Errorf("a node that is down for a moment had %d replicas moved", moves)
	}
	for i, s := range c.Shards {
		if s.Owner == name(1) {
			t.Errorf("shard %d should still be led by a node that is down", i)
		}
	}
	v.Lost = v.Down
	settle(t, c, v)
	check(t, c, v, 3)
}

// With nowhere to go, replicas stay where they are.
func TestNoOtherPlace(t *testing.T) {
	t.Parallel()
	c := cluster(3, 8, 1)
	settle(t, c, placement.View{})
	lost := map[placement.NodeID]bool{name(2): true}
	if moves := settle(t, c, placement.View{Lost: lost, Down: lost}); moves != 0 {
		t.Errorf("with no other place %d replicas moved", moves)
	}
	check3 := func() {
		for i, s := range c.Shards {
			if len(s.Replicas) != 3 {
				t.Errorf("shard %d was left with %v", i, s.Replicas)
			}
		}
	}
	check3()
	n := c.Nodes[name(1)]
	n.State = placement.NodeDraining
	c.Nodes[name(1)] = n
	settle(t, c, placement.View{})
	check3()
	for i, s := range c.Shards {
		if s.Owner == name(1) {
			t.Errorf("shard %d is to be led by a node that drains", i)
		}
	}
}

func TestRemovedNode(t *testing.T) {
	t.Parallel()
	c := cluster(5, 32, 1)
	settle(t, c, placement.View{})
	n := c.Nodes[name(0)]
	n.State = placement.NodeRemoved
	c.Nodes[name(0)] = n
	settle(t, c, placement.View{})
	check(t, c, placement.View{}, 3)
}

// When all but two nodes have gone, what had several replicas keeps those that are left.
func TestTwoNodesLeft(t *testing.T) {
	t.Parallel()
	c := cluster(3, 8, 1)
	settle(t, c, placement.View{})
	n := c.Nodes[name(0)]
	n.State = placement.NodeRemoved
	c.Nodes[name(0)] = n
	settle(t, c, placement.View{})
	for i, s := range c.Shards {
		if len(s.Replicas) != 2 || slices.Contains(s.Replicas, name(0)) {
			t.Errorf("shard %d was left with %v", i, s.Replicas)
		}
	}
	add(c, 3, 1)
	settle(t, c, placement.View{})
	check(t, c, placement.View{}, 3)
	c.Replicas = 1 // somebody wants it so
	settle(t, c, placement.View{})
	check(t, c, placement.View{}, 1)
}

// A node that leaves for a while owns nothing, keeps its replicas and is given none.
func TestLeavingNode(t *testing.T) {
	t.Parallel()
	c := cluster(4, 32, 1)
	settle(t, c, placement.View{})
	n := c.Nodes[name(1)]
	n.State = placement.NodeLeaving
	c.Nodes[name(1)] = n
	if moves := settle(t, c, placement.View{}); moves != 0 {
		t.Errorf("%d shards moved for a node that will be back", moves)
	}
	for i, s := range c.Shards {
		if s.Owner == name(1) {
			t.Errorf("shard %d is to be led by a node that leaves", i)
		}
	}
	v := placement.View{Lost: map[placement.NodeID]bool{name(0): true}, Down: map[placement.NodeID]bool{name(0): true}}
	before := held(c, name(1))
	settle(t, c, v)
	if after := held(c, name(1)); after != before {
		t.Errorf("the node that leaves has %d replicas, had %d", after, before)
	}
}

func held(c *placement.Cluster, id placement.NodeID) (n int) {
	for _, s := range c.Shards {
		if slices.Contains(s.Replicas, id) {
			n++
		}
	}
	return n
}

// A shard on its way to a node that is lost is sent elsewhere, however many move.
func TestLostOnTheWay(t *testing.T) {
	t.Parallel()
	c := cluster(4, 8, 1)
	settle(t, c, placement.View{})
	v := placement.View{Lost: map[placement.NodeID]bool{name(3): true}, Moving: make(map[placement.ShardID]bool)}
	v.Down = v.Lost
	for i, s := range c.Shards {
		if slices.Contains(s.Replicas, name(3)) {
			v.Moving[placement.ShardID(i)] = true
		}
	}
	for _, m := range placement.Plan(c, v, 1) {
		c.Shards[m.ID] = m.Shard
	}
	check(t, c, v, 3)
}

// A shard that nobody leads keeps its replicas, and holds up no other.
func TestUnledShard(t *testing.T) {
	t.Parallel()
	c := cluster(4, 8, 1)
	settle(t, c, placement.View{})
	v := placement.View{Lost: map[placement.NodeID]bool{name(3): true}, Unled: make(map[placement.ShardID]bool)}
	v.Down = v.Lost
	for i := range 4 {
		v.Unled[placement.ShardID(i)] = true
	}
	before := slices.Clone(c.Shards)
	settle(t, c, v)
	for i, s := range c.Shards {
		switch gone := slices.Contains(s.Replicas, name(3)); {
		case i < 4 && !slices.Equal(s.Replicas, before[i].Replicas):
			t.Errorf("shard %d, which nobody leads, was moved", i)
		case i >= 4 && gone:
			t.Errorf("shard %d still has a replica on a node that is lost", i)
		}
	}
}

// Whatever happens to nodes, plans come to rest in a good place.
func TestRandomHistories(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		zones := 1 + rnd.IntN(3)
		c := cluster(3, 1<<rnd.IntN(6), zones)
		next := 3
		v := placement.View{Lost: map[placement.NodeID]bool{}, Down: map[placement.NodeID]bool{}}
		for range 10 {
			switch id := name(rnd.IntN(next)); rnd.IntN(4) {
			case 0:
				add(c, next, zones)
				next++
			case 1:
				n := c.Nodes[id]
				n.State = placement.NodeRemoved
				up := 0
				for _, m := range c.Nodes {
					if m.State == placement.NodeUp && m.ID != id && !v.Down[m.ID] {
						up++
					}
				}
				if up >= 3 {
					c.Nodes[id] = n
				}
			case 2:
				if len(v.Down) == 0 && len(c.Nodes) > 3 {
					v.Down[id], v.Lost[id] = true, rnd.IntN(2) == 0
				}
			case 3:
				clear(v.Down)
				clear(v.Lost)
			}
			settle(t, c, v)
		}
		clear(v.Down)
		clear(v.Lost)
		settle(t, c, v)
		check(t, c, v, c.Want())
		if t.Failed() {
			t.Fatalf("%+v", c)
		}
	}
}
