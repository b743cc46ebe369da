package storage

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"strings"

	"go.etcd.io/bbolt"
)

// Limits of one transaction of a flush.
const (
	txOperations = 8192    // rows put and deleted
	txBytes      = 8 << 20 // of their keys and values
)

// write writes a table into the file, in as many transactions as it takes; the last
// one carries the state that the machine was in when the table was closed.
//
// If it is cut short, the file holds some rows of the table beside the older state, and
// the log is replayed from that state's index. That is right all the same: a row that
// a replayed entry is about ends as the last of these entries says, whatever it was
// before, and no other row was in the table. (Create alone looks at what is there. It
// may find metadata of the future, but that is what the entries up to there make
// of it; or the object is destroyed on the way, and then it is created on a clean slate.)
func (f *file) write(ctx context.Context, t *table, s *state) error {
	next, stop := iter.Pull(t.changes())
	defer stop()
	e, more := next()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		last := false
		err := f.update(func(w *writer) error {
			for more && !w.full() {
				done, err := w.set(e)
				if err != nil {
					return err
				}
				if done {
					e, more = next()
				}
			}
			if last = !more; last {
				return w.finish(s)
			}
			return w.finish(nil)
		})
		if err != nil || last {
			return err
		}
	}
}

// update runs fn in one fsynced transaction.
func (f *file) update(fn func(*writer) error) error {
	f.stuck = true
	return f.guard(func() error {
		err := f.db.Update(func(tx *bbolt.Tx) error {
			w := &writer{reader: reader{tx: tx, path: f.path}, room: f.txOperations}
			var err error
			if w.tally, err = w.readTally(); err != nil {
				return err
			}
			return fn(w)
		})
		f.stuck = false
		if err != nil {
			return fmt.Errorf("write %s: %w", f.path, err)
		}
		return nil
	})
}

// A writer is one transaction that changes rows. It keeps the indexes and the tally
// in step with them.
type writer struct {
	reader
	tally tally
	room  int // operations that are left
	bytes int
}

func (w *writer) full() bool { return w.room <= 0 || w.bytes >= txBytes }

// set makes a change of a table one of the file. It is not done if the entry
// is a mask and the transaction is full before everything below it is gone.
func (w *writer) set(e entry) (done bool, err error) {
	if len(e.key) == objectBytes {
		return w.clear(e.key, e.value[0])
	}
	return true, w.setRow(e.key, e.value)
}

func (w *writer) clear(object string, mask byte) (done bool, err error) {
	var keys []string
	c := w.cursor(rowsBucket, false)
	for err = c.seek(object); err == nil && c.ok && strings.HasPrefix(c.key, object); err = c.next() {
		if spares(mask, rowSpace(c.key)) {
			continue
		}
		if keys = append(keys, c.key); len(keys) >= w.room {
			break
		}
	}
	if err != nil {
		return false, err
	}
	for _, key := range keys {
		if err := w.setRow(key, nil); err != nil {
			return false, err
		}
	}
	return !w.full(), nil
}

// setRow puts a row, or deletes it if the value is nil.
func (w *writer) setRow(key string, value []byte) error {
	old, err := w.record(rowsBucket, key, value)
	if err != nil {
		return err
	}
	switch rowSpace(key) {
	case SpaceAlarm:
		return w.reindex(alarmsBucket, alarmEntry(key, old), alarmEntry(key, value))
	case SpaceMeta:
		return w.reindex(objectsBucket, objectEntry(key, old), objectEntry(key, value))
	}
	return nil
}

func (w *writer) reindex(bucket []byte, old, now entry) error {
	if old.key != "" && old.key != now.key {
		if _, err := w.record(bucket, old.key, nil); err != nil {
			return err
		}
	}
	if now.key == "" {
		return nil
	}
	_, err := w.record(bucket, now.key, now.value)
	return err
}

// record puts a record, or deletes it if the value is nil, and returns the value it
// had. What does not change anything dirties no page.
func (w *writer) record(bucket []byte, key string, value []byte) (old []byte, err error) {
	w.room--
	b, k := w.bucket(bucket), []byte(key)
	was := b.Get(k)
	if was != nil {
		if old, err = unseal(w.path, k, was); err != nil {
			return nil, err
		}
		if value != nil && bytes.Equal(old, value) {
			return old, nil
		}
		old = bytes.Clone(old)
		w.tally.remove(was)
	}
	if value == nil {
		if was == nil {
			return nil, nil
		}
		return old, b.Delete(k)
	}
	now := seal(k, value)
	w.tally.add(now)
	w.bytes += len(k) + len(now)
	return old, b.Put(k, now)
}

// finish writes the tally, and the state if there is one.
func (w *writer) finish(s *state) error {
	meta := w.bucket(metaBucket)
	if s != nil {
		if err := meta.Put(stateKey, seal(stateKey, s.encode())); err != nil {
			return err
		}
	}
	b := binary.BigEndian.AppendUint64(nil, w.tally.records)
	b = binary.BigEndian.AppendUint64(b, w.tally.sum)
	return meta.Put(tallyKey, seal(tallyKey, b))
}

// alarmEntry returns the entry of the alarm index for a row, with no key if there is none.
func alarmEntry(key string, row []byte) entry {
	due, _, ok := splitAlarmRow(row)
	if !ok {
		return entry{}
	}
	return newEntry(alarmKey(due, rowObject(key), rowName(key)), []byte{})
}

// objectEntry is alarmEntry for the objects index.
func objectEntry(key string, row []byte) entry {
	o, ok := parseObjectRow(rowObject(key), row)
	if !ok {
		return entry{}
	}
	return newEntry(nameKey(o.Class, o.Name, o.ID), row)
}
