// Package socket keeps the clients' WebSockets of a node while their objects sleep,
// wake and sleep again. It promises:
//
//   - the messages of one socket are events in order: the next one is read when the
//     handler of the last one has ended, so a busy object slows its clients down;
//   - frames leave in the order in which they were given to the hub, and a broadcast is
//     framed (and compressed) once, whatever the number of sockets;
//   - nothing that the engine calls waits for a client: a client that does not read fills
//     a bounded queue and is then closed with 1008;
//   - every accepted socket gets exactly one close event, whatever becomes of it.
//
// coder/websocket does the handshake, reads frames, and answers pings and closes. Its
// writes end in the same queue as ours. A socket's states:
//
//	          Adopt                  close frame queued,          reader ended
//	pending --------> open ------------ by either side ---> closing --------> closed
//	   |               |                                                        ^
//	   |               | connection broke, peer is dead, protocol error         |
//	   +---------------+--------------------------------------------------------+
//	     no handshake within HandshakeTimeout             one close event; then Forget
//
// Goroutines: one reader for each open socket, ended by the end of its connection; a few
// writers for the node and one ticker (the pulse), ended by Shutdown; and one slow writer for
// each socket whose client does not keep up, ended with its queue or its connection.
package socket

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// Events is where what happens on sockets goes. All methods may be called from any
// goroutine.
type Events interface {
	// Message runs a message event and returns when its handler has ended.
	Message(ctx context.Context, to host.Ref, m *host.SocketMessage) error
	// SocketClosed queues the close event. It never blocks and is never refused.
	SocketClosed(to host.Ref, c *host.SocketClose)
	// SocketFailed queues an error event; SocketClosed follows.
	SocketFailed(to host.Ref, f *host.SocketError)
}

// Config holds the limits of a [Hub]. Zero values mean the defaults given.
type Config struct {
	Logger *slog.Logger // default: discard

	MaxSockets       int           // of the node; 262,144
	MaxMessageBytes  int64         // of one message from a client, decompressed; 1009 beyond; 32 MiB
	PartialBytes     int64         // of the node: messages over 4 KiB that are being received; 1013 beyond; 512 MiB
	QueueFrames      int           // waiting for one client; 1008 beyond; 16,384
	QueueBytes       int           // waiting for one client, unless it is a single message; 1008 beyond; 8 MiB
	CompressBytes    int           // messages from this size on are compressed where the client offered it; negative: never; 512
	PingInterval     time.Duration // a client silent for three of these is dead; 20 s
	HandshakeTimeout time.Duration // from Accept to Adopt; 10 s
	AcceptWait       time.Duration // how long Adopt waits for Accept, which in a cluster comes by another way; not at all
	CloseTimeout     time.Duration // for the client's answer to a close frame; 5 s
	WriteTimeout     time.Duration // for a slow client to take 64 KiB; 20 s
	Gather           time.Duration // large broadcasts of one object that follow each other faster wait for each other; negative: never; 2 ms
	RetryFor         time.Duration // how long a message that found no owner is tried again; 1013 beyond; 15 s
	Writers          int           // goroutines that write; GOMAXPROCS
}

