// Package shard is one shard on this node: its state (storage) behind its group's log
// (replica). It promises that what a [Store] has committed is in the log on the disks of a
// quorum and applied here, and that a Store is given to [Config.Lead] only after
// everything that was committed before is applied.
//
//	Store.Commit > replica (log, quorum) > storage.Machine.Apply > done
//	Store.Get, List, ... > storage.Machine, without waiting for anything
package shard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// Config says where a shard's parts are. Transport, Log, Path and Lead are required.
type Config struct {
	ID        placement.ShardID
	NodeID    placement.NodeID
	Path      string       // of the state's file
	Log       *raftlog.Log // the node's
	Transport replica.Transport
	Flusher   *replica.Flusher // the node's; nil: the state is flushed by Stop only
	Snapshots *replica.Limiter // the node's; nil: any number of snapshots is sent at a time
	Disk      *Disk            // the node's; nil: never full
	Scrubber  *Scrubber        // the node's; nil: the state's file is not looked after

	// Join makes a shard without any state wait for the leader of an existing group. Otherwise
	// it founds a new one.
	Join bool

	// Lead is called for each reign of this node over the shard, and must return soon
	// after ctx has ended, with nothing left that uses the store.
	Lead func(ctx context.Context, id placement.ShardID, store *Store)

	// OnHandOver is called when everything is committed and another node is about to lead.
	OnHandOver func(ctx context.Context) // default: nothing happens

	OnFatal func(error) // when the shard cannot go on; default: exit with status 1

	Logger  *slog.Logger     // default: discard
	Metrics *replica.Metrics // the node's; default: not registered anywhere
}

// A Shard is one shard on this node. Its methods may be called from any goroutine.
type Shard struct {
	id      placement.ShardID
	node    placement.NodeID
	path    string
	log     *slog.Logger
	machine *storage.Machine
	replica *replica.Replica
	reign   atomic.Pointer[replica.Reign] // while this node owns the shard

	unscrub func()

	stop    sync.Once
	stopErr error
}

// Group returns the number of the group of a shard in the node's log. Group 0 is the
// placement group's.
func Group(id placement.ShardID) uint64 { return uint64(id) + 1 }

// Open starts a shard. It returns before the first reign has begun.
func Open(ctx context.Context, cfg Config) (*Shard, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if _, err := Holds(cfg.Log, cfg.ID, cfg.Path); err != nil {
		return nil, fmt.Errorf("open shard %d: %w", cfg.ID, err)
	}
	group := cfg.Log.Group(Group(cfg.ID))
	machine, err := storage.Open(cfg.Path, storage.Options{Logger: cfg.Logger})
	if err != nil {
		if first, e := group.FirstIndex(); e == nil && first == 1 {
			err = fmt.Errorf("%w; the log has everything from the beginning: move the file away, and it will be made again", err)
		}
		return nil, fmt.Errorf("open shard %d: %w", cfg.ID, err)
	}
	s := &Shard{
		id:      cfg.ID,
		node:    cfg.NodeID,
		path:    cfg.Path,
		log:     cfg.Logger.With(slog.Int("shard", int(cfg.ID))),
		machine: machine,
	}
	s.replica, err = replica.Open(ctx, replica.Config{
		Name:        fmt.Sprintf("shard %d", cfg.ID),
		NodeID:      raft.ServerID(cfg.NodeID),
		Log:         group,
		Transport:   replica.Watch(cfg.Transport),
		Machine:     state{machine},
		Flusher:     cfg.Flusher,
		Snapshots:   cfg.Snapshots,
		Join:        cfg.Join,
		OnHandOver:  cfg.OnHandOver,
		OnFatal:     cfg.OnFatal,
		Logger:      cfg.Logger,
		Metrics:     cfg.Metrics,
		SnapshotDir: filepath.Dir(cfg.Path),
		Lead: func(ctx context.Context, reign *replica.Reign) {
			s.reign.Store(reign)
			defer s.reign.Store(nil)
			cfg.Lead(ctx, cfg.ID, &Store{machine: machine, reign: reign, disk: cfg.Disk})
		},
	})
	if err != nil {
		return nil, errors.Join(err, machine.Close())
	}
	s.unscrub = cfg.Scrubber.add(s)
	return s, nil
}

// ID returns the shard's number.
func (s *Shard) ID() placement.ShardID { return s.id }

// Reign returns the epoch in which this node owns the shard, and whether it does.
func (s *Shard) Reign() (placement.Epoch, bool) {
	epoch, leads := s.replica.Reign()
	return placement.Epoch(epoch), leads
}

// Leader returns the node that is known to own the shard, "" if none is.
func (s *Shard) Leader() placement.NodeID {
	id, _ := s.replica.Leader()
	return placement.NodeID(id)
}

// LeaderGone tells the shard that a node's process has ended; see [replica.Replica.LeaderGone].
// It blocks for some hundred milliseconds at most. alive may be nil.
func (s *Shard) LeaderGone(ctx context.Context, peer placement.NodeID, alive func(placement.NodeID) bool) {
	s.replica.LeaderGone(ctx, peer, alive)
}

// Digest returns the running hash of everything applied, which is the same on all replicas
// at the same index.
func (s *Shard) Digest() (index, hash uint64) { return s.machine.Digest() }

// Applied returns the index of the last entry applied, and of the last that is in the
// state's file.
func (s *Shard) Applied() (applied, durable uint64) {
	applied, _ = s.machine.Applied()
	durable, _ = s.machine.Durable()
	return applied, durable
}

// Stop ends the reign, waits for commits no longer than ctx lasts, makes everything
// durable in the state's file, and closes it. It may be called twice.
func (s *Shard) Stop(ctx context.Context) error {
	s.stop.Do(func() {
		s.unscrub()
		s.stopErr = errors.Join(s.replica.Stop(ctx), s.machine.Close())
	})
	return s.stopErr
}

// state is a storage.Machine as a replica's state machine.
type state struct{ *storage.Machine }

func (s state) Snapshot(ctx context.Context) (*replica.Snapshot, error) {
	snap, err := s.Machine.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return &replica.Snapshot{
		Index:              snap.Index,
		Term:               snap.Term,
		ConfigurationIndex: snap.ConfigurationIndex,
		Configuration:      snap.Configuration,
		Size:               snap.Size,
		WriterTo:           snap,
		Closer:             snap,
	}, nil
}
