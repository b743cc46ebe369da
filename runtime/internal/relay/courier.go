package relay

import (
	"context"
	"sync"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A courier delivers what happens on one socket of this node to its object, wherever that is. It
// keeps messages until they are settled, and delivers them again when the way there begins
// anew: each beginning is an attempt. At most one goroutine at a time, the pump, delivers: the
// socket's reader if it has just read a message, or one of its own.
type courier struct {
	area *area
	ref  host.Ref
	id   host.SocketID

	mu       sync.Mutex // guards the following
	last     uint64     // the number of the newest message
	list     []*parcel  // messages that are not settled, oldest first
	bytes    int        // of them
	attempt  uint64
	fresh    bool // nothing has been sent in this attempt
	pumping  bool
	orphaned bool // the object does not get its messages any more, only its end
	failed   *host.SocketError
	closed   *host.SocketClose
	known    placement.Epoch // the last one whose owner knew the socket
	toldEnd  bool            // in this attempt
	space    chan struct{}   // closed when there is room for another message
}

// A parcel is a message on its way.
type parcel struct {
	m       *host.SocketMessage
	size    int
	attempt uint64 // the last one in which it was sent
	held    bool   // it counts in the area's window
	ended   bool   // its handler has
	settled bool
	err     error
	done    chan struct{} // closed when it has ended, if somebody waits
}

const parcelOverhead = 128

// Message delivers a client's message and returns when its handler has ended. The hub calls it for
// one message of a socket at a time.
func (r *Relay) Message(ctx context.Context, to host.Ref, m *host.SocketMessage) error {
	c := r.area(to.ID).courier(to.ID, m.Socket)
	if c == nil {
		return nil // it has been forgotten
	}
	p, mine, err := c.add(ctx, m)
	if p == nil {
		return err
	}
	if mine {
		c.pump(ctx)
	}
	return c.await(ctx, p)
}

// SocketClosed delivers the end of a socket, behind its messages.
func (r *Relay) SocketClosed(to host.Ref, e *host.SocketClose) {
	if c := r.area(to.ID).courier(to.ID, e.Socket); c != nil {
		c.mu.Lock()
		c.closed = e
		c.kick()
		c.mu.Unlock()
	}
}

// SocketFailed delivers a socket's failure, with its end.
func (r *Relay) SocketFailed(to host.Ref, e *host.SocketError) {
	if c := r.area(to.ID).courier(to.ID, e.Socket); c != nil {
		c.mu.Lock()
		c.failed = e
		c.mu.Unlock()
	}
}

// add takes a message, when there is room for it. The caller has to pump if mine is true. The
// message of an orphan is dropped.
func (c *courier) add(ctx context.Context, m *host.SocketMessage) (p *parcel, mine bool, err error) {
	cfg := &c.area.r.cfg
	p = &parcel{m: m, size: len(m.Data) + parcelOverhead}
	c.mu.Lock()
	for !c.orphaned && len(c.list) > 0 && (len(c.list) >= cfg.SocketMessages || c.bytes+p.size > cfg.SocketBytes) {
		if c.space == nil {
			c.space = make(chan struct{})
		}
		space := c.space
		c.mu.Unlock()
		select {
		case <-space:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
		c.mu.Lock()
	}
	defer c.mu.Unlock()
	if c.orphaned {
		return nil, false, nil
	}
	c.last++
	m.Seq = c.last
	c.list = append(c.list, p)
	c.bytes += p.size
	mine = !c.pumping
	c.pumping = true
	return p, mine, nil
}

// await waits until the handler of a message has ended.
func (c *courier) await(ctx context.Context, p *parcel) error {
	c.mu.Lock()
	if p.ended {
		c.mu.Unlock()
		return p.err
	}
	p.done = make(chan struct{})
	c.mu.Unlock()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err() // it is delivered all the same
	}
}

// A job is what the pump has to tell this node's engine.
type job struct {
	attempt uint64
	p       *parcel
	failed  *host.SocketError
	closed  *host.SocketClose
}

// pump delivers until there is nothing to deliver, or nobody to deliver to.
func (c *courier) pump(ctx context.Context) {
	engine, wait := c.area.r.engine, firstRetry
	for {
		j, ok := c.next(ctx)
		switch {
		case !ok:
			return
		case j.p != nil:
			out := &outcome{}
			err := engine.Deliver(ctx, c.ref, j.p.m, func(err error) { c.settled(j, out, err) })
			if c.handled(ctx, j, out, err) {
				wait = firstRetry
			} else if pause(ctx, wait) {
				wait = min(2*wait, maxRetry)
			}
		default:
			if j.failed != nil {
				engine.SocketFailed(c.ref, j.failed)
			}
			engine.SocketClosed(c.ref, j.closed)
		}
	}
}

// next returns what to tell this node's engine. What is for another node it sends itself. ok is
// false if the caller is not the pump any more.
func (c *courier) next(ctx context.Context) (j job, ok bool) {
	a := c.area
	a.mu.RLock()
	defer a.mu.RUnlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.isReady && ctx.Err() == nil && a.owner == a.r.cfg.Self {
		if p := c.unsent(); p != nil {
			return job{attempt: c.attempt, p: p}, true
		}
		if c.closed != nil && !c.toldEnd {
			c.toldEnd = true
			return job{attempt: c.attempt, failed: c.failed, closed: c.closed}, true
		}
	} else if a.isReady && a.owner != a.r.cfg.Self {
		c.sendAll(a.owner, a.epoch)
	}
	c.pumping = false
	return job{}, false
}

// unsent returns the next message of the attempt. Those that have been sent in it come first.
func (c *courier) unsent() (next *parcel) {
	for i := len(c.list) - 1; i >= 0 && c.list[i].attempt != c.attempt; i-- {
		if !c.list[i].settled {
			next = c.list[i]
		}
	}
	return next
}

// sendAll sends everything to another node, as far as the window allows.
func (c *courier) sendAll(owner placement.NodeID, epoch placement.Epoch) {
	r := c.area.r
	link := r.peer(owner).link
	for p := c.unsent(); p != nil; p = c.unsent() {
		if !p.held && !c.area.window.take(p.size, c) {
			return
		}
		p.held = true
		link.tell(&frame{
			kind: kindMessage, epoch: epoch, object: c.ref.ID, socket: c.id, attempt: c.attempt, number: p.m.Seq, first: c.fresh,
			flag: p.m.Binary, data: p.m.Data, when: r.hub.AutoResponse(c.ref.ID, c.id),
		})
		c.fresh, p.attempt = false, c.attempt
	}
	if c.closed == nil || c.toldEnd {
		return
	}
	if c.failed != nil {
		text := c.failed.Err.Error()
		link.tell(&frame{kind: kindFailed, epoch: epoch, ref: c.ref, socket: c.id, attempt: c.attempt, first: c.fresh, text: text[:min(len(text), maxTextBytes)]})
		c.fresh = false
	}
	link.tell(&frame{kind: kindClosed, epoch: epoch, ref: c.ref, socket: c.id, attempt: c.attempt, number: uint64(c.known), first: c.fresh, code: c.closed.Code, text: c.closed.Reason[:min(len(c.closed.Reason), maxTextBytes)], flag: c.closed.Clean})
	c.fresh, c.toldEnd = false, true
}

// handled notes how this node's engine has handled a message. It reports false if the message must
// wait for a while.
func (c *courier) handled(ctx context.Context, j job, out *outcome, err error) bool {
	r := c.area.r
	if err != nil && (again(err) || ctx.Err() != nil || r.reigns[c.area.shard].Load().isOver()) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if j.attempt != c.attempt {
		return true
	}
	j.p.attempt = c.attempt
	c.finish(j.p, err)
	if err == nil && out.handled() {
		c.rewind()
	}
	c.trim()
	return true
}

func (g *reign) isOver() bool { return g == nil || g.ctx.Err() != nil }

// settled is told by this node's engine that a message is settled, or must be delivered again.
func (c *courier) settled(j job, out *outcome, err error) {
	switch {
	case err == nil:
		c.settledAt(j.attempt, j.p.m.Seq)
	case out.inDoubt():
		c.refused(j.attempt)
	}
}

// ended notes that the handler of a message has ended at another node.
func (c *courier) ended(attempt, number uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.find(attempt, number); p != nil {
		c.finish(p, err)
		c.trim()
	}
}

// settledAt notes that a message need not be kept.
func (c *courier) settledAt(attempt, number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.find(attempt, number); p != nil {
		c.finish(p, nil)
		p.settled = true
		c.trim()
	}
}

// refused delivers again what is not settled.
func (c *courier) refused(attempt uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if attempt == c.attempt {
		c.rewind()
	}
}

// knownBy notes that a reign knows the socket.
func (c *courier) knownBy(epoch placement.Epoch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = epoch
}

// restart is refused for whatever attempt it is.
func (c *courier) restart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.list) > 0 || c.closed != nil || !c.fresh {
		c.rewind()
	}
}

