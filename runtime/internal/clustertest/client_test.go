package clustertest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/internal/clustertest"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

const (
	clientCount  = 5
	clientPause  = 150 * time.Millisecond // at most, between two operations
	callTimeout  = 4 * time.Second
	names        = 2 // of objects of each class
	healingTakes = 20 * time.Second
)

// A crowd is clients at work, each at one member after another.
type crowd struct {
	t       *testing.T
	cluster *clustertest.Cluster
	history *history
	http    *http.Client

	stop    chan struct{}
	stopped sync.Once
	running sync.WaitGroup // one goroutine for each client, stopped by leave
	done    [3]int         // operations by verdict
	mu      sync.Mutex     // guards done
}

func newCrowd(t *testing.T, c *clustertest.Cluster, h *history) *crowd {
	return &crowd{t: t, cluster: c, history: h, http: c.Client("10.0.2.1"), stop: make(chan struct{})}
}

// come begins. The clients leave by themselves when the test ends before.
func (w *crowd) come(seed uint64) {
	w.t.Cleanup(w.leave)
	for i := range clientCount {
		w.running.Go(func() { w.client(i, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
}

func (w *crowd) leave() {
	w.stopped.Do(func() { close(w.stop) })
	w.running.Wait()
	w.http.CloseIdleConnections()
}

func (w *crowd) client(id int, r *rand.Rand) {
	for {
		select {
		case <-w.stop:
			return
		case <-time.After(time.Duration(r.Int64N(int64(clientPause)))):
		}
		live := w.cluster.Live()
		if len(live) == 0 {
			continue
		}
		v := w.do(id, live[r.IntN(len(live))], choose(r), r.IntN(3) == 0)
		w.mu.Lock()
		w.done[v]++
		w.mu.Unlock()
	}
}

func choose(r *rand.Rand) operation {
	op := operation{class: "tally", name: fmt.Sprint(r.IntN(names)), method: "read"}
	switch kind := r.IntN(6); kind {
	case 0:
	case 1, 2:
		op.method, op.args = "add", [2]int64{1 + r.Int64N(1_000_000)}
	default:
		op.class = "shelf"
		switch a, b := r.Int64N(3), r.Int64N(2); kind {
		case 3, 4:
			op.method, op.args = "put", [2]int64{a, r.Int64N(1_000_000)}
		case 5:
			op.method, op.args = "swap", [2]int64{a, (a + 1 + b) % 3}
			if r.IntN(2) == 0 {
				op.method = "read"
			}
		}
	}
	return op
}

// do has one operation done at a member, and records it.
func (w *crowd) do(client int, m *clustertest.Member, op operation, overHTTP bool) verdict {
	life := m.Life()
	if life == nil {
		return didNot
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	return w.history.record(client, op, func() (outcome, verdict) {
		var state books
		var err error
		if overHTTP && op.class == "tally" {
			state[0], err = w.fetch(ctx, m, op)
		} else {
			state, err = call(ctx, life, op)
			if life.Dead() {
				return outcome{}, mayHave // nobody has heard the answer
			}
		}
		return outcome{state: state}, judge(err)
	})
}

func call(ctx context.Context, scope durable.Scope, op operation) (state books, err error) {
	if op.class == "tally" {
		object := tallyClass.Named(scope, op.name)
		if op.method == "add" {
			state[0], err = tallyAdd.Call(ctx, object, op.args[0])
		} else {
			state[0], err = tallyRead.Call(ctx, object, durable.None{})
		}
		return state, err
	}
	object := shelfClass.Named(scope, op.name)
	switch op.method {
	case "put":
		return shelfPut.Call(ctx, object, putting{int(op.args[0]), op.args[1]})
	case "swap":
		return shelfSwap.Call(ctx, object, [2]int{int(op.args[0]), int(op.args[1])})
	default:
		return shelfRead.Call(ctx, object, durable.None{})
	}
}

func (w *crowd) fetch(ctx context.Context, m *clustertest.Member, op operation) (n int64, err error) {
	method, url := http.MethodGet, fmt.Sprintf("http://%s/objects/tally/%s/", m.FrontDoor(), op.name)
	if op.method == "add" {
		method, url = http.MethodPost, url+fmt.Sprint(op.args[0])
	}
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := w.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return n, json.NewDecoder(resp.Body).Decode(&n)
	}
	var said struct{ Error struct{ Code host.Code } }
	if err := json.NewDecoder(resp.Body).Decode(&said); err != nil {
		return 0, err
	}
	return 0, &host.Error{Code: said.Error.Code}
}

// judge says what an error means for the operation.
func judge(err error) verdict {
	var e *host.Error
	switch {
	case err == nil:
		return did
	case !errors.As(err, &e):
		return mayHave
	}
	switch e.Code {
	case host.CodeUnavailable, host.CodeNotOwner, host.CodeOverloaded, host.CodeReset:
		return didNot
	case host.CodeUnknownOutcome, host.CodeCanceled, host.CodeDeadline:
		return mayHave
	default:
		panic(fmt.Sprintf("an operation failed: %s %v", e.Code, err)) // nothing else should come of a fault
	}
}

// recovered waits until each object can be written at each member, and reads them all at
// each: with that, what was acknowledged before must be there.
func (w *crowd) recovered() {
	w.t.Helper()
	deadline := time.Now().Add(healingTakes)
	client := clientCount
	for _, m := range w.cluster.Members() {
		for i := range 2 * names {
			op := operation{class: "tally", name: fmt.Sprint(i / 2), method: "add", args: [2]int64{1}}
			if i%2 == 1 {
				op.class, op.method, op.args = "shelf", "put", [2]int64{0, int64(client)}
			}
			for client++; w.do(client, m, op, false) != did; client++ {
				if time.Now().After(deadline) {
					w.t.Errorf("%s %s cannot be written at %s, %v after the last fault", op.class, op.name, m, healingTakes)
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
	}
	w.readAll(client)
}

func (w *crowd) readAll(client int) {
	w.t.Helper()
	for _, m := range w.cluster.Members() {
		for i := range 2 * names {
			op := operation{class: [...]string{"tally", "shelf"}[i%2], name: fmt.Sprint(i / 2), method: "read"}
			if v := w.do(client, m, op, false); v != did {
				w.t.Errorf("%s %s cannot be read at %s", op.class, op.name, m)
			}
		}
	}
}
