package transport

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Between two nodes, Raft's messages are frames:
//
//	length u32 | request u64 | group u64 | kind u8 | payload
//
// big-endian; the length counts what follows it. An answer bears the number of its request.
const (
	lengthBytes = 4
	headBytes   = 8 + 8 + 1
	maxFrame    = 16 << 20 // what a length may say
)

// A kind says what a payload is. The numbers are part of the protocol.
type kind uint8

const (
	kindAppend     kind = 1
	kindVote       kind = 2
	kindPreVote    kind = 3
	kindTimeoutNow kind = 4
	kindSnapshot   kind = 5
	kindConfirm    kind = 6
	kindAnswer     kind = 7 // what the request's kind is answered with
	kindError      kind = 8 // the text of an error
	kindWait       kind = 9 // an answer will come; on connections of snapshots
)

// A head is what a frame is about.
type head struct {
	request uint64
	group   uint64
	kind    kind
}

var errFrame = errors.New("malformed frame")

// appendFrame appends a frame whose payload is a message.
func appendFrame(b []byte, h head, self string, message any) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, h.request)
	b = binary.BigEndian.AppendUint64(b, h.group)
	b = append(b, byte(h.kind))
	b = appendMessage(b, self, message)
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-lengthBytes))
	return b
}

// readFrame reads a frame. The payload is in buf if that is large enough.
func readFrame(r *bufio.Reader, buf []byte) (head, []byte, error) {
	raw, err := r.Peek(lengthBytes + headBytes)
	if err != nil {
		if len(raw) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return head{}, nil, err
	}
	length := binary.BigEndian.Uint32(raw)
	if length < headBytes || length > maxFrame {
		return head{}, nil, fmt.Errorf("%w: its length is %d, want %d to %d", errFrame, length, headBytes, maxFrame)
	}
	h := head{
		request: binary.BigEndian.Uint64(raw[4:]),
		group:   binary.BigEndian.Uint64(raw[12:]),
		kind:    kind(raw[20]),
	}
	if _, err := r.Discard(lengthBytes + headBytes); err != nil {
		return head{}, nil, err
	}
	n := int(length) - headBytes
	if n > cap(buf) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return head{}, nil, io.ErrUnexpectedEOF
	}
	return h, buf, nil
}

// An outbox is what is to be written to one connection. Whoever has something puts it in and goes
// on; the goroutine of run writes all that is there at once. So the frames of many groups
// share one write, one TLS record and one system call.
type outbox struct {
	conn    net.Conn
	self    string
	limit   int           // bytes, above which nothing is put in
	timeout time.Duration // of one write
	metrics *metrics

	ready chan struct{} // something is there
	room  chan struct{} // there is room again
	done  chan struct{} // closed by close

	mu    sync.Mutex // guards what follows
	buf   []byte     // to be written
	spare []byte     // the buffer written before
	bytes int        // in buf, and being written
	ended bool
}

const (
	outboxBuffer = 64 << 10
	spareBytes   = 2 * bulkOutbox // a larger buffer is not kept
)

func newOutbox(conn net.Conn, self string, limit int, timeout time.Duration, m *metrics) *outbox {
	return &outbox{
		conn: conn, self: self, limit: limit, timeout: timeout, metrics: m,
		ready: make(chan struct{}, 1), room: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// put puts a frame in, and returns false if there is no room.
func (o *outbox) put(h head, message any) bool {
	o.mu.Lock()
	if o.ended || o.bytes >= o.limit {
		o.mu.Unlock()
		return false
	}
	before := len(o.buf)
	o.buf = appendFrame(o.buf, h, o.self, message)
	o.bytes += len(o.buf) - before
	room := o.bytes < o.limit
	o.mu.Unlock()
	signal(o.ready)
	if room {
		signal(o.room) // others may be waiting, too
	}
	return true
}

// putWithin is put that waits for room until a time.
func (o *outbox) putWithin(deadline time.Time, h head, message any) error {
	if o.put(h, message) {
		return nil
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		select {
		case <-o.room:
			if o.put(h, message) {
				return nil
			}
		case <-o.done:
			return errBroken
		case <-timer.C:
			return errBusy
		}
	}
}

// run writes until the connection breaks or the outbox is closed.
func (o *outbox) run() error {
	for {
		select {
		case <-o.ready:
		case <-o.done:
			return nil
		}
		b := o.take()
		if err := o.conn.SetWriteDeadline(time.Now().Add(o.timeout)); err != nil {
			return err
		}
		if _, err := o.conn.Write(b); err != nil {
			return err
		}
		o.written(b)
	}
}

func (o *outbox) take() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := o.buf
	if o.buf, o.spare = o.spare[:0], nil; o.buf == nil {
		o.buf = make([]byte, 0, outboxBuffer)
	}
	return b
}

func (o *outbox) written(b []byte) {
	o.mu.Lock()
	o.bytes -= len(b)
	if cap(b) <= spareBytes {
		o.spare = b
	}
	o.mu.Unlock()
	signal(o.room)
}

// close ends run. What is not written is lost.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended {
		o.ended = true
		close(o.done)
	}
}

// signal leaves a signal, unless there is one already.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
