package durabletest

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/internal/engine"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A Conn is the client's end of a WebSocket.
type Conn struct {
	gateway *gateway
	ref     host.Ref
	header  http.Header

	// The rest is guarded by the gateway's mu.
	socket    host.Socket
	inbox     []durable.Message
	end       *durable.CloseEvent // how the connection ended
	forgotten bool                // the object knows that it ended
}

// Connect opens a WebSocket to an object with a GET of path, which is as the object is to
// see it.
func (w *World) Connect(to Object, path string) *Conn {
	w.helper()
	conn, err := w.Dial(to, httptest.NewRequestWithContext(context.Background(), http.MethodGet, path, nil))
	if err != nil {
		w.fatalf("connect to %s: %v", path, err)
	}
	return conn
}

// Dial is Connect with a request of the test's own, whose upgrade headers it adds. The
// error is the object's, or says how it answered instead.
func (w *World) Dial(to Object, r *http.Request) (*Conn, error) {
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "websocket")
	r.Header.Set("Sec-WebSocket-Version", "13")
	r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
	n, rec := w.running(), httptest.NewRecorder()
	up, err := n.engine.Serve(r.Context(), to.Ref(), rec, r)
	if err != nil {
		return nil, err
	}
	if up.Socket == 0 {
		return nil, host.Errorf(host.CodeBadRequest, "the object did not accept a WebSocket: it answered %d %s", rec.Code, rec.Body)
	}
	conn := n.gateway.take(up.Socket)
	conn.header = rec.Header()
	return conn, nil
}

// Header returns what the object added to the answer of the handshake.
func (c *Conn) Header() http.Header { return c.header }

// Send sends a text message, and returns when the object's handler has ended. That the
// handler failed is logged: a client does not learn of it.
func (c *Conn) Send(text string) { c.SendMessage(durable.Text(text)) }

// SendJSON sends a text message of v's JSON.
func (c *Conn) SendJSON(v any) { c.SendMessage(durable.JSON(v)) }

