package shard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/backup"
	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// ErrNotOwner means that this node does not own the shard.
var ErrNotOwner = errors.New("the node does not own the shard")

// Snapshot streams the shard's state, with everything that was acknowledged before the call: the
// state is taken after it is certain that this node's reign was not over then. The reader must be
// read without long pauses, and closed.
func (s *Shard) Snapshot(ctx context.Context) (backup.Section, io.ReadCloser, error) {
	fail := func(err error) (backup.Section, io.ReadCloser, error) {
		return backup.Section{}, nil, fmt.Errorf("snapshot of shard %d: %w", s.id, err)
	}
	reign := s.reign.Load()
	if reign == nil {
		return fail(ErrNotOwner)
	}
	confirmed := make(chan error, 1)
	reign.Confirm(func(err error) { confirmed <- err })
	select {
	case err := <-confirmed:
		if err != nil {
			return fail(err)
		}
	case <-ctx.Done():
		return fail(context.Cause(ctx))
	}
	meta, state, err := s.replica.Snapshot() //nolint:contextcheck // it lasts until the reader is closed, or idle for too long
	if err != nil {
		return fail(err)
	}
	return backup.Section{Shard: s.id, Index: meta.Index, Term: meta.Term, Length: meta.Size}, state, nil
}

// Restore makes a shard of a new group, whose only member is a node, out of a state that
// Snapshot streamed. The node must have nothing of the shard.
func Restore(log *raftlog.Log, path string, node placement.NodeID, s backup.Section, state io.Reader) error {
	index, term, err := storage.Transplant(state, path, replica.SoleMember(raft.ServerID(node)), storage.Options{})
	if err == nil && (index != s.Index || term != s.Term) {
		err = fmt.Errorf("%s: it is announced as entry %d of term %d, and is of %d and %d", filepath.Base(path), s.Index, s.Term, index, term)
	}
	if err != nil {
		return err
	}
	return replica.Seed(log.Group(Group(s.Shard)), index, term)
}
