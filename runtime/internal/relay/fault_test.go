package relay

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A gateway that cannot be reached fills its queue; then the object with most bytes loses its sockets
// there, and the others keep theirs.
func TestSlowGateway(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t, "a")
		w.tune = func(c *Config) { c.PeerQueueBytes, c.WindowBytes = 256<<10, 8<<10 }
		w.start("b")
		w.start("c")
		rnd := rand.New(rand.NewPCG(1, 1))
		loud, quiet := w.objectIn(0, rnd), w.objectIn(1, rnd)
		w.lead(0, "b", 0)
		w.lead(1, "b", 0)
		pass(time.Second)
		here := w.join("b", loud, "here")
		victim, bystander := w.join("c", loud, "victim"), w.join("c", quiet, "bystander")
		other := w.join("b", quiet, "other")
		w.net.Cut("b", "c")
		_ = other.say("patience")
		big := strings.Repeat("x", 8<<10)
		for range 60 {
			_ = here.say(big)
			pass(10 * time.Millisecond)
		}
		pass(time.Second)
		w.net.Heal()
		pass(5 * time.Second)
		if victim.code() != 1012 {
			t.Errorf("the loud object's socket: %v", victim.end)
		}
		if got := bystander.received(); len(got) != 1 || bystander.code() != 0 {
			t.Errorf("the quiet object's socket got %q, %v", got, bystander.end)
		}
		if got := here.received(); len(got) != 60 {
			t.Errorf("the socket at the owner got %d messages", len(got))
		}
	})
}

// An owner that was deposed and does not know it sends nothing to sockets whose next owner is known.
func TestFence(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		o := w.objectIn(0, rand.New(rand.NewPCG(1, 1)))
		id := placement.NamedID("room", o)
		w.lead(0, "a", 0)
		pass(time.Second)
		ann, bob := w.join("a", o, "ann"), w.join("b", o, "bob")
		w.lead(0, "c", time.Minute)
		pass(time.Second)
		old := w.node("a")
		old.relay.Broadcast(id, host.Message{Data: []byte("stale")}, "", nil)
		old.relay.CloseAll(id, 4000, "stale")
		pass(time.Second)
		_ = ann.say("x")
		pass(time.Second)
		for _, c := range []*client{ann, bob} {
			if got := c.received(); len(got) != 1 || got[0] != "1 ann x" || c.code() != 0 {
				t.Errorf("%s got %q, %v", c.name, got, c.end)
			}
		}
		pass(time.Minute) // the old owner learns of it
	})
}

// A shard without an owner holds up its own sockets only, and not for ever.
func TestNoOwner(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		rnd := rand.New(rand.NewPCG(1, 1))
		stuck, fine := w.objectIn(0, rnd), w.objectIn(1, rnd)
		w.lead(0, "a", 0)
		w.lead(1, "a", 0)
		pass(time.Second)
		ann, bob, silent := w.join("b", stuck, "ann"), w.join("b", fine, "bob"), w.join("b", stuck, "silent")
		w.disk.depose(0)
		w.mu.Lock()
		l := w.owners[0]
		delete(w.owners, 0)
		w.mu.Unlock()
		l.end()
		for i := range 3 {
			_ = ann.say(fmt.Sprint(i))
			_ = bob.say(fmt.Sprint(i))
		}
		pass(5 * time.Second)
		if len(bob.received()) != 3 || ann.code() != 0 {
			t.Errorf("bob got %q; ann: %v", bob.received(), ann.end)
		}
		pass(30 * time.Second)
		if ann.code() != 1012 || silent.code() != 0 {
			t.Errorf("ann: %v; silent: %v", ann.end, silent.end)
		}
		w.lead(0, "b", 0)
		pass(time.Second)
		_ = silent.say("hello")
		pass(time.Second)
		if got := silent.received(); len(got) != 1 {
			t.Errorf("silent got %q", got)
		}
		if got := w.call(stuck, "list", "end/"); strings.Count(got, "1012 ") != 1 {
			t.Errorf("close events: %q", got)
		}
	})
}

// The owner's process dies: what it had not settled is delivered to the next one.
func TestOwnerDies(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		o := w.objectIn(0, rand.New(rand.NewPCG(1, 1)))
		w.lead(0, "a", 0)
		pass(time.Second)
		bob := w.join("b", o, "bob")
		_ = bob.say("before")
		pass(time.Second)
		w.crash("a")
		_ = bob.say("between")
		pass(time.Second)
		began := time.Now()
		w.lead(0, "c", 0)
		for len(bob.received()) < 2 && time.Since(began) < time.Minute {
			pass(time.Millisecond)
		}
		if gap := time.Since(began); gap > 100*time.Millisecond {
			t.Errorf("the message was handled %v after there was an owner", gap)
		}
		if got := bob.received(); len(got) != 2 || got[1] != "2 bob between" {
			t.Errorf("bob got %q, %v", got, bob.end)
		}
	})
}
