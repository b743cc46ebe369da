// Package storage is the state machine of one shard replica: rows of objects, their
// alarms and the list of objects, in one bbolt file. It knows no Raft, no network and no
// clock. It promises:
//
//   - the same entries applied in the same order give the same state and the same
//     digest on every replica;
//   - an entry is applied whole or not at all;
//   - what a read returns is what was written, or an error that wraps [ErrCorrupt]:
//     every record of the file has a checksum that is checked whenever it is read;
//   - the file is usable after any crash, and says up to which entry it is complete.
//
// Entries go to a table in memory; [Machine.Flush] writes it to the file in ordinary,
// fsynced transactions while a new table takes what is applied in the meantime. A read asks
// from the newest layer to the oldest:
//
//	Apply --> active table --(flush begins)--> frozen table --(flush ends)--> file
//
// What is lost in a crash is in the log, which must be kept from the durable index on.
// After an error of Apply, Flush or Restore nobody knows what is in the
// file: the process must exit, or at least give up the machine.
//
// The package leans on bbolt for pages and transactions, and on its caller for order: one
// Apply at a time, with rising indexes.
package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Options says how a [Machine] is opened. Zero values mean the defaults given.
type Options struct {
	Logger      *slog.Logger     // default: discard
	MustExist   bool             // a missing file is an error; by default it is made
	LockTimeout time.Duration    // how long to wait for a process that has the file open; 1 s
	Now         func() time.Time // for Unflushed only; time.Now

	// For tests: the size of the file at which writes fail, and the limit of operations of
	// one transaction.
	maxSize, txOperations int
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.LockTimeout == 0 {
		o.LockTimeout = time.Second
	}
	if o.txOperations == 0 {
		o.txOperations = txOperations
	}
	if o.Now == nil {
		o.Now = time.Now //nolint:forbidigo // when to flush is not part of the state
	}
	return o
}

// A Machine is the state machine of one shard replica. Its methods may be called from
// any goroutine.
type Machine struct {
	path    string // "": in memory only
	options Options

	// The locks nest in this order.
	flushing sync.Mutex // held while the file is written or replaced
	applying sync.Mutex // held while the active table is changed or replaced
	mu       sync.RWMutex

	// Guarded by mu.
	file    *file // nil in memory
	active  *table
	frozen  *table // nil unless a flush is under way or was cut short
	state   state  // of everything applied
	closed  state  // when the frozen table was closed
	durable state  // in the file

	failed error // why the file must not be written any more; guarded by flushing

	viewMu sync.Mutex
	view   *view // of the tables as they are now; nil if nobody has asked
}

// Open opens the file at path, or makes it. With an empty path the machine lives in
// memory only. The error says what is wrong with the file, and what to do about it.
func Open(path string, o Options) (*Machine, error) {
	o = o.withDefaults()
	m := &Machine{path: path, options: o, active: newTable(path == "")}
	if path == "" {
		return m, nil
	}
	// What a crash in the middle of Restore left.
	if err := remove(path + ".restore"); err != nil {
		return nil, fmt.Errorf("open applied state: %w", err)
	}
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) && !o.MustExist {
		err = createFile(path, o)
	}
	if err != nil {
		return nil, fmt.Errorf("open applied state: %w", err)
	}
	m.file, m.durable, err = openFile(path, o)
	if err != nil {
		if errors.Is(err, ErrCorrupt) {
			err = fmt.Errorf("%w; move the file away, and have it rebuilt from another replica or restored from a backup", err)
		}
		return nil, fmt.Errorf("open applied state: %w", err)
	}
	m.state = m.durable
	return m, nil
}

