package storage

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// TestQueues uses objects as queues: rows and alarms come at the end and go from the
// front, so that reads pass over many that died since the last flush. Now and then one
// comes before the front.
func TestQueues(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 0))
			m := open(t, filepath.Join(t.TempDir(), "shard.db"), Options{})
			want := model{}
			o := want.at(ada)
			head, tail := 1000, 1000
			early := -1
			remove := func(b *Batch, i int) {
				key := fmt.Sprintf("q%05d", i)
				b.Delete(SpaceKey, key)
				b.DeleteAlarm(key)
				delete(o.rows, key)
				delete(o.alarms, key)
			}
			for range 150 {
				entry := batch(ada, func(b *Batch) {
					put := func(i int) {
						key, value := fmt.Sprintf("q%05d", i), fmt.Append(nil, i)
						b.Put(SpaceKey, key, value)
						b.SetAlarm(key, int64(i), value)
						o.rows[key] = value
						o.alarms[key] = Alarm{ada, key, int64(i), value}
					}
					for range r.IntN(60) {
						put(tail)
						tail++
					}
					for range r.IntN(60) {
						if head < tail {
							remove(b, head)
							head++
						}
					}
					if early >= 0 {
						remove(b, early)
					}
					if early = -1; r.IntN(4) == 0 {
						early = head - 1 - r.IntN(40)
						put(early)
					}
				})
				apply(t, m, entry)
				for _, start := range []string{"", "q", fmt.Sprintf("q%05d", head-20)} {
					limit := 1 + r.IntN(3)
					rows, more, err := m.List(ada, SpaceKey, Range{Start: start}, limit)
					if err != nil {
						t.Fatal(err)
					}
					wantRows, wantMore := want.list(ada, SpaceKey, Range{Start: start}, limit)
					diff(t, "List", rows, wantRows)
					diff(t, "more", more, wantMore)
				}
				due, next, err := m.DueAlarms(int64(head+5), 3)
				if err != nil {
					t.Fatal(err)
				}
				wantDue, wantNext := want.dueAlarms(int64(head+5), 3)
				diff(t, "DueAlarms", due, wantDue)
				diff(t, "next", next, wantNext)
				switch r.IntN(20) {
				case 0:
					flush(t, m)
				case 1: // leave a frozen table
					m.flushing.Lock()
					if m.frozen == nil {
						m.freeze()
					}
					m.flushing.Unlock()
				}
			}
		})
	}
}

// TestFloorIsNotForOlderViews takes a view, lets rows die and a newer view notice, and reads
// the older view.
func TestFloorIsNotForOlderViews(t *testing.T) {
	t.Parallel()
	m := open(t, filepath.Join(t.TempDir(), "shard.db"), Options{})
	const n = 100
	apply(t, m, batch(ada, func(b *Batch) {
		for i := range n {
			b.Put(SpaceKey, fmt.Sprintf("%03d", i), nil)
		}
	}))
	flush(t, m)
	err := m.read(m.currentView, func(older *view) error {
		apply(t, m, batch(ada, func(b *Batch) {
			for i := range n - 1 {
				b.Delete(SpaceKey, fmt.Sprintf("%03d", i))
			}
		}))
		for range 2 {
			rows, _, err := m.List(ada, SpaceKey, Range{}, n)
			if err != nil || len(rows) != 1 {
				t.Errorf("the newer view has %d rows, want 1; %v", len(rows), err)
			}
		}
		rows, _, err := older.list(ada, SpaceKey, Range{}, 2*n)
		if len(rows) != n {
			t.Errorf("the older view has %d rows, want %d", len(rows), n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.active.floors.at) == 0 {
		t.Error("there is no floor: this tests nothing")
	}
}
