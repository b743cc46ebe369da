package replica

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
)

// ErrMember means that a replica cannot be dropped: for all that it knows, it may be a
// member again.
var ErrMember = errors.New("it may be a member of the group again")

// Drop stops the replica and deletes what this node has of the group: discard deletes the
// state machine's file, durably, and must bear to be called again. A leader must have said before
// that this node is no member: term is that of its reign, and at the index of its [Membership]. The
// group's term and vote are kept, and a [floor]: a replica that is opened again, with
// Config.Join, starts empty, but does no harm by what it has forgotten.
//
// With [ErrMember] nothing is deleted, but the replica is stopped. A member that has been
// added again since then is safe from being dropped: as long as it has not had the entry that
// added it, its leader does not take it for one that has caught up; and once it has, Drop refuses.
// No clock is part of this.
//
// A crash in the middle is made up for by [FinishDrop].
func (r *Replica) Drop(ctx context.Context, term, at uint64, discard func() error) error {
	if err := r.drop(ctx, floor{term, at}, discard); err != nil {
		return fmt.Errorf("drop %s: %w", r.cfg.Name, err)
	}
	return nil
}

func (r *Replica) drop(ctx context.Context, f floor, discard func() error) error {
	r.stop.Do(func() { r.stopErr = r.halt(ctx) })
	if r.stopErr != nil {
		return r.stopErr
	}
	index, err := r.lastConfiguration()
	if err != nil {
		return err
	}
	if index > f.index {
		return fmt.Errorf("%w: it has members of index %d, the leader's were of %d", ErrMember, index, f.index)
	}
	if err := f.store(r.cfg.Log); err != nil {
		return err
	}
	if err := r.cfg.Log.SetUint64(keyDropping, 1); err != nil {
		return err
	}
	_, err = FinishDrop(r.cfg.Log, discard)
	return err
}

// lastConfiguration returns the index of the last entry about members that is here, committed
// or not. The replica must be stopped.
func (r *Replica) lastConfiguration() (uint64, error) {
	known, _ := r.cfg.Machine.Configuration()
	applied, _ := r.cfg.Machine.Applied()
	first, err1 := r.cfg.Log.FirstIndex()
	last, err2 := r.cfg.Log.LastIndex()
	if err := errors.Join(err1, err2); err != nil || last == 0 {
		return known, err
	}
	var log raft.Log
	for i := last; i >= first && i > max(known, applied); i-- {
		if err := r.cfg.Log.GetLog(i, &log); err != nil {
			return 0, err
		}
		if log.Type == raft.LogConfiguration {
			return i, nil
		}
	}
	return known, nil
}

// FinishDrop completes a [Replica.Drop] that a crash cut short, and reports whether there
// was one. It must be called before the state machine of the group is opened.
func FinishDrop(log *raftlog.Group, discard func() error) (dropped bool, err error) {
	dropping, err := log.GetUint64(keyDropping)
	if err != nil || dropping == 0 {
		return false, err
	}
	// The file first: without the log it would be taken for one whose log was lost.
	if err := discard(); err != nil {
		return false, err
	}
	return true, log.Clear(keyDropping, keyRestored)
}
