package socket

import (
	"encoding/binary"
	"errors"
	"os"
	"unicode/utf8"

	"github.com/coder/websocket"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// This file is the socket's queue: what goes into it, and how it is taken out. A
// socket is with a writer, or in the list of those that wait for one, exactly while
// writing is set; who gets true from kick or send must push it there.

const tooSlow = "the client does not read fast enough"

// send queues a frame. It reports whether the socket must be pushed to the writers.
func (s *socket) send(f *frame) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enqueue(f) && s.kick()
}

// sendLater is send for a frame that may wait for a while: it reports true only if the
// queue is full.
func (s *socket) sendLater(f *frame) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enqueue(f) && s.by != byNobody && s.kick()
}

// wake reports whether something is queued and the socket must be pushed.
func (s *socket) wake() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) > 0 && s.kick()
}

// enqueue adds a frame, or says goodbye if there is no room for it. It reports whether
// anything was queued.
func (s *socket) enqueue(f *frame) bool {
	if s.state == closed || s.by != byNobody {
		return false
	}
	size := f.plain.len()
	if len(s.queue) >= s.hub.cfg.QueueFrames || len(s.queue) > 0 && s.queued+size > s.hub.cfg.QueueBytes {
		s.hub.metrics.overflows.Inc()
		s.dropQueue()
		s.sayGoodbye(byGateway, websocket.StatusPolicyViolation, tooSlow)
		return true
	}
	s.push(f)
	return true
}

// close queues a close frame, unless there is one already.
func (s *socket) close(by closer, code websocket.StatusCode, reason string) {
	s.mu.Lock()
	kick := false
	if s.state != closed && s.by == byNobody {
		s.sayGoodbye(by, code, reason)
		kick = s.kick()
	}
	s.mu.Unlock()
	if kick {
		s.hub.writers.push(s)
	}
}

// sayGoodbye queues a close frame. The client has CloseTimeout to answer.
func (s *socket) sayGoodbye(by closer, code websocket.StatusCode, reason string) {
	if !validCode(code) {
		code, reason = websocket.StatusInternalError, ""
	}
	s.by, s.code, s.reason = by, code, shorten(reason)
	s.push(closeFrame(int(s.code), s.reason))
	s.hub.pulse.awaitClose(s)
}

// control queues a control frame of the library's: a pong or a close.
func (s *socket) control(op byte, data []byte) {
	s.mu.Lock()
	kick := false
	if s.by == byNobody && s.state == open {
		f := controlFrame(op, append([]byte(nil), data...))
		last := len(s.queue) - 1
		switch {
		case op == opClose:
			s.by, s.code = byLibrary, websocket.StatusNoStatusRcvd
			if len(data) >= 2 {
				s.code, s.reason = websocket.StatusCode(binary.BigEndian.Uint16(data)), string(data[2:])
			}
			s.push(f)
			s.hub.pulse.awaitClose(s)
		case last >= 0 && s.queue[last].op == opPong && (last > 0 || s.offset == 0):
			// Only the newest ping need be answered: a flood of them leaves one pong.
			s.queued += f.plain.len() - s.queue[last].plain.len()
			s.queue[last] = f
		default:
			s.push(f)
		}
		kick = s.kick()
	}
	s.mu.Unlock()
	if kick {
		s.hub.writers.push(s)
	}
}

// push queues a frame whatever the limits say.
func (s *socket) push(f *frame) {
	s.queue = append(s.queue, f)
	s.queued += f.plain.len()
}

// kick marks the socket as being with the writers, if it can be and is not yet.
func (s *socket) kick() bool {
	if s.state == pending || s.state == claimed || s.conn == nil || s.writing {
		return false
	}
	s.writing = true
	return true
}

// dropQueue forgets what is queued, except the rest of a frame that is half written.
func (s *socket) dropQueue() {
	if s.offset == 0 {
		s.queue, s.queued = nil, 0
		return
	}
	s.queue = append([]*frame(nil), s.queue[0])
	s.queued = s.queue[0].plain.len()
}

// take moves bytes from the queue to p, and returns how many bytes and how many frames
// ended in them. With none, the writer is rid of the socket.
func (s *socket) take(p []byte) (n, total int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	frames := 0
	for frames < len(s.queue) && n < len(p) {
		f := s.queue[frames]
		e := &f.plain
		if s.deflate && s.compresses(f) {
			s.queue = shift(s.queue, frames) // the queue may be dropped while we do not hold it
			total += frames
			frames = 0
			s.mu.Unlock()
			e = f.compressed(&s.hub.press) // may take long, and all of the object's sockets wait for it
			s.mu.Lock()
			if len(s.queue) == 0 || s.queue[0] != f {
				continue
			}
		}
		m := e.copyAt(p[n:], s.offset)
		n += m
		s.offset += m
		if s.offset < e.len() {
			break
		}
		s.offset = 0
		s.queued -= f.plain.len()
		frames++
	}
	s.queue = shift(s.queue, frames)
	if n == 0 {
		s.writing = false
		if s.done {
			s.conn.Close()
		}
	}
	return n, total + frames
}

func (s *socket) compresses(f *frame) bool {
	return f.op < opClose && len(f.plain.data) >= s.hub.cfg.CompressBytes
}

// idle is take when there is nothing: it reports whether the writer is rid of the socket.
func (s *socket) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) > 0 {
		return false
	}
	s.writing = false
	if s.done {
		s.conn.Close()
	}
	return true
}

// finished tells that the reader needs the connection no more: it is closed when all
// that is queued has been written. If nobody said goodbye, nobody is there to read it.
func (s *socket) finished() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = true
	if s.by == byNobody || !s.writing && len(s.queue) == 0 {
		s.conn.Close()
	}
}

// cut closes the connection at once. The reader finds out.
func (s *socket) cut() {
	if s.abandon() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		s.cutEarly = true
		return
	}
	s.conn.Close()
}

// broken tells that a write failed: nothing can follow it, and the reader finds out. If
// the client took too long, the object learns the same as if its queue had been full.
func (s *socket) broken(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == byNobody && errors.Is(err, os.ErrDeadlineExceeded) {
		s.hub.metrics.overflows.Inc()
		s.by, s.code, s.reason = byGateway, websocket.StatusPolicyViolation, tooSlow
	}
	s.queue, s.queued, s.offset = nil, 0, 0
	s.state = closed // for the queue: finish is still to come
	s.writing = false
	s.conn.Close()
}

// shift drops the first n of a queue, and keeps its memory while it is small.
func shift(queue []*frame, n int) []*frame {
	if n == len(queue) {
		if cap(queue) > 16 {
			return nil
		}
		clear(queue)
		return queue[:0]
	}
	clear(queue[:n])
	return queue[n:]
}

// validCode reports whether a close frame may carry code.
func validCode(code websocket.StatusCode) bool {
	switch code {
	case 1004, websocket.StatusNoStatusRcvd, websocket.StatusAbnormalClosure:
		return false
	}
	return code >= 1000 && code <= 1014 || code >= 3000 && code <= 4999
}

// shorten cuts a reason to what a close frame can hold.
func shorten(reason string) string {
	if len(reason) <= host.MaxCloseReasonBytes {
		return reason
	}
	n := host.MaxCloseReasonBytes
	for n > 0 && !utf8.RuneStart(reason[n]) {
		n--
	}
	return reason[:n]
}
