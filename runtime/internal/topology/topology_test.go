package topology

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/placement"
)

func TestOneNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.found("a", 8)
		s := a.State()
		if len(s.Shards) != 8 || s.Shards[7].Owner != "a" || s.Nodes["a"] != a.self {
			t.Errorf("the first table is %+v", s)
		}
		if err := a.Set(t.Context(), SettingLostAfter, "1m"); err != nil {
			t.Fatal(err)
		}
		if err := a.Set(t.Context(), SettingReplicas, "3"); err != nil {
			t.Fatal(err)
		}
		if s := a.State(); s.LostAfter() != time.Minute || s.Replicas != 3 {
			t.Errorf("the settings are %v", s.Settings)
		}
		if err := a.Remove(t.Context(), "a"); !errors.As(err, new(Refusal)) {
			t.Errorf("the last node was removed: %v", err)
		}
		before := a.State()
		a.halt()

		a.start(func(c *Config) { c.Found = true })
		a.until("the table is as before", func(s *State) bool { return s.ID != "" })
		if diff := cmp.Diff(before, a.State()); diff != "" {
			t.Error(diff)
		}
		a.halt()
		a.log = nil
		if err := a.tryStart(func(c *Config) { c.Cluster = "another" }); err == nil || !strings.Contains(err.Error(), clusterID) {
			t.Errorf("a table of another cluster gives %v", err)
		}
		file, err := os.ReadFile(a.path)
		if err != nil {
			t.Fatal(err)
		}
		file[len(file)-10] ^= 1
		if err := os.WriteFile(a.path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := a.tryStart(nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("a damaged file gives %v", err)
		}
	})
}

// TestClusterGrows is the story of a cluster: three nodes, then five, one leaves and comes back, one
// is drained, one is removed, the leader dies.
func TestClusterGrows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.found("a", 8)
		b, c := w.join("b"), w.join("c")
		w.voters(3)
		w.settled(3)
		for _, n := range []*node{b, c} {
			n.until("all nodes are known", func(s *State) bool { return len(s.Present()) == 3 })
		}

		// Any node may be asked.
		if err := c.Set(t.Context(), SettingLostAfter, "30s"); err != nil {
			t.Fatal(err)
		}
		b.until("the setting is known", func(s *State) bool { return s.LostAfter() == 30*time.Second })
		if err := c.Drain(t.Context(), "z"); !errors.As(err, new(Refusal)) {
			t.Errorf("the drain of a node that is not there gives %v", err)
		}

		// A node that leaves owns nothing, and is back when it starts again.
		if err := b.Leave(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		a.until("b owns nothing", func(s *State) bool { return !owns(s, "b") })
		b.halt()
		time.Sleep(5 * time.Second)
		b.start(nil)
		a.until("b is back", func(s *State) bool { return s.Nodes["b"].State == placement.NodeUp && owns(s, "b") })
		w.settled(3)

		d := w.join("d")
		w.join("e")
		w.voters(5)
		w.settled(5)
		if err := a.Set(t.Context(), SettingReplicas, "3"); err != nil {
			t.Fatal(err)
		}
		w.settled(3)

		if err := d.Drain(t.Context(), "e"); err != nil {
			t.Fatal(err)
		}
		a.until("e holds nothing", func(s *State) bool { return !holds(s, "e") })
		w.settled(3)
		if err := d.Return(t.Context(), "e"); err != nil {
			t.Fatal(err)
		}
		a.until("e holds something again", func(s *State) bool { return holds(s, "e") })
		w.settled(3)

		// The leader dies: the others go on, make its replicas anew, and find a voter for it.
		old := w.leader()
		old.halt()
		survivor := w.leader()
		if survivor == old {
			t.Fatal("the dead one leads")
		}
		health, err := w.running()[0].Health(t.Context())
		if err != nil || health.Leader != survivor.self.ID {
			t.Errorf("the health is of %+v, %v", health, err)
		}
		survivor.until("the dead node holds nothing", func(s *State) bool { return !holds(s, old.self.ID) })
		w.settled(3)
		if err := survivor.Remove(t.Context(), old.self.ID); err != nil {
			t.Fatal(err)
		}
		w.voters(3)
		if _, ok := w.leader().Members().Member(old.self.ID); ok {
			t.Error("the removed node is a member")
		}

		// It cannot come back, under its ID.
		old.start(nil)
		if err := <-old.fatal; !errors.As(err, new(Refusal)) || !strings.Contains(err.Error(), "removed") {
			t.Errorf("the removed node ends with %v", err)
		}
		if _, err := Join(t.Context(), w.roundTripperTo("x"), []string{survivor.self.Addr}, old.self); !errors.As(err, new(Refusal)) {
			t.Errorf("the removed node joins: %v", err)
		}
	})
}

func owns(s *State, id placement.NodeID) bool {
	for _, r := range s.Shards {
		if r.Owner == id {
			return true
		}
	}
	return false
}

func holds(s *State, id placement.NodeID) bool {
	for _, r := range s.Shards {
		for _, n := range r.Replicas {
			if n == id {
				return true
			}
		}
	}
	return false
}

