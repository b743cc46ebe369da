package engine

import (
	"encoding/json"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// state is an object's stored state as its next event sees it: what the store has
// applied, under the writes of batches that are not durable yet, under the writes of
// the batch that is being made. It belongs to whoever has the turn.
type state struct {
	known   bool // the metadata has been looked up
	exists  bool
	named   bool // the stored metadata has the name
	created time.Time

	dirty      map[string]cell // keys whose batch is not durable, or was not when last settled
	log        queue[write]    // the dirty keys, in the order of their batches
	clean      map[string]cell // a cache of what the store has
	cleanBytes int
	cleared    uint64 // the newest batch that emptied the object: until it is durable, what the store has is void
	shrunk     bool   // something was deleted since the object woke

	schedules map[string]host.Schedule // nil until they have been read
}

// A cell is one key's value, or its absence, and the batch that wrote it.
type cell struct {
	value   []byte
	present bool
	batch   uint64
}

type write struct {
	key   string
	batch uint64
}

// maxCleanBytes bounds the cache of one object.
const maxCleanBytes = 1 << 20

// settle moves the writes of durable batches from dirty to clean.
func (s *state) settle(durable uint64) {
	for s.log.len() > 0 && s.log.first().batch <= durable {
		w := s.log.pop()
		if c, ok := s.dirty[w.key]; ok && c.batch == w.batch {
			delete(s.dirty, w.key)
			s.remember(w.key, c)
		}
	}
}

// remember caches what the store has for a key.
func (s *state) remember(key string, c cell) {
	if old, ok := s.clean[key]; ok {
		s.cleanBytes -= len(key) + len(old.value)
	}
	if s.cleanBytes > maxCleanBytes || s.clean == nil {
		s.clean, s.cleanBytes = make(map[string]cell), 0
	}
	s.clean[key] = c
	s.cleanBytes += len(key) + len(c.value)
}

// get returns a key's cell.
func (o *object) get(key string) (cell, error) {
	s := &o.state
	if c, ok := s.dirty[key]; ok {
		return c, nil
	}
	if o.void() {
		return cell{}, nil
	}
	if c, ok := s.clean[key]; ok {
		return c, nil
	}
	if !s.exists {
		return cell{}, nil
	}
	v, ok, err := o.reign.store.Get(o.ref.ID, storage.SpaceKey, key)
	if err != nil {
		return cell{}, err
	}
	c := cell{value: v, present: ok}
	s.remember(key, c)
	return c, nil
}

// void reports whether what the store has is about to be emptied.
func (o *object) void() bool { return o.state.cleared > o.gate.committed.Load() }

// set writes a key in the batch that is being made and returns what undoes it.
func (s *state) set(key string, c cell) undo {
	old, had := s.dirty[key]
	if s.dirty == nil {
		s.dirty = make(map[string]cell)
	}
	s.dirty[key] = c
	s.log.push(write{key, c.batch})
	return undo{key: key, old: old, had: had}
}

// undo restores what one write has changed: a key, or whatever fn restores.
type undo struct {
	key string
	old cell
	had bool
	fn  func()
}

func (s *state) undo(u undo) {
	switch {
	case u.fn != nil:
		u.fn()
		return
	case u.had:
		s.dirty[u.key] = u.old
	default:
		delete(s.dirty, u.key)
	}
	s.log.unpush()
}

// clear empties the object in the batch of the given number.
func (s *state) clear(batch uint64) undo {
	old := *s
	s.dirty, s.log = nil, queue[write]{}
	s.clean, s.cleanBytes = nil, 0
	s.cleared = batch
	s.schedules = make(map[string]host.Schedule)
	s.shrunk = true
	return undo{fn: func() { *s = old }}
}

// readSchedules reads the object's schedules from the store, once.
func (o *object) readSchedules() error {
	s := &o.state
	if s.schedules != nil {
		return nil
	}
	all := make(map[string]host.Schedule)
	if s.exists {
		from := ""
		for {
			rows, more, err := o.reign.store.List(o.ref.ID, storage.SpaceAlarm, storage.Range{Start: from}, 1024)
			if err != nil {
				return err
			}
			for _, row := range rows {
				var sc host.Schedule
				if err := json.Unmarshal(row.Value, &sc); err != nil {
					return host.Errorf(host.CodeInternal, "the stored schedule %q cannot be read", row.Key).Because(err)
				}
				all[row.Key] = sc
			}
			if !more {
				break
			}
			from = rows[len(rows)-1].Key + "\x00"
		}
	}
	s.schedules = all
	return nil
}

// A listing walks the keys of a range: the store's rows, page by page, under the
// dirty keys as they were when the walk began.
type listing struct {
	o       *object
	r       storage.Range // what is still to be read of the store
	over    []overlaid
	rows    []storage.Row
	more    bool // the store has rows beyond
	reading int  // rows of the next page
}

type overlaid struct {
	key string
	cell
}

// list returns the keys of a range. Live listings are told to the turn, which has
// them read to their end before a commit may change the store under them.
func (t *turn) list(r host.Range) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		t.check()
		l, ok := t.o.startListing(r)
		if !ok {
			return
		}
		t.listings = append(t.listings, l)
		defer func() { t.listings = slices.DeleteFunc(t.listings, func(o *listing) bool { return o == l }) }()
		for n := 0; r.Limit <= 0 || n < r.Limit; n++ {
			key, value, ok, err := l.next()
			if err != nil {
				panic(t.o.storeFailed(err))
			}
			if !ok || !yield(key, value) {
				return
			}
			t.check()
		}
	}
}

