package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// group starts a group of one and as many replicas that wait to be added to it.
func group(t *testing.T, n int) ([]memTransport, []*member) {
	t.Helper()
	transports := connect(n)
	members := make([]*member, n)
	dir := t.TempDir()
	for i, tr := range transports {
		members[i] = start(t, vfs.NewCrashableMem(), &fakeMachine{}, func(c *Config) {
			c.NodeID = raft.ServerID(tr.LocalAddr())
			c.Transport = Watch(tr)
			c.Join = i > 0
			c.SnapshotDir = dir
		})
	}
	return transports, members
}

// enlist makes the others voters, each one when it has caught up.
func enlist(t *testing.T, leader *member, ids ...placement.NodeID) {
	t.Helper()
	for _, id := range ids {
		if err := leader.AddNonvoter(t.Context(), id, 0); err != nil {
			t.Fatal(err)
		}
		for !leader.Members().CaughtUp(id) {
			time.Sleep(50 * time.Millisecond)
		}
		if err := leader.AddVoter(t.Context(), id, leader.Members().Index); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMembersChangeOneStepAtATime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		transports, members := group(t, 3)
		leader := members[0]
		reign := <-leader.reigns
		if err := leader.AddNonvoter(t.Context(), "node-2", 0); err != nil {
			t.Fatal(err)
		}
		before := leader.Members()
		if m, ok := before.Member("node-2"); !ok || m.Voter {
			t.Errorf("a new member is %+v", before)
		}
		time.Sleep(time.Second)
		if m := leader.Members(); !m.CaughtUp("node-2") || !m.CaughtUp("node-1") || m.CaughtUp("node-3") {
			t.Errorf("after a second, the members are %+v", m)
		}
		if err := leader.AddVoter(t.Context(), "node-2", before.Index); err != nil {
			t.Fatal(err)
		}
		if err := leader.AddNonvoter(t.Context(), "node-3", before.Index); err == nil {
			t.Error("a change of members that are no longer these was made")
		}
		if got, want := leader.Members().Voters(), []placement.NodeID{"node-1", "node-2"}; !slices.Equal(got, want) {
			t.Errorf("the voters are %v", got)
		}
		if leader.Demote(t.Context(), "node-1", 0) == nil || leader.Remove(t.Context(), "node-1", 0) == nil {
			t.Error("the leader removed itself")
		}
		if members[1].AddNonvoter(t.Context(), "node-3", 0) == nil {
			t.Error("another than the leader changed the members")
		}

		// What cannot be committed ends with the caller's patience.
		transports[0].Disconnect("node-2")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := leader.AddNonvoter(ctx, "node-3", 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a change without a quorum gives %v", err)
		}
		transports[0].Connect("node-2", transports[1].InmemTransport)
		if err := commit(reign, "on"); err != nil {
			t.Error(err)
		}
		if got := leader.Members(); len(got.Members) != 3 || len(got.Voters()) != 2 {
			t.Errorf("the members are %+v", got)
		}
		for _, err := range []error{
			leader.Demote(t.Context(), "node-2", 0),
			leader.Remove(t.Context(), "node-2", 0),
			leader.Remove(t.Context(), "node-3", 0),
		} {
			if err != nil {
				t.Error(err)
			}
		}
		if got := leader.Members().Members; len(got) != 1 {
			t.Errorf("the members are %v", got)
		}
		for _, m := range members {
			m.shutdown(t)
		}
	})
}

// TestHandOver moves the leadership around under load: each batch happens once or is
// refused, and none is in doubt.
func TestHandOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, members := group(t, 3)
		reign := <-members[0].reigns
		enlist(t, members[0], "node-2", "node-3")
		if err := members[1].HandOver(t.Context(), "node-3"); err == nil {
			t.Error("a follower handed over")
		}
		if err := members[0].HandOver(t.Context(), "node-9"); err == nil {
			t.Error("a stranger was given the leadership")
		}
		leader := 0
		count := 0
		for round := range 6 {
			now, outcomes := reign, make(chan error, 2000)
			for i := range cap(outcomes) / 2 {
				now.Commit(batch(fmt.Sprint(round, " ", i)), func(err error) { outcomes <- err })
			}
			go func() {
				for i := range cap(outcomes) / 2 {
					size := 0
					if i%500 == 100 {
						size = 2 * maxEntry // it travels in chunks
					}
					now.Commit(batch(fmt.Sprint(round, " late ", i, strings.Repeat(".", size))), func(err error) { outcomes <- err })
				}
			}()
			next := (leader + 1) % 3
			began := time.Now()
			if err := members[leader].HandOver(t.Context(), placement.NodeID(members[next].cfg.NodeID)); err != nil {
				t.Fatal(err)
			}
			reign = <-members[next].reigns
			if took := time.Since(began); took > 100*time.Millisecond {
				t.Errorf("the hand-over took %v", took)
			}
			leader = next
			for range cap(outcomes) {
				switch err := <-outcomes; {
				case err == nil:
					count++
				case !errors.Is(err, host.ErrUnavailable):
					t.Fatalf("a batch in doubt: %v", err)
				}
			}
		}
		time.Sleep(time.Second)
		for _, m := range members {
			if got := len(m.machine.batches()); got != count {
				t.Errorf("%s has applied %d batches, %d were committed", m.cfg.NodeID, got, count)
			}
			m.shutdown(t)
		}
	})
}

// TestHandOverFails: the other does not answer, and everything goes on here.
func TestHandOverFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		transports, members := group(t, 3)
		reign := <-members[0].reigns
		enlist(t, members[0], "node-2", "node-3")
		transports[0].Disconnect("node-2")
		outcome := make(chan error, 100)
		var load sync.WaitGroup
		load.Go(func() {
			for i := range cap(outcome) {
				reign.Commit(batch(fmt.Sprint(i)), func(err error) { outcome <- err })
				time.Sleep(20 * time.Millisecond)
			}
		})
		time.Sleep(100 * time.Millisecond)
		if err := members[0].HandOver(t.Context(), "node-2"); err == nil {
			t.Error("handed over to nobody")
		}
		for range cap(outcome) {
			if err := <-outcome; err != nil {
				t.Errorf("a batch was not committed: %v", err)
			}
		}
		load.Wait()
		canceled, cancel := context.WithCancel(t.Context())
		release := members[0].machine.hold()
		reign.Commit(batch("slow"), func(err error) { outcome <- err })
		synctest.Wait() // until it is in flight
		time.AfterFunc(time.Second, cancel)
		if err := members[0].HandOver(canceled, "node-3"); !errors.Is(err, context.Canceled) {
			t.Errorf("a hand-over that nobody waits for gives %v", err)
		}
		release()
		if err := errors.Join(<-outcome, commit(reign, "on")); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		for _, m := range members {
			m.shutdown(t)
		}
	})
}
