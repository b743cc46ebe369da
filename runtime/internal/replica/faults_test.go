package replica

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// isolate takes a member off the network, and returns what brings it back.
func isolate(transports []memTransport, at int) (heal func()) {
	for _, tr := range transports {
		tr.Disconnect(transports[at].LocalAddr())
	}
	transports[at].DisconnectAll()
	return func() {
		for _, tr := range transports {
			tr.Connect(transports[at].LocalAddr(), transports[at].InmemTransport)
			transports[at].Connect(tr.LocalAddr(), tr.InmemTransport)
		}
	}
}

// leaderOf waits for a reign of one of the members.
func leaderOf(t *testing.T, members ...*member) (*member, *Reign) {
	t.Helper()
	for range 1000 {
		for _, m := range members {
			select {
			case r := <-m.reigns:
				return m, r
			default:
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nobody leads")
	return nil, nil
}

// same waits until members have applied the same.
func same(t *testing.T, within time.Duration, members ...*member) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(500 * time.Millisecond) {
		equal := true
		for _, m := range members[1:] {
			equal = equal && m.machine.digest() == members[0].machine.digest()
		}
		if equal {
			return
		}
		if time.Since(began) > within {
			for _, m := range members {
				t.Errorf("%s: %d batches, last index %d", m.cfg.NodeID, len(m.machine.batches()), m.raft.LastIndex())
			}
			t.FailNow()
		}
	}
}

// TestConflictingTail cuts off a leader that goes on to append, lets the others commit and cut
// their log behind it, and brings it back: it must rejoin, however long its tail is compared with
// the snapshot (hashicorp/raft issue 697).
func TestConflictingTail(t *testing.T) {
	for _, c := range []struct {
		name      string
		tail, new int
	}{
		{"short", 1, 100},
		{"long", 400, 100},
		{"longer than everything", 1000, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				transports, members := group(t, 3)
				reign := <-members[0].reigns
				enlist(t, members[0], "node-2", "node-3")
				if err := commit(reign, "before"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				heal := isolate(transports, 0)
				// The committer has one entry in flight; to make more, go around it.
				for i := range c.tail {
					e := entry{kind: kindBatches, term: reign.Epoch(), seq: 1<<40 + uint64(i)}
					members[0].raft.ApplyLog(raft.Log{Data: append(e.encode(nil), batch("lost")...)}, 0)
				}
				leader, next := leaderOf(t, members[1:]...)
				for _, m := range members[1:] {
					m.cfg.LogBytes = 64 << 10
				}
				for i := range c.new {
					if err := commit(next, fmt.Sprint(i, strings.Repeat("x", 2<<10))); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Second)
				for _, m := range members[1:] {
					if err := m.Flush(t.Context()); err != nil {
						t.Fatal(err)
					}
					if index, _ := m.log.Group(1).FirstIndex(); index < 20 {
						t.Fatalf("the log begins at %d", index)
					}
				}
				heal()
				time.Sleep(5 * time.Second)
				if now, r := newest(members[1:], leader, next); now != leader {
					leader, next = now, r
				}
				if err := commit(next, "after"); err != nil {
					t.Fatal(err)
				}
				same(t, 20*time.Second, members...)

				// It can lead, too, and starts again from what it has.
				if err := leader.HandOver(t.Context(), "node-1"); err != nil {
					t.Fatal(err)
				}
				_, last := leaderOf(t, members[0])
				if err := commit(last, "led"); err != nil {
					t.Fatal(err)
				}
				same(t, 20*time.Second, members...)
				crashed, file := members[0].fs.CrashClone(vfs.CrashCloneCfg{}), members[0].machine.restarted()
				for _, m := range members {
					m.shutdown(t)
				}
				again := start(t, crashed, file, func(c *Config) {
					c.NodeID, c.Transport = "node-1", connect(1)[0]
				})
				again.shutdown(t)
			})
		})
	}
}

// newest returns the newest reign, if there was one after another.
func newest(members []*member, leader *member, reign *Reign) (*member, *Reign) {
	for _, m := range members {
		for len(m.reigns) > 0 {
			if r := <-m.reigns; r.Epoch() > reign.Epoch() {
				leader, reign = m, r
			}
		}
	}
	return leader, reign
}

// A trickle is a transport whose snapshots take a time.
type trickle struct {
	memTransport
	takes time.Duration
}

func (s trickle) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	const part = 32 << 10
	r := &slowReader{Reader: data, part: part, pause: s.takes / time.Duration(1+req.Size/part)}
	return s.memTransport.InstallSnapshot(id, to, req, resp, r)
}

