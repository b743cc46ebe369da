package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// A world is an engine over one shard in memory, with a class that tests script.
type world struct {
	t       testing.TB
	engine  *Engine
	store   *store
	gateway *gateway
	end     context.CancelCauseFunc
	ended   chan struct{}

	next map[placement.ObjectID][]host.Socket // the sockets of the next gateway
}

func newWorld(t testing.TB, cfg Config, s *script) *world {
	t.Helper()
	m, err := storage.Open("", storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: &store{m: m, epoch: 1}}
	w.start(cfg, s)
	t.Cleanup(func() { w.stop(); m.Close() })
	return w
}

func (w *world) start(cfg Config, s *script) {
	w.t.Helper()
	table, err := placement.Even(1)
	if err != nil {
		w.t.Fatal(err)
	}
	w.gateway = &gateway{sockets: w.next}
	if w.next == nil {
		w.gateway.sockets = make(map[placement.ObjectID][]host.Socket)
	}
	cfg.Table, cfg.Gateway = table, w.gateway
	cfg.Classes = append(cfg.Classes, s)
	if w.engine, err = New(cfg); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	w.end, w.ended = cancel, make(chan struct{})
	w.store.index, _ = w.store.m.Applied()
	go func() {
		defer close(w.ended)
		w.engine.Lead(ctx, 0, w.store)
	}()
	for !w.engine.Leads(0) {
		time.Sleep(time.Microsecond)
	}
}

// stop ends the reign.
func (w *world) stop() {
	w.store.fail(host.ErrUnavailable)
	w.end(host.ErrUnavailable)
	<-w.ended
}

// crash ends the reign and begins another on what was committed.
func (w *world) crash(cfg Config, s *script) {
	w.stop()
	w.store = &store{m: w.store.m, epoch: w.store.epoch + 1}
	w.start(cfg, s)
}

// pass lets virtual time pass, and what is due in it happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func ref(name string) host.Ref {
	return host.Ref{Class: "script", ID: placement.NamedID("script", name), Name: name, Named: true}
}

// call runs a method with a string argument and returns its string reply.
func (w *world) call(name, method, arg string) (string, error) {
	return w.callCtx(context.Background(), name, method, arg)
}

func (w *world) callCtx(ctx context.Context, name, method, arg string) (string, error) {
	reply, err := w.engine.Call(ctx, ref(name), method, []byte(arg))
	return string(reply), err
}

func (w *world) must(name, method, arg string) string {
	w.t.Helper()
	reply, err := w.call(name, method, arg)
	if err != nil {
		w.t.Fatalf("%s of %s: %v", method, name, err)
	}
	return reply
}

// A script is a class whose handlers are functions.
type script struct {
	methods map[string]func(i *instance, ctx context.Context, t host.Turn, arg string) (string, error)
	load    func(i *instance, t host.Turn) error
	fetch   func(ctx context.Context, t host.Turn, w http.ResponseWriter, r *http.Request) error
	alarm   func(t host.Turn, a *host.Alarm) error
	failed  func(t host.Turn, a *host.AlarmFailed) error
	message func(t host.Turn, m *host.SocketMessage) error
	closed  func(t host.Turn, c *host.SocketClose) error
	stop    func(t host.Turn, reason string) error

	mu        sync.Mutex
	instances int
}

type instance struct {
	s      *script
	number int
	memory int
	inside int
}

func (s *script) Name() string { return "script" }

func (s *script) New() host.Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances++
	return &instance{s: s, number: s.instances}
}

func (s *script) Info() host.ClassInfo {
	methods := map[string]bool{"put": true, "get": true, "incr": true, "keys": true}
	for m := range s.methods {
		methods[m] = false
	}
	return host.ClassInfo{
		Fetch: s.fetch != nil, Alarm: s.alarm != nil, AlarmFailed: s.failed != nil, Stopping: s.stop != nil,
		SocketMessage: s.message != nil, SocketClose: s.closed != nil,
		Methods: methods, Schedules: map[string]bool{"tick": s.alarm != nil},
	}
}

func (i *instance) Handle(ctx context.Context, t host.Turn, ev host.Event) (err error) {
	if i.inside++; i.inside > 1 && ctx.Value(interleaves{}) == nil {
		panic("two events at once")
	}
	defer func() { i.inside-- }()
	switch ev := ev.(type) {
	case *host.Load:
		if i.s.load != nil {
			return i.s.load(i, t)
		}
	case *host.Call:
		var reply string
		if m, ok := i.s.methods[ev.Method]; ok {
			reply, err = m(i, ctx, t, string(ev.Args))
		} else {
			reply = i.builtin(t, ev.Method, string(ev.Args))
		}
		ev.Reply = []byte(reply)
		return err
	case *host.Fetch:
		return i.s.fetch(ctx, t, ev.W, ev.R)
	case *host.Alarm:
		return i.s.alarm(t, ev)
	case *host.AlarmFailed:
		return i.s.failed(t, ev)
	case *host.SocketMessage:
		return i.s.message(t, ev)
	case *host.SocketClose:
		return i.s.closed(t, ev)
	case *host.Stopping:
		return i.s.stop(t, ev.Reason)
	case *host.Work:
		return ev.Then(ctx, t, ev.Err)
	}
	return nil
}

type interleaves struct{}

