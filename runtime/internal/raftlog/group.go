package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"
)

// A Group is the log, the term and the vote of one Raft group. It is a
// [raft.LogStore], a [raft.MonotonicLogStore] and a [raft.StableStore]. Its methods
// may be called from any goroutine, StoreLogs from one at a time.
type Group struct {
	log *Log
	id  uint64
	err error // why the group could not be read when it was opened

	mu          sync.RWMutex // guards what follows
	first, last uint64       // 0 if the log is empty
	sizes       sizes
}

var (
	_ raft.LogStore          = (*Group)(nil)
	_ raft.MonotonicLogStore = (*Group)(nil)
	_ raft.StableStore       = (*Group)(nil)
)

func newGroup(l *Log, id uint64) *Group {
	g := &Group{log: l, id: id}
	g.first, g.last, g.err = g.bounds()
	if g.err != nil {
		g.err = fmt.Errorf("read bounds of group %d in log %s: %w", id, l.dir, g.err)
		return g
	}
	size, err := l.db.EstimateDiskUsage(logKey(id, 0), logEnd(id))
	if err != nil {
		g.err = fmt.Errorf("read size of group %d in log %s: %w", id, l.dir, err)
	}
	g.sizes.start(g.first, g.last, size)
	return g
}

// bounds finds the first and the last index.
func (g *Group) bounds() (first, last uint64, err error) {
	if err := g.log.Err(); err != nil {
		return 0, 0, err
	}
	it, err := g.log.db.NewIter(&pebble.IterOptions{LowerBound: logKey(g.id, 0), UpperBound: logEnd(g.id)})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if it.First() {
		first = indexOf(it.Key())
	}
	if it.Last() {
		last = indexOf(it.Key())
	}
	return first, last, it.Error()
}

func indexOf(key []byte) uint64 { return binary.BigEndian.Uint64(key[keySize-8:]) }

// FirstIndex returns the first index in the log, 0 if it is empty.
func (g *Group) FirstIndex() (uint64, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.first, g.err
}

// LastIndex returns the last index in the log, 0 if it is empty.
func (g *Group) LastIndex() (uint64, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.last, g.err
}

// Size returns about how many bytes the log has.
func (g *Group) Size() uint64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.sizes.total()
}

// Tail returns the index from which on the log has at most about so many bytes: what is
// below it may be deleted to keep that much. It is 0 if the log is empty.
func (g *Group) Tail(bytes uint64) uint64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.last == 0 {
		return 0
	}
	return max(g.first, g.sizes.tail(bytes, g.last))
}

// IsMonotonic says that a log has no gaps: a missing index is a lost record.
func (g *Group) IsMonotonic() bool { return true }

// GetLog reads the record at an index. The error is [raft.ErrLogNotFound] if index is
// outside of the log, and wraps [ErrCorrupt] if a record inside of it is
// damaged or lost.
func (g *Group) GetLog(index uint64, log *raft.Log) error {
	g.mu.RLock()
	inside := g.err == nil && index >= g.first && index <= g.last && g.last != 0
	g.mu.RUnlock()
	if g.err != nil {
		return g.err
	}
	if !inside {
		return raft.ErrLogNotFound
	}
	if err := g.read(index, log); err != nil {
		if first, _ := g.FirstIndex(); index < first || first == 0 {
			return raft.ErrLogNotFound // deleted meanwhile
		}
		return fmt.Errorf("read group %d index %d of log %s: %w", g.id, index, g.log.dir, err)
	}
	return nil
}

func (g *Group) read(index uint64, log *raft.Log) error {
	if err := g.log.Err(); err != nil {
		return err
	}
	key := logKey(g.id, index)
	b, closer, err := g.log.db.Get(key)
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		return fmt.Errorf("%w: the record is missing", ErrCorrupt)
	case err != nil:
		return corrupt(err)
	}
	log.Index = index
	err = parseRecord(b, key, log)
	return errors.Join(err, closer.Close())
}

// StoreLog appends one record.
func (g *Group) StoreLog(log *raft.Log) error { return g.StoreLogs([]*raft.Log{log}) }

// StoreLogs appends records, and returns when they are on disk. The first must follow
// the last one of the log, unless the log is empty.
func (g *Group) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	last, err := g.LastIndex()
	if err != nil {
		return err
	}
	size := 64
	for _, log := range logs {
		if last != 0 && log.Index != last+1 {
			return fmt.Errorf("append index %d to group %d whose last index is %d", log.Index, g.id, last)
		}
		last = log.Index
		size += keySize + recordSize(log) + 16
	}

	b := g.log.db.NewBatchWithSize(size)
	defer b.Close()
	g.log.addPromise(b)
	var bytes uint64
	for _, log := range logs {
		op := b.SetDeferred(keySize, recordSize(log))
		appendLogKey(op.Key[:0], g.id, log.Index)
		putRecord(op.Value, op.Key, log)
		if err := op.Finish(); err != nil {
			return fmt.Errorf("encode index %d of group %d: %w", log.Index, g.id, err)
		}
		bytes += uint64(keySize + recordSize(log))
	}
	if err := g.log.commit(b, true); err != nil {
		return err
	}
	g.log.metrics.records.Add(float64(len(logs)))
	g.log.metrics.bytes.Add(float64(bytes))

	g.mu.Lock()
	defer g.mu.Unlock()
	if g.last == 0 {
		g.first = logs[0].Index
		g.sizes.start(g.first, g.first-1, 0)
	}
	g.last = last
	g.sizes.append(last, bytes)
	return nil
}

