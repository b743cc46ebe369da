package placement_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-run/holdfast/placement"
)

func TestNamedIDIsAFunction(t *testing.T) {
	t.Parallel()
	a := placement.NamedID("room", "lobby")
	if a != placement.NamedID("room", "lobby") {
		t.Error("the same class and name gave two IDs")
	}
	for _, other := range []placement.ObjectID{
		placement.NamedID("room", "lobby2"), placement.NamedID("rooms", "lobby"), placement.NamedID("room", ""),
	} {
		if a == other {
			t.Errorf("two objects have the ID %s", a)
		}
	}
	// Stored objects are found by their IDs for ever: this one may not change.
	const want = "3e21c62a6c3d52e257be134a901d4d933b096ccd36d39887ebb119dfb4ed0a08"
	if a.String() != want {
		t.Errorf("the ID of room/lobby is %s, was %s", a, want)
	}
}

func TestParseID(t *testing.T) {
	t.Parallel()
	id := placement.UniqueID("room")
	if got, err := placement.ParseID("room", strings.ToUpper(id.String())); got != id || err != nil {
		t.Errorf("parse of %s gives %s, %v", id, got, err)
	}
	if _, err := placement.ParseID("counter", id.String()); !errors.Is(err, placement.ErrWrongClass) {
		t.Errorf("an ID of another class gives %v", err)
	}
	flipped := id
	flipped[3] ^= 1
	if _, err := placement.ParseID("room", flipped.String()); !errors.Is(err, placement.ErrWrongClass) {
		t.Errorf("a forged ID gives %v", err)
	}
	for _, s := range []string{"", "zz", id.String()[1:], id.String() + "0", strings.Repeat("z", 64)} {
		if _, err := placement.ParseID("room", s); !errors.Is(err, placement.ErrBadID) {
			t.Errorf("parse of %q gives %v", s, err)
		}
	}
	var back placement.ObjectID
	if text, err := id.MarshalText(); err != nil || back.UnmarshalText(text) != nil || back != id {
		t.Errorf("as text the ID became %s, error %v", back, err)
	}
	if err := back.UnmarshalText([]byte("short")); !errors.Is(err, placement.ErrBadID) {
		t.Errorf("a short text gives %v", err)
	}
}

func TestEven(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, -1, 3, 33, 2048} {
		if _, err := placement.Even(n); err == nil {
			t.Errorf("a table of %d shards was made", n)
		}
	}
	for n := 1; n <= placement.MaxShards; n *= 2 {
		table, err := placement.Even(n)
		if err != nil {
			t.Fatal(err)
		}
		next := 0
		for id := range placement.ShardID(n) {
			first, end := table.Range(id)
			if first != next || end <= first {
				t.Fatalf("%d shards: shard %d has slots %d to %d, want them from %d on", n, id, first, end, next)
			}
			if table.Shard(placement.Slot(first)) != id || table.Shard(placement.Slot(end-1)) != id {
				t.Fatalf("%d shards: the ends of shard %d belong to another", n, id)
			}
			next = end
		}
		if next != placement.Slots || table.Shards() != n {
			t.Fatalf("%d shards cover %d slots", n, next)
		}
	}
}

// Objects spread over shards however alike their names are.
func TestObjectsSpread(t *testing.T) {
	t.Parallel()
	table, err := placement.Even(placement.DefaultShards)
	if err != nil {
		t.Fatal(err)
	}
	const objects = 32_000
	count := make([]int, table.Shards())
	for i := range objects {
		count[table.ShardOf(placement.NamedID("room", fmt.Sprint(i)))]++
	}
	for shard, n := range count {
		if mean := objects / len(count); n < mean*8/10 || n > mean*12/10 {
			t.Errorf("shard %d has %d objects, want about %d", shard, n, mean)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("room", placement.NamedID("room", "lobby").String())
	f.Add("", "")
	f.Fuzz(func(t *testing.T, class, s string) {
		id, err := placement.ParseID(class, s)
		if err == nil && (!id.Of(class) || !strings.EqualFold(id.String(), s)) {
			t.Errorf("%q was read as %s", s, id)
		}
	})
}
