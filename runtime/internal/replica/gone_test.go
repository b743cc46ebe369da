package replica

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// TestLeaderGone ends the leader's process. The first successor leads at once; if it does
// not answer, the next one does a moment later.
func TestLeaderGone(t *testing.T) {
	for _, c := range []struct {
		name   string
		behind bool // the first successor lacks entries, and cannot be elected
		dead   bool // it is gone, too, and that is known
		within time.Duration
	}{
		{name: "first", within: 10 * time.Millisecond},
		{name: "dead", dead: true, within: 10 * time.Millisecond},
		{name: "behind", behind: true, within: 200 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				transports, members := group(t, 5)
				<-members[0].reigns
				enlist(t, members[0], "node-2", "node-3", "node-4", "node-5")
				if err := members[0].HandOver(t.Context(), "node-3"); err != nil {
					t.Fatal(err)
				}
				reign := <-members[2].reigns
				time.Sleep(time.Second)
				cut := func(i int) {
					for _, tr := range transports {
						tr.Disconnect(transports[i].LocalAddr())
					}
					transports[i].DisconnectAll()
				}
				if c.behind {
					cut(3)
					time.Sleep(200 * time.Millisecond) // it does not miss the leader yet
					for i := range 10 {
						if err := commit(reign, fmt.Sprint(i)); err != nil {
							t.Fatal(err)
						}
					}
					for _, i := range []int{0, 1, 4} {
						transports[3].Connect(transports[i].LocalAddr(), transports[i].InmemTransport)
						transports[i].Connect(transports[3].LocalAddr(), transports[3].InmemTransport)
					}
				}
				cut(2)
				if c.dead {
					cut(3)
				}

				began := time.Now()
				alive := func(id placement.NodeID) bool { return !c.dead || id != "node-4" }
				var gone sync.WaitGroup
				for i, m := range members {
					if i == 2 || i == 3 && c.dead {
						continue
					}
					gone.Go(func() { m.LeaderGone(t.Context(), "node-3", alive) })
					gone.Go(func() { m.LeaderGone(t.Context(), "node-1", alive) }) // which did not lead
				}
				want := 3
				if c.behind || c.dead {
					want = 4
				}
				next := <-members[want].reigns
				if took := time.Since(began); took > c.within {
					t.Errorf("node-%d led after %v", want+1, took)
				}
				if next.Epoch() <= reign.Epoch() {
					t.Errorf("epoch %d after %d", next.Epoch(), reign.Epoch())
				}
				gone.Wait()
				time.Sleep(5 * time.Second)
				if epoch, leads := members[want].Reign(); !leads || epoch != next.Epoch() {
					t.Errorf("the successor was disturbed: %d, %v", epoch, leads)
				}
				if err := commit(next, "on"); err != nil {
					t.Error(err)
				}
				for _, m := range members {
					m.shutdown(t)
				}
			})
		})
	}
}
