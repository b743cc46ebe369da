package storage

import (
	"context"
	"fmt"
	"io/fs"
)

// Check reads the whole file and returns an error that wraps [ErrCorrupt] if a record is
// damaged or missing, an index disagrees with the rows, or bbolt's pages are
// inconsistent. It holds up flushes, but neither Apply nor reads.
func (m *Machine) Check(ctx context.Context) error {
	m.flushing.Lock()
	defer m.flushing.Unlock()
	if m.file == nil {
		return nil
	}
	return m.file.check(ctx)
}

// Scrub is Check for a machine at work: it holds up nothing, and leaves out bbolt's list of
// free pages, which a flush changes. It calls pace with the number of bytes read since the last
// call, which may wait; an error of pace ends it. The file cannot reuse its pages
// meanwhile, so it must not take for ever. When the file is closed or replaced, Scrub ends with an
// error that wraps [fs.ErrClosed].
func (m *Machine) Scrub(pace func(bytes int) error) (records uint64, err error) {
	m.mu.RLock()
	f := m.file
	if f == nil {
		m.mu.RUnlock()
		return 0, nil
	}
	r, err := f.begin()
	m.mu.RUnlock()
	if err != nil {
		return 0, err
	}
	defer r.close()
	c := checker{reader: r, pace: func(bytes int) error {
		if f.closing.Load() {
			return fs.ErrClosed
		}
		return pace(bytes)
	}}
	err = f.guard(c.check)
	return c.tally.records, err
}

// Size returns the size of the file in bytes.
func (m *Machine) Size() (bytes int64, err error) {
	m.mu.RLock()
	f := m.file
	m.mu.RUnlock()
	if f == nil {
		return 0, nil
	}
	err = f.view(func(r *reader) error { bytes = r.tx.Size(); return nil })
	return bytes, err
}

// check must not run beside a transaction that writes.
func (f *file) check(ctx context.Context) error {
	return f.view(func(r *reader) error {
		c := checker{reader: r, pace: func(int) error { return context.Cause(ctx) }}
		if err := c.check(); err != nil {
			return err
		}
		for err := range r.tx.Check() {
			if c.failed == nil {
				c.failed = corruptf("%s: %v", f.path, err)
			}
		}
		return c.failed
	})
}

type checker struct {
	*reader
	pace            func(bytes int) error
	read            int // bytes since pace was called
	tally           tally
	alarms, objects int // rows that are to be in an index, less those that are in one
	failed          error
}

// paceBytes is how much is read between two calls of pace.
const paceBytes = 256 << 10

func (c *checker) check() error {
	want, err := c.readTally()
	if err != nil {
		return err
	}
	if err := c.records(); err != nil {
		return err
	}
	if c.tally != want {
		return corruptf("%s: has %d records and should have %d, or others than it should", c.path, c.tally.records, want.records)
	}
	return nil
}

func (c *checker) records() error {
	if err := c.each(rowsBucket, c.row); err != nil {
		return err
	}
	count := func(n *int) func(entry) error {
		return func(entry) error { *n--; return nil }
	}
	if err := c.each(alarmsBucket, count(&c.alarms)); err != nil {
		return err
	}
	if err := c.each(objectsBucket, count(&c.objects)); err != nil {
		return err
	}
	if c.alarms != 0 || c.objects != 0 {
		return corruptf("%s: the indexes have other entries than the rows say", c.path)
	}
	return nil
}

// row checks that a row is in its index.
func (c *checker) row(e entry) error {
	if len(e.key) < rowHeader {
		return corruptf("%s: malformed key %q", c.path, e.key)
	}
	switch rowSpace(e.key) {
	case SpaceAlarm:
		c.alarms++
		return c.indexed(alarmsBucket, e.key, alarmEntry(e.key, e.value))
	case SpaceMeta:
		c.objects++
		return c.indexed(objectsBucket, e.key, objectEntry(e.key, e.value))
	}
	return nil
}

func (c *checker) indexed(bucket []byte, row string, in entry) error {
	if in.key == "" || c.bucket(bucket).Get([]byte(in.key)) == nil {
		return corruptf("%s: the row %q is not in the index %s", c.path, row, bucket)
	}
	return nil
}

// each visits the records of a bucket in order.
func (c *checker) each(bucket []byte, visit func(entry) error) error {
	cursor := c.cursor(bucket, false)
	err := c.wait()
	if err == nil {
		err = cursor.seek("")
	}
	for ; err == nil && cursor.ok; err = cursor.next() {
		c.tally.add(seal([]byte(cursor.key), cursor.value))
		if err := visit(cursor.entry); err != nil {
			return err
		}
		if c.read += len(cursor.key) + len(cursor.value); c.read >= paceBytes {
			if err := c.wait(); err != nil {
				return err
			}
		}
	}
	return err
}

func (c *checker) wait() error {
	read := c.read
	c.read = 0
	if err := c.pace(read); err != nil {
		return fmt.Errorf("check %s: %w", c.path, err)
	}
	return nil
}
