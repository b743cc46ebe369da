package transport

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// TestStand starts a group of one and has it elected without a single time-out.
func TestStand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		local := NewLocal("node-1")
		store := raft.NewInmemStore()
		conf := raft.DefaultConfig()
		conf.LocalID = "1"
		conf.Logger = hclog.NewNullLogger()
		snapshots := raft.NewInmemSnapshotStore()
		members := raft.Configuration{Servers: []raft.Server{{ID: "1", Address: local.LocalAddr()}}}
		if err := raft.BootstrapCluster(conf, store, store, snapshots, local, members); err != nil {
			t.Fatal(err)
		}
		r, err := raft.NewRaft(conf, &raft.MockFSM{}, store, store, snapshots, local)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := local.Stand(t.Context()); err != nil {
			t.Fatal(err)
		}
		if leads := <-r.LeaderCh(); !leads || time.Since(start) != 0 {
			t.Errorf("leader %v after %v", leads, time.Since(start))
		}
		if err := r.Shutdown().Error(); err != nil {
			t.Error(err)
		}
	})
}

func TestStandGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := NewLocal("node-1").Stand(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestNobodyElse(t *testing.T) {
	t.Parallel()
	local := NewLocal("node-1")
	_, pipeline := local.AppendEntriesPipeline("2", "node-2")
	for _, err := range []error{
		pipeline,
		local.AppendEntries("2", "node-2", nil, nil),
		local.RequestVote("2", "node-2", nil, nil),
		local.RequestPreVote("2", "node-2", nil, nil),
		local.InstallSnapshot("2", "node-2", nil, nil, nil),
		local.TimeoutNow("2", "node-2", nil, nil),
	} {
		if !errors.Is(err, ErrNoPeer) {
			t.Errorf("got %v", err)
		}
	}
	if got := local.DecodePeer(local.EncodePeer("1", "node-1")); got != "node-1" {
		t.Errorf("address came back as %q", got)
	}
}
