package replica

import (
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// TestDrop removes a member, drops what it has with the power cut at every step, and adds
// it again: it begins with nothing but its term.
func TestDrop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		transports, members := group(t, 3)
		leader, third := members[0], members[2]
		reign := <-leader.reigns
		enlist(t, leader, "node-2", "node-3")
		if err := commit(reign, "before"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := errors.Join(leader.Demote(t.Context(), "node-3", 0), leader.Remove(t.Context(), "node-3", 0)); err != nil {
			t.Fatal(err)
		}
		at := leader.Members().Index
		if err := commit(reign, "without node-3"); err != nil {
			t.Fatal(err)
		}
		term, err := third.log.Group(1).GetUint64(keyTerm)
		if err != nil || term == 0 {
			t.Fatal(term, err)
		}

		// The power fails before and after the file is deleted.
		boom := errors.New("power cut")
		var cuts []*vfs.MemFS
		err = third.Drop(t.Context(), reign.Epoch(), at, func() error {
			cuts = append(cuts, third.fs.CrashClone(vfs.CrashCloneCfg{}))
			third.machine.file = nil
			return boom
		})
		if !errors.Is(err, boom) {
			t.Errorf("got %v", err)
		}
		if err := third.log.Close(); err != nil {
			t.Fatal(err)
		}
		cuts = append(cuts, third.fs)
		for i, fs := range cuts {
			discarded := 0
			m := openDropped(t, fs, transports[2], func() error { discarded++; return nil })
			if discarded != 1 {
				t.Errorf("cut %d: the file was deleted %d times", i, discarded)
			}
			last, err1 := m.log.Group(1).LastIndex()
			now, err2 := m.log.Group(1).GetUint64(keyTerm)
			if last != 0 || now != term || err1 != nil || err2 != nil {
				t.Errorf("cut %d: the log ends at %d in term %d, %v, %v", i, last, now, err1, err2)
			}
			if i < len(cuts)-1 {
				m.shutdown(t)
				continue
			}
			members[2] = m
		}

		enlist(t, leader, "node-3")
		if err := commit(reign, "with node-3"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if members[2].machine.digest() != leader.machine.digest() {
			t.Errorf("node-3 has applied %v", members[2].machine.batches())
		}

		// What was true of the member that it was is not true of the one that it is.
		if err := members[2].Drop(t.Context(), reign.Epoch(), at, func() error { t.Error("deleted"); return nil }); !errors.Is(err, ErrMember) {
			t.Errorf("a voter was dropped: %v", err)
		}
		for _, m := range members {
			m.shutdown(t)
		}
	})
}

func openDropped(t *testing.T, fs *vfs.MemFS, tr memTransport, discard func() error) *member {
	t.Helper()
	return start(t, fs, &fakeMachine{}, func(c *Config) {
		c.NodeID = raft.ServerID(tr.LocalAddr())
		c.Transport = Watch(tr)
		c.Join = true
		c.SnapshotDir = t.TempDir()
		if done, err := FinishDrop(c.Log, discard); !done || err != nil {
			t.Errorf("finished: %v, %v", done, err)
		}
		if done, err := FinishDrop(c.Log, discard); done || err != nil {
			t.Errorf("finished again: %v, %v", done, err)
		}
	})
}

// TestForgottenVotes: what a dropped replica has forgotten elects nobody, neither another
// nor itself.
func TestForgottenVotes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		transports, members := group(t, 3)
		<-members[0].reigns
		enlist(t, members[0], "node-2", "node-3")
		if err := members[0].HandOver(t.Context(), "node-2"); err != nil {
			t.Fatal(err)
		}
		leader, founder := members[1], members[0]
		reign := <-leader.reigns
		time.Sleep(time.Second)
		if err := errors.Join(leader.Demote(t.Context(), "node-1", 0), leader.Remove(t.Context(), "node-1", 0), commit(reign, "x")); err != nil {
			t.Fatal(err)
		}
		at := leader.Members().Index
		if err := founder.Drop(t.Context(), reign.Epoch(), at, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		if err := founder.log.Close(); err != nil {
			t.Fatal(err)
		}
		forgetful := start(t, founder.fs, &fakeMachine{}, func(c *Config) {
			c.NodeID, c.Transport, c.Join, c.SnapshotDir = "node-1", Watch(transports[0]), true, t.TempDir()
		})
		members[0] = forgetful
		time.Sleep(5 * time.Second) // until it knows no leader, should a late message have told of one

		// A candidate that has not heard of the last changes.
		vote := func(term, logTerm, logIndex uint64) bool {
			var resp raft.RequestVoteResponse
			req := raft.RequestVoteRequest{
				RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("node-3"), Addr: []byte("node-3")},
				Term:      term, LastLogTerm: logTerm, LastLogIndex: logIndex,
			}
			if err := transports[2].RequestVote("node-1", "node-1", &req, &resp); err != nil {
				t.Fatal(err)
			}
			return resp.Granted
		}
		pre := raft.RequestPreVoteRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("node-3"), Addr: []byte("node-3")},
			Term:      100, LastLogTerm: reign.Epoch(), LastLogIndex: at,
		}
		for _, enough := range []bool{true, false} {
			var resp raft.RequestPreVoteResponse
			if err := transports[2].RequestPreVote("node-1", "node-1", &pre, &resp); err != nil || resp.Granted != enough {
				t.Errorf("pre-vote for a log that ends at %d: %+v, %v", pre.LastLogIndex, resp, err)
			}
			pre.LastLogIndex--
		}
		if vote(100, reign.Epoch()-1, 1000) || vote(100, reign.Epoch(), at-1) {
			t.Error("it has voted for a candidate that lacks what it knew itself")
		}

		// Its own first entry, again, and then nothing.
		var first raft.Log
		if err := leader.log.Group(1).GetLog(1, &first); err != nil {
			t.Fatal(err)
		}
		var resp raft.AppendEntriesResponse
		req := raft.AppendEntriesRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("node-2"), Addr: []byte("node-2")},
			Term:      reign.Epoch(), Entries: []*raft.Log{&first}, LeaderCommitIndex: 1,
		}
		if err := transports[1].AppendEntries("node-1", "node-1", &req, &resp); err != nil || !resp.Success {
			t.Fatalf("%+v, %v", resp, err)
		}
		time.Sleep(10 * time.Second)
		if _, leads := forgetful.Reign(); leads || forgetful.raft.State() == raft.Leader {
			t.Error("it has elected itself")
		}
		for _, m := range members {
			m.shutdown(t)
		}
	})
}
