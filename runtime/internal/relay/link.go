package relay

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// A link is this node's stream of frames to one other node: a queue, and the goroutine that
// writes it to one connection after the other. Frames keep their place in the queue until
// the other node has processed them.
type link struct {
	r    *Relay
	peer *peer
	to   placement.NodeID
	wake chan struct{}

	mu       sync.Mutex // guards the following
	session  uint64
	acked    uint64   // frames of the session that the peer has processed
	queue    []packet // those behind them
	sent     int      // of the queue, written to the present connection
	most     int      // of the queue, ever written in this session: cannot be dropped
	inflight int      // bytes of the first sent of the queue
	bytes    int      // of the queue
	byObject map[placement.ObjectID]int
	used     bool // something but the coming of reigns has been sent in the session
	muted    bool // the session has been given up: what is sent now would have a hole before it
	overrun  bool // it must be given up
	conn     net.Conn
	failed   bool      // the last attempt to connect did not succeed
	heard    time.Time // when the peer last acknowledged anything, or was dialled for the first time
}

// A packet is a frame on its way.
type packet struct {
	head, data []byte
	epoch      placement.Epoch
	object     placement.ObjectID
	droppable  bool // output to sockets, which can be closed instead
}

func (p *packet) size() int { return len(p.head) + len(p.data) + packetOverhead }

const (
	packetOverhead = 64
	lengthBytes    = 4
	batchPackets   = 64
)

func pack(f *frame) packet {
	p := packet{head: f.head(), data: f.data, epoch: f.epoch, object: f.object}
	switch f.kind {
	case kindSend, kindBroadcast, kindAttach, kindAuto, kindMark:
		p.droppable = true
	default:
	}
	return p
}

func newLink(r *Relay, p *peer) *link {
	return &link{r: r, peer: p, to: p.id, wake: make(chan struct{}, 1), session: 1, byObject: make(map[placement.ObjectID]int), heard: time.Now()}
}

// send queues a frame. It never blocks.
func (l *link) send(p packet) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.muted {
		l.used = true
		l.push(p)
	}
}

func (l *link) tell(f *frame) { l.send(pack(f)) }

// push queues a packet. The caller holds mu.
func (l *link) push(p packet) {
	l.queue = append(l.queue, p)
	l.bytes += p.size()
	if p.droppable {
		l.byObject[p.object] += p.size()
	}
	if l.bytes > l.r.cfg.PeerQueueBytes && !l.overrun {
		l.shed()
	}
	l.kick()
}

func (l *link) kick() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// shed makes room: the object that waits with most bytes loses its sockets there. What
// cannot be dropped is small; if it is not, the session is given up.
func (l *link) shed() {
	for l.bytes > l.r.cfg.PeerQueueBytes && len(l.byObject) > 0 {
		var worst placement.ObjectID
		for id, n := range l.byObject {
			if n > l.byObject[worst] {
				worst = id
			}
		}
		l.drop(worst)
	}
	if l.bytes > 2*l.r.cfg.PeerQueueBytes {
		l.overrun, l.muted = true, true
		l.cut()
	}
}

// drop takes an object's outputs out of the queue, and puts the end of its sockets there.
func (l *link) drop(id placement.ObjectID) {
	kept := l.queue[:l.most]
	var epoch placement.Epoch
	for _, p := range l.queue[l.most:] {
		if p.droppable && p.object == id {
			l.bytes -= p.size()
			epoch = p.epoch
		} else {
			kept = append(kept, p)
		}
	}
	clear(l.queue[len(kept):])
	l.queue = kept
	delete(l.byObject, id)
	end := pack(&frame{kind: kindCloseAll, epoch: epoch, object: id, code: closeServiceRestart, text: "messages were lost: the node that holds the connection is too slow"})
	l.queue = append(l.queue, end)
	l.bytes += end.size()
	l.r.metrics.shed.Inc()
}

// run writes the queue until ctx ends.
func (l *link) run(ctx context.Context) {
	wait := minRedial
	for ctx.Err() == nil {
		began := time.Now()
		err := l.connect(ctx)
		if ctx.Err() != nil {
			return
		}
		l.r.log.Debug("relay connection", slog.String("peer", string(l.to)), slog.Any("error", err))
		if l.lost() {
			l.peer.forget()
		}
		if time.Since(began) > time.Second {
			wait = minRedial
		}
		if !pause(ctx, wait) {
			return
		}
		wait = min(2*wait, l.r.cfg.MaxRedial)
	}
}

const minRedial = 10 * time.Millisecond

// lost reports whether the session must be given up.
func (l *link) lost() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = true
	return l.overrun || l.used && time.Since(l.heard) > l.r.cfg.LostAfter
}

// suspect reports whether the peer does not seem to be there.
func (l *link) suspect() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn == nil && l.failed || time.Since(l.heard) > l.r.cfg.SuspectAfter
}

