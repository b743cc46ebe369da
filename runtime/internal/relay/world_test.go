package relay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/gateway"
	"github.com/holdfast-run/holdfast/runtime/internal/engine"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
	"github.com/holdfast-run/holdfast/runtime/internal/transport/memnet"
)

// A world is a cluster in one bubble: real gateways, engines and relays on a network in memory. Instead
// of Raft there is one disk for all, and the test says who leads.
type world struct {
	t     *testing.T
	net   *memnet.Network
	table placement.Table
	disk  *disk
	delay func() time.Duration // of a commit, and of its answer
	tune  func(*Config)

	mu     sync.Mutex // guards the following
	nodes  map[placement.NodeID]*node
	owners map[placement.ShardID]*leading
	all    []*node
}

const shards = 4

func newWorld(t *testing.T, names ...placement.NodeID) *world {
	t.Helper()
	table, err := placement.Even(shards)
	if err != nil {
		t.Fatal(err)
	}
	m, err := storage.Open("", storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		t: t, net: memnet.New(), table: table, disk: &disk{m: m, epochs: make(map[placement.ShardID]placement.Epoch)},
		nodes:  make(map[placement.NodeID]*node),
		owners: make(map[placement.ShardID]*leading),
		delay:  func() time.Duration { return 0 },
	}
	w.net.Delay(200*time.Microsecond, 100*time.Microsecond)
	for _, n := range names {
		w.start(n)
	}
	t.Cleanup(w.stop)
	return w
}

// A node is one process of the world.
type node struct {
	w       *world
	id      placement.NodeID
	engine  *engine.Engine
	relay   *Relay
	gateway *gateway.Gateway
	serving sync.WaitGroup
	close   []func() error
}

func (w *world) start(id placement.NodeID) *node {
	w.t.Helper()
	n := &node{w: w, id: id}
	cfg := gateway.Config{}
	cfg.Sockets.AcceptWait = 5 * time.Second
	cfg.Sockets.Gather = -1
	var err error
	if n.gateway, err = gateway.New(cfg); err != nil {
		w.t.Fatal(err)
	}
	rc := Config{Self: id, Table: w.table, Hub: n.gateway, Network: n, Service: 'r', Live: w.live}
	if w.tune != nil {
		w.tune(&rc)
	}
	if n.relay, err = New(rc); err != nil {
		w.t.Fatal(err)
	}
	if n.engine, err = engine.New(engine.Config{Table: w.table, Classes: []host.Class{chat{}}, Gateway: n.relay, Carrier: n.relay}); err != nil {
		w.t.Fatal(err)
	}
	n.relay.Start(n.engine)
	n.gateway.Attach(n)
	inner, err := w.net.Host(string(id)).Listen(":1")
	if err != nil {
		w.t.Fatal(err)
	}
	outer, err := w.net.Host(string(id)).Listen(":80")
	if err != nil {
		w.t.Fatal(err)
	}
	n.close = []func() error{inner.Close, outer.Close}
	n.serving.Go(func() { n.accept(inner) })
	n.serving.Go(func() { _ = n.gateway.Serve(outer) })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[id] = n
	w.all = append(w.all, n)
	return n
}

func (n *node) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		from, _, _ := strings.Cut(c.RemoteAddr().String(), ":")
		n.serving.Go(func() { n.relay.Serve(placement.NodeID(from), c) })
	}
}

// Open implements Network.
func (n *node) Open(ctx context.Context, to placement.NodeID, _ byte) (net.Conn, error) {
	return n.w.net.Host(string(n.id)).Dial(ctx, string(to)+":1")
}

func (w *world) live() []placement.NodeID {
	w.mu.Lock()
	defer w.mu.Unlock()
	var live []placement.NodeID
	for id := range w.nodes {
		live = append(live, id)
	}
	return live
}

func (w *world) node(id placement.NodeID) *node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[id]
}

func (w *world) stop() {
	w.mu.Lock()
	owners, all := w.owners, w.all
	w.owners = nil
	w.mu.Unlock()
	for s, l := range owners {
		w.disk.depose(s)
		l.end()
	}
	for _, n := range all {
		n.halt()
	}
	synctest.Wait()
	w.disk.m.Close()
}

