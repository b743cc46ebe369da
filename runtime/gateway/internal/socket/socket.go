package socket

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A socket is one client's WebSocket.
type socket struct {
	hub      *Hub
	room     *room
	order    uint64 // of age, within the room
	ref      host.Ref
	id       host.SocketID
	tags     []string
	accepted time.Time

	attachment []byte       // guarded by room.mu
	answered   atomic.Int64 // when the last auto-response was sent, in Unix nanoseconds

	heard atomic.Bool // bytes came in since the last beat of the pulse
	busy  atomic.Bool // the reader waits for a handler, not for the client

	slot, index int // place in the pulse's wheel; guarded by pulse.mu

	mu       sync.Mutex // guards the following
	state    state
	conn     net.Conn
	raw      syscall.RawConn // to write without waiting; nil if conn has no file descriptor
	deflate  bool            // permessage-deflate was negotiated
	queue    []*frame
	offset   int    // bytes of the first frame that are written already
	queued   int    // bytes in queue
	writing  bool   // a writer has the socket, or it waits for one
	ping     ping   // the last one, if nothing came in since
	cutEarly bool   // cut before there was a connection
	done     bool   // the reader is done: when the queue is empty, close the connection
	ended    bool   // the close event is out
	by       closer // who sent, or queued, the close frame
	code     websocket.StatusCode
	reason   string
}

type state uint8

const (
	pending state = iota // accepted; no handshake yet
	claimed              // in the handshake
	open                 // has a connection; by tells whether it is closing
	closed
)

type ping uint8

const (
	unpinged ping = iota
	pingQueued
	pingWritten
)

type closer uint8

const (
	byNobody closer = iota
	byObject
	byGateway // a limit or a rule was broken, or the node stops: the object is told our code
	byLibrary // an answer to the client's close frame, or to a broken one
)

var (
	errStopped = errors.New("the hub has stopped")
	errPartial = errors.New("the node receives too many large messages at once")
)

// describe is the socket as its object sees it. room.mu is held.
func (s *socket) describe() host.Socket {
	d := host.Socket{ID: s.id, Tags: s.tags, Attachment: s.attachment, Accepted: s.accepted, AutoResponse: s.lastAnswer()}
	s.mu.Lock()
	d.Closing = s.state == closed || s.by != byNobody
	s.mu.Unlock()
	return d
}

func (s *socket) lastAnswer() time.Time {
	if at := s.answered.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// claim takes a pending socket for its handshake.
func (s *socket) claim() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != pending {
		return false
	}
	s.state = claimed
	return true
}

// abandon ends a socket that is still pending.
func (s *socket) abandon() bool {
	s.mu.Lock()
	was := s.state
	if was == pending {
		s.state = closed
	}
	s.mu.Unlock()
	if was != pending {
		return false
	}
	s.finish(int(websocket.StatusAbnormalClosure), "", false)
	return true
}

// opened gives a claimed socket its connection. What was queued meanwhile goes out.
func (s *socket) opened(conn net.Conn, deflate bool) {
	s.mu.Lock()
	s.state, s.conn, s.raw, s.deflate = open, conn, rawConn(conn), deflate
	if s.cutEarly {
		conn.Close()
	}
	kick := len(s.queue) > 0 && s.kick()
	s.mu.Unlock()
	if kick {
		s.hub.writers.push(s)
	}
}

// read is the reader's life.
func (s *socket) read(ws *websocket.Conn, w *wire) {
	defer s.hub.readers.Done()
	err := s.messages(ws)
	s.end(err, w)
	_ = ws.CloseNow() // releases what the library holds, and closes w
	s.hub.pulse.remove(s)
}

// messages makes events of what the client sends until there is no more.
func (s *socket) messages(ws *websocket.Conn) error {
	for {
		kind, r, err := ws.Reader(context.Background())
		if err != nil {
			return err
		}
		if err := s.message(kind == websocket.MessageBinary, r); err != nil {
			return err
		}
	}
}

// scratchBytes is what readers share: a message that fits is copied out of it once,
// into memory of just its size.
const scratchBytes = 4 << 10

// message reads one message and has it handled.
func (s *socket) message(binary bool, r io.Reader) error {
	scratch := s.hub.scratch.Get().(*[scratchBytes]byte)
	data, whole, err := fill(scratch[:], r)
	if err == nil && whole && !binary && s.autoResponse(data) {
		s.hub.scratch.Put(scratch)
		return nil
	}
	if whole {
		data = append(make([]byte, 0, len(data)), data...)
	} else if err == nil {
		data, err = s.readRest(data, r)
	}
	s.hub.scratch.Put(scratch)
	if err != nil {
		return err
	}
	if s.closing() {
		return nil // the object, or we, have said goodbye already
	}
	s.hub.metrics.in.Inc()
	s.hub.metrics.inBytes.Add(float64(len(data)))
	if !binary && !utf8.Valid(data) {
		s.close(byGateway, websocket.StatusInvalidFramePayloadData, "text that is not UTF-8")
		return errors.New("received a text message that is not valid UTF-8")
	}
	return s.deliver(&host.SocketMessage{Socket: s.id, Data: data, Binary: binary})
}