// DeleteRange deletes the records from lo to hi, which must be the beginning or the
// end of the log. The deletion of an end is on disk when it returns; a beginning may
// be there again after a crash, which hurts nobody.
func (g *Group) DeleteRange(lo, hi uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return g.err
	}
	lo, hi = max(lo, g.first), min(hi, g.last)
	if g.last == 0 || lo > hi {
		return nil
	}
	head, tail := lo == g.first, hi == g.last
	if !head && !tail {
		return fmt.Errorf("delete %d to %d of group %d: a gap in %d to %d", lo, hi, g.id, g.first, g.last)
	}

	b := g.log.db.NewBatch()
	defer b.Close()
	g.log.addPromise(b)
	if err := b.DeleteRange(logKey(g.id, lo), logKey(g.id, hi+1), nil); err != nil {
		return fmt.Errorf("delete from group %d: %w", g.id, err)
	}
	if err := g.log.commit(b, tail); err != nil {
		return err
	}
	switch {
	case head && tail:
		g.first, g.last, g.sizes = 0, 0, sizes{}
	case head:
		g.first = hi + 1
		g.sizes.cutHead(g.first)
	default:
		g.last = lo - 1
		g.sizes.cutTail(g.last)
	}
	return nil
}

// Clear deletes all records, and some stable values, at once. It is on disk when Clear
// returns.
func (g *Group) Clear(keys ...[]byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return g.err
	}
	b := g.log.db.NewBatch()
	defer b.Close()
	g.log.addPromise(b)
	err := b.DeleteRange(logKey(g.id, 0), logEnd(g.id), nil)
	for _, key := range keys {
		err = errors.Join(err, b.Delete(stableKey(g.id, key), nil))
	}
	if err != nil {
		return fmt.Errorf("clear group %d: %w", g.id, err)
	}
	if err := g.log.commit(b, true); err != nil {
		return err
	}
	g.first, g.last, g.sizes = 0, 0, sizes{}
	return nil
}

// Check reads all records from an index on, and returns an error if one of them is
// damaged or missing.
func (g *Group) Check(from uint64) (err error) {
	g.mu.RLock()
	next, last, err := max(from, g.first), g.last, g.err
	g.mu.RUnlock()
	if err != nil || last == 0 || next > last {
		return err
	}
	fail := func(err error) error {
		return fmt.Errorf("read group %d index %d of log %s: %w", g.id, next, g.log.dir, corrupt(err))
	}
	it, err := g.log.db.NewIter(&pebble.IterOptions{LowerBound: logKey(g.id, next), UpperBound: logKey(g.id, last+1)})
	if err != nil {
		return fail(err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	var log raft.Log
	for ok := it.First(); ok; ok = it.Next() {
		if !bytes.Equal(it.Key(), logKey(g.id, next)) {
			return fail(fmt.Errorf("%w: the record is missing", ErrCorrupt))
		}
		if err := parseRecord(it.Value(), it.Key(), &log); err != nil {
			return fail(err)
		}
		next++
	}
	if err := it.Error(); err != nil {
		return fail(err)
	}
	if next != last+1 {
		return fail(fmt.Errorf("%w: the record is missing", ErrCorrupt))
	}
	return nil
}

// Set stores a value, and returns when it is on disk.
func (g *Group) Set(key, val []byte) error {
	if g.err != nil {
		return g.err
	}
	k := stableKey(g.id, key)
	v := make([]byte, 4, 4+len(val))
	v = append(v, val...)
	binary.LittleEndian.PutUint32(v, checksum(k, v[4:]))

	b := g.log.db.NewBatch()
	defer b.Close()
	g.log.addPromise(b)
	if err := b.Set(k, v, nil); err != nil {
		return fmt.Errorf("store %q of group %d: %w", key, g.id, err)
	}
	return g.log.commit(b, true)
}

// Get reads a stored value; it is empty if there is none.
func (g *Group) Get(key []byte) ([]byte, error) {
	if g.err != nil {
		return nil, g.err
	}
	fail := func(err error) ([]byte, error) {
		return nil, fmt.Errorf("read %q of group %d of log %s: %w", key, g.id, g.log.dir, err)
	}
	if err := g.log.Err(); err != nil {
		return fail(err)
	}
	k := stableKey(g.id, key)
	v, closer, err := g.log.db.Get(k)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return fail(corrupt(err))
	}
	defer closer.Close()
	if len(v) < 4 || binary.LittleEndian.Uint32(v) != checksum(k, v[4:]) {
		return fail(fmt.Errorf("%w: checksum mismatch", ErrCorrupt))
	}
	return append([]byte(nil), v[4:]...), nil
}

// SetUint64 is [Group.Set] for a number.
func (g *Group) SetUint64(key []byte, val uint64) error {
	return g.Set(key, binary.LittleEndian.AppendUint64(nil, val))
}

// GetUint64 is [Group.Get] for a number; it is 0 if there is none.
func (g *Group) GetUint64(key []byte) (uint64, error) {
	v, err := g.Get(key)
	if err != nil || v == nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("read %q of group %d of log %s: %w: %d bytes", key, g.id, g.log.dir, ErrCorrupt, len(v))
	}
	return binary.LittleEndian.Uint64(v), nil
}