// halt ends what belongs to a node, however its network is.
func (n *node) halt() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	for _, c := range n.close {
		_ = c()
	}
	_ = n.gateway.Shutdown(ctx)
	_ = n.relay.Stop(ctx)
	n.serving.Wait()
}

// crash ends a node's process: nobody is told anything.
func (w *world) crash(id placement.NodeID) {
	w.mu.Lock()
	n := w.nodes[id]
	delete(w.nodes, id)
	var led []placement.ShardID
	for s, l := range w.owners {
		if l.node == n {
			led = append(led, s)
		}
	}
	w.mu.Unlock()
	w.net.Refuse(string(id))
	for _, s := range led {
		w.disk.depose(s)
		w.mu.Lock()
		l := w.owners[s]
		delete(w.owners, s)
		w.mu.Unlock()
		l.end()
	}
	n.halt()
}

// handOver makes a node the owner of a shard once nothing of the last one's is in doubt or under way.
func (w *world) handOver(s placement.ShardID, id placement.NodeID) {
	w.mu.Lock()
	old := w.owners[s]
	w.mu.Unlock()
	old.store.drain()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = old.node.relay.Flush(ctx) // what is cut off is closed
	w.lead(s, id, 0)
}

// A leading is a node's ownership of a shard.
type leading struct {
	node   *node
	store  *store
	cancel context.CancelCauseFunc
	done   chan struct{}
}

func (l *leading) end() {
	l.cancel(host.ErrUnavailable)
	<-l.done
}

// lead makes a node the owner of a shard; the last one is deposed at the disk at once, but learns of it
// only after a while.
func (w *world) lead(s placement.ShardID, id placement.NodeID, late time.Duration) {
	n := w.node(id)
	w.mu.Lock()
	old := w.owners[s]
	w.mu.Unlock()
	epoch := w.disk.depose(s)
	if old != nil {
		if old.node == n {
			late = 0
		}
		if late == 0 {
			old.end()
		} else {
			go func() { time.Sleep(late); old.end() }() // ends with the bubble's time
		}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	st := newStore(w, s, epoch)
	l := &leading{node: n, store: st, cancel: cancel, done: make(chan struct{})}
	go func() { // ended and waited for by leading.end
		defer close(l.done)
		defer st.stop()
		defer n.relay.End(s, epoch)
		if err := n.relay.Gather(ctx, s, epoch); err != nil {
			<-ctx.Done()
			return
		}
		n.engine.Lead(ctx, s, st)
	}()
	w.mu.Lock()
	w.owners[s] = l
	w.mu.Unlock()
}

func (w *world) owner(id placement.ObjectID) *node {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.owners[w.table.ShardOf(id)]; l != nil {
		return l.node
	}
	return nil
}

// The node is its gateway's dispatcher.

func (n *node) Class(name string) (host.ClassInfo, bool) { return n.engine.Class(name) }

func (n *node) Serve(ctx context.Context, to host.Ref, w http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
	for {
		err := error(host.ErrUnavailable)
		var up host.Upgrade
		if o := n.w.owner(to.ID); o == n {
			up, err = n.engine.Serve(ctx, to, w, r)
		} else if o != nil {
			up, err = o.engine.Serve(host.WithGateway(ctx, n.id), to, w, r)
		}
		if !errors.Is(err, host.ErrUnavailable) {
			return up, err
		}
		if !pause(ctx, 10*time.Millisecond) {
			return up, err
		}
	}
}

func (n *node) Call(ctx context.Context, to host.Ref, method string, args []byte) ([]byte, error) {
	for {
		err := error(host.ErrUnavailable)
		var reply []byte
		if o := n.w.owner(to.ID); o != nil {
			reply, err = o.engine.Call(ctx, to, method, args)
		}
		if !errors.Is(err, host.ErrUnavailable) || !pause(ctx, 10*time.Millisecond) {
			return reply, err
		}
	}
}

func (n *node) Message(ctx context.Context, to host.Ref, m *host.SocketMessage) error {
	return n.relay.Message(ctx, to, m)
}
func (n *node) SocketClosed(to host.Ref, c *host.SocketClose) { n.relay.SocketClosed(to, c) }
func (n *node) SocketFailed(to host.Ref, f *host.SocketError) { n.relay.SocketFailed(to, f) }

// A disk is what is committed, and who may commit.
type disk struct {
	m *storage.Machine

	mu     sync.Mutex // guards the following
	index  uint64
	epochs map[placement.ShardID]placement.Epoch
}

// depose begins a new epoch.
func (d *disk) depose(s placement.ShardID) placement.Epoch {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.epochs[s]++
	return d.epochs[s]
}

func (d *disk) is(s placement.ShardID, e placement.Epoch) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.epochs[s] == e
}

