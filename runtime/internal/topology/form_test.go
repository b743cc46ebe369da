package topology

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// A nursery is nodes that form a cluster, and the ways between them.
type nursery struct {
	mu     sync.Mutex // guards guests and cut
	guests map[string]http.Handler
	cut    map[[2]string]bool
}

func (n *nursery) way(from string) func(string) http.RoundTripper {
	return func(to string) http.RoundTripper {
		return roundTripperFunc(func(r *http.Request) (*http.Response, error) {
			n.mu.Lock()
			handler := n.guests[to]
			if n.cut[[2]string{from, to}] {
				handler = nil
			}
			n.mu.Unlock()
			return serve(handler, r)
		})
	}
}

func (n *nursery) born(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.guests[addr] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, greeting{Cluster: clusterID})
	})
}

func addrs(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("n%d:7000", i))
	}
	return list
}

// form lets nodes form a cluster, starting one after another, and returns how many founded one and
// how many joined.
func (n *nursery) form(t *testing.T, nodes, expect int, pause func(i int) time.Duration, patience time.Duration) (founded, joined int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i, addr := range addrs(nodes) {
		wg.Go(func() {
			time.Sleep(pause(i))
			f, err := NewForming(FormConfig{
				Self:         placement.Node{ID: placement.NodeID(fmt.Sprintf("n%d", (i*7+3)%nodes)), Addr: addr},
				Expect:       expect,
				Addrs:        addrs(nodes),
				RoundTripper: n.way(addr),
			})
			if err != nil {
				t.Error(err)
				return
			}
			n.mu.Lock()
			n.guests[addr] = f.Guests()
			n.mu.Unlock()
			formed, err := f.Run(ctx)
			if err != nil {
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if formed.Found {
				founded++
				time.AfterFunc(time.Second, func() { n.born(addr) })
			} else if joined++; len(formed.Join) == 0 {
				t.Error("it joins nobody")
			}
		})
	}
	wg.Wait()
	return founded, joined
}

func TestForming(t *testing.T) {
	for _, nodes := range []int{1, 3, 5} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				n := &nursery{guests: make(map[string]http.Handler), cut: make(map[[2]string]bool)}
				pause := func(i int) time.Duration { return time.Duration(i) * 3 * time.Second }
				if founded, joined := n.form(t, nodes, nodes, pause, time.Minute); founded != 1 || joined != nodes-1 {
					t.Errorf("%d founded and %d joined", founded, joined)
				}
			})
		})
	}
}

// Too few do not found.
func TestFormingWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := &nursery{guests: make(map[string]http.Handler), cut: make(map[[2]string]bool)}
		late := func(i int) time.Duration { return time.Duration(i/2) * time.Hour }
		if founded, joined := n.form(t, 3, 3, late, 10*time.Minute); founded+joined != 0 {
			t.Errorf("%d founded and %d joined", founded, joined)
		}
	})
}

// However they see each other, no two found; and when all ways are open, one does.
func TestOneFounder(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	bubble(t, func(t *testing.T) {
		for range 300 {
			nodes := 2 + rnd.IntN(4)
			expect := 1 + rnd.IntN(nodes)
			n := &nursery{guests: make(map[string]http.Handler), cut: make(map[[2]string]bool)}
			for _, from := range addrs(nodes) {
				for _, to := range addrs(nodes) {
					n.cut[[2]string{from, to}] = from != to && rnd.IntN(3) == 0
				}
			}
			heal := time.AfterFunc(5*time.Second, func() {
				n.mu.Lock()
				defer n.mu.Unlock()
				clear(n.cut)
			})
			starts := make([]time.Duration, nodes)
			for i := range starts {
				starts[i] = time.Duration(rnd.IntN(8000)) * time.Millisecond
			}
			founded, joined := n.form(t, nodes, expect, func(i int) time.Duration { return starts[i] }, time.Minute)
			heal.Stop()
			if founded != 1 || joined != nodes-1 {
				t.Fatalf("of %d nodes, %d expected, %d founded and %d joined", nodes, expect, founded, joined)
			}
			time.Sleep(2 * time.Second)
		}
	})
}

func TestFormingRefuses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		if _, err := NewForming(FormConfig{Expect: 3, Addrs: []string{"a:1"}}); err == nil {
			t.Error("three nodes at two addresses")
		}
		n := &nursery{guests: make(map[string]http.Handler), cut: make(map[[2]string]bool)}
		n.born("n1:7000")
		n.guests["n2:7000"] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			reply(w, http.StatusOK, greeting{Cluster: "another"})
		})
		f, err := NewForming(FormConfig{Self: placement.Node{ID: "n0", Addr: "n0:7000"}, Expect: 3, Addrs: addrs(3), RoundTripper: n.way("n0:7000")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Run(t.Context()); !errors.Is(err, errTwoClusters) {
			t.Errorf("two clusters give %v", err)
		}
		f.cfg.Addrs = addrs(2)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := Join(ctx, func(string) http.RoundTripper {
			return roundTripperFunc(func(r *http.Request) (*http.Response, error) { return serve(f.Guests(), r) })
		}, []string{"n0:7000"}, record("x")); err == nil {
			t.Error("joined a node that has no cluster")
		}
	})
}