// connect makes a connection, resumes the session on it, and writes until it breaks.
func (l *link) connect(ctx context.Context) error {
	dctx, cancel := context.WithTimeout(ctx, l.r.cfg.DialTimeout)
	c, err := l.r.cfg.Network.Open(dctx, l.to, l.r.cfg.Service)
	cancel()
	if err != nil {
		return fmt.Errorf("dial %s: %w", l.to, err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := l.resume(c); err != nil {
		return err
	}
	defer l.down(c)
	ended := make(chan struct{})
	go func() { // ends when c does, which happens below; waited for there
		defer close(ended)
		l.readAcks(c)
	}()
	err = l.write(ctx, c, ended)
	c.Close()
	<-ended
	return err
}

// resume tells the peer which session this is, and learns how far it got.
func (l *link) resume(c net.Conn) error {
	l.mu.Lock()
	h := hello{version: protocolVersion, incarnation: l.r.incarnation, session: l.session}
	l.mu.Unlock()
	_ = c.SetDeadline(time.Now().Add(l.r.cfg.DialTimeout)) // a broken one fails below
	if _, err := c.Write(h.encode()); err != nil {
		return fmt.Errorf("greet %s: %w", l.to, err)
	}
	answer, err := readHello(c)
	if err != nil {
		return fmt.Errorf("greet %s: %w", l.to, err)
	}
	_ = c.SetDeadline(time.Time{})
	l.peer.incarnated(answer.incarnation)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session != h.session || l.muted {
		return errors.New("the session was given up meanwhile")
	}
	if !l.ack(answer.session) {
		l.overrun = true
		return fmt.Errorf("%s has another idea of the session", l.to)
	}
	l.sent, l.inflight = 0, 0
	l.conn, l.failed, l.heard = c, false, time.Now()
	return nil
}

func (l *link) down(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == c {
		l.conn = nil
	}
	l.sent, l.inflight = 0, 0
}

// write writes packets as they come, and something now and then so that silence means trouble.
func (l *link) write(ctx context.Context, c net.Conn, ended <-chan struct{}) error {
	w := bufio.NewWriterSize(c, 64<<10)
	ping := time.NewTicker(l.r.cfg.PingEvery)
	defer ping.Stop()
	batch := make([]packet, 0, batchPackets)
	for {
		batch = l.take(c, batch[:0])
		_ = c.SetWriteDeadline(time.Now().Add(l.r.cfg.WriteTimeout))
		for i := range batch {
			if err := writePacket(w, &batch[i]); err != nil {
				return err
			}
		}
		clear(batch)
		if len(batch) > 0 {
			continue
		}
		if err := w.Flush(); err != nil {
			return err
		}
		select {
		case <-l.wake:
		case <-ping.C:
			var none [lengthBytes]byte
			_, _ = w.Write(none[:]) // its error comes with the flush
		case <-ended:
			return errors.New("the connection broke")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func writePacket(w *bufio.Writer, p *packet) error {
	var length [lengthBytes]byte
	binary.BigEndian.PutUint32(length[:], uint32(len(p.head)+len(p.data)))
	_, _ = w.Write(length[:]) // a bufio.Writer keeps its first error
	_, _ = w.Write(p.head)
	_, err := w.Write(p.data)
	return err
}

// take returns what may be written next to a connection.
func (l *link) take(c net.Conn, batch []packet) []packet {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != c {
		return batch
	}
	for l.sent < len(l.queue) && len(batch) < batchPackets && (l.inflight == 0 || l.inflight < l.r.cfg.WindowBytes) {
		p := &l.queue[l.sent]
		batch = append(batch, *p)
		l.inflight += p.size()
		l.sent++
		if l.sent > l.most {
			l.most = l.sent
			l.settleBytes(p)
		}
	}
	l.r.metrics.frames.Add(float64(len(batch)))
	return batch
}

// settleBytes notes that a packet can be dropped no more.
func (l *link) settleBytes(p *packet) {
	if !p.droppable {
		return
	}
	if l.byObject[p.object] -= p.size(); l.byObject[p.object] <= 0 {
		delete(l.byObject, p.object)
	}
}

// readAcks takes what the peer has processed out of the queue.
func (l *link) readAcks(c net.Conn) {
	var n [8]byte
	for {
		_ = c.SetReadDeadline(time.Now().Add(l.r.cfg.SilentAfter)) // a broken one fails below
		if _, err := io.ReadFull(c, n[:]); err != nil {
			return
		}
		l.mu.Lock()
		ok := l.conn == c && l.ack(binary.BigEndian.Uint64(n[:]))
		l.heard = time.Now()
		l.mu.Unlock()
		if !ok {
			return
		}
		l.kick()
	}
}

// ack takes frames up to a number off the queue. It reports false if they were never sent.
func (l *link) ack(n uint64) bool {
	if n < l.acked || n-l.acked > uint64(l.most) {
		return false
	}
	k := int(n - l.acked)
	for i := range l.queue[:k] {
		size := l.queue[i].size()
		l.bytes -= size
		if i < l.sent {
			l.inflight -= size
		}
	}
	clear(l.queue[:k])
	l.queue = l.queue[k:]
	if len(l.queue) == 0 {
		l.queue = nil
	}
	l.acked, l.sent, l.most = n, max(0, l.sent-k), l.most-k
	return true
}

// mute gives the session up: everything in it is lost, and so is what is sent until unmute.
func (l *link) mute() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.session++
	l.muted, l.overrun, l.used = true, false, false
	l.acked, l.sent, l.most, l.inflight, l.bytes = 0, 0, 0, 0, 0
	l.queue = nil
	clear(l.byObject)
	l.heard = time.Now()
	l.cut()
}

// insist is tell also while the new session is muted: this is what it begins with.
func (l *link) insist(f *frame) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.push(pack(f))
}

func (l *link) unmute() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.muted = false
	l.kick()
}

// cut closes the connection, if there is one. The caller holds mu.
func (l *link) cut() {
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
	l.failed = true
}

// flush waits until the peer has processed what is in the queue now, or does not seem to be there.
func (l *link) flush(ctx context.Context) error {
	l.mu.Lock()
	session, upTo := l.session, l.acked+uint64(len(l.queue))
	l.mu.Unlock()
	for !l.reached(session, upTo) && !l.suspect() {
		if !pause(ctx, time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil
}

func (l *link) reached(session, n uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.session != session || l.acked >= n
}

// idle reports whether the peer has processed everything.
func (l *link) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue) == 0
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