// A store commits to the disk after a while, and tells after another one. In between the reign
// may end: then the batch is committed and nobody knows.
type store struct {
	w     *world
	shard placement.ShardID
	epoch placement.Epoch
	*storage.Machine

	batches chan commit
	done    chan struct{}

	mu       sync.Mutex
	draining bool
}

// drain refuses what comes from now on, and waits for what has come.
func (s *store) drain() {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	told := make(chan struct{})
	s.batches <- commit{done: func(error) { close(told) }}
	<-told
}

type commit struct {
	batch []byte
	done  func(error)
}

func newStore(w *world, s placement.ShardID, e placement.Epoch) *store {
	st := &store{w: w, shard: s, epoch: e, Machine: w.disk.m, batches: make(chan commit, 100_000), done: make(chan struct{})}
	go st.run() // ended and waited for by stop
	return st
}

func (s *store) stop() {
	close(s.batches)
	<-s.done
}

func (s *store) run() {
	defer close(s.done)
	var told []commit
	for c := range s.batches {
		time.Sleep(s.w.delay())
		if c.batch == nil {
			for _, c := range append(told, c) {
				s.tell(c)
			}
			told = nil
			continue
		}
		ok := s.apply(c.batch)
		told = append(told, c)
		if ok && len(s.batches) > 0 && len(told) < 4 {
			continue // several batches land before any is told
		}
		time.Sleep(s.w.delay())
		for _, c := range told {
			s.tell(c)
		}
		told = nil
	}
}

// tell tells what became of a batch.
func (s *store) tell(c commit) {
	var err error
	if c.batch == nil || !s.w.disk.is(s.shard, s.epoch) {
		err = &host.Error{Code: host.CodeUnknownOutcome, Message: "the reign is over"}
	}
	c.done(err)
}

func (s *store) apply(batch []byte) bool {
	d := s.w.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.epochs[s.shard] != s.epoch {
		return false
	}
	d.index++
	if err := d.m.Apply(d.index, uint64(s.epoch), batch); err != nil {
		panic(err)
	}
	return true
}

func (s *store) Epoch() placement.Epoch { return s.epoch }
func (s *store) Writable() error        { return nil }
func (s *store) Commit(batch []byte, done func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := commit{append([]byte(nil), batch...), done}
	if s.draining {
		c.batch = nil
	}
	s.batches <- c
}

func (s *store) Confirm(done func(error)) {
	if !s.w.disk.is(s.shard, s.epoch) {
		done(&host.Error{Code: host.CodeUnavailable, Retryable: true, Message: "the reign is over"})
		return
	}
	done(nil)
}

// A chat is a class: it numbers what its sockets say, keeps it, and tells all.
type chat struct{}

func (chat) Name() string       { return "room" }
func (chat) New() host.Instance { return chat{} }
func (chat) Info() host.ClassInfo {
	return host.ClassInfo{Fetch: true, SocketMessage: true, SocketClose: true, SocketError: true, Methods: map[string]bool{"list": false, "sockets": false, "kick": false, "get": false}}
}

func (chat) Handle(_ context.Context, t host.Turn, ev host.Event) error {
	switch ev := ev.(type) {
	case *host.Load:
		return t.SetAutoResponses([]host.AutoResponse{{Request: "ping", Response: "pong"}})
	case *host.Fetch:
		name := ev.R.URL.Query().Get("name")
		_, err := t.Accept(host.AcceptOptions{Attachment: []byte(name), Tags: []string{name}})
		return err
	case *host.SocketMessage:
		return said(t, ev)
	case *host.SocketClose:
		key := fmt.Sprintf("end/%016x", ev.Socket)
		old, _ := t.Get(key)
		t.Put(key, fmt.Appendf(nil, "%s%d ", old, ev.Code), false)
	case *host.Call:
		ev.Reply = []byte(called(t, ev.Method, string(ev.Args)))
	}
	return nil
}

