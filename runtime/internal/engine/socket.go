package engine

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// sockets is an awake object's list of its sockets, oldest first. The connections
// themselves live in the gateway.
type sockets struct {
	order []host.SocketID
	byID  map[host.SocketID]*host.Socket
}

func (s *sockets) len() int { return len(s.byID) }

func (s *sockets) set(list []host.Socket) {
	s.order, s.byID = nil, nil
	for _, sock := range list {
		s.add(sock)
	}
}

func (s *sockets) add(sock host.Socket) {
	if s.byID == nil {
		s.byID = make(map[host.SocketID]*host.Socket)
	}
	s.byID[sock.ID] = &sock
	s.order = append(s.order, sock.ID)
}

func (s *sockets) remove(id host.SocketID) {
	if _, ok := s.byID[id]; !ok {
		return
	}
	delete(s.byID, id)
	if i := slices.Index(s.order, id); i >= 0 {
		s.order = slices.Delete(s.order, i, i+1)
	}
}

// Message runs a socket's message as an event and returns when its handler has ended,
// so that the next message of the socket follows it. A full mailbox makes it wait.
func (e *Engine) Message(ctx context.Context, to host.Ref, m *host.SocketMessage) error {
	return e.Deliver(ctx, to, m, nil)
}

// Deliver is Message that also calls settled, if it is not nil, once the event is durable or
// has failed and everything that it sent has left: the message need not be kept any more.
// settled must not block.
func (e *Engine) Deliver(ctx context.Context, to host.Ref, m *host.SocketMessage, settled func(error)) error {
	if info, ok := e.Class(to.Class); ok && !info.SocketMessage {
		if settled != nil {
			settled(nil)
		}
		return nil
	}
	if e.stopping.Load() {
		return errStopping()
	}
	var ended latch
	ev := &event{kind: kindMessage, ctx: ctx, to: to, what: m, size: len(m.Data) + eventOverhead, patient: true, ended: ended.finish, left: settled}
	if m.Seq > 0 {
		ev.direct = func(t *turn) error { return t.message(m) }
	}
	mine, o, err := e.enter(ctx, to, ev)
	if err != nil {
		return err
	}
	if mine {
		o.run(ev)
		o.release()
	}
	if !ended.wait(ctx.Done()) {
		return errCanceled(ctx, ev.abandon())
	}
	return ended.err
}

// message handles a numbered message, unless it has been.
func (t *turn) message(m *host.SocketMessage) error {
	o := t.o
	last, err := o.lastHandled(m.Socket)
	if err != nil || m.Seq <= last {
		return err
	}
	if err := o.inst.Handle(&t.ctx, t, m); err != nil {
		return err
	}
	if h := o.carried.handled[m.Socket]; h.seq < m.Seq {
		o.carried.note(m.Socket, handled{m.Seq, h.stored})
	}
	return nil
}

// SocketClosed tells an object that a socket has ended. It returns at once; the event
// is never refused while this node owns the object.
func (e *Engine) SocketClosed(to host.Ref, c *host.SocketClose) {
	e.post(post{to, func(o *object) *event {
		ev := &event{kind: kindClose, ctx: o.reign.ctx, to: to, what: c, internal: true}
		gone := func(t *turn) error {
			o.sockets.remove(c.Socket)
			gateway, id := e.cfg.Gateway, o.ref.ID
			t.outs = append(t.outs, func(error) { gateway.Forget(id, c.Socket) })
			return t.endSocket(c.Socket)
		}
		if !o.class.info.SocketClose {
			ev.bare, ev.direct = true, gone
			return ev
		}
		// The socket goes whatever becomes of the handler, so its going is an event of
		// its own, which follows at once.
		after := func(error) {
			t := &turn{o: o, ev: &event{kind: kindSystem, ctx: o.reign.ctx, to: to}, incarnation: o.incarnation}
			t.end(t.play(func() error { return gone(t) }))
		}
		ev.ended = after
		return ev
	}})
}