// Apply applies one log entry: any number of batches, one after another, possibly
// none. An entry that was applied already is skipped. Malformed batches are refused as a
// whole, with an error that wraps [ErrCorrupt].
func (m *Machine) Apply(index, term uint64, batches []byte) error {
	m.applying.Lock()
	defer m.applying.Unlock()
	if index <= m.state.index {
		return nil
	}
	a, err := m.prepare(batches)
	if err != nil {
		return fmt.Errorf("apply entry %d of term %d: %w", index, term, err)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	m.touch()
	a.run(m.active, batches)
	m.state.index, m.state.term = index, term
	if len(batches) > 0 {
		m.state.digest = extendDigest(m.state.digest, index, term, batches)
	}
	m.view = nil
	return nil
}

// touch notes when the first change came that the active table stands for.
func (m *Machine) touch() {
	if m.active.since.IsZero() {
		m.active.since = m.options.Now()
	}
}

// extendDigest leaves out nothing that replicas could differ in. Entries without batches are
// not part of a digest, so it does not depend on which of Raft's own entries are reported.
func extendDigest(digest, index, term uint64, batches []byte) uint64 {
	var head [24]byte
	for i, n := range []uint64{digest, index, term} {
		binary.BigEndian.PutUint64(head[8*i:], n)
	}
	var h xxhash.Digest
	h.Reset()
	_, _ = h.Write(head[:]) // never fails
	_, _ = h.Write(batches)
	return h.Sum64()
}

// SetConfiguration keeps the shard's Raft membership as of an index. It becomes durable
// with the next flush.
func (m *Machine) SetConfiguration(index uint64, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if index > m.state.confIndex {
		m.touch()
		m.state.confIndex, m.state.conf = index, append([]byte{}, data...)
	}
}

// Configuration returns what SetConfiguration was given last; index 0 means nothing.
func (m *Machine) Configuration() (index uint64, data []byte) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.confIndex, m.state.conf
}

// Applied returns index and term of the last entry applied.
func (m *Machine) Applied() (index, term uint64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.index, m.state.term
}

// Durable returns index and term of the last entry of which everything is in the
// file: the log is needed only after it.
func (m *Machine) Durable() (index, term uint64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.durable.index, m.durable.term
}

// Digest returns the running hash of all entries applied. It is the same on all
// replicas at the same index.
func (m *Machine) Digest() (index, hash uint64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.index, m.state.digest
}

// Unflushed returns about how much memory the changes take that are not in the file, and
// since when the oldest of them waits; the zero time if there is none.
func (m *Machine) Unflushed() (bytes int, since time.Time) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.path == "" {
		return 0, time.Time{}
	}
	bytes, since = m.active.bytes, m.active.since
	if m.frozen != nil {
		bytes, since = bytes+m.frozen.bytes, m.frozen.since
	}
	return bytes, since
}

// Flush makes everything durable that was applied before the call. Apply and reads go
// on meanwhile. If ctx ends, it stops between two transactions, and a later flush begins
// where it has to.
func (m *Machine) Flush(ctx context.Context) error {
	m.flushing.Lock()
	defer m.flushing.Unlock()
	if m.file == nil {
		m.mu.Lock()
		m.durable = m.state
		m.mu.Unlock()
		return nil
	}
	// A flush that was cut short has left a table, which goes first.
	if err := m.flushFrozen(ctx); err != nil {
		return err
	}
	m.freeze()
	return m.flushFrozen(ctx)
}

// freeze puts a new table in the place of the active one, if there is anything to flush.
func (m *Machine) freeze() {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.active.empty() && m.state.index == m.durable.index && m.state.confIndex == m.durable.confIndex {
		return
	}
	m.frozen, m.closed, m.active = m.active, m.state, newTable(false)
	m.view = nil
}

func (m *Machine) flushFrozen(ctx context.Context) error {
	if m.failed != nil {
		return m.failed
	}
	if m.frozen == nil {
		return nil
	}
	if err := m.file.write(ctx, m.frozen, &m.closed); err != nil {
		if ctx.Err() == nil {
			m.failed = err
		}
		return fmt.Errorf("flush up to entry %d: %w", m.closed.index, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.durable, m.frozen, m.view = m.closed, nil, nil
	return nil
}

// Close closes the file, once all reads of it have ended and snapshots are closed. It does not flush: what is not
// in the file, is in the log.
func (m *Machine) Close() error {
	m.flushing.Lock()
	defer m.flushing.Unlock()
	if m.file == nil || errors.Is(m.failed, fs.ErrClosed) {
		return nil
	}
	m.failed = fmt.Errorf("%s: %w", m.path, fs.ErrClosed)
	return m.file.close()
}
