// Package durabletest is the world of durable objects inside a test: the real engine
// over the real storage, in memory, with a front door whose clients are the test's own.
//
//	func TestVisits(t *testing.T) {
//		w := durabletest.New(t, counter.Definition)
//		visits := counter.Class.Named(w, "visits")
//		n, err := counter.Add.Call(t.Context(), visits, 1)
//		...
//	}
//
// A commit is durable at once, unless the test holds it up with [World.Hold] or lets it
// fail with [World.FailCommits]. Objects can be sent to sleep ([World.Evict]), woken by
// their alarms ([World.FireAlarm]), visited by clients ([World.Do], [World.Connect]), and lose
// their node ([World.Crash]).
//
// Time is virtual if the world is made inside a bubble of testing/synctest: then an hour
// of alarms takes no time, and a goroutine that an object leaks fails the test.
package durabletest

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// patience is how long a world waits for what must happen before it fails the test.
const patience = 10 * time.Second

// A World is one node that runs objects of some classes. It is a [durable.Scope].
// Whatever goes wrong with the world itself ends the test.
type World struct {
	tb     testing.TB // nil if there is no test
	defs   []durable.Definition
	table  placement.Table
	disks  []*storage.Machine // by shard; they outlive the node
	faults faults

	changing sync.Mutex // held while the node is being replaced
	mu       sync.Mutex
	node     *node // nil when the world is closed
}

// An Object is whatever names an object: a [durable.Stub] of any class.
type Object interface{ Ref() host.Ref }

// New makes a world that lasts as long as the test, or the bubble, of t.
func New(t testing.TB, defs ...durable.Definition) *World {
	t.Helper()
	w := open(t, defs)
	t.Cleanup(w.Close)
	return w
}

// Open makes a world without a test, for examples. Where a test would fail, it panics.
func Open(defs ...durable.Definition) *World { return open(nil, defs) }

func open(tb testing.TB, defs []durable.Definition) *World {
	table, err := placement.Even(4)
	if err != nil {
		panic(err) // 4 is a power of two
	}
	w := &World{tb: tb, defs: defs, table: table}
	for range table.Shards() {
		disk, err := storage.Open("", storage.Options{Logger: w.logger()})
		if err != nil {
			w.fatalf("open storage: %v", err)
		}
		w.disks = append(w.disks, disk)
	}
	w.node = w.boot(0)
	return w
}

// Caller makes a World a [durable.Scope]. Stubs that were made with it outlive crashes.
func (w *World) Caller() host.Caller { return caller{w} }

// Do hands an HTTP request to an object, with the path as the object is to see it, and
// returns the answer. It does not follow redirects.
func (w *World) Do(to Object, r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	up, err := w.running().engine.Serve(r.Context(), to.Ref(), rec, r)
	if err != nil {
		return nil, err
	}
	if up.Socket != 0 {
		return nil, fmt.Errorf("%s %s was answered with a WebSocket: use Dial", r.Method, r.URL)
	}
	return rec.Result(), nil
}

// Evict sends an object to sleep, as if it had been idle: its memory is gone, its sockets
// stay. It returns when everything that the object wrote is durable.
func (w *World) Evict(to Object) {
	w.helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := w.running().engine.Evict(ctx, to.Ref()); err != nil {
		w.fatalf("evict %v: %v", to.Ref().ID, err)
	}
}

// FireAlarm runs an object's alarm now, and reports whether there was one. It returns
// when the handler's writes are durable, or it has failed and will be retried.
func (w *World) FireAlarm(to Object) bool {
	w.helper()
	return w.FireSchedule(to, "")
}

// FireSchedule is FireAlarm for a schedule, by its name: kind, or kind/key.
func (w *World) FireSchedule(to Object, name string) bool {
	w.helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	fired, err := w.running().engine.FireAlarm(ctx, to.Ref(), name)
	if err != nil {
		w.logf("schedule %q of %v: %v", name, to.Ref().ID, err)
	}
	return fired
}

// Hold keeps commits from becoming durable. Objects go on, and what they have to say
// stays inside them.
func (w *World) Hold() { w.setFaults(func(f *faults) { f.held = true }) }

