package shard

import (
	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// A Store is the shard's storage during one reign. Its methods may be called from any
// goroutine. Once the reign is over, commits fail and reads may be stale.
type Store struct {
	machine *storage.Machine
	reign   *replica.Reign
	disk    *Disk
}

// Epoch is the reign's.
func (s *Store) Epoch() placement.Epoch { return placement.Epoch(s.reign.Epoch()) }

// Get returns a stored value, which the caller must not modify.
func (s *Store) Get(id placement.ObjectID, space storage.Space, key string) ([]byte, bool, error) {
	return s.machine.Get(id, space, key)
}

// List returns up to limit rows of a range in order, and whether there are more.
func (s *Store) List(id placement.ObjectID, space storage.Space, r storage.Range, limit int) ([]storage.Row, bool, error) {
	return s.machine.List(id, space, r, limit)
}

// Lookup returns an object's metadata.
func (s *Store) Lookup(id placement.ObjectID) (storage.Object, bool, error) {
	return s.machine.Lookup(id)
}

// Objects lists objects of a class after a position, in order of (name, id).
func (s *Store) Objects(class, prefix string, after storage.Position, limit int) ([]storage.Object, error) {
	return s.machine.Objects(class, prefix, after, limit)
}

// DueAlarms returns up to limit alarms that are due at or before a time (Unix
// milliseconds), earliest first, and when the first one after those is due.
func (s *Store) DueAlarms(now int64, limit int) (due []storage.Alarm, next int64, err error) {
	return s.machine.DueAlarms(now, limit)
}

// Commit makes one object's batch durable on a quorum; see [replica.Reign.Commit].
func (s *Store) Commit(batch []byte, done func(error)) { s.reign.Commit(batch, done) }

// Confirm calls done(nil) once it is certain that the reign was not over when Confirm was
// called; see [replica.Reign.Confirm].
func (s *Store) Confirm(done func(error)) { s.reign.Confirm(done) }

// Writable returns nil, or why writes are refused now: the disk is nearly full, or too
// much waits for it.
func (s *Store) Writable() error {
	if err := s.disk.Writable(); err != nil {
		return err
	}
	return s.reign.Pressure()
}
