package replica

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A memTransport carries messages between replicas of one test.
type memTransport struct{ *raft.InmemTransport }

func (m memTransport) Stand(context.Context) error {
	return m.TimeoutNow("", m.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}, &raft.TimeoutNowResponse{})
}

// connect makes n transports that reach each other, and themselves.
func connect(n int) []memTransport {
	list := make([]memTransport, n)
	for i := range list {
		_, t := raft.NewInmemTransport(raft.ServerAddress(fmt.Sprintf("node-%d", i+1)))
		list[i] = memTransport{t}
	}
	for _, a := range list {
		for _, b := range list {
			a.Connect(b.LocalAddr(), b.InmemTransport)
		}
	}
	return list
}

// TestThreeMembers grows a group whose log has been cut, so that the new members need
// a snapshot, stops its leader, and compares what the members have applied.
func TestThreeMembers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		transports := connect(3)
		dir := t.TempDir()
		var members [3]*member
		for i, tr := range transports {
			members[i] = start(t, vfs.NewCrashableMem(), &fakeMachine{}, func(c *Config) {
				c.NodeID = raft.ServerID(tr.LocalAddr())
				c.Transport = tr
				c.Join = i > 0
				c.LogBytes = 1 << 20
				c.EntryBatches = 1
				c.SnapshotDir = dir
			})
		}
		first := <-members[0].reigns
		for range 200 {
			if err := commit(first, strings.Repeat("x", 10<<10)); err != nil {
				t.Fatal(err)
			}
		}
		if err := members[0].Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if index, _ := members[0].log.Group(1).FirstIndex(); index < 2 {
			t.Fatalf("the log begins at %d", index)
		}
		for _, tr := range transports[1:] {
			if err := members[0].AddVoter(t.Context(), placement.NodeID(tr.LocalAddr()), 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := commit(first, strings.Repeat("large", 1<<20)); err != nil {
			t.Fatal(err)
		}
		first.Confirm(func(err error) {
			if !errors.Is(err, host.ErrUnavailable) {
				t.Errorf("confirmed without asking anybody: %v", err)
			}
		})
		same := func(list ...*member) {
			t.Helper()
			time.Sleep(5 * time.Second) // virtual: an election, and what the followers have not applied
			synctest.Wait()
			for _, m := range list {
				if m.machine.digest() != list[0].machine.digest() {
					t.Errorf("%s has applied %d batches, %s %d", m.cfg.NodeID, len(m.machine.batches()), list[0].cfg.NodeID, len(list[0].machine.batches()))
				}
			}
		}
		same(members[:]...)

		members[0].shutdown(t)
		for _, tr := range transports[1:] {
			tr.Disconnect(transports[0].LocalAddr())
		}
		var second *Reign
		var leader *member
		select {
		case second = <-members[1].reigns:
			leader = members[1]
		case second = <-members[2].reigns:
			leader = members[2]
		}
		if second.Epoch() <= first.Epoch() {
			t.Errorf("epoch %d after %d", second.Epoch(), first.Epoch())
		}
		if err := commit(second, "after"); err != nil {
			t.Fatal(err)
		}
		same(members[1:]...)
		if id, _ := members[1].Leader(); id != leader.cfg.NodeID {
			t.Errorf("node-2 takes %q for the leader", id)
		}

		// A member that has received a snapshot starts again from its own state.
		crashed, file := members[2].fs.CrashClone(vfs.CrashCloneCfg{}), members[2].machine.restarted()
		for _, m := range members[1:] {
			m.shutdown(t)
		}
		again := start(t, crashed, file, func(c *Config) {
			c.NodeID = "node-3"
			c.Transport = connect(3)[2]
		})
		again.shutdown(t)
	})
}