// builtin are the methods that every script has: "put" (k=v), "get", "incr", "keys" (prefix).
func (i *instance) builtin(t host.Turn, method, arg string) string {
	switch method {
	case "put":
		k, v, _ := strings.Cut(arg, "=")
		t.Put(k, []byte(v), false)
	case "get":
		v, ok := t.Get(arg)
		if !ok {
			return "none"
		}
		return string(v)
	case "incr":
		n := number(t, "n") + 1
		t.Put("n", fmt.Append(nil, n), false)
		return fmt.Sprint(n)
	case "keys":
		var keys []string
		for k := range t.List(host.Range{Prefix: arg}) {
			keys = append(keys, k)
		}
		return strings.Join(keys, " ")
	}
	return ""
}

func number(t host.Turn, key string) int {
	v, ok := t.Get(key)
	if !ok {
		return 0
	}
	var n int
	if err := json.Unmarshal(v, &n); err != nil {
		panic(err)
	}
	return n
}

// A store commits to a machine in memory: at once, or when the test lets it.
type store struct {
	m     *storage.Machine
	epoch placement.Epoch

	mu      sync.Mutex
	index   uint64
	holding bool
	held    []commit
	err     error
	full    error
	commits int
}

type commit struct {
	batch []byte
	done  func(error)
}

// hold keeps commits back until release.
func (s *store) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holding = true
}

func (s *store) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holding = false
	for _, c := range s.held {
		s.apply(c)
	}
	s.held = nil
}

// fail makes every held and later commit fail.
func (s *store) fail(err error) {
	s.mu.Lock()
	s.err = err
	held := s.held
	s.held = nil
	s.mu.Unlock()
	for _, c := range held {
		c.done(err)
	}
}

// apply makes a batch durable. The caller holds mu, so that batches stay in order.
func (s *store) apply(c commit) {
	s.index++
	s.commits++
	if err := s.m.Apply(s.index, uint64(s.epoch), c.batch); err != nil {
		panic(err)
	}
	c.done(nil)
}

func (s *store) Commit(batch []byte, done func(error)) {
	s.mu.Lock()
	if err := s.err; err != nil {
		s.mu.Unlock()
		done(err)
		return
	}
	defer s.mu.Unlock()
	if s.holding {
		s.held = append(s.held, commit{batch, done})
		return
	}
	s.apply(commit{batch, done})
}

func (s *store) Confirm(done func(error)) {
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	done(err)
}

func (s *store) Writable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full
}

func (s *store) Epoch() placement.Epoch { return s.epoch }

func (s *store) Get(id placement.ObjectID, space storage.Space, key string) ([]byte, bool, error) {
	return s.m.Get(id, space, key)
}

func (s *store) List(id placement.ObjectID, space storage.Space, r storage.Range, limit int) ([]storage.Row, bool, error) {
	return s.m.List(id, space, r, limit)
}

func (s *store) Lookup(id placement.ObjectID) (storage.Object, bool, error) { return s.m.Lookup(id) }

func (s *store) Objects(class, prefix string, after storage.Position, limit int) ([]storage.Object, error) {
	return s.m.Objects(class, prefix, after, limit)
}

func (s *store) DueAlarms(now int64, limit int) ([]storage.Alarm, int64, error) {
	return s.m.DueAlarms(now, limit)
}

// A gateway notes what it is told.
type gateway struct {
	mu      sync.Mutex
	sockets map[placement.ObjectID][]host.Socket
	log     []string
}

func (g *gateway) note(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.log = append(g.log, fmt.Sprintf(format, args...))
}

// take returns what was noted since the last time.
func (g *gateway) take() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	log := g.log
	g.log = nil
	return log
}

func (g *gateway) Sockets(id placement.ObjectID) []host.Socket {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.sockets[id])
}

func (g *gateway) Accept(ref host.Ref, s host.Socket) {
	g.note("accept")
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sockets[ref.ID] = append(g.sockets[ref.ID], s)
}

func (g *gateway) Send(_ placement.ObjectID, _ host.SocketID, m host.Message) {
	g.note("send %s", m.Data)
}

func (g *gateway) Broadcast(_ placement.ObjectID, m host.Message, tag string, except []host.SocketID) {
	g.note("broadcast %s to %q but %d", m.Data, tag, len(except))
}

func (g *gateway) Close(_ placement.ObjectID, _ host.SocketID, code int, reason string) {
	g.note("close %d %s", code, reason)
}

func (g *gateway) SetAttachment(id placement.ObjectID, s host.SocketID, attachment []byte) {
	g.note("attach %s", attachment)
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.sockets[id] {
		if g.sockets[id][i].ID == s {
			g.sockets[id][i].Attachment = attachment
		}
	}
}

func (g *gateway) SetAutoResponses(_ placement.ObjectID, pairs []host.AutoResponse) {
	g.note("auto %v", pairs)
}

func (g *gateway) AutoResponse(placement.ObjectID, host.SocketID) time.Time { return time.Time{} }

func (g *gateway) Forget(id placement.ObjectID, s host.SocketID) {
	g.note("forget")
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sockets[id] = slices.DeleteFunc(g.sockets[id], func(x host.Socket) bool { return x.ID == s })
}

func (g *gateway) Release(placement.ObjectID) {}

func (g *gateway) CloseAll(_ placement.ObjectID, code int, _ string) { g.note("close all %d", code) }
