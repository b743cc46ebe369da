package shard

import (
	"strings"
	"testing"

	"github.com/holdfast-run/holdfast/placement"
)

// A scene is written as "want | members | self", where the wanted owner has a star, and a
// member is its name and marks: v for a voter, c caught up, s stable, o overdue, x not fit. What is
// not a member and not fit is listed with x alone.
func parseScene(t *testing.T, text string) scene {
	t.Helper()
	parts := strings.Split(text, "|")
	if len(parts) != 3 {
		t.Fatalf("scene %q", text)
	}
	s := scene{self: "a", settled: true}
	unfit := map[placement.NodeID]bool{}
	s.fit = func(id placement.NodeID) bool { return !unfit[id] }
	for _, w := range strings.Fields(parts[0]) {
		id, owner := strings.CutSuffix(w, "*")
		s.want.Replicas = append(s.want.Replicas, placement.NodeID(id))
		if owner {
			s.want.Owner = placement.NodeID(id)
		}
	}
	for _, w := range strings.Fields(parts[1]) {
		id, marks, _ := strings.Cut(w, ":")
		has := func(m string) bool { return strings.Contains(marks, m) }
		unfit[placement.NodeID(id)] = has("x")
		if marks == "x" {
			continue
		}
		stable := has("s") || has("o")
		s.members = append(s.members, seen{
			id: placement.NodeID(id), voter: has("v"), caught: has("c") || stable, stable: stable, overdue: has("o"),
		})
	}
	for _, w := range strings.Fields(parts[2]) {
		switch w {
		case "slow":
			s.slow = true
		case "young":
			s.settled = false
		}
	}
	return s
}

func TestNextStep(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ scene, want string }{
		{"a* b c | a:vs b:vs c:vs |", "rest"},
		{" | a:vs b:vs c:s |", "rest"}, // nobody has decided anything

		// Growing: one after another, votes for all together.
		{"a* b c | a:vs |", "add b"},
		{"a* b c | a:vs b: |", "wait"},
		{"a* b c | a:vs b:c |", "add c"},
		{"a* b c | a:vs b:s c: |", "wait"},
		{"a* b c | a:vs b:s c:c |", "wait"},
		{"a* b c | a:vs b:s c:s |", "promote b"},
		{"a* b c | a:vs b:vs c:s |", "promote c"},
		{"a* b c | a:vs b:o c: |", "promote b"},  // it has waited long enough
		{"a* b c | a:vs b:s c:x |", "promote b"}, // nobody knows whether c will come
		{"a* b c | a:vs b:x c:x |", "rest"},
		{"a* b | a:vs b:sx |", "rest"},
		{"a* b c d e | a:vs b:v c:v d:s |", "add e"},
		{"a* b c d | a:vs b:v c:v d:s |", "wait"}, // two of four cannot commit

		// Shrinking and replacing: the surplus loses its vote last, who is missing first.
		{"a* b d | a:vs b:vs c:vs |", "add d"},
		{"a* b d | a:vs b:vs c:vs d:c |", "wait"},
		{"a* b d | a:vs b:vs c:vs d:s |", "promote d"},
		{"a* b d | a:vs b:vs c:vs d:vs |", "demote c"},
		{"a* b d | a:vs b:vs c:s d:vs |", "remove c"},
		{"a* b d | a:vs b:vs c:vx |", "add d"},
		{"a* b d | a:vs b:vs c:vx d:s |", "promote d"},
		{"a* b d | a:vs b:vs c:vx d:vs |", "demote c"},
		{"a* b d | a:vs b:vs c:vs d:x |", "rest"}, // nothing is taken before there is something for it
		{"a* | a:vs b:vs c:vs |", "demote b"},
		{"a* | a:vs b:vs c:v |", "demote c"},
		{"a* | a:vs b:vs c:vsx |", "demote c"},        // it is gone, and not missed yet
		{"a* b c | a:vs b:v c:v d:vs e:vs |", "rest"}, // a alone would be left of a, b, c with d or e
		{"a* b c | a:vs b:vs c:vs d: |", "remove d"},

		// Owners.
		{"a b* c | a:vs b:vs c:vs |", "hand over b"},
		{"a b* c | a:vs b:vs c:vs | young", "wait"},
		{"a b* c | a:vs b:v c:vs |", "wait"},
		{"a b* c | a:vs b:vsx c:vs |", "wait"},
		{"a b* c | a:vs b:s c:vs |", "promote b"},
		{"a* b c | a:vsx b:vs c:vs |", "hand over b"},
		{"a* b c | a:vsx b:vsx c:v |", "wait"},
		{"a* b c | a:vs b:v c:vs | slow young", "hand over c"},
		{"a* b c | a:vs b:vsx c:vsx | slow", "wait"},
		{"a | a:vs | slow", "wait"},

		// The leader is not wanted.
		{"b c d* | a:vs b:vs c:vs |", "add d"},
		{"b c d* | a:vs b:vs c:vs d:s |", "promote d"},
		{"b c d* | a:vs b:vs c:vs d:vs |", "hand over d"},
		{"b c d* | a:vs b:vs c:vs d:vs | young", "hand over d"},
		{"b c d* | a:vs b:vs c:vs d:v |", "hand over b"},
		{"b* c d | a:vsx b:vs c:vs |", "hand over b"},
		{"b* | a:vs b:vs c:vs | young", "hand over b"},
		{"b* | a:vs b:v c:vs |", "wait"},
	} {
		st := parseScene(t, c.scene).next()
		if got := strings.TrimSpace(string(st.kind) + " " + string(st.node)); got != c.want {
			t.Errorf("%s: %s, want %s", c.scene, got, c.want)
		}
	}
}

// TestStepsComeToRest plays all ways from some members to others, with every member
// catching up at once, and checks on the way that a quorum is never given up.
func TestStepsComeToRest(t *testing.T) {
	t.Parallel()
	nodes := []placement.NodeID{"a", "b", "c", "d", "e"}
	subset := func(bits int) (ids []placement.NodeID) {
		for i, n := range nodes {
			if bits&(1<<i) != 0 {
				ids = append(ids, n)
			}
		}
		return ids
	}
	for from := 1; from < 32; from++ {
		for to := 1; to < 32; to++ {
			for _, owner := range subset(to) {
				s := scene{self: subset(from)[0], settled: true, fit: func(placement.NodeID) bool { return true }}
				s.want = placement.Shard{Replicas: subset(to), Owner: owner}
				for _, id := range subset(from) {
					s.members = append(s.members, seen{id: id, voter: true, caught: true, stable: true})
				}
				play(t, &s)
				if voters, live := s.count(""); s.self != owner || voters != len(s.want.Replicas) || live != voters || len(s.members) != voters {
					t.Fatalf("from %v to %v: ended with %+v", subset(from), s.want, s)
				}
			}
		}
	}
}

func play(t *testing.T, s *scene) {
	t.Helper()
	for range 40 {
		st := s.next()
		at := -1
		for i, m := range s.members {
			if m.id == st.node {
				at = i
			}
		}
		switch st.kind {
		case rest:
			return
		case wait:
			t.Fatalf("waits for ever: %+v", s)
		case add:
			s.members = append(s.members, seen{id: st.node, caught: true, stable: true})
		case promote:
			s.members[at].voter = true
		case demote:
			s.members[at].voter = false
		case remove:
			s.members = append(s.members[:at:at], s.members[at+1:]...)
		case handOver:
			s.self = st.node
		}
		if at >= 0 && st.node == s.self && st.kind != handOver {
			t.Fatalf("the leader did %v to itself", st)
		}
	}
	t.Fatalf("does not come to rest: %+v", s)
}
