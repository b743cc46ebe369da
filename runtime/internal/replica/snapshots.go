package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// stateID is the name of the one snapshot there always is: the state machine's own file.
const stateID = "state"

// snapshots shows Raft the state machine's file as its snapshot, and keeps a snapshot
// received from another member in a file until it has been restored.
type snapshots struct {
	replica *Replica

	mu       sync.Mutex // guards received
	received *received
}

// received is a complete snapshot of another member.
type received struct {
	meta raft.SnapshotMeta
	path string
}

// List returns the durable state, if there is any.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	machine := s.replica.cfg.Machine
	index, term := machine.Durable()
	if index == 0 {
		return nil, nil
	}
	confIndex, conf := machine.Configuration()
	if confIndex == 0 {
		return nil, errors.New("the state does not say who the members are")
	}
	meta := snapshotMeta(index, term, confIndex, conf, 0)
	meta.Configuration = s.replica.floor.mask(s.replica.cfg.NodeID, confIndex, meta.Configuration)
	return []*raft.SnapshotMeta{meta}, nil
}

func snapshotMeta(index, term, confIndex uint64, conf []byte, size int64) *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version:            raft.SnapshotVersionMax,
		ID:                 stateID,
		Index:              index,
		Term:               term,
		Configuration:      raft.DecodeConfiguration(conf),
		ConfigurationIndex: confIndex,
		Size:               size,
	}
}

// Open streams the state as it is now, or the snapshot that was received.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if id != stateID {
		return s.openReceived(id)
	}
	return s.replica.Snapshot()
}

// Snapshot streams the state as it is now. The reader must be read without long pauses, and
// closed.
func (r *Replica) Snapshot() (*raft.SnapshotMeta, io.ReadCloser, error) {
	if err := r.cfg.Snapshots.enter(r.stopping); err != nil {
		return nil, nil, err
	}
	var snap *Snapshot
	err := r.flush(func() (err error) {
		snap, err = r.cfg.Machine.Snapshot(context.Background())
		return err
	})
	if err != nil {
		r.cfg.Snapshots.leave()
		return nil, nil, err
	}
	meta := snapshotMeta(snap.Index, snap.Term, snap.ConfigurationIndex, snap.Configuration, snap.Size)
	return meta, stream(snap, r.cfg.Snapshots), nil
}

// stream reads what a snapshot writes. Its goroutine ends when the reader is closed, or
// has not read for snapshotIdle.
func stream(snap *Snapshot, limiter *Limiter) io.ReadCloser {
	r, w := io.Pipe()
	s := &streaming{PipeReader: r}
	s.idle = time.AfterFunc(snapshotIdle, func() { r.CloseWithError(errIdle) })
	s.writer.Go(func() {
		defer limiter.leave()
		_, err := snap.WriteTo(w)
		w.CloseWithError(errors.Join(err, snap.Close()))
	})
	return s
}

type streaming struct {
	*io.PipeReader
	idle   *time.Timer
	writer sync.WaitGroup // the goroutine of stream, stopped by Close
}

func (s *streaming) Read(b []byte) (int, error) {
	s.idle.Reset(snapshotIdle)
	return s.PipeReader.Read(b)
}

func (s *streaming) Close() error {
	s.idle.Stop()
	err := s.PipeReader.Close()
	s.writer.Wait()
	return err
}

func (s *snapshots) openReceived(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.received == nil || s.received.meta.ID != id {
		return nil, nil, fmt.Errorf("there is no snapshot %q", id)
	}
	r := s.received
	s.received = nil
	// Before the state jumps to its index: that it is ahead of the log is no loss then.
	if err := s.replica.cfg.Log.SetUint64(keyRestored, r.meta.Index); err != nil {
		return nil, nil, err
	}
	s.replica.guard.received(r.meta.Index, r.meta.Term)
	s.replica.fsm.receivedSize = r.meta.Size
	f, err := os.Open(r.path)
	if err != nil {
		return nil, nil, err
	}
	return &r.meta, &disposable{f}, nil
}

// disposable is a file that goes when it is closed.
type disposable struct{ *os.File }

func (d *disposable) Close() error { return errors.Join(d.File.Close(), os.Remove(d.Name())) }

// Create begins to receive a snapshot. Raft also calls it for a snapshot of our own, to
// which nothing is written: the state is there already.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, members raft.Configuration, membersIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	f, err := os.CreateTemp(s.replica.cfg.SnapshotDir, "snapshot-*")
	if err != nil {
		return nil, err
	}
	return watchedSink{&sink{snapshots: s, file: f, meta: raft.SnapshotMeta{
		Version:            version,
		ID:                 fmt.Sprintf("%d-%d", term, index),
		Index:              index,
		Term:               term,
		Configuration:      members,
		ConfigurationIndex: membersIndex,
	}}}, nil
}

type sink struct {
	snapshots *snapshots
	file      *os.File
	meta      raft.SnapshotMeta
	closed    bool
}

func (s *sink) ID() string {
	if s.meta.Size == 0 {
		return stateID
	}
	return s.meta.ID
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.file.Write(p)
	s.meta.Size += int64(n)
	return n, err
}

// Close keeps what was received. Raft calls it once more than Persist does.
func (s *sink) Close() error {
	if s.closed {
		return nil
	}
	if s.meta.Size == 0 {
		return s.Cancel()
	}
	s.closed = true
	if err := s.file.Close(); err != nil {
		return err
	}
	s.snapshots.mu.Lock()
	defer s.snapshots.mu.Unlock()
	s.snapshots.received = &received{meta: s.meta, path: s.file.Name()}
	return nil
}

func (s *sink) Cancel() error {
	if s.closed {
		return nil
	}
	s.closed = true
	return errors.Join(s.file.Close(), os.Remove(s.file.Name()))
}
