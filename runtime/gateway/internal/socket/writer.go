package socket

import (
	"sync"
	"syscall"
	"time"
)

const (
	// writeBytes is the most that is written to a socket in one system call.
	writeBytes = 64 << 10
	// claimSockets is how many sockets a writer takes from the list at once.
	claimSockets = 32
)

// writers write what sockets have queued. A few goroutines serve all sockets of the
// node, since a write that does not wait is over in microseconds. A socket whose client
// is slow gets a goroutine of its own until its queue is empty.
type writers struct {
	hub *Hub
	wg  sync.WaitGroup

	mu      sync.Mutex // guards the following
	cond    sync.Cond
	ready   []*socket
	head    int
	idle    int
	stopped bool
	slow    map[*socket]struct{}
}

func (w *writers) init(h *Hub) {
	w.hub = h
	w.cond.L = &w.mu
	w.slow = make(map[*socket]struct{})
}

func (w *writers) start() {
	for range w.hub.cfg.Writers {
		w.wg.Go(w.run)
	}
}

// stop lets the writers finish what is ready, and cuts the slow connections.
func (w *writers) stop() {
	w.mu.Lock()
	w.stopped = true
	w.cond.Broadcast()
	for s := range w.slow {
		s.cut()
	}
	w.mu.Unlock()
	w.wg.Wait()
}

// push adds sockets that have something to write. After stop it does nothing.
func (w *writers) push(s ...*socket) {
	if len(s) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	w.ready = append(w.ready, s...)
	for range min(w.idle, (len(s)+claimSockets-1)/claimSockets) {
		w.cond.Signal()
	}
}

// pull takes the next sockets, or waits for them. It returns none once stopped.
func (w *writers) pull(claim *[claimSockets]*socket) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.head == len(w.ready) {
		if w.stopped {
			return 0
		}
		w.idle++
		w.cond.Wait()
		w.idle--
	}
	n := copy(claim[:], w.ready[w.head:])
	clear(w.ready[w.head : w.head+n])
	w.head += n
	if w.head == len(w.ready) {
		w.ready, w.head = w.ready[:0], 0
	} else if w.head > 4096 && w.head > len(w.ready)/2 {
		m := copy(w.ready, w.ready[w.head:])
		clear(w.ready[m:])
		w.ready, w.head = w.ready[:m], 0
	}
	return n
}

// run is the life of one writer.
func (w *writers) run() {
	var claim [claimSockets]*socket
	var attempt attempt
	attempt.bind()
	buffer := make([]byte, writeBytes)
	for {
		n := w.pull(&claim)
		if n == 0 {
			return
		}
		for i, s := range claim[:n] {
			w.write(s, buffer, &attempt)
			claim[i] = nil
		}
	}
}

// write writes what a socket has queued, up to one buffer, without waiting.
func (w *writers) write(s *socket, buffer []byte, a *attempt) {
	n, frames := s.take(buffer)
	if n == 0 {
		return
	}
	if s.raw == nil {
		w.slowly(s, append([]byte(nil), buffer[:n]...))
		return
	}
	m, err := a.write(s.raw, buffer[:n])
	if err != nil {
		s.broken(err)
		return
	}
	w.count(n, frames)
	switch {
	case m < n:
		w.hub.metrics.slowWriters.Inc()
		w.slowly(s, append([]byte(nil), buffer[m:n]...))
	case !s.idle():
		w.requeue(s)
	}
}

// requeue is push for a writer: it will come by again, even when it is to stop.
func (w *writers) requeue(s *socket) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ready = append(w.ready, s)
}

func (w *writers) count(n, frames int) {
	m := w.hub.metrics
	m.writes.Inc()
	m.out.Add(float64(frames))
	m.outBytes.Add(float64(n))
}

// slowly gives a socket a goroutine of its own. It begins with rest.
func (w *writers) slowly(s *socket, rest []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slow[s] = struct{}{}
	w.wg.Go(func() { // called by a writer, which stop waits for, too
		defer func() {
			w.mu.Lock()
			delete(w.slow, s)
			w.mu.Unlock()
		}()
		w.writeSlowly(s, rest)
	})
	if w.stopped {
		s.cut()
	}
}

func (w *writers) writeSlowly(s *socket, rest []byte) {
	for {
		err := s.conn.SetWriteDeadline(time.Now().Add(w.hub.cfg.WriteTimeout))
		if err == nil {
			_, err = s.conn.Write(rest)
		}
		if err == nil {
			err = s.conn.SetWriteDeadline(time.Time{})
		}
		if err != nil {
			s.broken(err)
			return
		}
		if cap(rest) < writeBytes {
			rest = make([]byte, writeBytes)
		}
		n, frames := s.take(rest[:cap(rest)])
		if n == 0 {
			return
		}
		w.count(n, frames)
		rest = rest[:n]
	}
}

// An attempt writes to a file descriptor without waiting. It is used again and again,
// so that a write allocates nothing.
type attempt struct {
	data []byte
	n    int
	err  error
	try  func(fd uintptr) bool
}

func (a *attempt) bind() {
	a.try = func(fd uintptr) bool {
		a.n, a.err = writeRaw(fd, a.data)
		return true // done, however much it was
	}
}

func (a *attempt) write(raw syscall.RawConn, data []byte) (int, error) {
	a.data, a.n, a.err = data, 0, nil
	err := raw.Write(a.try)
	a.data = nil
	if err == nil {
		err = a.err
	}
	return a.n, err
}
