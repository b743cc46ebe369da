package topology

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/placement"
)

func founded(t *testing.T) *State {
	t.Helper()
	s, err := (&State{}).with(command{Found: &founding{clusterID, 2, record("a")}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// change is a command that must be carried out.
func (s *State) change(t *testing.T, c command) *State {
	t.Helper()
	next, err := s.with(c, s.Version+1)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := founded(t)
	b := record("b")
	s = s.change(t, command{Put: &b})
	s = s.change(t, command{Mark: &marking{"b", placement.NodeRemoved}})
	long := record("c")
	long.Zone = strings.Repeat("z", maxText+1)
	state := record("c")
	state.State = "sleepy"
	for name, c := range map[string]command{
		"found twice":     {Found: &founding{"other", 2, record("a")}},
		"nameless":        {Put: &placement.Node{Addr: "x:1"}},
		"nowhere":         {Put: &placement.Node{ID: "x"}},
		"long":            {Put: &long},
		"state":           {Put: &state},
		"removed returns": {Put: &b},
		"removed is up":   {Mark: &marking{"b", placement.NodeUp}},
		"unknown":         {Mark: &marking{"z", placement.NodeUp}},
		"no state":        {Mark: &marking{"a", "sleepy"}},
		"last":            {Mark: &marking{"a", placement.NodeRemoved}},
		"no setting":      {Set: &setting{"colour", "red"}},
		"replicas":        {Set: &setting{SettingReplicas, "8"}},
		"voters":          {Set: &setting{SettingVoters, "4"}},
		"moving":          {Set: &setting{SettingMaxMoving, "0"}},
		"lost":            {Set: &setting{SettingLostAfter, "1ms"}},
		"nothing":         {},
		"no shard":        {Moves: []placement.Move{{ID: 2, Shard: s.Shards[0]}}},
		"no replicas":     {Moves: []placement.Move{{ID: 1, Shard: placement.Shard{Version: 1}}}},
	} {
		next, err := s.with(c, 100)
		if !errors.As(err, new(Refusal)) || next != s {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (&State{}).with(command{Put: &b}, 1); !errors.As(err, new(Refusal)) {
		t.Errorf("a node in no cluster: %v", err)
	}
	if _, err := (&State{}).with(command{Found: &founding{"c", 3, b}}, 1); !errors.As(err, new(Refusal)) {
		t.Errorf("three shards: %v", err)
	}
}

// A move is made only if the record is still what it is based upon; the state before stays as
// it was.
func TestMoves(t *testing.T) {
	t.Parallel()
	s := founded(t)
	to := placement.Shard{Replicas: []placement.NodeID{"a", "b"}, Owner: "b", Version: 1}
	next := s.change(t, command{Moves: []placement.Move{{ID: 0, Shard: to}}})
	if r := next.Shards[0]; r.Version != 2 || r.Owner != "b" {
		t.Errorf("the record is %+v", r)
	}
	if s.Shards[0].Version != 1 || next.Shards[1].Version != 1 {
		t.Error("another record was changed")
	}
	if again, err := next.with(command{Moves: []placement.Move{{ID: 0, Shard: to}}}, 9); again != next || err == nil {
		t.Error("an old move was made")
	}
	same := record("a")
	if again, err := next.with(command{Put: &same}, 9); again != next || err != nil {
		t.Errorf("a node that is known as it is changed the table: %v", err)
	}
}

// Two machines that are given the same entries have the same file, also over a restart or a
// snapshot in the middle.
func TestMachineKeepsItself(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/placement"
	m, err := openMachine(path)
	if err != nil {
		t.Fatal(err)
	}
	apply := func(m *machine, index uint64, c command) error {
		batch, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		return m.Apply(index, 1, append(batch, batch...))
	}
	m.SetConfiguration(1, []byte("members"))
	if err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if index, _ := m.Durable(); index != 0 {
		t.Errorf("durable at %d without an entry", index)
	}
	if err := apply(m, 2, command{Found: &founding{clusterID, 4, record("a")}}); err != nil {
		t.Fatal(err)
	}
	if bytes, since := m.Unflushed(); bytes != 0 || !since.IsZero() {
		t.Errorf("%d bytes are unflushed since %v: where the nodes are is not durable", bytes, since)
	}
	if err := apply(m, 3, command{Set: &setting{SettingVoters, "5"}}); err != nil {
		t.Fatal(err)
	}
	if bytes, since := m.Unflushed(); bytes == 0 || since.IsZero() {
		t.Error("nothing is unflushed")
	}
	if err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	again, err := openMachine(path)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if _, err := snap.WriteTo(&file); err != nil || snap.Size != int64(file.Len()) || snap.Index != 3 || string(snap.Configuration) != "members" {
		t.Errorf("the snapshot is %+v with %d bytes, %v", snap, file.Len(), err)
	}
	if err := snap.Close(); err != nil {
		t.Fatal(err)
	}
	other, err := openMachine(t.TempDir() + "/placement")
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Restore(bytes.NewReader(file.Bytes()[1:])); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged snapshot gives %v", err)
	}
	if err := other.Restore(&file); err != nil {
		t.Fatal(err)
	}
	b := record("b")
	for _, o := range []*machine{m, again, other} {
		if err := apply(o, 4, command{Put: &b}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m.now, o.now); diff != "" {
			t.Error(diff)
		}
	}
	if err := m.Apply(4, 1, []byte{0, 0, 0, 9, '{'}); err == nil {
		t.Error("a torn command was applied")
	}
	unknown := []byte(`{"dance":{}}`)
	if err := m.Apply(5, 1, append([]byte{0, 0, 0, byte(len(unknown))}, unknown...)); !errors.Is(err, errUnknown) {
		t.Errorf("an unknown command gives %v", err)
	}
}

func FuzzCommand(f *testing.F) {
	n := record("b")
	for _, c := range []command{
		{Found: &founding{clusterID, 4, record("a")}},
		{Put: &n},
		{Mark: &marking{"a", placement.NodeDraining}},
		{Set: &setting{SettingReplicas, "3"}},
		{Moves: []placement.Move{{ID: 1, Shard: placement.Shard{Replicas: []placement.NodeID{"a"}, Owner: "a", Version: 1}}}},
	} {
		text, err := c.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, batches []byte) {
		s := &State{}
		for index := uint64(1); len(batches) > 0; index++ {
			c, rest, err := nextCommand(batches)
			if err != nil {
				return
			}
			if len(rest) >= len(batches) {
				t.Fatal("no progress")
			}
			batches = rest
			s, _ = s.with(c, index)
		}
	})
}

func FuzzImage(f *testing.F) {
	file, err := image{Index: 3, Term: 2, Members: []byte("m"), State: &State{ID: clusterID}}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add([]byte("holdfast placement 1 00000000 0\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		img, err := parseImage(file)
		if err != nil {
			return
		}
		again, err := img.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseImage(again); err != nil {
			t.Errorf("what was written cannot be read: %v", err)
		}
	})
}
