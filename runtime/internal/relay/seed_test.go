package relay

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

var seeds = flag.Int("seeds", 6, "how many seeds TestTrafficAndMoves tries")

// Clients talk through three nodes while owners move, are deposed with commits under way, and are cut
// off. What must hold at the end: each client's messages have had effect in order and once, none is
// missing but at the end of a socket that was closed, and no client got anything twice, or
// misses anything in between.
func TestTrafficAndMoves(t *testing.T) {
	t.Parallel()
	for seed := range *seeds {
		for _, kind := range []string{handOvers, troubles} {
			t.Run(fmt.Sprintf("%s-%d", kind, seed), func(t *testing.T) {
				inBubble(t, func(t *testing.T) { trafficAndMoves(t, kind, uint64(seed)) }) //nolint:gosec // not negative
			})
		}
	}
}

// The kinds of runs.
const (
	handOvers = "hand-overs" // which cost no socket
	troubles  = "troubles"
)

// A story is one such run.
type story struct {
	kind string
	*world
	rnd     *rand.Rand
	names   []placement.NodeID
	objects []string
	clients []*talker
}

// A talker is a client that says numbers.
type talker struct {
	*client
	object string
}

func trafficAndMoves(t *testing.T, kind string, seed uint64) {
	s := &story{kind: kind, rnd: rand.New(rand.NewPCG(seed, 1)), names: []placement.NodeID{"a", "b", "c"}} //nolint:gosec // to be repeated
	s.world = newWorld(t, s.names...)
	var mu sync.Mutex
	delays := rand.New(rand.NewPCG(seed, 2)) //nolint:gosec // to be repeated
	s.delay = func() time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return time.Duration(delays.IntN(4)) * time.Millisecond
	}
	for i := range shards {
		s.lead(placement.ShardID(i), s.names[i%3], 0)
	}
	pass(time.Second)
	for i := range shards {
		o := s.objectIn(placement.ShardID(i), s.rnd)
		s.objects = append(s.objects, o)
		for j := range 4 {
			s.clients = append(s.clients, &talker{s.join(s.names[j%3], o, fmt.Sprintf("%s-%d", o, j)), o})
		}
	}
	stop := make(chan struct{})
	var talking sync.WaitGroup
	for i, c := range s.clients {
		talking.Go(func() { c.talk(stop, rand.New(rand.NewPCG(seed, uint64(i+3)))) }) //nolint:gosec // to be repeated
	}
	for range 16 {
		time.Sleep(time.Duration(1+s.rnd.IntN(300)) * time.Millisecond)
		if s.kind == handOvers {
			s.handOver(placement.ShardID(s.rnd.IntN(shards)), s.names[s.rnd.IntN(3)])
		} else {
			s.trouble()
		}
	}
	close(stop)
	talking.Wait()
	s.net.Heal()
	pass(20 * time.Second)
	s.check(t)
}

func (c *talker) talk(stop chan struct{}, rnd *rand.Rand) {
	for n := 1; ; n++ {
		if c.say(fmt.Sprint(n)) != nil {
			return
		}
		c.mu.Lock()
		c.sent = n
		c.mu.Unlock()
		wait := time.NewTimer(time.Duration(rnd.IntN(30)) * time.Millisecond)
		select {
		case <-wait.C:
		case <-stop:
			return
		case <-c.done:
			return
		}
	}
}

func (s *story) trouble() {
	shard := placement.ShardID(s.rnd.IntN(shards))
	to := s.names[s.rnd.IntN(3)]
	switch s.rnd.IntN(8) {
	case 0, 1, 2, 3, 4:
		s.handOver(shard, to)
	case 5:
		s.lead(shard, to, time.Duration(1+s.rnd.IntN(80))*time.Millisecond)
	case 6:
		x, y := s.names[s.rnd.IntN(3)], s.names[s.rnd.IntN(3)]
		if x != y {
			s.net.Cut(string(x), string(y))
			time.Sleep(time.Duration(s.rnd.IntN(900)) * time.Millisecond)
			s.net.Heal()
		}
	case 7:
		s.mu.Lock()
		l := s.owners[shard]
		s.mu.Unlock()
		s.handOver(shard, l.node.id) // itself again
	}
}

func (s *story) check(t *testing.T) {
	open := 0
	for _, o := range s.objects {
		lines := strings.Split(s.call(o, "list", "log/"), "\n")
		ends := s.call(o, "list", "end/")
		for _, l := range strings.Split(ends, "\n") {
			if strings.Count(l, " ") > 1 {
				t.Logf("%s: more than one close event: %s", o, l)
			}
		}
		for _, c := range s.clients {
			if c.object != o {
				continue
			}
			handled := handledOf(t, lines, c.name)
			switch {
			case c.code() == 0:
				open++
				if handled != c.sent {
					t.Errorf("%s said %d messages, and %d were handled", c.name, c.sent, handled)
				}
			case c.code() != 1012:
				t.Errorf("%s was closed: %v", c.name, c.end)
			}
			s.checkReceived(t, c, lines)
		}
	}
	t.Logf("%d of %d sockets are open", open, len(s.clients))
	if s.kind == handOvers && open < len(s.clients) {
		t.Error("a hand-over has cost sockets")
	}
}

// handledOf returns how many of a client's messages are in the log, which must be the first ones.
func handledOf(t *testing.T, lines []string, name string) (n int) {
	for _, l := range lines {
		if _, text, _ := strings.Cut(l, "="); strings.HasPrefix(text, name+" ") {
			n++
			if text != fmt.Sprintf("%s %d", name, n) {
				t.Errorf("message %d of %s in the log is %q", n, name, text)
				return n
			}
		}
	}
	return n
}

// checkReceived checks that what a client got is a part of the log without holes, up to its end if the socket is
// open.
func (s *story) checkReceived(t *testing.T, c *talker, lines []string) {
	got := c.received()
	if len(got) == 0 {
		return
	}
	var first int
	fmt.Sscan(got[0], &first)
	for i, text := range got {
		n := first + i
		if n > len(lines) {
			t.Errorf("%s got %q, which is not in the log", c.name, text)
			return
		}
		_, line, _ := strings.Cut(lines[n-1], "=")
		if want := fmt.Sprintf("%d %s", n, line); text != want {
			t.Errorf("%s got %q, want %q; before that %q", c.name, text, want, slices.Clone(got[max(0, i-3):i]))
			return
		}
	}
	if last := first + len(got) - 1; c.code() == 0 && last != len(lines) {
		t.Errorf("%s got messages up to %d of %d", c.name, last, len(lines))
	}
}
