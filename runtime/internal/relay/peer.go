package relay

import (
	"bufio"
	"bytes"
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

// A peer is another node: the link to it, and the stream from it.
type peer struct {
	id   placement.NodeID
	r    *Relay
	link *link
	in   inbound

	mu          sync.Mutex // guards the following
	incarnation uint64     // of its process; 0 if not known

	forgetting sync.Mutex // one forget at a time
}

// incarnated notes which process the peer is. If it is another one than before, all that
// the last one held has gone with it.
func (p *peer) incarnated(n uint64) {
	p.mu.Lock()
	was := p.incarnation
	p.incarnation = n
	p.mu.Unlock()
	if was != 0 && was != n {
		p.r.log.Info("a node has started again", slog.String("peer", string(p.id)))
		p.forget()
	}
}

// forget gives up the session with a peer: its sockets are dead for the objects here, and what
// was on its way there is lost. Whatever is said next begins with the reigns that it missed.
func (p *peer) forget() {
	p.forgetting.Lock()
	defer p.forgetting.Unlock()
	p.r.metrics.lost.Inc()
	p.r.log.Warn("the stream to a node was given up", slog.String("peer", string(p.id)))
	p.link.mute()
	p.r.dropGateway(p)
	p.link.unmute()
	p.r.restartFor(p.id)
}

// inbound is the stream from a peer. One connection at a time feeds it.
type inbound struct {
	mu          sync.Mutex // guards the following
	conn        net.Conn
	done        chan struct{} // closed when the present connection's reader has ended
	heard       time.Time
	incarnation uint64
	session     uint64
	received    uint64 // frames of the session that have been processed
}

// take makes c the stream's connection, once the reader of the last one has ended.
func (in *inbound) take(c net.Conn) (release func()) {
	for {
		in.mu.Lock()
		if in.conn == nil {
			done := make(chan struct{})
			in.conn, in.done, in.heard = c, done, time.Now()
			in.mu.Unlock()
			return func() {
				in.mu.Lock()
				in.conn = nil
				in.mu.Unlock()
				close(done)
			}
		}
		in.conn.Close()
		done := in.done
		in.mu.Unlock()
		<-done
	}
}

// resume returns how many frames of a session have been processed, and whether another
// session has ended with it.
func (in *inbound) resume(h hello) (received uint64, ended bool, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.incarnation == h.incarnation && h.session < in.session {
		return 0, false, errors.New("an old session")
	}
	if in.incarnation != h.incarnation || in.session != h.session {
		ended = in.session != 0
		in.incarnation, in.session, in.received = h.incarnation, h.session, 0
	}
	return in.received, ended, nil
}

// silent returns for how long nothing has come.
func (in *inbound) silent() time.Duration {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.heard.IsZero() {
		return 0
	}
	return time.Since(in.heard)
}

// processed counts a frame, or none, and returns the count.
func (in *inbound) processed(n uint64) uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.received += n
	in.heard = time.Now()
	return in.received
}

// Serve reads what a peer sends on a connection that it has opened, until the connection
// ends. It closes the connection.
func (r *Relay) Serve(from placement.NodeID, c net.Conn) {
	defer c.Close()
	if !r.begin() {
		return
	}
	defer r.running.Done()
	if err := r.serve(from, c); err != nil && r.ctx.Err() == nil {
		r.log.Debug("relay connection from a peer", slog.String("peer", string(from)), slog.Any("error", err))
	}
}

func (r *Relay) serve(from placement.NodeID, c net.Conn) error {
	stop := r.closeWithMe(c)
	defer stop()
	_ = c.SetDeadline(time.Now().Add(r.cfg.DialTimeout)) // a broken one fails below
	h, err := readHello(c)
	if err != nil {
		return err
	}
	p := r.peer(from)
	defer p.in.take(c)()
	p.incarnated(h.incarnation)
	received, ended, err := p.in.resume(h)
	if err != nil {
		return err
	}
	if ended {
		r.restartFor(from) // its answers were lost with the session
	}
	if _, err := c.Write(hello{version: protocolVersion, incarnation: r.incarnation, session: received}.encode()); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	_ = c.SetDeadline(time.Time{})
	return r.readFrames(p, c)
}

// ackEvery bounds how many frames are processed before the peer is told.
const ackEvery = 128

func (r *Relay) readFrames(p *peer, c net.Conn) error {
	in := bufio.NewReaderSize(c, 64<<10)
	for unacked := 0; ; {
		_ = c.SetReadDeadline(time.Now().Add(r.cfg.SilentAfter)) // a broken one fails below
		b, err := readFrame(in)
		if err != nil {
			return err
		}
		n := uint64(0)
		if len(b) > 0 {
			f, err := decodeFrame(b)
			if err != nil {
				r.log.Error("a peer sends what cannot be read", slog.String("peer", string(p.id)), slog.Any("error", err))
				return err
			}
			r.handle(p, f)
			n = 1
		}
		received := p.in.processed(n)
		if unacked++; unacked < ackEvery && in.Buffered() > 0 {
			continue
		}
		unacked = 0
		_ = c.SetWriteDeadline(time.Now().Add(r.cfg.WriteTimeout))
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, received)); err != nil {
			return fmt.Errorf("acknowledge: %w", err)
		}
	}
}

// readFrame reads one frame, which is empty for a ping. Memory is taken as bytes come.
func readFrame(in *bufio.Reader) ([]byte, error) {
	const atOnce = 64 << 10
	var length [lengthBytes]byte
	if _, err := io.ReadFull(in, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	switch {
	case n > maxFrameBytes:
		return nil, fmt.Errorf("%w: %d bytes long", errMalformed, n)
	case n <= atOnce:
		b := make([]byte, n)
		_, err := io.ReadFull(in, b)
		return b, err
	}
	var b bytes.Buffer
	b.Grow(atOnce)
	if _, err := io.CopyN(&b, in, int64(n)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// A hello begins a connection: the opener tells its session, the other side how many
// frames of that it has processed.
type hello struct {
	version     byte
	incarnation uint64
	session     uint64
}

const (
	protocolVersion = 1
	helloBytes      = 1 + 8 + 8
)

func (h hello) encode() []byte {
	b := append(make([]byte, 0, helloBytes), h.version)
	b = binary.BigEndian.AppendUint64(b, h.incarnation)
	return binary.BigEndian.AppendUint64(b, h.session)
}

func readHello(r io.Reader) (hello, error) {
	var b [helloBytes]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return hello{}, fmt.Errorf("read a greeting: %w", err)
	}
	h := hello{b[0], binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:])}
	if h.version != protocolVersion {
		return hello{}, fmt.Errorf("the peer speaks version %d of the relay's protocol, this node version %d", h.version, protocolVersion)
	}
	return h, nil
}