// rewind begins a new attempt. The caller holds mu.
func (c *courier) rewind() {
	c.attempt++
	c.fresh, c.toldEnd = true, false
	c.area.r.metrics.again.Inc()
	for _, p := range c.list {
		c.letGo(p)
	}
	c.kick()
}

// kick sees to it that somebody pumps, if there is something to deliver. The caller holds mu.
func (c *courier) kick() {
	if c.pumping || c.unsent() == nil && (c.closed == nil || c.toldEnd) {
		return
	}
	c.pumping = true
	c.area.r.spawn(c.pump)
}

// orphan ends the delivery of messages, and closes the socket if a reason is given. Its end is
// still delivered.
func (c *courier) orphan(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.orphaned {
		return
	}
	c.orphaned = true
	for _, p := range c.list {
		c.finish(p, nil)
		p.settled = true
	}
	c.trim()
	if why != "" && c.closed == nil {
		c.area.r.metrics.orphans.Inc()
		c.area.r.hub.Close(c.ref.ID, c.id, closeServiceRestart, why)
	}
}

func (c *courier) isOrphan() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.orphaned
}

// waits reports whether anything has to be delivered.
func (c *courier) waits() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.list) > 0 || c.closed != nil
}

// find returns a message of the present attempt.
func (c *courier) find(attempt, number uint64) *parcel {
	if attempt != c.attempt {
		return nil
	}
	for _, p := range c.list {
		if p.m.Seq == number {
			return p
		}
	}
	return nil
}