// SendMessage sends a message.
func (c *Conn) SendMessage(m durable.Message) {
	w := c.gateway.world
	w.helper()
	answered, open := c.gateway.answer(c, m)
	if !open {
		w.fatalf("send %.100q: the socket is closed", m.Data)
	}
	if answered {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := c.gateway.engine.Message(ctx, c.ref, &host.SocketMessage{Socket: c.socket.ID, Data: m.Data, Binary: m.Binary})
	if err != nil {
		w.logf("message %.100q: %v", m.Data, err)
	}
}

// Receive returns the next message, which must be a text. It waits for it.
func (c *Conn) Receive() string {
	c.gateway.world.helper()
	m := c.ReceiveMessage()
	if m.Binary {
		c.gateway.world.fatalf("received a binary message of %d bytes, want a text", len(m.Data))
	}
	return string(m.Data)
}

// ReceiveJSON reads the next message into v.
func (c *Conn) ReceiveJSON(v any) {
	c.gateway.world.helper()
	m := c.ReceiveMessage()
	if err := json.Unmarshal(m.Data, v); err != nil {
		c.gateway.world.fatalf("received %.100q: %v", m.Data, err)
	}
}

// ReceiveMessage returns the next message. It waits for it.
func (c *Conn) ReceiveMessage() durable.Message {
	g := c.gateway
	g.world.helper()
	if !g.await(func() bool { return len(c.inbox) > 0 || c.end != nil }) {
		g.world.fatalf("no message came for %v", patience)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(c.inbox) == 0 {
		g.world.fatalf("no message came: the socket was closed with %d %q", c.end.Code, c.end.Reason)
	}
	m := c.inbox[0]
	c.inbox = c.inbox[1:]
	return m
}

// Pending returns the messages that have come and were not received, and receives them.
// It does not wait.
func (c *Conn) Pending() []durable.Message {
	c.gateway.mu.Lock()
	defer c.gateway.mu.Unlock()
	pending := c.inbox
	c.inbox = nil
	return pending
}

// Close closes the connection with a handshake, and returns when the object has handled
// that.
func (c *Conn) Close(code int, reason string) {
	c.leave(durable.CloseEvent{Code: code, Reason: reason, Clean: true})
}

// Drop breaks the connection without a word, and returns when the object has handled that.
func (c *Conn) Drop() { c.leave(durable.CloseEvent{Code: closeAbnormal}) }

func (c *Conn) leave(e durable.CloseEvent) {
	g := c.gateway
	g.world.helper()
	if g.finish(c, e) && !g.await(func() bool { return c.forgotten }) {
		g.world.fatalf("the object did not handle the end of the socket for %v", patience)
	}
}

// Closed returns how the connection was ended. It waits for the end; messages that came
// before can still be received.
func (c *Conn) Closed() durable.CloseEvent {
	g := c.gateway
	g.world.helper()
	if !g.await(func() bool { return c.end != nil }) {
		g.world.fatalf("the socket was not closed for %v", patience)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return *c.end
}

const (
	closeGoingAway = 1001
	closeAbnormal  = 1006
)

// A gateway is a node's front door, with clients that read as fast as one writes.
type gateway struct {
	world  *World
	engine *engine.Engine
	tells  sync.WaitGroup // goroutines that tell objects of the ends of their sockets

	mu      sync.Mutex
	down    bool                           // the node crashed
	changed chan struct{}                  // closed and replaced at every change
	conns   map[placement.ObjectID][]*Conn // oldest first
	dialed  map[host.SocketID]*Conn        // accepted, and not yet handed to whoever dials
	auto    map[placement.ObjectID][]host.AutoResponse
}

func newGateway(w *World) *gateway {
	return &gateway{
		world: w, changed: make(chan struct{}),
		conns: map[placement.ObjectID][]*Conn{}, dialed: map[host.SocketID]*Conn{}, auto: map[placement.ObjectID][]host.AutoResponse{},
	}
}

func (g *gateway) Sockets(id placement.ObjectID) []host.Socket {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []host.Socket
	for _, c := range g.conns[id] {
		list = append(list, c.socket)
	}
	return list
}

func (g *gateway) Accept(ref host.Ref, s host.Socket) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := &Conn{gateway: g, ref: ref, socket: s}
	g.conns[ref.ID] = append(g.conns[ref.ID], c)
	g.dialed[s.ID] = c
}

// take returns the connection that a client has just opened. The object may have closed
// it, and forgotten it, already.
func (g *gateway) take(s host.SocketID) *Conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.dialed[s]
	delete(g.dialed, s)
	return c
}

func (g *gateway) Send(id placement.ObjectID, to host.SocketID, m host.Message) {
	g.each(id, func(c *Conn) {
		if c.socket.ID == to {
			c.push(m)
		}
	})
}

func (g *gateway) Broadcast(id placement.ObjectID, m host.Message, tag string, except []host.SocketID) {
	g.each(id, func(c *Conn) {
		if (tag == "" || slices.Contains(c.socket.Tags, tag)) && !slices.Contains(except, c.socket.ID) {
			c.push(m)
		}
	})
}

func (g *gateway) Close(id placement.ObjectID, s host.SocketID, code int, reason string) {
	if c := g.conn(id, s); c != nil {
		g.finish(c, durable.CloseEvent{Code: code, Reason: reason, Clean: true})
	}
}

func (g *gateway) SetAttachment(id placement.ObjectID, s host.SocketID, attachment []byte) {
	g.each(id, func(c *Conn) {
		if c.socket.ID == s {
			c.socket.Attachment = attachment
		}
	})
}

func (g *gateway) SetAutoResponses(id placement.ObjectID, pairs []host.AutoResponse) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.auto[id] = pairs
}

func (g *gateway) AutoResponse(id placement.ObjectID, s host.SocketID) (at time.Time) {
	g.each(id, func(c *Conn) {
		if c.socket.ID == s {
			at = c.socket.AutoResponse
		}
	})
	return at
}

func (g *gateway) Forget(id placement.ObjectID, s host.SocketID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns[id] = slices.DeleteFunc(g.conns[id], func(c *Conn) bool {
		if c.socket.ID == s {
			c.forgotten = true
		}
		return c.forgotten
	})
	g.signal()
}

