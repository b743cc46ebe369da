package transport

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// A link is a connection to a peer over which requests of many groups go, and their answers
// come, in any order.
type link struct {
	lane *lane
	conn *conn
	out  *outbox

	heard   atomic.Int64 // when something came last: nanoseconds after born
	born    time.Time
	probing atomic.Bool // a sign of life is awaited

	mu      sync.Mutex // guards what follows
	pending map[uint64]waiter
	last    uint64 // request number
	err     error  // why it broke
}

// A waiter gets the answer to a request, or learns that there will be none: one call, on a
// goroutine of the link, which must not block. The payload is only valid during the call.
type waiter interface {
	answered(k kind, payload []byte)
	failed(err error)
}

const readBuffer = 64 << 10

func newLink(l *lane, c *conn) *link {
	n := l.peer.net
	return &link{
		lane:    l,
		conn:    c,
		out:     newOutbox(c, string(n.cfg.Self), l.outbox, n.cfg.WriteTimeout, n.metrics),
		born:    time.Now(),
		pending: make(map[uint64]waiter),
	}
}

// send sends a request. Unless it returns an error, w will be called. If there is no room,
// it fails, or waits for room until a time that is not zero.
func (l *link) send(group uint64, k kind, message any, w waiter, wait time.Time) (uint64, error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return 0, l.err
	}
	l.last++
	id := l.last
	l.pending[id] = w
	l.mu.Unlock()
	h := head{id, group, k}
	if l.out.put(h, message) {
		l.out.metrics.framesOut.Inc()
		return id, nil
	}
	err := errBusy
	if !wait.IsZero() {
		err = l.out.putWithin(wait, h, message)
	}
	if err != nil && l.take(id) == nil {
		return id, nil // somebody has called w already
	}
	return id, err
}

// take returns who waits for an answer and forgets it; nil if somebody else has done so.
func (l *link) take(id uint64) waiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.pending[id]
	delete(l.pending, id)
	return w
}

// write is the goroutine that sends.
func (l *link) write() {
	if err := l.out.run(); err != nil {
		l.fail(err)
	}
}

// read is the goroutine that receives.
func (l *link) read() {
	r := bufio.NewReaderSize(l.conn, readBuffer)
	var buf []byte
	for {
		h, payload, err := readFrame(r, buf)
		if err != nil {
			l.fail(err)
			return
		}
		buf = payload[:0]
		l.heard.Store(int64(time.Since(l.born)))
		l.out.metrics.framesIn.Inc()
		if w := l.take(h.request); w != nil {
			w.answered(h.kind, payload)
		}
	}
}

// expired is called when a request that was sent at a time got no answer. If nothing at all has come
// since, the peer is asked for a sign of life, which needs neither its disk nor a group. Without one
// the connection is taken for broken, like everything else to the peer.
func (l *link) expired(sent time.Time) {
	if l.heardSince(sent) || !l.probing.CompareAndSwap(false, true) {
		return
	}
	now := time.Now()
	_, _ = l.send(0, kindConfirm, nil, sign{}, time.Time{})
	time.AfterFunc(l.lane.peer.net.cfg.ControlTimeout, func() {
		l.probing.Store(false)
		if !l.heardSince(now) {
			l.lane.peer.silent(fmt.Errorf("%w: nothing comes from it", ErrTimeout))
		}
	})
}

func (l *link) heardSince(t time.Time) bool {
	return !l.born.Add(time.Duration(l.heard.Load())).Before(t)
}

// A sign waits for a sign of life: that something comes is enough.
type sign struct{}

func (sign) answered(kind, []byte) {}
func (sign) failed(error)          {}

// fail breaks the link, and with it all that wait on it.
func (l *link) fail(err error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = fmt.Errorf("%w: %w", errBroken, err)
	pending := values(l.pending)
	clear(l.pending)
	l.mu.Unlock()
	l.out.close()
	l.conn.kill()
	l.lane.lost(l)
	for _, w := range pending {
		w.failed(l.err)
	}
	if errors.Is(err, errFrame) {
		l.lane.peer.net.log.Error("a node sends what is not the protocol of nodes", slog.String("peer", string(l.lane.peer.id)), slog.Any("error", err))
	}
}

// A call waits for one answer.
type call struct {
	done    chan struct{}
	kind    kind
	payload []byte
	err     error
	space   [64]byte // for the payload, which is small
}

func newCall() *call { return &call{done: make(chan struct{}, 1)} }

func (c *call) answered(k kind, payload []byte) {
	c.kind, c.payload = k, append(c.space[:0], payload...)
	c.done <- struct{}{}
}

func (c *call) failed(err error) {
	c.err = err
	c.done <- struct{}{}
}

// A remoteError is what the other side answered in place of an answer.
type remoteError string

func (e remoteError) Error() string { return string(e) }

// ask sends a request and waits for its answer.
func (l *link) ask(group uint64, k kind, message, answer any, timeout time.Duration) error {
	start := time.Now()
	var wait time.Time
	if l.lane.service == serviceBulk {
		wait = start.Add(timeout)
	}
	c := newCall()
	id, err := l.send(group, k, message, c, wait)
	if err != nil {
		return err
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
		if l.take(id) != nil {
			l.expired(start)
			return ErrTimeout
		}
		<-c.done // it comes at this moment
	}
	if c.err != nil {
		return c.err
	}
	return l.decode(c.kind, c.payload, answer)
}

// decode reads an answer.
func (l *link) decode(k kind, payload []byte, answer any) error {
	switch k {
	case kindAnswer:
		return decodeAnswer(payload, l.lane.peer.name, answer)
	case kindError:
		return remoteError(payload)
	default:
		return fmt.Errorf("%w: kind %d is no answer", errMessage, k)
	}
}