// finish notes that a handler has ended. A message that it has refused need not be kept.
func (c *courier) finish(p *parcel, err error) {
	c.letGo(p)
	if p.ended {
		return
	}
	p.ended, p.err = true, err
	p.settled = p.settled || err != nil
	if p.done != nil {
		close(p.done)
	}
}

func (c *courier) letGo(p *parcel) {
	if p.held {
		p.held = false
		c.area.window.give(p.size)
	}
}

// trim drops settled messages off the front.
func (c *courier) trim() {
	n := 0
	for n < len(c.list) && c.list[n].settled {
		c.bytes -= c.list[n].size
		n++
	}
	if n == 0 {
		return
	}
	clear(c.list[:n])
	if c.list = c.list[n:]; len(c.list) == 0 {
		c.list = nil
	}
	if c.space != nil {
		close(c.space)
		c.space = nil
	}
}

// A window bounds the bytes on their way to a shard's owner. A courier for which there is no room is
// kicked when there may be.
type window struct {
	limit int

	mu      sync.Mutex // guards the following
	bytes   int
	waiting []*courier
}

func (w *window) take(n int, c *courier) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.bytes > 0 && w.bytes+n > w.limit {
		w.waiting = append(w.waiting, c)
		return false
	}
	w.bytes += n
	return true
}

// give makes room. Whoever waits is kicked by a goroutine, since the caller holds a courier's lock.
func (w *window) give(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bytes -= n
	if len(w.waiting) == 0 || w.bytes > w.limit/2 {
		return
	}
	waiting := w.waiting
	w.waiting = nil
	waiting[0].area.r.spawn(func(context.Context) {
		for _, c := range waiting {
			c.mu.Lock()
			c.kick()
			c.mu.Unlock()
		}
	})
}
