package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// A peer is another node, connected or not.
type peer struct {
	net     *Network
	id      placement.NodeID
	name    []byte // its ID as messages bear it
	control *lane
	bulk    *lane

	mu   sync.Mutex // guards seen
	seen sight
}

// A sight is what was last seen of a peer's process:
//
//	never --connected--> there --a connection broke--> missing --refused--> never: it is gone
//	                       ^------------connected---------'
type sight int

const (
	never sight = iota
	there
	missing
)

func newPeer(n *Network, id placement.NodeID) *peer {
	p := &peer{net: n, id: id, name: []byte(id)}
	p.control = &lane{peer: p, service: serviceControl, outbox: controlOutbox}
	p.bulk = &lane{peer: p, service: serviceBulk, outbox: bulkOutbox}
	return p
}

// connected is called when a connection with the peer came to be, from either side.
func (p *peer) connected() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = there
}

// broke is called when one broke. A new one is tried at once: if it is refused, then the
// process is gone, and others need not wait for a time-out to know.
func (p *peer) broke() {
	p.mu.Lock()
	probe := p.seen == there && p.control.current() == nil // else that one breaks, too, if it must
	if probe {
		p.seen = missing
	}
	p.mu.Unlock()
	if probe {
		p.control.want()
	}
}

// refused is called when nobody listens at the peer's address.
func (p *peer) refused() {
	p.mu.Lock()
	gone := p.seen == missing
	if gone {
		p.seen = never
	}
	p.mu.Unlock()
	if gone {
		p.net.metrics.gone.Inc()
		p.net.log.Warn("the process of a node is gone", slog.String("peer", string(p.id)))
		p.net.cfg.OnRefused(p.id)
	}
}

// silent breaks both connections after one has been found to lead nowhere: TCP itself would
// take longer to find out, and longer to begin again.
func (p *peer) silent(err error) {
	for _, l := range []*lane{p.control, p.bulk} {
		if link := l.current(); link != nil {
			link.fail(err)
		}
	}
}

// A lane is one of the two connections to a peer that are kept, as long as they are used.
type lane struct {
	peer    *peer
	service byte
	outbox  int // bytes that may wait

	mu      sync.Mutex // guards what follows
	link    *link      // nil: not connected
	dialing bool       // the goroutine of dial runs
	tried   chan struct{}
	err     error // why the last attempt failed, while dial goes on
	wanted  time.Time
}

const (
	controlOutbox = 1 << 20
	bulkOutbox    = 2 << 20

	firstPause = 10 * time.Millisecond  // before a peer is dialled again
	maxPause   = 250 * time.Millisecond // doubled up to this
	patience   = 5 * time.Second        // without anybody who wants it, dialling ends
)

// current returns the connection if there is one.
func (l *lane) current() *link {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.link
}

// want returns the connection if there is one, and sees to it that there will be.
func (l *lane) want() *link {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.start()
	return l.link
}

func (l *lane) start() {
	l.wanted = time.Now()
	if l.link != nil || l.dialing {
		return
	}
	l.tried = make(chan struct{})
	l.dialing = l.peer.net.run(l.dial)
}

// get returns the connection. It waits for the first attempt to make one; while a peer is
// known to be down it waits for nothing.
func (l *lane) get(timeout time.Duration) (*link, error) {
	l.mu.Lock()
	l.start()
	link, err, dialing, tried := l.link, l.err, l.dialing, l.tried
	l.mu.Unlock()
	switch {
	case link != nil:
		return link, nil
	case err != nil:
		return nil, err
	case !dialing:
		return nil, ErrClosed
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-tried:
	case <-timer.C:
		return nil, fmt.Errorf("connect to node %s: %w", l.peer.id, ErrTimeout)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.link != nil:
		return l.link, nil
	case l.err != nil:
		return nil, l.err
	}
	return nil, errBroken
}

// dial makes the connection: it tries until it succeeds, or nobody wants it any more.
func (l *lane) dial() {
	n := l.peer.net
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		c, err := n.open(n.ctx, l.peer.id, l.service)
		if err == nil {
			l.connected(c)
			return
		}
		again := l.failed(err)
		if errors.Is(err, syscall.ECONNREFUSED) {
			l.peer.refused()
		}
		if !again || !sleep(n.ctx, pause) {
			l.give()
			return
		}
	}
}

func (l *lane) connected(c *conn) {
	link := newLink(l, c)
	l.mu.Lock()
	l.link, l.err = link, nil
	l.over()
	l.mu.Unlock()
	l.peer.connected()
	if !l.peer.net.run(link.write) || !l.peer.net.run(link.read) {
		link.fail(ErrClosed)
	}
}

// failed notes an attempt that failed, and returns whether there is to be another.
func (l *lane) failed(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		close(l.tried)
	}
	l.err = err
	return time.Since(l.wanted) < patience
}

// give ends dialling; whoever comes next begins anew.
func (l *lane) give() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err, l.dialing = nil, false
}

// over ends dialling in success.
func (l *lane) over() {
	l.dialing = false
	select {
	case <-l.tried:
	default:
		close(l.tried)
	}
}

// lost is called when the connection has broken.
func (l *lane) lost(link *link) {
	l.mu.Lock()
	if l.link == link {
		l.link = nil
	}
	l.mu.Unlock()
	l.peer.broke()
}

// sleep waits, and returns false if ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
