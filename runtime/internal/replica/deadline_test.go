package replica

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
)

// TestHangingFlushEndsTheReplica, but one that is only slow does not.
func TestHangingFlushEndsTheReplica(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := start(t, vfs.NewCrashableMem(), &fakeMachine{}, nil)
		r := <-m.reigns
		if err := commit(r, "x"); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(9*time.Second, m.machine.hang())
		if err := m.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if len(m.fatal) > 0 {
			t.Fatalf("a slow flush ended the replica: %v", <-m.fatal)
		}

		release := m.machine.hang()
		began := time.Now()
		go func() { _ = m.Flush(t.Context()) }()
		if err := <-m.fatal; !errors.Is(err, raftlog.ErrStalled) || !strings.Contains(err.Error(), "flush") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took < 10*time.Second || took > 11*time.Second {
			t.Errorf("noticed after %v", took)
		}
		release()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := errors.Join(m.Stop(ctx), m.log.Close()); err != nil {
			t.Error(err)
		}
	})
}

// TestHangingRestoreEndsTheReplica ends the member that is to receive a snapshot; the
// others go on.
func TestHangingRestoreEndsTheReplica(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, members := group(t, 2)
		reign := <-members[0].reigns
		cutLog(t, members[0], reign)
		release := members[1].machine.hang()
		if err := members[0].AddNonvoter(t.Context(), "node-2", 0); err != nil {
			t.Fatal(err)
		}
		if err := <-members[1].fatal; !errors.Is(err, raftlog.ErrStalled) || !strings.Contains(err.Error(), "restore") {
			t.Errorf("got %v", err)
		}
		if err := commit(reign, "on"); err != nil {
			t.Error(err)
		}
		release()
		for _, m := range members {
			m.shutdown(t)
		}
	})
}

// cutLog commits until the log does not begin with its first entry any more.
func cutLog(t *testing.T, m *member, r *Reign) {
	t.Helper()
	m.cfg.LogBytes = 1 << 20
	for range 100 {
		if err := commit(r, strings.Repeat("x", 50<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if index, _ := m.log.Group(1).FirstIndex(); index < 2 {
		t.Fatalf("the log begins at %d", index)
	}
}

// TestSnapshotPlaces: a third snapshot waits until one of two is sent, or its replica stops.
func TestSnapshotPlaces(t *testing.T) {
	bubble(t, func(t *testing.T) {
		limiter := NewLimiter(DefaultSnapshots)
		m := start(t, vfs.NewCrashableMem(), &fakeMachine{}, func(c *Config) { c.Snapshots = limiter })
		r := <-m.reigns
		if err := commit(r, "x"); err != nil {
			t.Fatal(err)
		}
		s := &snapshots{replica: m.Replica}
		open := func() io.ReadCloser {
			_, f, err := s.Open(stateID)
			if err != nil {
				t.Error(err)
				return nil
			}
			return f
		}
		a, b := open(), open()
		opened := make(chan io.ReadCloser, 1)
		go func() { opened <- open() }()
		synctest.Wait()
		if len(opened) > 0 {
			t.Fatal("a third snapshot was opened")
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		c := <-opened
		if _, err := io.ReadAll(b); err != nil {
			t.Error(err)
		}

		// One that nobody reads gives up its place.
		time.Sleep(snapshotIdle + time.Second)
		d := open()
		if _, err := io.ReadAll(c); !errors.Is(err, errIdle) && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("got %v", err)
		}
		e := open()
		failed := make(chan error, 1)
		go func() {
			_, _, err := s.Open(stateID)
			failed <- err
		}()
		synctest.Wait()
		go m.shutdown(t)
		if err := <-failed; !errors.Is(err, ErrStopped) {
			t.Errorf("got %v", err)
		}
		for _, f := range []io.ReadCloser{b, c, d, e} {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

var _ raft.SnapshotStore = (*snapshots)(nil)