func (o *object) startListing(r host.Range) (*listing, bool) {
	lo, hi := max(r.Start, r.Prefix), r.End
	if r.StartAfter != "" {
		lo = max(lo, r.StartAfter+"\x00")
	}
	if end := prefixEnd(r.Prefix); end != "" && (hi == "" || end < hi) {
		hi = end
	}
	if hi != "" && lo >= hi {
		return nil, false
	}
	l := &listing{o: o, r: storage.Range{Start: lo, End: hi, Reverse: r.Reverse}, reading: 64}
	for k, c := range o.state.dirty {
		if k >= lo && (hi == "" || k < hi) {
			l.over = append(l.over, overlaid{k, c})
		}
	}
	slices.SortFunc(l.over, func(a, b overlaid) int {
		if r.Reverse {
			a, b = b, a
		}
		return strings.Compare(a.key, b.key)
	})
	if r.Limit > 0 {
		l.reading = min(r.Limit+len(l.over), 1024)
	}
	l.more = o.state.exists && !o.void()
	return l, true
}

// prefixEnd returns the first key after all keys with a prefix, or "" if there is none.
func prefixEnd(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return ""
}

// page reads on in the store.
func (l *listing) page() error {
	rows, more, err := l.o.reign.store.List(l.o.ref.ID, storage.SpaceKey, l.r, l.reading)
	if err != nil {
		return err
	}
	l.rows, l.more, l.reading = append(l.rows, rows...), more && len(rows) > 0, 1024
	if l.more {
		if last := rows[len(rows)-1].Key; l.r.Reverse {
			l.r.End = last
		} else {
			l.r.Start = last + "\x00"
		}
	}
	return nil
}

// finish reads all that is left into memory.
func (l *listing) finish() error {
	for l.more {
		if err := l.page(); err != nil {
			return err
		}
	}
	return nil
}

func (l *listing) next() (key string, value []byte, ok bool, err error) {
	for {
		if len(l.rows) == 0 && l.more {
			if err := l.page(); err != nil {
				return "", nil, false, err
			}
		}
		order := 0
		switch {
		case len(l.rows) == 0 && len(l.over) == 0:
			return "", nil, false, nil
		case len(l.over) == 0:
			order = -1
		case len(l.rows) == 0:
			order = 1
		default:
			order = strings.Compare(l.rows[0].Key, l.over[0].key)
			if l.r.Reverse {
				order = -order
			}
		}
		if order < 0 {
			row := l.rows[0]
			l.rows = l.rows[1:]
			return row.Key, row.Value, true, nil
		}
		if order == 0 {
			l.rows = l.rows[1:]
		}
		o := l.over[0]
		l.over = l.over[1:]
		if o.present {
			return o.key, o.value, true, nil
		}
	}
}