// SocketFailed tells an object that a socket has failed; SocketClosed follows.
func (e *Engine) SocketFailed(to host.Ref, f *host.SocketError) {
	e.post(post{to, func(o *object) *event {
		if !o.class.info.SocketError {
			return nil
		}
		return &event{kind: kindError, ctx: o.reign.ctx, to: to, what: f, internal: true}
	}})
}

func (t *turn) Accept(a host.AcceptOptions) (host.SocketID, error) {
	t.check()
	resp := t.ev.resp
	switch {
	case resp == nil:
		return 0, host.Errorf(host.CodeBadRequest, "only a fetch can be answered with a WebSocket")
	case t.upgrade.Socket != 0:
		return 0, host.Errorf(host.CodeBadRequest, "the request has been answered with a WebSocket already")
	case !resp.upgradable:
		return 0, host.Errorf(host.CodeBadRequest, "the request does not ask for a WebSocket")
	case resp.begun():
		return 0, host.Errorf(host.CodeBadRequest, "the response has begun already")
	case t.o.sockets.len() >= host.MaxSockets:
		return 0, errOverloaded("the object has its limit of open sockets")
	}
	tags, err := cleanTags(a.Tags)
	if err != nil {
		return 0, err
	}
	if len(a.Attachment) > host.MaxAttachmentBytes {
		return 0, host.Errorf(host.CodeTooLarge, "the attachment is %d bytes long, more than %d", len(a.Attachment), host.MaxAttachmentBytes)
	}
	id := host.SocketID(rand.Uint64() | 1)
	for t.o.sockets.byID[id] != nil {
		id = host.SocketID(rand.Uint64() | 1)
	}
	sock := host.Socket{ID: id, Tags: tags, Attachment: a.Attachment, Accepted: time.Now(), Gateway: host.GatewayOf(t.ev.ctx)}
	if t.o.reign.engine.cfg.Carrier != nil {
		if sock.Seen, err = t.o.outputs(); err != nil {
			return 0, err
		}
	}
	t.o.sockets.add(sock)
	t.upgrade = host.Upgrade{Socket: id, Subprotocols: a.Subprotocols}
	t.undos = append(t.undos, undo{fn: func() { t.o.sockets.remove(id) }})
	gateway, ref := t.o.reign.engine.cfg.Gateway, t.o.ref
	t.send(func() { gateway.Accept(ref, sock) })
	return id, nil
}

func cleanTags(tags []string) ([]string, error) {
	var clean []string
	for _, tag := range tags {
		if tag == "" || len(tag) > host.MaxTagBytes {
			return nil, host.Errorf(host.CodeTooLarge, "a tag is %d bytes long, want 1 to %d", len(tag), host.MaxTagBytes)
		}
		if !slices.Contains(clean, tag) {
			clean = append(clean, tag)
		}
	}
	if len(clean) > host.MaxTags {
		return nil, host.Errorf(host.CodeTooLarge, "the socket has %d tags, more than %d", len(clean), host.MaxTags)
	}
	return clean, nil
}

// out adds an output that only leaves if the gate opens.
func (t *turn) out(fn func()) {
	t.outs = append(t.outs, func(broken error) {
		if broken == nil {
			fn()
		}
	})
}

// send adds an output to sockets.
func (t *turn) send(fn func()) {
	t.sends = true
	t.out(fn)
}

func (t *turn) Socket(id host.SocketID) (host.Socket, bool) {
	t.check()
	s, ok := t.o.sockets.byID[id]
	if !ok {
		return host.Socket{}, false
	}
	sock := *s
	sock.AutoResponse = t.o.reign.engine.cfg.Gateway.AutoResponse(t.o.ref.ID, id)
	return sock, true
}

func (t *turn) Sockets(tag string) []host.Socket {
	t.check()
	var list []host.Socket
	for _, id := range t.o.sockets.order {
		if s := t.o.sockets.byID[id]; tag == "" || slices.Contains(s.Tags, tag) {
			list = append(list, *s)
		}
	}
	return list
}