type slowReader struct {
	io.Reader
	part  int
	pause time.Duration
}

func (r *slowReader) Read(p []byte) (int, error) {
	time.Sleep(r.pause)
	return r.Reader.Read(p[:min(len(p), r.part)])
}

// TestSnapshotLongerThanTimeouts sends a snapshot that takes a minute, where heartbeats and
// elections take a second, while the others commit; then the member keeps up.
func TestSnapshotLongerThanTimeouts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, slow := raft.NewInmemTransportWithTimeout("node-1", 30*time.Second) // ten times as long for a snapshot
		transports := []memTransport{{slow}, connect(2)[1], connect(3)[2]}
		for _, a := range transports {
			for _, b := range transports {
				a.Connect(b.LocalAddr(), b.InmemTransport)
			}
		}
		dir := t.TempDir()
		var members []*member
		for i, tr := range transports {
			members = append(members, start(t, vfs.NewCrashableMem(), &fakeMachine{}, func(c *Config) {
				c.NodeID, c.Join, c.SnapshotDir = raft.ServerID(tr.LocalAddr()), i > 0, dir
				c.Transport = Watch(trickle{tr, time.Minute})
			}))
		}
		reign := <-members[0].reigns
		enlist(t, members[0], "node-2")
		cutLog(t, members[0], reign)
		began := time.Now()
		if err := members[0].AddNonvoter(t.Context(), "node-3", 0); err != nil {
			t.Fatal(err)
		}
		for i := 0; !members[0].Members().CaughtUp("node-3"); i++ {
			if err := commit(reign, fmt.Sprint("meanwhile ", i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			if took := time.Since(began); took > 3*time.Minute {
				t.Fatalf("not there after %v", took)
			}
		}
		if took := time.Since(began); took < 50*time.Second {
			t.Errorf("the snapshot took only %v", took)
		}
		if err := members[0].AddVoter(t.Context(), "node-3", 0); err != nil {
			t.Fatal(err)
		}
		same(t, 10*time.Second, members...)
		if epoch, leads := members[0].Reign(); !leads || epoch != reign.Epoch() {
			t.Errorf("the leader changed: %d, %v", epoch, leads)
		}
		for _, m := range members {
			m.shutdown(t)
		}
	})
}

// TestIsolatedLeader: it acknowledges nothing, and ends its reign before long; what it had in
// flight is unknown and does not happen, and the others go on.
func TestIsolatedLeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		transports, members := group(t, 3)
		reign := <-members[0].reigns
		enlist(t, members[0], "node-2", "node-3")
		if err := commit(reign, "before"); err != nil {
			t.Fatal(err)
		}
		heal := isolate(transports, 0)
		began := time.Now()
		outcomes := make(chan error, 2)
		reign.Commit(batch("in flight"), func(err error) { outcomes <- err })
		reign.Commit(batch("queued"), func(err error) { outcomes <- err })
		first, second := <-outcomes, <-outcomes
		if took := time.Since(began); took > 2*leaseTimeout {
			t.Errorf("the reign ended after %v", took)
		}
		if !errors.Is(first, host.ErrUnknownOutcome) || second == nil {
			t.Errorf("outcomes are %v, %v", first, second)
		}
		_, next := leaderOf(t, members[1:]...)
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("nobody led for %v", took)
		}
		if err := commit(next, "after"); err != nil {
			t.Fatal(err)
		}
		heal()
		same(t, 10*time.Second, members...)
		if got := strings.Join(members[0].machine.batches(), ", "); got != "before, after" {
			t.Errorf("applied %s", got)
		}
		for _, m := range members {
			m.shutdown(t)
		}
	})
}

// TestHungFollower has a follower whose log's disk hangs: the others commit at their own pace, and
// it catches up when it is back.
func TestHungFollower(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, members := group(t, 3)
		reign := <-members[0].reigns
		enlist(t, members[0], "node-2", "node-3")
		release := members[2].machine.hold() // Apply does not return: Raft's main loop fills up behind it
		began := time.Now()
		for i := range 2000 {
			if err := commit(reign, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the others needed %v", took)
		}
		time.Sleep(30 * time.Second)
		if epoch, leads := members[0].Reign(); !leads || epoch != reign.Epoch() {
			t.Errorf("the leader changed: %d, %v", epoch, leads)
		}
		release()
		same(t, 20*time.Second, members...)
		for _, m := range members {
			m.shutdown(t)
		}
	})
}