// Release makes durable what was held up, and every later commit.
func (w *World) Release() { w.setFaults(func(f *faults) { f.held = false }) }

// FailCommits lets every commit fail with an error, those that are held up, too, as if the
// node had lost its shards. With nil the node gets them back, and commits succeed again.
func (w *World) FailCommits(err error) {
	w.setFaults(func(f *faults) { f.err = err })
	if err == nil {
		w.changing.Lock()
		defer w.changing.Unlock()
		w.running().recover()
	}
}

// Crash is a power failure: what was not durable never happened, all memory is gone,
// connections drop. The node starts again at once, without the faults that it had.
func (w *World) Crash() {
	w.helper()
	w.replace((*node).crash)
}

// Restart stops the node in order, with all clients sent away and everything durable, and
// starts it again.
func (w *World) Restart() {
	w.helper()
	w.setFaults(func(f *faults) { f.held = false })
	w.replace((*node).drain)
}

// Close stops the node in order. A world made with [New] is closed by itself.
func (w *World) Close() {
	w.helper()
	w.setFaults(func(f *faults) { f.held = false })
	w.changing.Lock()
	defer w.changing.Unlock()
	n := w.set(nil)
	if n == nil {
		return
	}
	n.drain()
	for _, disk := range w.disks {
		if err := disk.Close(); err != nil {
			w.errorf("close storage: %v", err)
		}
	}
}

// replace ends the running node in the given way and boots another one on its disks.
func (w *World) replace(end func(*node)) {
	w.changing.Lock()
	defer w.changing.Unlock()
	n := w.running()
	end(n)
	w.setFaults(func(f *faults) { *f = faults{} })
	w.set(w.boot(n.epoch.Load()))
}

// running returns the node that runs now.
func (w *World) running() *node {
	w.mu.Lock()
	n := w.node
	w.mu.Unlock()
	if n == nil {
		w.fatalf("the world is closed")
	}
	return n
}

func (w *World) set(n *node) (old *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old, w.node = w.node, n
	return old
}

// setFaults changes what becomes of commits, those that wait included.
func (w *World) setFaults(change func(*faults)) {
	w.mu.Lock()
	change(&w.faults)
	n := w.node
	w.mu.Unlock()
	if n != nil {
		n.nudge()
	}
}

func (w *World) currentFaults() faults {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faults
}

func (w *World) logger() *slog.Logger {
	if w.tb == nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(w.tb.Output(), nil))
}

func (w *World) helper() {
	if w.tb != nil {
		w.tb.Helper()
	}
}

func (w *World) logf(format string, args ...any) {
	if w.tb != nil {
		w.tb.Helper()
		w.tb.Logf(format, args...)
	}
}

func (w *World) errorf(format string, args ...any) {
	if w.tb == nil {
		panic(fmt.Sprintf("durabletest: "+format, args...))
	}
	w.tb.Helper()
	w.tb.Errorf(format, args...)
}

func (w *World) fatalf(format string, args ...any) {
	if w.tb == nil {
		panic(fmt.Sprintf("durabletest: "+format, args...))
	}
	w.tb.Helper()
	w.tb.Fatalf(format, args...)
}

// A caller reaches objects through whatever node runs when it is used.
type caller struct{ w *World }

func (c caller) Call(ctx context.Context, to host.Ref, method string, args []byte) ([]byte, error) {
	return c.w.running().engine.Call(ctx, to, method, args)
}

func (c caller) Fetch(ctx context.Context, to host.Ref, rw http.ResponseWriter, r *http.Request) error {
	return c.w.running().engine.Fetch(ctx, to, rw, r)
}

func (c caller) Lookup(ctx context.Context, to host.Ref) (host.ObjectInfo, error) {
	return c.w.running().engine.Lookup(ctx, to)
}

func (c caller) ListObjects(ctx context.Context, class string, o host.ListOptions) (host.ListPage, error) {
	return c.w.running().engine.ListObjects(ctx, class, o)
}

func (c caller) Destroy(ctx context.Context, to host.Ref) error {
	return c.w.running().engine.Destroy(ctx, to)
}