func (c Config) withDefaults() Config {
	setDefault(&c.MaxSockets, 1<<18)
	setDefault(&c.MaxMessageBytes, host.MaxMessageBytes)
	setDefault(&c.PartialBytes, 1<<29)
	setDefault(&c.QueueFrames, 16<<10)
	setDefault(&c.QueueBytes, 8<<20)
	setDefault(&c.CompressBytes, 512)
	setDefault(&c.PingInterval, 20*time.Second)
	setDefault(&c.HandshakeTimeout, 10*time.Second)
	setDefault(&c.CloseTimeout, 5*time.Second)
	setDefault(&c.WriteTimeout, 20*time.Second)
	setDefault(&c.Gather, 2*time.Millisecond)
	setDefault(&c.RetryFor, 15*time.Second)
	setDefault(&c.Writers, runtime.GOMAXPROCS(0))
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// ErrNoSocket means that there is no such socket to adopt: it was closed, or waited too long.
var ErrNoSocket = errors.New("no socket waits for this handshake")

// A Hub holds the sockets of one node.
type Hub struct {
	cfg     Config
	log     *slog.Logger
	events  Events
	rooms   [roomShards]roomShard
	writers writers
	pulse   pulse
	metrics *metrics
	scratch sync.Pool // of *[scratchBytes]byte, for readers
	press   press

	open    atomic.Int64
	partial atomic.Int64    // bytes of messages that are being received
	closed  atomic.Bool     // Shutdown has begun
	ctx     context.Context // the lifetime of message events
	cancel  context.CancelFunc

	mu      sync.Mutex // guards the start of readers against Shutdown
	readers sync.WaitGroup

	comings comings
}

// New returns a hub without sockets.
func New(cfg Config) *Hub {
	cfg = cfg.withDefaults()
	h := &Hub{cfg: cfg, log: cfg.Logger}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.metrics = newMetrics()
	h.scratch.New = func() any { return new([scratchBytes]byte) }
	h.writers.init(h)
	h.pulse.init(h)
	return h
}

// Start names the place where events go, and starts the hub's goroutines. It must be
// called once, before the first Accept.
func (h *Hub) Start(to Events) {
	h.events = to
	h.writers.start()
	h.pulse.start()
}

// Shutdown closes every socket with 1001 and waits until each has had its close event.
// When ctx ends first, connections are cut. It may be called twice.
func (h *Hub) Shutdown(ctx context.Context) error {
	h.mu.Lock()
	h.closed.Store(true)
	h.mu.Unlock()
	h.each(func(s *socket) {
		if !s.abandon() {
			s.close(byGateway, websocket.StatusGoingAway, "the node is stopping")
		}
	})
	done := make(chan struct{})
	go func() { // ends when the readers do, which the cut below makes certain
		h.readers.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
		h.cancel()
		h.pulse.each((*socket).cut)
		<-done
	}
	h.cancel()
	h.pulse.stop()
	h.writers.stop()
	return err
}

// Collectors returns the hub's metrics, to be registered.
func (h *Hub) Collectors() []prometheus.Collector { return h.metrics.collectors() }

// HasRoom reports whether the node may hold another socket.
func (h *Hub) HasRoom() bool { return !h.closed.Load() && h.open.Load() < int64(h.cfg.MaxSockets) }

// Adopt performs the handshake of an accepted socket and keeps the connection. It
// does not hold on to w or r: net/http's goroutine may return. If the error is
// [ErrNoSocket] nothing has been written; whatever fails here, the socket gets its close event.
func (h *Hub) Adopt(w http.ResponseWriter, r *http.Request, id placement.ObjectID, up host.Upgrade) error {
	s := h.await(r.Context(), id, up.Socket)
	if s == nil || !s.claim() {
		return ErrNoSocket
	}
	mode := websocket.CompressionNoContextTakeover
	if h.cfg.CompressBytes < 0 {
		mode = websocket.CompressionDisabled
	}
	hj := &hijacker{ResponseWriter: w, wire: &wire{socket: s}}
	ws, err := websocket.Accept(hj, r, &websocket.AcceptOptions{
		Subprotocols:       up.Subprotocols,
		CompressionMode:    mode,
		InsecureSkipVerify: true, // the gateway has checked Origin, before it woke the object
		OnPingReceived: func(_ context.Context, payload []byte) bool {
			s.control(opPong, payload)
			return false // the library's own pong would cost a context and two timers
		},
	})
	if err != nil {
		s.finish(int(websocket.StatusAbnormalClosure), "", false)
		return err
	}
	ws.SetReadLimit(h.cfg.MaxMessageBytes)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed.Load() {
		hj.wire.Conn.Close()
		s.finish(int(websocket.StatusGoingAway), "the node is stopping", false)
		return nil
	}
	h.readers.Add(1)
	s.opened(hj.wire.Conn, w.Header().Get("Sec-WebSocket-Extensions") != "")
	h.pulse.add(s)
	go s.read(ws, hj.wire)
	return nil
}

// Abandon ends a socket whose handshake cannot be.
func (h *Hub) Abandon(id placement.ObjectID, socket host.SocketID) {
	if s := h.find(id, socket); s != nil {
		s.abandon()
	}
}

// Sockets returns the sockets of an object, oldest first.
func (h *Hub) Sockets(id placement.ObjectID) []host.Socket {
	r := h.room(id)
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]host.Socket, len(r.sockets))
	for i, s := range r.sockets {
		out[i] = s.describe()
	}
	return out
}

