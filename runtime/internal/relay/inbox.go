package relay

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// An inbox is what a gateway has delivered of one socket and the engine has not been given yet.
// reign.mu guards it. One goroutine empties it, and ends.
type inbox struct {
	attempt uint64 // of the gateway's courier; 0 after a refusal
	queue   []*arrival
	running bool
}

// An arrival is one of: a message, an error, the end.
type arrival struct {
	attempt uint64
	message *host.SocketMessage
	failed  *host.SocketError
	closed  *host.SocketClose
}

// arrived takes what a gateway delivers.
func (r *Relay) arrived(p *peer, f *frame) {
	id := f.object
	if f.kind != kindMessage {
		id = f.ref.ID
	}
	g := r.reign(id)
	if g == nil || !g.take(p, f) {
		p.link.tell(&frame{kind: kindRefused, epoch: f.epoch, object: id, socket: f.socket, attempt: f.attempt})
	}
}

// take reports whether the reign takes, or answers, a delivery.
func (g *reign) take(p *peer, f *frame) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.ready || g.ctx.Err() != nil || g.epoch != f.epoch {
		return false
	}
	id := f.object
	if f.kind != kindMessage {
		id = f.ref.ID
	}
	_, e := g.find(id, f.socket)
	if e == nil || e.gone || e.sock.Gateway != p.id {
		g.takeStrange(p, f)
		return true
	}
	if e.over {
		return true // Forget follows
	}
	if f.first {
		e.attempt, e.queue, e.closed = f.attempt, nil, false // all of it comes again
	}
	if e.closed {
		return true
	}
	if f.attempt != e.attempt || len(e.queue) > 2*g.r.cfg.SocketMessages {
		e.attempt = 0
		p.link.tell(&frame{kind: kindRefused, epoch: g.epoch, object: id, socket: f.socket, attempt: f.attempt, flag: true})
		return true
	}
	switch f.kind {
	case kindMessage:
		e.sock.AutoResponse = f.when
		g.push(e, &arrival{attempt: f.attempt, message: &host.SocketMessage{Socket: f.socket, Data: f.data, Binary: f.flag, Seq: f.number}})
	case kindFailed:
		g.push(e, &arrival{attempt: f.attempt, failed: &host.SocketError{Socket: f.socket, Err: errors.New(f.text)}})
	default:
		g.closeEntry(e, &host.SocketClose{Socket: f.socket, Code: f.code, Reason: f.text, Clean: f.flag})
	}
	return true
}

// takeStrange answers what comes from a socket that the reign does not know. Such a socket is being
// closed by its gateway, or will be now; its close event is delivered once.
func (g *reign) takeStrange(p *peer, f *frame) {
	switch f.kind {
	case kindMessage:
		p.link.tell(&frame{kind: kindUnknown, object: f.object, socket: f.socket})
	case kindClosed:
		_, was := g.ended[f.socket]
		_, e := g.find(f.ref.ID, f.socket)
		if was || e != nil || placement.Epoch(f.number) == g.epoch { // the object knows
			p.link.tell(&frame{kind: kindForget, epoch: g.epoch, object: f.ref.ID, socket: f.socket})
			return
		}
		g.ended[f.socket] = struct{}{}
		e = g.add(f.ref, host.Socket{ID: f.socket, Gateway: p.id, Closing: true})
		g.closeEntry(e, &host.SocketClose{Socket: f.socket, Code: f.code, Reason: f.text, Clean: f.flag})
	default:
	}
}

// closeEntry puts the end of a socket behind its messages.
func (g *reign) closeEntry(e *entry, c *host.SocketClose) {
	if !e.closed {
		e.closed = true
		g.push(e, &arrival{closed: c})
	}
}

func (g *reign) push(e *entry, a *arrival) {
	e.queue = append(e.queue, a)
	if !e.running {
		e.running = true
		g.r.spawn(func(context.Context) { g.empty(e) })
	}
}

// empty gives an inbox to the engine, one after the other.
func (g *reign) empty(e *entry) {
	for {
		g.mu.Lock()
		if len(e.queue) == 0 {
			e.running = false
			g.mu.Unlock()
			return
		}
		a := e.queue[0]
		e.queue[0] = nil
		e.queue = e.queue[1:]
		e.over = e.over || a.closed != nil
		g.mu.Unlock()
		switch {
		case a.message != nil:
			g.deliver(e, a)
		case a.failed != nil:
			g.r.engine.SocketFailed(e.ref, a.failed)
		default:
			g.r.engine.SocketClosed(e.ref, a.closed)
		}
	}
}

const (
	firstRetry = 2 * time.Millisecond
	maxRetry   = 100 * time.Millisecond
)

// deliver has the engine handle a message. While the reign lasts it is tried until it
// is; when the reign is over the gateway has to try elsewhere.
func (g *reign) deliver(e *entry, a *arrival) {
	wait := firstRetry
	for {
		out := &outcome{}
		err := g.r.engine.Deliver(g.ctx, e.ref, a.message, func(err error) { g.settled(e, a, out, err) })
		switch {
		case err == nil && !out.handled():
			g.answer(e, a, kindEnded, nil)
			return
		case err == nil || g.ctx.Err() != nil:
			g.refuse(e, a)
			return
		case !again(err):
			g.answer(e, a, kindEnded, err)
			return
		case !pause(g.ctx, wait):
			g.refuse(e, a)
			return
		}
		wait = min(2*wait, maxRetry)
	}
}

func (g *reign) settled(e *entry, a *arrival, out *outcome, err error) {
	if err == nil {
		g.answer(e, a, kindSettled, nil)
	} else if out.inDoubt() {
		g.refuse(e, a)
	}
}

func (g *reign) answer(e *entry, a *arrival, k kind, err error) {
	f := &frame{kind: k, object: e.ref.ID, socket: e.sock.ID, attempt: a.attempt, number: a.message.Seq}
	if err != nil {
		text, merr := host.MarshalError(host.AsError(err))
		if merr != nil {
			text, _ = host.MarshalError(host.Errorf(host.CodeInternal, "the object failed")) // cannot fail
		}
		f.data = text
	}
	g.r.peer(e.sock.Gateway).link.tell(f)
}

// refuse has the gateway deliver again from a message on.
func (g *reign) refuse(e *entry, a *arrival) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if e.attempt != a.attempt || e.over {
		return
	}
	e.attempt = 0
	if e.gone { // nobody delivers it again
		e.queue = slices.DeleteFunc(e.queue, func(a *arrival) bool { return a.closed == nil })
		return
	}
	e.queue, e.closed = nil, false // all of it comes again
	g.r.peer(e.sock.Gateway).link.tell(&frame{kind: kindRefused, epoch: g.epoch, object: e.ref.ID, socket: e.sock.ID, attempt: a.attempt, flag: g.ctx.Err() == nil})
}

// An outcome joins the two answers of the engine to one delivery: that the handler has
// ended well, and then that its commit is in doubt. Whoever comes second knows of both.
type outcome struct{ bits atomic.Uint32 }

const (
	bitHandled = 1 << iota
	bitInDoubt
)

func (o *outcome) handled() (inDoubt bool) { return o.bits.Or(bitHandled)&bitInDoubt != 0 }
func (o *outcome) inDoubt() (handled bool) { return o.bits.Or(bitInDoubt)&bitHandled != 0 }

// again reports whether an error says that a message was not handled since there was no owner,
// or an object that is being reset.
func again(err error) bool {
	var e *host.Error
	return errors.As(err, &e) && (e.Code == host.CodeNotOwner || e.Code == host.CodeUnavailable && e.Retryable)
}
