package topology

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

func voter(id string) peer {
	return peer{id: placement.NodeID(id), state: placement.NodeUp, member: true, voter: true, well: time.Hour}
}

func learner(id string) peer {
	p := voter(id)
	p.voter = false
	return p
}

func stranger(id string) peer { return peer{id: placement.NodeID(id), state: placement.NodeUp} }

func (p peer) in(zone string) peer           { p.zone = zone; return p }
func (p peer) is(s placement.NodeState) peer { p.state = s; return p }
func (p peer) dead(d time.Duration) peer     { p.well, p.ill = 0, d; return p }
func (p peer) since(d time.Duration) peer    { p.well = d; return p }
func group3(more ...peer) []peer             { return append([]peer{voter("a"), voter("b"), voter("c")}, more...) }
func (s step) String() string                { return fmt.Sprint(s.do, " ", s.id) }
func next(self placement.NodeID, peers []peer) string {
	s, ok := nextStep(self, DefaultVoters, peers)
	if !ok {
		return ""
	}
	return s.String()
}

func TestNextStep(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		peers []peer
		want  string
	}{
		"at rest":                     {group3(), ""},
		"four nodes":                  {group3(learner("d")), ""},
		"newcomer":                    {group3(stranger("d")), "enlist d"},
		"two nodes":                   {[]peer{voter("a"), learner("b")}, ""},
		"third node":                  {[]peer{voter("a"), learner("b"), learner("c")}, "promote b"},
		"third node is not ready":     {[]peer{voter("a"), learner("b"), learner("c").since(time.Second)}, ""},
		"on the way to three":         {[]peer{voter("a"), voter("b"), learner("c")}, "promote c"},
		"other zone first":            {[]peer{voter("a").in("1"), learner("b").in("1"), learner("c").in("2")}, "promote c"},
		"fifth node":                  {group3(learner("d"), learner("e")), "promote d"},
		"dead, no substitute":         {[]peer{voter("a"), voter("b"), voter("c").dead(time.Hour)}, ""},
		"away for a moment":           {[]peer{voter("a"), voter("b"), voter("c").dead(time.Second), learner("d")}, ""},
		"dead, substitute":            {[]peer{voter("a"), voter("b"), voter("c").dead(time.Minute), learner("d")}, "promote d"},
		"dead, substitute votes":      {[]peer{voter("a"), voter("b").dead(time.Minute), voter("c"), voter("d")}, "demote b"},
		"drained, substitute":         {[]peer{voter("a"), voter("b"), voter("c").is(placement.NodeDraining), learner("d")}, "promote d"},
		"leaving, substitute":         {[]peer{voter("a"), voter("b"), voter("c").is(placement.NodeLeaving), learner("d")}, ""},
		"drained is no candidate":     {[]peer{voter("a"), learner("b"), learner("c").is(placement.NodeDraining)}, ""},
		"removed voter":               {[]peer{voter("a"), voter("b"), voter("c").is(placement.NodeRemoved).dead(time.Hour)}, "demote c"},
		"removed voter, then":         {[]peer{voter("a"), voter("b"), learner("c").is(placement.NodeRemoved).dead(time.Hour)}, "dismiss c"},
		"two left":                    {[]peer{voter("a"), voter("b")}, "demote b"},
		"two left, one of them dead":  {[]peer{voter("a"), voter("b").dead(time.Hour)}, "demote b"},
		"leader drains":               {[]peer{voter("a").is(placement.NodeDraining), voter("b"), voter("c")}, "hand over b"},
		"leader leaves":               {[]peer{voter("a").is(placement.NodeLeaving), voter("b").dead(time.Second), voter("c")}, "hand over c"},
		"leader drains alone":         {[]peer{voter("a").is(placement.NodeDraining)}, ""},
		"leader removed":              {[]peer{voter("a").is(placement.NodeRemoved), voter("b"), voter("c")}, "hand over b"},
		"the leader is never demoted": {[]peer{voter("b"), voter("a").in("1")}, "demote b"},
	} {
		if got := next("a", c.peers); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if s, ok := nextStep("a", 7, append(group3(voter("d"), voter("e")), learner("f"), learner("g"))); !ok || s.id != "f" {
		t.Errorf("with seven voters wanted: %v", s)
	}
	if s, ok := nextStep("a", 1, group3()); !ok || s.do != demote {
		t.Errorf("with one voter wanted: %v", s)
	}
}

// Whatever happens, a living quorum is never lost by a step, and the group comes to rest
// with as many living voters as it can have.
func TestVotersComeToRest(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		peers := []peer{voter("n0")}
		for i := range rnd.IntN(8) {
			p := stranger(fmt.Sprint("n", i+1))
			p.zone = fmt.Sprint(rnd.IntN(3))
			peers = append(peers, p)
		}
		settleVoters(t, peers)
		// Any minority of the voters dies, and any of the others.
		may := (count(peers, func(p peer) bool { return p.voter }) - 1) / 2
		for i := range peers[1:] {
			p := &peers[i+1]
			if rnd.IntN(2) == 0 || p.voter && may == 0 {
				continue
			}
			if p.voter {
				may--
			}
			*p = p.dead(time.Hour)
			if rnd.IntN(2) == 0 {
				p.state = placement.NodeRemoved
			}
		}
		settleVoters(t, peers)
		nodes := count(peers, func(p peer) bool { return p.state != placement.NodeRemoved })
		alive := count(peers, func(p peer) bool { return p.well > 0 && p.state == placement.NodeUp })
		want := wantVoters(nodes, DefaultVoters)
		if got := count(peers, func(p peer) bool { return p.voter && p.well > 0 }); got < min(want, alive) {
			t.Fatalf("%d living voters, want %d: %+v", got, min(want, alive), peers)
		}
		if t.Failed() {
			return
		}
	}
}

func count(peers []peer, is func(peer) bool) (n int) {
	for _, p := range peers {
		if is(p) {
			n++
		}
	}
	return n
}

func settleVoters(t *testing.T, peers []peer) {
	t.Helper()
	for range 100 {
		s, ok := nextStep("n0", DefaultVoters, peers)
		if !ok {
			return
		}
		i := slices.IndexFunc(peers, func(p peer) bool { return p.id == s.id })
		switch p := &peers[i]; s.do {
		case enlist:
			p.member = true
			if p.ill == 0 {
				p.well = time.Hour
			}
		case promote:
			p.voter = true
		case demote:
			p.voter = false
		case dismiss:
			p.member = false
		case handOver:
			t.Fatalf("%v of %+v", s, peers)
		}
		voters := count(peers, func(p peer) bool { return p.voter })
		if alive := count(peers, func(p peer) bool { return p.voter && p.well > 0 }); alive < voters/2+1 {
			t.Fatalf("%v leaves %d of %d voters alive", s, alive, voters)
		}
	}
	t.Fatalf("no rest: %+v", peers)
}
