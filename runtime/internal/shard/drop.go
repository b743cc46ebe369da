package shard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/fsync"
	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
)

// Drop stops the shard and deletes what this node has of it, except for what its later votes
// depend on. The owner's report must say that this node is no member. With
// [replica.ErrMember] nothing is deleted, since this node may have been added again; the
// shard is stopped all the same, and can be opened again. Steer must have returned.
func (s *Shard) Drop(ctx context.Context, owner Report) error {
	if !owner.Lacks(s.node) {
		return fmt.Errorf("drop shard %d: %w", s.id, replica.ErrMember)
	}
	closed := false
	s.stop.Do(func() {
		s.stopErr = s.replica.Drop(ctx, uint64(owner.Epoch), owner.Index, func() error {
			closed = true
			return errors.Join(s.machine.Close(), discard(s.path))
		})
		if !closed {
			s.stopErr = errors.Join(s.stopErr, s.machine.Close())
		}
	})
	return s.stopErr
}

// Holds reports whether there is anything of a shard on this node, and completes a Drop
// that a crash cut short. The shard must not be open.
func Holds(log *raftlog.Log, id placement.ShardID, path string) (bool, error) {
	group := log.Group(Group(id))
	if _, err := replica.FinishDrop(group, func() error { return discard(path) }); err != nil {
		return false, fmt.Errorf("complete the drop of shard %d: %w", id, err)
	}
	last, err := group.LastIndex()
	if err != nil || last > 0 {
		return last > 0, err
	}
	_, err = os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// discard deletes a state's file durably.
func discard(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fsync.Dir(filepath.Dir(path))
}
