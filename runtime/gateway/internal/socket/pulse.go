package socket

import (
	"slices"
	"sync"
	"time"
)

// A pulse is the one clock of all sockets: it pings those that are silent, drops those
// that do not answer, and ends handshakes and closings that take too long. Every
// tick it looks at one part of the sockets, so that its work is spread evenly.
type pulse struct {
	hub  *Hub
	tick time.Duration
	quit chan struct{}
	once sync.Once
	wg   sync.WaitGroup
	ping *frame

	mu         sync.Mutex // guards the following, and the sockets' slot and index
	slots      [][]*socket
	next       int // slot for the next socket
	handshakes deadlines
	closings   deadlines
}

// deadlines are sockets in the order in which their time is up.
type deadlines struct {
	after time.Duration
	queue []deadline
}

type deadline struct {
	at     time.Time
	socket *socket
}

func (p *pulse) init(h *Hub) {
	c := h.cfg
	p.hub = h
	p.quit = make(chan struct{})
	p.ping = controlFrame(opPing, nil)
	p.tick = max(time.Millisecond, min(time.Second, c.PingInterval/4, c.CloseTimeout/4, c.HandshakeTimeout/4))
	p.slots = make([][]*socket, max(1, int(c.PingInterval/p.tick)))
	p.handshakes.after = c.HandshakeTimeout
	p.closings.after = c.CloseTimeout
}

func (p *pulse) start() { p.wg.Go(p.run) }

func (p *pulse) stop() {
	p.once.Do(func() { close(p.quit) })
	p.wg.Wait()
}

func (p *pulse) run() {
	ticker := time.NewTicker(p.tick)
	defer ticker.Stop()
	for slot := 0; ; slot = (slot + 1) % len(p.slots) {
		select {
		case <-p.quit:
			return
		case now := <-ticker.C:
			p.beat(now, slot)
		}
	}
}

func (p *pulse) beat(now time.Time, slot int) {
	p.mu.Lock()
	handshakes := p.handshakes.due(now)
	closings := p.closings.due(now)
	sockets := append([]*socket(nil), p.slots[slot]...)
	p.mu.Unlock()
	for _, d := range handshakes {
		d.socket.abandon()
	}
	for _, d := range closings {
		d.socket.cut()
	}
	for _, s := range sockets {
		s.beat(p.ping)
	}
}

// beat looks after one socket, once in a PingInterval: silent for one of them, it is
// pinged; silent for another after the ping has been written, its client is dead. A ping that waits behind
// other frames says nothing about the client yet, only that it is slow: for that there is a write deadline.
func (s *socket) beat(ping *frame) {
	if s.heard.Swap(false) || s.busy.Load() {
		s.mu.Lock()
		s.ping = unpinged
		s.mu.Unlock()
		return
	}
	s.mu.Lock()
	if s.state != open || s.by != byNobody {
		s.mu.Unlock()
		return
	}
	switch {
	case s.ping == pingWritten:
		s.mu.Unlock()
		s.hub.metrics.dead.Inc()
		s.cut()
		return
	case s.ping == unpinged:
		s.push(ping)
		s.ping = pingQueued
		if len(s.queue) == 1 { // goes out at once
			s.ping = pingWritten
		}
	case !slices.Contains(s.queue, ping):
		s.ping = pingWritten
	}
	kick := s.kick()
	s.mu.Unlock()
	if kick {
		s.hub.writers.push(s)
	}
}

// add begins to look after a socket.
func (p *pulse) add(s *socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.slot = p.next
	p.next = (p.next + 1) % len(p.slots)
	s.index = len(p.slots[s.slot])
	p.slots[s.slot] = append(p.slots[s.slot], s)
}

// each runs fn for every socket that is looked after.
func (p *pulse) each(fn func(*socket)) {
	p.mu.Lock()
	all := slices.Concat(p.slots...)
	p.mu.Unlock()
	for _, s := range all {
		fn(s)
	}
}

// remove ends it.
func (p *pulse) remove(s *socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.slots[s.slot]
	last := len(list) - 1
	list[s.index] = list[last]
	list[s.index].index = s.index
	list[last] = nil
	p.slots[s.slot] = list[:last]
}

// awaitHandshake abandons a socket that is still pending after HandshakeTimeout.
func (p *pulse) awaitHandshake(s *socket) { p.await(&p.handshakes, s) }

// awaitClose cuts a socket's connection after CloseTimeout.
func (p *pulse) awaitClose(s *socket) { p.await(&p.closings, s) }

func (p *pulse) await(d *deadlines, s *socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.queue = append(d.queue, deadline{time.Now().Add(d.after), s})
}

// due takes out those whose time is up.
func (d *deadlines) due(now time.Time) []deadline {
	n := 0
	for n < len(d.queue) && !d.queue[n].at.After(now) {
		n++
	}
	due := append([]deadline(nil), d.queue[:n]...)
	clear(d.queue[:n])
	if d.queue = d.queue[n:]; len(d.queue) == 0 {
		d.queue = nil
	}
	return due
}
