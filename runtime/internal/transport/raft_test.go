package transport

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
)

// A member is one member of a Raft group of a test.
type member struct {
	id    placement.NodeID
	net   *Network
	group *Group
	raft  *raft.Raft
	fsm   *raft.MockFSM
}

var nodes = []placement.NodeID{"a", "b", "c"}

func configuration() raft.Configuration {
	var c raft.Configuration
	for _, id := range nodes {
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
	}
	return c
}

// members starts three members of one group, each on its node.
func (w *world) members(group uint64) map[placement.NodeID]*member {
	w.t.Helper()
	all := make(map[placement.NodeID]*member)
	for _, id := range nodes {
		n := w.nodes[id]
		if n == nil {
			n = w.start(id, nil, nil)
		}
		m := &member{id: id, net: n, group: n.Raft(group), fsm: &raft.MockFSM{}}
		conf := raft.DefaultConfig()
		conf.LocalID = raft.ServerID(id)
		conf.Logger = hclog.NewNullLogger()
		conf.SnapshotInterval = 1000 * time.Hour
		store, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
		if err := raft.BootstrapCluster(conf, store, store, snapshots, m.group, configuration()); err != nil {
			w.t.Fatal(err)
		}
		r, err := raft.NewRaft(conf, m.fsm, store, store, snapshots, m.group)
		if err != nil {
			w.t.Fatal(err)
		}
		m.raft = r
		m.group.SetTerm(r.CurrentTerm)
		all[id] = m
	}
	return all
}

func shutdown(t *testing.T, all map[placement.NodeID]*member) {
	t.Helper()
	for _, m := range all {
		if err := m.raft.Shutdown().Error(); err != nil {
			t.Error(err)
		}
	}
}

// leader waits until one of the members leads, and the others know.
func leader(t *testing.T, among ...*member) *member {
	t.Helper()
	for range 1000 {
		for _, m := range among {
			if m.raft.State() == raft.Leader {
				return m
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nobody is elected")
	return nil
}

func others(all map[placement.NodeID]*member, but *member) (list []*member) {
	for _, id := range nodes {
		if m := all[id]; m != but {
			list = append(list, m)
		}
	}
	return list
}

func apply(t *testing.T, m *member, from, n int) {
	t.Helper()
	futures := make([]raft.ApplyFuture, n)
	for i := range futures {
		futures[i] = m.raft.Apply([]byte(fmt.Sprint(from+i)), 0)
	}
	for _, f := range futures {
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRaft elects, replicates, and goes on after its leader was cut off and came back.
func TestRaft(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.members(7)
		first := leader(t, others(all, nil)...)
		apply(t, first, 0, 200)
		w.net.Partition(string(first.id))
		lost := first.raft.Apply([]byte("lost"), 0)
		second := leader(t, others(all, first)...)
		apply(t, second, 200, 200)
		time.Sleep(20 * time.Second) // long enough for every time-out
		if first.raft.State() == raft.Leader {
			t.Error("a leader without followers still leads")
		}
		w.net.Heal()
		healed := time.Now()
		for len(first.fsm.Logs()) < 400 && time.Since(healed) < time.Minute {
			time.Sleep(10 * time.Millisecond)
		}
		t.Logf("back after %v", time.Since(healed))
		third := leader(t, others(all, nil)...)
		apply(t, third, 400, 100)
		time.Sleep(time.Second)
		if lost.Error() == nil {
			t.Error("an entry that reached nobody was committed")
		}
		for _, m := range all {
			logs := m.fsm.Logs()
			for i, l := range logs {
				if string(l) != fmt.Sprint(i) {
					t.Fatalf("%s applied %q as number %d", m.id, l, i)
				}
			}
			if len(logs) != 500 {
				t.Errorf("%s applied %d entries", m.id, len(logs))
			}
		}
		shutdown(t, all)
	})
}

// TestManyGroups runs several groups over the same connections.
func TestManyGroups(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		groups := make([]map[placement.NodeID]*member, 8)
		for i := range groups {
			groups[i] = w.members(uint64(i))
		}
		for _, all := range groups {
			apply(t, leader(t, others(all, nil)...), 0, 50)
		}
		if n := len(w.nodes["a"].conns); n > 8 {
			t.Errorf("%d connections between three nodes", n)
		}
		for _, all := range groups {
			shutdown(t, all)
		}
	})
}

// TestTransfer hands leadership over.
func TestTransfer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.members(1)
		first := leader(t, others(all, nil)...)
		apply(t, first, 0, 1)
		to := others(all, first)[0]
		start := time.Now()
		if err := first.raft.LeadershipTransferToServer(raft.ServerID(to.id), raft.ServerAddress(to.id)).Error(); err != nil {
			t.Fatal(err)
		}
		if l := leader(t, to); time.Since(start) > 300*time.Millisecond {
			t.Errorf("%s leads after %v", l.id, time.Since(start))
		}
		shutdown(t, all)
	})
}