// Accept registers a socket whose handshake follows: what is sent to it before the
// handshake is queued.
func (h *Hub) Accept(ref host.Ref, a host.Socket) {
	s := &socket{hub: h, ref: ref, id: a.ID, tags: a.Tags, attachment: a.Attachment, accepted: a.Accepted}
	h.open.Add(1)
	h.metrics.open.WithLabelValues(ref.Class).Inc()
	h.enter(s)
	h.pulse.awaitHandshake(s)
	h.comings.arrived(s.id)
}

// Send queues a message for one socket. It is dropped if the socket has begun to close.
func (h *Hub) Send(id placement.ObjectID, to host.SocketID, m host.Message) {
	if s := h.find(id, to); s != nil && s.send(newFrame(m)) {
		h.writers.push(s)
	}
}

// Broadcast queues a message for every socket of an object that has the tag ("" means
// all), except some.
func (h *Hub) Broadcast(id placement.ObjectID, m host.Message, tag string, except []host.SocketID) {
	r := h.room(id)
	if r == nil {
		return
	}
	f := newFrame(m)
	r.mu.Lock()
	defer r.mu.Unlock()
	targets := r.tagged(tag)
	skip := skipper(except)
	if len(targets) >= gatherSockets && r.gather(h) {
		for _, s := range targets {
			if !skip(s.id) && s.sendLater(f) {
				h.writers.push(s)
			}
		}
		return
	}
	ready := r.ready[:0]
	for _, s := range targets {
		if !skip(s.id) && s.send(f) {
			ready = append(ready, s)
		}
	}
	h.writers.push(ready...)
	clear(ready)
	r.ready = ready
}

// skipper returns whether an ID is among some.
func skipper(ids []host.SocketID) func(host.SocketID) bool {
	if len(ids) <= 8 {
		return func(id host.SocketID) bool { return slices.Contains(ids, id) }
	}
	set := make(map[host.SocketID]struct{}, len(ids))
	for _, id := range ids {
		set[id] = struct{}{}
	}
	return func(id host.SocketID) bool { _, ok := set[id]; return ok }
}

// Close begins to close a socket, behind what has been sent to it.
func (h *Hub) Close(id placement.ObjectID, socket host.SocketID, code int, reason string) {
	if s := h.find(id, socket); s != nil {
		s.close(byObject, websocket.StatusCode(code), reason)
	}
}

// CloseAll begins to close every socket of an object.
func (h *Hub) CloseAll(id placement.ObjectID, code int, reason string) {
	r := h.room(id)
	if r == nil {
		return
	}
	r.mu.Lock()
	all := slices.Clone(r.sockets)
	r.mu.Unlock()
	for _, s := range all {
		s.close(byObject, websocket.StatusCode(code), reason)
	}
}

// SetAttachment replaces what the object keeps with a socket.
func (h *Hub) SetAttachment(id placement.ObjectID, socket host.SocketID, attachment []byte) {
	r := h.room(id)
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.byID[socket]; s != nil {
		s.attachment = attachment
	}
}

// SetAutoResponses replaces an object's pairs. They hold for its present and later
// sockets until [Hub.Release].
func (h *Hub) SetAutoResponses(id placement.ObjectID, pairs []host.AutoResponse) {
	frames := make(map[string]*frame, len(pairs))
	for _, p := range pairs {
		frames[p.Request] = newFrame(host.Message{Data: []byte(p.Response)})
	}
	h.withRoom(id, len(pairs) > 0, func(r *room) {
		if len(frames) == 0 {
			r.auto.Store(nil)
		} else {
			r.auto.Store(&frames)
		}
	})
}

// AutoResponse returns when a socket was last answered automatically; zero if never.
func (h *Hub) AutoResponse(id placement.ObjectID, socket host.SocketID) time.Time {
	if s := h.find(id, socket); s != nil {
		return s.lastAnswer()
	}
	return time.Time{}
}

// Forget drops a socket from the lists once its close event has run.
func (h *Hub) Forget(id placement.ObjectID, socket host.SocketID) {
	h.withRoom(id, false, func(r *room) { r.remove(socket) })
}

// Release tells that an object has left memory. If it has no sockets, its auto-responses
// are dropped: it sets them again when it is loaded.
func (h *Hub) Release(id placement.ObjectID) {
	h.withRoom(id, false, func(r *room) {
		if len(r.sockets) == 0 {
			r.auto.Store(nil)
		}
	})
}
