package relay

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/placement"
)

func inBubble(t *testing.T, fn func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, fn)
}

func TestSocketsElsewhere(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		w.lead(0, "a", 0)
		pass(time.Second)
		o := w.objectIn(0, rand.New(rand.NewPCG(1, 1)))
		ann, bob, cat := w.join("a", o, "ann"), w.join("b", o, "bob"), w.join("c", o, "cat")
		for _, c := range []*client{ann, bob, cat} {
			if err := c.say("hello"); err != nil {
				t.Fatal(err)
			}
			pass(100 * time.Millisecond)
		}
		want := []string{"1 ann hello", "2 bob hello", "3 cat hello"}
		for _, c := range []*client{ann, bob, cat} {
			if diff := cmp.Diff(want, c.received()); diff != "" {
				t.Errorf("%s: %s", c.name, diff)
			}
		}
		_ = bob.say("ping")
		_ = bob.say("to cat")
		_ = cat.say("attach kit")
		pass(100 * time.Millisecond)
		if got := bob.received(); got[len(got)-1] != "pong" {
			t.Errorf("bob got %q", got)
		}
		if got := cat.received(); got[len(got)-1] != "to cat" {
			t.Errorf("cat got %q", got)
		}
		pass(time.Minute) // the object sleeps; its sockets do not
		if got := w.call(o, "sockets", ""); got != "ann closing=false\nbob closing=false\nkit closing=false" {
			t.Errorf("sockets:\n%s", got)
		}
		w.call(o, "kick", "bob")
		_ = cat.ws.Close(4002, "bye")
		pass(time.Second)
		if bob.code() != 4001 {
			t.Errorf("bob was closed with %v", bob.end)
		}
		if got := w.call(o, "sockets", ""); got != "ann closing=false" {
			t.Errorf("sockets:\n%s", got)
		}
		if got := w.call(o, "list", "end/"); strings.Count(got, "4001 ") != 1 || strings.Count(got, "4002 ") != 1 {
			t.Errorf("close events:\n%s", got)
		}
	})
}

func TestOwnerMoves(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		o := w.objectIn(1, rand.New(rand.NewPCG(1, 1)))
		w.lead(1, "a", 0)
		pass(time.Second)
		ann, bob := w.join("a", o, "ann"), w.join("b", o, "bob")
		var want []string
		for i, owner := range []placement.NodeID{"b", "c", "a", "b"} {
			w.lead(1, owner, 0)
			_ = bob.say("x")
			pass(time.Second)
			_ = ann.say("y")
			pass(time.Second)
			want = append(want, fmt.Sprintf("%d bob x", 2*i+1), fmt.Sprintf("%d ann y", 2*i+2))
			if diff := cmp.Diff(want, bob.received()); diff != "" {
				t.Fatalf("owner %s: %s", owner, diff)
			}
		}
		if diff := cmp.Diff(want, ann.received()); diff != "" {
			t.Error(diff)
		}
		_ = ann.ws.Close(4002, "bye")
		pass(time.Second)
		if got := w.call(o, "sockets", ""); got != "bob closing=false" {
			t.Errorf("sockets: %s", got)
		}
	})
}

func TestGatewayDies(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarts-%t", restarts), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w := newWorld(t, "a", "b")
				o := w.objectIn(0, rand.New(rand.NewPCG(1, 1)))
				w.lead(0, "a", 0)
				pass(time.Second)
				ann := w.join("a", o, "ann")
				w.join("b", o, "bob")
				_ = ann.say("x")
				pass(time.Second)
				w.crash("b")
				if restarts {
					w.start("b")
				}
				pass(time.Second)
				if !restarts {
					pass(11 * time.Second)
				}
				if got := w.call(o, "list", "end/"); strings.Count(got, "1006 ") != 1 {
					t.Errorf("close events: %q", got)
				}
				if got := w.call(o, "sockets", ""); got != "ann closing=false" {
					t.Errorf("sockets: %s", got)
				}
				_ = ann.say("y")
				pass(time.Second)
				if diff := cmp.Diff([]string{"1 ann x", "2 ann y"}, ann.received()); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// A short cut loses nothing; a long one ends the sockets on its other side.
func TestPartition(t *testing.T) {
	for _, cut := range []time.Duration{2 * time.Second, 6 * time.Second, 30 * time.Second} {
		t.Run(cut.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w := newWorld(t, "a", "b", "c")
				o := w.objectIn(0, rand.New(rand.NewPCG(1, 1)))
				w.lead(0, "a", 0)
				pass(time.Second)
				ann, bob := w.join("a", o, "ann"), w.join("b", o, "bob")
				_ = bob.say("before")
				pass(time.Second)
				w.net.Cut("a", "b")
				_ = ann.say("during")
				_ = bob.say("during")
				pass(cut)
				w.net.Heal()
				pass(5 * time.Second)
				_ = ann.say("after")
				pass(time.Second)
				if cut > 10*time.Second {
					if bob.code() != 1012 {
						t.Errorf("bob's socket: %v", bob.end)
					}
					if got := w.call(o, "list", "end/"); strings.Count(got, "1006 ") != 1 || strings.Count(got, "1012") != 0 {
						t.Errorf("close events: %q", got)
					}
					return
				}
				want := []string{"1 bob before", "2 ann during", "3 bob during", "4 ann after"}
				if diff := cmp.Diff(want, bob.received()); diff != "" {
					t.Errorf("bob: %s%v", diff, bob.end)
				}
				if diff := cmp.Diff(want, ann.received()); diff != "" {
					t.Errorf("ann: %s", diff)
				}
			})
		})
	}
}