// TestStandAmongThree elects a member without a time-out.
func TestStandAmongThree(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.members(1)
		first := leader(t, others(all, nil)...)
		next := others(all, first)[0]
		w.net.Refuse(string(first.id))
		start := time.Now()
		if err := next.group.Stand(t.Context()); err != nil {
			t.Fatal(err)
		}
		if leader(t, others(all, first)...) != next || time.Since(start) > 50*time.Millisecond {
			t.Errorf("after %v", time.Since(start))
		}
		shutdown(t, all)
	})
}

// confirm asks and waits.
func confirm(g *Group, term uint64) error {
	done := make(chan error, 1)
	g.Confirm(term, configuration().Servers, func(err error) { done <- err })
	return <-done
}

// TestDeposedLeaderIsNotConfirmed cuts a leader off in ways that let it believe in itself for a while,
// and asks it all the time: once another leader has committed something, no read that
// began later may be confirmed by the old one.
func TestDeposedLeaderIsNotConfirmed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.members(1)
		first := leader(t, others(all, nil)...)
		apply(t, first, 0, 1)
		term := first.raft.CurrentTerm()
		if err := confirm(first.group, term); err != nil {
			t.Fatalf("a leader is not confirmed: %v", err)
		}
		// Another is elected while every message to the old leader is late.
		w.net.Delay(80*time.Millisecond, 0)
		if err := others(all, first)[0].group.Stand(t.Context()); err != nil {
			t.Fatal(err)
		}
		var second *member // whoever wins
		for second == nil || second.raft.CurrentTerm() == term {
			second = leader(t, others(all, nil)...)
			time.Sleep(time.Millisecond)
		}
		f := second.raft.Apply([]byte("1"), 0)
		asked := 0
		for _ = f.Error(); asked < 20; {
			asked++
			if err := confirm(first.group, term); err == nil {
				t.Errorf("a leader of term %d was confirmed, and there is one of term %d", term, second.raft.CurrentTerm())
			}
		}
		shutdown(t, all)
	})
}

// TestCutOffLeaderIsNotConfirmed does the same with a partition.
func TestCutOffLeaderIsNotConfirmed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.members(1)
		first := leader(t, others(all, nil)...)
		term := first.raft.CurrentTerm()
		w.net.Partition(string(first.id))
		start := time.Now()
		if err := confirm(first.group, term); err == nil || time.Since(start) > time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		second := leader(t, others(all, first)...)
		if err := confirm(second.group, second.raft.CurrentTerm()); err != nil {
			t.Errorf("the majority's leader is not confirmed: %v", err)
		}
		w.net.Heal()
		if err := confirm(first.group, term); err == nil {
			t.Error("confirmed after the partition")
		}
		shutdown(t, all)
	})
}

// terms makes three members whose terms are only numbers.
func (w *world) terms(term uint64) (groups map[placement.NodeID]*Group, set func(id placement.NodeID, term uint64)) {
	groups = make(map[placement.NodeID]*Group)
	set = func(id placement.NodeID, term uint64) { groups[id].SetTerm(func() uint64 { return term }) }
	for _, id := range nodes {
		groups[id] = w.start(id, nil, nil).Raft(1)
		set(id, term)
	}
	_ = confirm(groups["a"], term) // connects
	time.Sleep(time.Second)
	return groups, set
}

