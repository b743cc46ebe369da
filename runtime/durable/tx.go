package durable

import (
	"bytes"
	"context"
	"iter"
	"maps"
	"slices"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A Tx is one event: everything that its handler may read, write, send and ask for.
//
// Reads see the event's own writes. If the handler returns nil, what it wrote commits
// as one; if it returns an error or panics, nothing since the last commit point
// happened. Reads do not fail. A write that is over a limit, or a stored value that does
// not decode, ends the event where it is, with an error that says so.
//
// A Tx belongs to its handler's goroutine and dies with the event: using it later panics.
type Tx struct {
	turn        host.Turn
	class       *facts
	obj         any // the *T
	alarm       AlarmInfo
	unconfirmed bool
}

// ID returns the object's ID.
func (tx *Tx) ID() ID { return tx.turn.Ref().ID }

// Name returns the name by which the object was first reached, if it has one.
func (tx *Tx) Name() (string, bool) {
	r := tx.turn.Ref()
	return r.Name, r.Named
}

// Class returns the name of the object's class.
func (tx *Tx) Class() string { return tx.class.name }

// Caller makes a Tx a [Scope].
func (tx *Tx) Caller() host.Caller { return tx.turn }

// Get returns the value of a key, and whether there is one. The value is the caller's own.
//
// The storage methods of Tx are for keys that are made up at run time; a [Key] or a
// [Map] is the better way to anything whose name and type are known.
func (tx *Tx) Get(key string) ([]byte, bool) {
	v, ok := tx.turn.Get(key)
	return bytes.Clone(v), ok
}

// GetMany returns the values of those of up to 128 keys that have one.
func (tx *Tx) GetMany(keys ...string) map[string][]byte {
	checkMany(len(keys))
	values := make(map[string][]byte, len(keys))
	for _, k := range keys {
		if v, ok := tx.Get(k); ok {
			values[k] = v
		}
	}
	return values
}

// Put sets the value of a key: at most 2 KiB of key and 2 MiB of value.
func (tx *Tx) Put(key string, value []byte) { tx.put(key, bytes.Clone(value)) }

// PutMany sets up to 128 keys.
func (tx *Tx) PutMany(values map[string][]byte) {
	checkMany(len(values))
	for _, k := range slices.Sorted(maps.Keys(values)) {
		tx.Put(k, values[k])
	}
}

// Delete removes a key and reports whether it was there.
func (tx *Tx) Delete(key string) bool { return tx.turn.Delete(key, tx.unconfirmed) }

// DeleteMany removes up to 128 keys and returns how many were there.
func (tx *Tx) DeleteMany(keys ...string) int {
	checkMany(len(keys))
	n := 0
	for _, k := range keys {
		if tx.Delete(k) {
			n++
		}
	}
	return n
}

// A Range selects keys in ascending order of their bytes. Start is inclusive;
// StartAfter and End are exclusive; "" leaves a side open. Reverse turns the order, not
// the bounds. A Limit of 0 is none.
type Range struct {
	Start, StartAfter, End, Prefix string
	Reverse                        bool
	Limit                          int
}

// List yields the keys of a range and their values, as they are when the loop begins:
// what the loop writes does not change what it sees.
func (tx *Tx) List(r Range) iter.Seq2[string, []byte] {
	rows := tx.turn.List(host.Range(r))
	return func(yield func(string, []byte) bool) {
		for k, v := range rows {
			if !yield(k, bytes.Clone(v)) {
				return
			}
		}
	}
}

// DeleteAll removes every key, the alarm and every schedule. The object keeps its ID,
// its name and its sockets; see [Tx.Destroy].
func (tx *Tx) DeleteAll() { tx.turn.DeleteAll() }

// Unconfirmed returns a view of tx whose writes the outside need not wait for: replies
// may leave before they are durable. They are still committed in order and with the rest
// of the event; a crash may lose the last of them. It is for state that is cheap to lose,
// like a rate limiter's. Everything but keys is the same in both views.
//
//	level.Put(tx.Unconfirmed(), b)
func (tx *Tx) Unconfirmed() *Tx {
	view := *tx
	view.unconfirmed = true
	return &view
}

// Nested runs fn, and undoes what it wrote if it returns an error or panics; the error
// is returned. The rest of the event is not affected. A commit point inside fn, such as a
// call, ends the event with an error.
func (tx *Tx) Nested(fn func() error) error { return tx.turn.Nested(fn) }

// Commit is a commit point: what was written so far is one batch that a later error
// does not undo. It does not wait for the batch to be durable.
func (tx *Tx) Commit() { tx.turn.Commit() }

// Sync is a commit point that waits until all writes so far are durable, those of
// [Tx.Unconfirmed] too. Few objects need it: what leaves an object waits by itself.
func (tx *Tx) Sync(ctx context.Context) error { return tx.turn.Sync(ctx) }

// Outside runs slow work that is not the object's, such as a request to another
// service, and lets other events run meanwhile: it gives up the turn, and takes it
// again when fn has returned. It is a commit point, and fn starts when everything
// written before it is durable. Read again what you had read before: it may have changed.
// Of tx, fn must use nothing but stubs: it may call other objects, even such that call this one.
func (tx *Tx) Outside(ctx context.Context, fn func(ctx context.Context) error) error {
	return tx.turn.Outside(ctx, fn)
}

// Destroy removes the object at the end of the event: storage, schedules and name. Its
// sockets are closed and its instance leaves memory. The next event to its ID meets a
// new object.
func (tx *Tx) Destroy() { tx.turn.DestroySelf() }

// Abort ends the event with an error and resets the object: the instance is gone, what
// was written since the last commit point did not happen. It does not return.
func (tx *Tx) Abort(reason error) { tx.turn.Abort(reason) }

// put hands a value that nobody else has to the engine, which checks the sizes.
func (tx *Tx) put(key string, value []byte) {
	if key == "" {
		fail(host.CodeBadRequest, "a key must not be empty")
	}
	tx.turn.Put(key, value, tx.unconfirmed)
}

func checkMany(n int) {
	if n > host.MaxMultiKeys {
		fail(host.CodeTooLarge, "%d keys at once, and at most %d are allowed", n, host.MaxMultiKeys)
	}
}