// A leader that is cut off changes nothing, and what it was asked for meanwhile ends with the
// caller's patience or is done by its successor.
func TestPartition(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.found("a", 4)
		w.join("b")
		w.join("c")
		w.voters(3)
		w.settled(3)
		old := w.leader()
		w.cut(old)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := old.Set(ctx, SettingMaxMoving, "8"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a change without a quorum gives %v", err)
		}
		next := w.leader()
		if err := next.Set(t.Context(), SettingMaxMoving, "9"); err != nil {
			t.Fatal(err)
		}
		w.heal(old)
		if err := old.Set(t.Context(), SettingVoters, "5"); err != nil {
			t.Fatal(err)
		}
		old.until("it has both changes", func(s *State) bool { return s.MaxMoving() == 9 && s.MaxVoters() == 5 })
		time.Sleep(5 * time.Second)
		for _, n := range w.running() {
			if diff := cmp.Diff(w.leader().State(), n.State()); diff != "" {
				t.Errorf("%s differs: %s", n.self.ID, diff)
			}
		}
	})
}

// A suspected node is down as soon as it does not answer, others after a few seconds.
func TestSuspect(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.found("a", 4)
		w.join("b")
		w.join("c")
		w.voters(3)
		w.settled(3)
		time.Sleep(5 * time.Second)
		down := func(n *node, suspect bool) time.Duration {
			w.cut(n)
			if suspect {
				a.Suspect(n.self.ID)
			}
			began := time.Now()
			a.until("it is not to own", func(s *State) bool { return !owns(s, n.self.ID) })
			took := time.Since(began)
			w.heal(n)
			w.settled(3)
			time.Sleep(5 * time.Second)
			return took
		}
		b := w.nodes["b"]
		a.Suspect("b") // it answers
		time.Sleep(5 * time.Second)
		if !owns(a.State(), "b") {
			t.Error("a suspected node that answers is taken for down")
		}
		if took := down(b, true); took > 500*time.Millisecond {
			t.Errorf("a suspected node was down after %v", took)
		}
		if took := down(b, false); took < 2*time.Second || took > 5*time.Second {
			t.Errorf("a node was down after %v", took)
		}
	})
}

// A node whose directories were emptied comes back as another one; the old one is removed
// when it is lost.
func TestEmptiedNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.found("a", 4)
		if err := a.Set(t.Context(), SettingLostAfter, "30s"); err != nil {
			t.Fatal(err)
		}
		w.join("b")
		c := w.join("c")
		w.voters(3)
		w.settled(3)
		c.halt()
		again := w.prepare("d")
		again.self.Addr = c.self.Addr
		joined, err := Join(t.Context(), w.roundTripperTo("d"), []string{a.self.Addr}, again.self)
		if err != nil {
			t.Fatal(err)
		}
		again.start(func(c *Config) { c.Members = joined.Members })
		w.leader().until("the old one is removed", func(s *State) bool { return s.Nodes["c"].State == placement.NodeRemoved })
		w.voters(3)
		w.settled(3)
	})
}

// TestSnapshot: a node that joins late gets the table as a file, since the log was cut.
func TestSnapshot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.found("a", placement.MaxShards)
		for range 100 { // each has about 70 KB
			var moves []placement.Move
			for i, r := range a.State().Shards {
				moves = append(moves, placement.Move{ID: placement.ShardID(i), Shard: r})
			}
			if err := a.commit(t.Context(), command{Moves: moves}); err != nil {
				t.Fatal(err)
			}
		}
		for range 100 { // Raft keeps a few entries in any case
			if err := a.Set(t.Context(), SettingMaxMoving, "64"); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.replica.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if first, err := a.log.Group(Group).FirstIndex(); err != nil || first < 10 {
			t.Fatalf("the log begins at %d, %v", first, err)
		}
		b := w.join("b")
		b.until("the table is here", func(s *State) bool { return len(s.Shards) == placement.MaxShards && s.Nodes["b"] == b.self })
		w.settled(1)
		time.Sleep(5 * time.Second)
		if diff := cmp.Diff(a.State(), b.State()); diff != "" {
			t.Error(diff)
		}
		b.halt()
		b.start(nil)
		if len(b.State().Shards) != placement.MaxShards {
			t.Error("the received table was not kept")
		}
	})
}

func TestJoinIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.found("a", 4)
		nameless := record("b")
		nameless.ID = ""
		if _, err := Join(t.Context(), w.roundTripperTo("b"), []string{"nowhere:1", a.self.Addr}, nameless); !errors.As(err, new(Refusal)) {
			t.Errorf("a node without an ID gives %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := Join(ctx, w.roundTripperTo("b"), []string{"nowhere:1"}, record("b")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a cluster that is not there gives %v", err)
		}
		if _, err := Join(t.Context(), w.roundTripperTo("b"), nil, record("b")); err == nil {
			t.Error("joined without an address")
		}
		if _, err := a.admit(t.Context(), joinRequest{Protocol: Protocol + 1, Node: record("b")}); !errors.As(err, new(Refusal)) {
			t.Errorf("another protocol gives %v", err)
		}
	})
}

// A leader that leaves or stops hands over before: there is no election to wait for.
func TestLeaderGoesInGoodOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.found("a", 4)
		b, c := w.join("b"), w.join("c")
		w.voters(3)
		w.settled(3)
		if err := a.Leave(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		w.eventually("another one leads", func() bool { return w.leader() != a })
		if owns(w.leader().State(), "a") {
			w.leader().until("a owns nothing", func(s *State) bool { return !owns(s, "a") })
		}
		next := w.leader()
		began := time.Now()
		if err := next.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.eventually("the third one leads", func() bool {
			return w.leader() != next
		})
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("without a leader for %v", took)
		}
		if err := b.Return(t.Context(), "a"); next != b && err != nil {
			t.Error(err)
		}
		if err := c.Return(t.Context(), "a"); next != c && err != nil {
			t.Error(err)
		}
	})
}