func (t *turn) open(id host.SocketID) (*host.Socket, error) {
	t.check()
	s, ok := t.o.sockets.byID[id]
	if !ok {
		return nil, host.Errorf(host.CodeNotFound, "the socket is gone")
	}
	if s.Closing {
		return nil, host.Errorf(host.CodeNotFound, "the socket is closing")
	}
	return s, nil
}

func (t *turn) Send(id host.SocketID, m host.Message) error {
	if _, err := t.open(id); err != nil {
		return err
	}
	if err := checkMessage(m); err != nil {
		return err
	}
	gateway, object := t.o.reign.engine.cfg.Gateway, t.o.ref.ID
	t.send(func() { gateway.Send(object, id, m) })
	return nil
}

func (t *turn) Broadcast(m host.Message, tag string, except []host.SocketID) {
	t.check()
	if err := checkMessage(m); err != nil {
		panic(err)
	}
	if t.o.sockets.len() == 0 {
		return
	}
	gateway, object := t.o.reign.engine.cfg.Gateway, t.o.ref.ID
	except = slices.Clone(except)
	t.send(func() { gateway.Broadcast(object, m, tag, except) })
}

func checkMessage(m host.Message) *host.Error {
	if len(m.Data) > host.MaxMessageBytes {
		return host.Errorf(host.CodeTooLarge, "the message is %d bytes long, more than %d", len(m.Data), host.MaxMessageBytes)
	}
	return nil
}

func (t *turn) CloseSocket(id host.SocketID, code int, reason string) error {
	s, err := t.open(id)
	if err != nil {
		return err
	}
	if len(reason) > host.MaxCloseReasonBytes {
		return host.Errorf(host.CodeTooLarge, "the reason is %d bytes long, more than %d", len(reason), host.MaxCloseReasonBytes)
	}
	s.Closing = true
	t.undos = append(t.undos, undo{fn: func() { s.Closing = false }})
	gateway, object := t.o.reign.engine.cfg.Gateway, t.o.ref.ID
	t.send(func() { gateway.Close(object, id, code, reason) })
	return nil
}

func (t *turn) SetAttachment(id host.SocketID, attachment []byte) error {
	t.check()
	s, ok := t.o.sockets.byID[id]
	if !ok {
		return host.Errorf(host.CodeNotFound, "the socket is gone")
	}
	if len(attachment) > host.MaxAttachmentBytes {
		return host.Errorf(host.CodeTooLarge, "the attachment is %d bytes long, more than %d", len(attachment), host.MaxAttachmentBytes)
	}
	old := s.Attachment
	s.Attachment = attachment
	t.undos = append(t.undos, undo{fn: func() { s.Attachment = old }})
	gateway, object := t.o.reign.engine.cfg.Gateway, t.o.ref.ID
	t.send(func() { gateway.SetAttachment(object, id, attachment) })
	return nil
}

func (t *turn) SetAutoResponses(pairs []host.AutoResponse) error {
	t.check()
	if len(pairs) > host.MaxAutoResponses {
		return host.Errorf(host.CodeTooLarge, "there are %d automatic responses, more than %d", len(pairs), host.MaxAutoResponses)
	}
	seen := make(map[string]bool)
	for _, p := range pairs {
		if len(p.Request) > host.MaxAutoResponseBytes || len(p.Response) > host.MaxAutoResponseBytes {
			return host.Errorf(host.CodeTooLarge, "an automatic response, or its request, is longer than %d bytes", host.MaxAutoResponseBytes)
		}
		seen[p.Request] = true
	}
	if len(seen) < len(pairs) {
		return host.Errorf(host.CodeBadRequest, "two automatic responses have the same request")
	}
	pairs = slices.Clone(pairs)
	gateway, object := t.o.reign.engine.cfg.Gateway, t.o.ref.ID
	t.send(func() { gateway.SetAutoResponses(object, pairs) })
	return nil
}