// fill reads until p is full or r ends; whole tells that it ended.
func fill(p []byte, r io.Reader) (data []byte, whole bool, err error) {
	n := 0
	for n < len(p) {
		m, err := r.Read(p[n:])
		n += m
		if err == io.EOF {
			return p[:n], true, nil
		}
		if err != nil {
			return nil, false, err
		}
	}
	return p, false, nil
}

// readRest reads a message whose head did not fit into the scratch. It takes memory as
// the bytes come, whatever the frames promise, and never more than the node has for it.
func (s *socket) readRest(head []byte, r io.Reader) ([]byte, error) {
	var counted int64
	defer func() { s.hub.partial.Add(-counted) }()
	data := append(make([]byte, 0, 4*scratchBytes), head...)
	for {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		if more := int64(cap(data)) - counted; more > 0 {
			counted += more
			if s.hub.partial.Add(more) > s.hub.cfg.PartialBytes {
				s.close(byGateway, websocket.StatusTryAgainLater, "too many large messages at once")
				return nil, errPartial
			}
		}
		n, err := r.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if err == io.EOF {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// autoResponse answers a message for the object, if it is one of its pairs.
func (s *socket) autoResponse(text []byte) bool {
	pairs := s.room.auto.Load()
	if pairs == nil {
		return false
	}
	f, ok := (*pairs)[string(text)]
	if !ok || s.closing() {
		return ok
	}
	s.answered.Store(time.Now().UnixNano())
	s.hub.metrics.auto.Inc()
	if s.send(f) {
		s.hub.writers.push(s)
	}
	return true
}

const (
	firstRetry = 5 * time.Millisecond
	maxRetry   = 500 * time.Millisecond
)

// deliver has the object handle a message. One that found no owner, or no room, is
// tried again for a while; nothing else is read from the client meanwhile.
func (s *socket) deliver(m *host.SocketMessage) error {
	s.busy.Store(true)
	defer s.busy.Store(false)
	start, wait := time.Now(), firstRetry
	for {
		err := s.hub.events.Message(s.hub.ctx, s.ref, m)
		if err == nil {
			return nil
		}
		if s.hub.ctx.Err() != nil {
			return errStopped
		}
		e := host.AsError(err)
		switch {
		case e.Retryable && time.Since(start) < s.hub.cfg.RetryFor:
			if !pause(s.hub.ctx, wait) {
				return errStopped
			}
			wait = min(2*wait, maxRetry)
		case e.Retryable, e.Overloaded, e.Code == host.CodeOverloaded, e.Code == host.CodeUnavailable, e.Code == host.CodeNotOwner:
			s.close(byGateway, websocket.StatusTryAgainLater, "the object cannot take messages now")
			return nil
		default:
			s.hub.log.Warn("a socket message was not handled", slog.String("class", s.ref.Class),
				slog.String("object", s.ref.ID.String()), slog.String("code", string(e.Code)), slog.Any("error", err))
			return nil
		}
	}
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// end tells the object how its socket ended.
func (s *socket) end(err error, w *wire) {
	var ce websocket.CloseError
	switch {
	case errors.As(err, &ce):
		s.finish(int(ce.Code), strings.ToValidUTF8(ce.Reason, "\uFFFD"), true)
	case errors.Is(err, errStopped):
		s.finish(int(websocket.StatusGoingAway), "the node is stopping", false)
	case w.err != nil, errors.Is(err, net.ErrClosed), errors.Is(err, context.DeadlineExceeded):
		by, code, reason := s.closedBy()
		if by != byGateway {
			code, reason = websocket.StatusAbnormalClosure, ""
		}
		s.finish(int(code), reason, false)
	default:
		s.close(byGateway, websocket.StatusProtocolError, "") // unless the library has sent one
		_, code, reason := s.closedBy()
		s.hub.events.SocketFailed(s.ref, &host.SocketError{Socket: s.id, Err: err})
		s.finish(int(code), reason, false)
		s.linger(w)
	}
}

// linger reads on for a while after a protocol error. Closing a connection that has
// unread bytes resets it, and the client might never see our close frame.
func (s *socket) linger(w *wire) {
	if w.Conn.SetReadDeadline(time.Now().Add(s.hub.cfg.CloseTimeout)) != nil {
		return
	}
	scratch := s.hub.scratch.Get().(*[scratchBytes]byte)
	defer s.hub.scratch.Put(scratch)
	for {
		if _, err := w.Conn.Read(scratch[:]); err != nil {
			return
		}
	}
}

// finish sends the close event, once.
func (s *socket) finish(code int, reason string, clean bool) {
	s.mu.Lock()
	first := !s.ended
	s.ended, s.state = true, closed
	s.mu.Unlock()
	if !first {
		return
	}
	s.hub.open.Add(-1)
	s.hub.metrics.open.WithLabelValues(s.ref.Class).Dec()
	s.hub.events.SocketClosed(s.ref, &host.SocketClose{Socket: s.id, Code: code, Reason: reason, Clean: clean})
}

func (s *socket) closing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by != byNobody
}

func (s *socket) closedBy() (closer, websocket.StatusCode, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by, s.code, s.reason
}