func (g *gateway) Release(id placement.ObjectID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.conns[id]) == 0 {
		delete(g.auto, id)
	}
}

func (g *gateway) CloseAll(id placement.ObjectID, code int, reason string) {
	g.mu.Lock()
	conns := slices.Clone(g.conns[id])
	g.mu.Unlock()
	for _, c := range conns {
		g.finish(c, durable.CloseEvent{Code: code, Reason: reason, Clean: true})
	}
}

// closeAll closes every connection and returns when the objects have handled that.
func (g *gateway) closeAll(code int, reason string) {
	g.mu.Lock()
	var ids []placement.ObjectID
	for id := range g.conns {
		ids = append(ids, id)
	}
	g.mu.Unlock()
	for _, id := range ids {
		g.CloseAll(id, code, reason)
	}
	if !g.await(func() bool { return g.empty() }) {
		g.world.errorf("objects did not handle the ends of their sockets for %v", patience)
	}
}

func (g *gateway) empty() bool {
	for _, conns := range g.conns {
		if len(conns) > 0 {
			return false
		}
	}
	return true
}

// drop breaks every connection, and tells nobody: the node is gone.
func (g *gateway) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.down = true
	for _, conns := range g.conns {
		for _, c := range conns {
			if c.end == nil {
				c.end = &durable.CloseEvent{Code: closeAbnormal}
			}
			c.forgotten = true
		}
	}
	clear(g.conns)
	g.signal()
}

// wait returns when no object is being told anything any more.
func (g *gateway) wait() { g.tells.Wait() }

// conn returns the connection of a socket, or nil.
func (g *gateway) conn(id placement.ObjectID, s host.SocketID) (found *Conn) {
	g.each(id, func(c *Conn) {
		if c.socket.ID == s {
			found = c
		}
	})
	return found
}

// each calls f with the connections of an object.
func (g *gateway) each(id placement.ObjectID, f func(*Conn)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.conns[id] {
		f(c)
	}
	g.signal()
}

// answer gives the automatic answer to a message, if there is one. It reports whether the
// connection is open.
func (g *gateway) answer(c *Conn, m durable.Message) (answered, open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.end != nil {
		return false, false
	}
	for _, pair := range g.auto[c.ref.ID] {
		if !m.Binary && pair.Request == string(m.Data) {
			c.push(host.Message{Data: []byte(pair.Response)})
			c.socket.AutoResponse = time.Now()
			g.signal()
			return true, true
		}
	}
	return false, true
}

// finish ends a connection and tells its object. It reports false if it had ended.
func (g *gateway) finish(c *Conn, e durable.CloseEvent) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.end != nil || g.down {
		return false
	}
	c.end, c.socket.Closing = &e, true
	g.signal()
	g.tell(c)
	return true
}

// tell tells an object of the end of its socket. The caller holds mu.
func (g *gateway) tell(c *Conn) {
	ev := &host.SocketClose{Socket: c.socket.ID, Code: c.end.Code, Reason: c.end.Reason, Clean: c.end.Clean}
	g.tells.Go(func() { g.engine.SocketClosed(c.ref, ev) })
}

// remind tells objects again of what was lost with their shard's last reign: sockets that
// have ended and that nobody has forgotten.
func (g *gateway) remind() {
	g.tells.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, conns := range g.conns {
		for _, c := range conns {
			if c.end != nil {
				g.tell(c)
			}
		}
	}
}

// push queues a message for the client. The caller holds mu.
func (c *Conn) push(m host.Message) {
	if c.end == nil {
		c.inbox = append(c.inbox, durable.Message(m))
	}
}

// signal wakes everybody in await. The caller holds mu.
func (g *gateway) signal() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// await waits, with patience, until cond holds. cond runs under mu.
func (g *gateway) await(cond func() bool) bool {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		g.mu.Lock()
		ok, changed := cond(), g.changed
		g.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-timeout.C:
			return false
		}
	}
}