func said(t host.Turn, m *host.SocketMessage) error {
	s, ok := t.Socket(m.Socket)
	if !ok {
		return errors.New("no such socket")
	}
	text := string(m.Data)
	switch {
	case text == "fail":
		return host.Refusal("refused")
	case strings.HasPrefix(text, "attach "):
		t.Put("x", m.Data, false)
		return t.SetAttachment(m.Socket, []byte(text[7:]))
	case strings.HasPrefix(text, "to "):
		t.Broadcast(host.Message{Data: m.Data}, text[3:], nil)
		return nil
	}
	n := 1
	if v, ok := t.Get("n"); ok {
		fmt.Sscan(string(v), &n)
		n++
	}
	t.Put("n", fmt.Append(nil, n), false)
	line := fmt.Sprintf("%s %s", s.Attachment, text)
	t.Put(fmt.Sprintf("log/%08d", n), []byte(line), false)
	t.Broadcast(host.Message{Data: fmt.Appendf(nil, "%d %s", n, line)}, "", nil)
	return nil
}

func called(t host.Turn, method, arg string) string {
	var out []string
	switch method {
	case "list":
		for k, v := range t.List(host.Range{Prefix: arg}) {
			out = append(out, k+"="+string(v))
		}
	case "sockets":
		for _, s := range t.Sockets("") {
			out = append(out, fmt.Sprintf("%s closing=%t", s.Attachment, s.Closing))
		}
	case "kick":
		for _, s := range t.Sockets(arg) {
			_ = t.CloseSocket(s.ID, 4001, "out")
		}
	}
	return strings.Join(out, "\n")
}

// A client is a WebSocket from outside.
type client struct {
	w    *world
	at   placement.NodeID
	name string
	ws   *websocket.Conn
	done chan struct{}

	mu   sync.Mutex // guards the following
	got  []string
	sent int
	end  error
}

func (w *world) dial(at placement.NodeID, object, name string) (*client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return w.net.Host("client-"+name).Dial(ctx, addr)
	}}
	ws, _, err := websocket.Dial(ctx, fmt.Sprintf("ws://%s:80/objects/room/%s/ws?name=%s", at, object, name), &websocket.DialOptions{HTTPClient: &http.Client{Transport: tr}})
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(-1)
	c := &client{w: w, at: at, name: name, ws: ws, done: make(chan struct{})}
	go c.read() // ends with the connection
	w.t.Cleanup(func() { _ = ws.CloseNow() })
	return c, nil
}

func (w *world) join(at placement.NodeID, object, name string) *client {
	w.t.Helper()
	c, err := w.dial(at, object, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (c *client) read() {
	defer close(c.done)
	for {
		_, data, err := c.ws.Read(context.Background())
		c.mu.Lock()
		if err != nil {
			c.end = err
			c.mu.Unlock()
			return
		}
		c.got = append(c.got, string(data))
		c.mu.Unlock()
	}
}

func (c *client) say(text string) error {
	return c.ws.Write(context.Background(), websocket.MessageText, []byte(text))
}

func (c *client) received() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.got...)
}

// code is how the socket has ended; 0 if it is open.
func (c *client) code() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == nil {
		return 0
	}
	return int(websocket.CloseStatus(c.end))
}

// call asks an object, wherever it is.
func (w *world) call(object, method, arg string) string {
	w.t.Helper()
	to := host.Ref{Class: "room", ID: placement.NamedID("room", object), Name: object, Named: true}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var asked *node
	w.mu.Lock()
	for _, n := range w.nodes {
		asked = n
	}
	w.mu.Unlock()
	reply, err := asked.Call(ctx, to, method, []byte(arg))
	if err != nil {
		w.t.Fatalf("%s of %s: %v", method, object, err)
	}
	return string(reply)
}

// objectIn returns the name of an object of a shard.
func (w *world) objectIn(s placement.ShardID, rnd *rand.Rand) string {
	for {
		name := fmt.Sprint("o", rnd.IntN(1000))
		if w.table.ShardOf(placement.NamedID("room", name)) == s {
			return name
		}
	}
}

// pass lets virtual time pass, and what is due in it happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