func TestConfirm(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		groups, set := w.terms(5)
		g := groups["a"]
		for name, test := range map[string]struct {
			a, b, c uint64
			want    error
		}{
			"all":                {5, 5, 5, nil},
			"one is behind":      {5, 4, 5, nil},
			"both are ahead":     {5, 6, 6, ErrDeposed},
			"it is ahead itself": {6, 5, 5, ErrDeposed},
		} {
			set("a", test.a)
			set("b", test.b)
			set("c", test.c)
			if err := confirm(g, 5); !errors.Is(err, test.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		set("a", 5)
		set("b", 5)
		w.net.Cut("a", "c")
		if err := confirm(g, 5); err != nil {
			t.Errorf("one of three is cut off: %v", err)
		}
		w.net.Cut("a", "b")
		start := time.Now()
		if err := confirm(g, 5); err == nil || time.Since(start) > time.Second {
			t.Errorf("cut off from both: %v after %v", err, time.Since(start))
		}
		groups["a"].Close()
		if err := confirm(g, 5); !errors.Is(err, ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	})
}

// TestConfirmAsksAfterTheCall makes sure that no read is confirmed by an answer to a question that
// was sent before it began.
func TestConfirmAsksAfterTheCall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		groups, set := w.terms(5)
		w.net.Delay(20*time.Millisecond, 0)
		early, late := make(chan error, 1), make(chan error, 1)
		servers := configuration().Servers
		groups["a"].Confirm(5, servers, func(err error) { early <- err })
		time.Sleep(time.Millisecond)
		groups["a"].Confirm(5, servers, func(err error) { late <- err })
		time.Sleep(20 * time.Millisecond) // the first question has been answered, the answer is on its way
		set("b", 6)
		set("c", 6)
		if err := <-early; err != nil {
			t.Errorf("the early one: %v", err)
		}
		if err := <-late; !errors.Is(err, ErrDeposed) {
			t.Errorf("the late one: %v", err)
		}
	})
}

// TestConfirmSharesRounds asks often.
func TestConfirmSharesRounds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		groups, _ := w.terms(5)
		w.net.Delay(time.Millisecond, 0)
		const reads = 1000
		done := make(chan error, reads)
		sent := w.nodes["a"].metrics.framesOut
		before := count(sent)
		for range reads {
			groups["a"].Confirm(5, configuration().Servers, func(err error) { done <- err })
		}
		for range reads {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if n := count(sent) - before; n > 4 {
			t.Errorf("%d messages for %d reads at once", n, reads)
		}
	})
}

// TestClosedGroup checks that nobody waits for a group that is closed, and that another may take its place.
func TestClosedGroup(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.start("a", nil, nil), w.start("b", nil, nil)
		ask := func() error {
			return a.Raft(1).RequestVote("b", "b", &raft.RequestVoteRequest{Term: 1}, new(raft.RequestVoteResponse))
		}
		if err := ask(); err == nil || time.Second < 0 {
			t.Error("nobody was there")
		}
		old := b.Raft(1)
		again := b.Raft(1)
		select {
		case <-old.closed:
		default:
			t.Error("two groups have one number")
		}
		go func() {
			rpc := <-again.Consumer()
			rpc.Respond(&raft.RequestVoteResponse{Term: 3, Granted: true}, nil)
			rpc = <-again.Consumer()
			rpc.Respond(nil, io.ErrNoProgress)
		}()
		if err := ask(); err != nil {
			t.Error(err)
		}
		if err := ask(); err == nil || !errors.As(err, new(remoteError)) {
			t.Errorf("got %v", err)
		}
		again.Close()
		again.Close()
		synctest.Wait()
		if err := again.Stand(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("stand: %v", err)
		}
	})
}
