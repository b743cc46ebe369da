package storage

import (
	"context"
	"fmt"
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

// check must not run beside a transaction that writes.
func (f *file) check(ctx context.Context) error {
	return f.view(func(r *reader) error {
		want, err := r.readTally()
		if err != nil {
			return err
		}
		c := checker{reader: r, ctx: ctx}
		if err := c.records(); err != nil {
			return err
		}
		if c.tally != want {
			return corruptf("%s: has %d records and should have %d, or others than it should", f.path, c.tally.records, want.records)
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
	ctx             context.Context
	tally           tally
	alarms, objects int // rows that are to be in an index, less those that are in one
	failed          error
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
	err := cursor.seek("")
	for ; err == nil && cursor.ok; err = cursor.next() {
		if c.tally.records%1024 == 0 && c.ctx.Err() != nil {
			return fmt.Errorf("check %s: %w", c.path, context.Cause(c.ctx))
		}
		c.tally.add(seal([]byte(cursor.key), cursor.value))
		if err := visit(cursor.entry); err != nil {
			return err
		}
	}
	return err
}
