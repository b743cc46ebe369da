//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const roomMembers = 500

// room measures fan-out: a chat room whose messages are stored before they are
// sent, and a counter's watchers, for which nothing but the number is.
func room(ctx context.Context, b *bench) error {
	return b.with(ctx, []string{bareSocket}, func(node *server, ys []*server) error {
		chat := func(s *server) fanOut {
			return fanOut{
				server:  s,
				path:    func(i int) string { return fmt.Sprintf("/objects/chatroom/bench/websocket?name=member-%d", i) },
				publish: say,
				counts:  func(m []byte) bool { return bytes.Contains(m, []byte(stamp)) },
			}
		}
		watch := func(s *server) fanOut {
			return fanOut{
				server:  s,
				path:    func(int) string { return "/objects/counter/bench/watch" },
				publish: incrementOver,
				counts:  func([]byte) bool { return true },
			}
		}
		if err := b.compareFanOut(ctx, "room/history", chat(node), chat(ys[0])); err != nil {
			return err
		}
		return b.compareFanOut(ctx, "room/no-history", watch(node), watch(ys[0]))
	})
}

// idleSockets opens one socket on each of many objects, lets the objects fall
// asleep, and measures what is left.
func idleSockets(ctx context.Context, b *bench) error {
	return b.with(ctx, nil, func(node *server, _ []*server) error {
		before, err := memoryOf(ctx, node)
		if err != nil {
			return err
		}
		sockets := make([]*socket, 0, b.sockets)
		defer func() {
			for _, s := range sockets {
				_ = s.Close()
			}
		}()
		for i := range b.sockets {
			s, err := dialSocket(ctx, node.addr, fmt.Sprintf("/objects/counter/idle-%d/watch", i))
			if err != nil {
				return err
			}
			sockets = append(sockets, s)
		}
		// The objects sleep after 10 s; the collector's own rhythm is two minutes.
		sleep(ctx, 3*time.Minute)
		after, err := memoryOf(ctx, node)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.out, "%-20s %-16s %6.1f KiB live, %6.1f KiB resident per idle socket (%d of them, %d MB resident)\n", "idle-sockets", node.name,
			float64(after.live-before.live)/float64(b.sockets)/1024, float64(after.resident-before.resident)/float64(b.sockets)/1024, b.sockets, after.resident>>20)
		return ctx.Err()
	})
}

// memory is what a node holds: what is reachable or a stack by the runtime's own
// account, and what the kernel says.
type memory struct{ live, resident int64 }

func memoryOf(ctx context.Context, s *server) (memory, error) {
	metrics, err := get(ctx, "http://"+s.addr+"/metrics")
	if err != nil {
		return memory{}, err
	}
	m := memory{resident: s.resident()}
	for _, name := range []string{"go_gc_heap_live_bytes", "go_memstats_stack_inuse_bytes"} {
		_, rest, ok := bytes.Cut(metrics, []byte("\n"+name+" "))
		if !ok {
			return memory{}, fmt.Errorf("the node's metrics lack %s", name)
		}
		value, _, _ := bytes.Cut(rest, []byte("\n"))
		v, err := strconv.ParseFloat(string(value), 64)
		if err != nil {
			return memory{}, err
		}
		m.live += int64(v)
	}
	return m, nil
}

// A fanOut is a number of sockets that all get every message that one of them, or
// an HTTP client, publishes.
type fanOut struct {
	server  *server
	path    func(member int) string
	publish func(m *members, n int) error
	counts  func(message []byte) bool // whether a message is one of those published
}

// members is the client side of a fanOut while it runs.
type members struct {
	sockets   []*socket
	posts     chan []byte // requests for the HTTP clients to send
	delivered atomic.Int64
	lost      atomic.Pointer[error]
	latency   histogram // as seen by the first member; owned by its reader
	measuring atomic.Bool
	wg        sync.WaitGroup
}

func (b *bench) compareFanOut(ctx context.Context, label string, node, yardstick fanOut) error {
	fans := []fanOut{node, yardstick}
	joined := make([]*members, len(fans))
	for i, f := range fans {
		m, err := f.join(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", f.server.name, err)
		}
		defer m.leave()
		joined[i] = m
	}
	turns := make([][]*sample, len(fans))
	for round := range b.rounds + 1 {
		for i, f := range fans {
			profiled := b.profileOf(ctx, f.server, fmt.Sprintf("%s-%d", label, round))
			s, err := f.run(ctx, joined[i], b.turn)
			profiled()
			if err != nil {
				return fmt.Errorf("%s: %w", f.server.name, err)
			}
			if round > 0 { // the first turn warms up
				turns[i] = append(turns[i], s)
			}
		}
	}
	for i, f := range fans {
		ratios := make([]float64, b.rounds)
		for round := range ratios {
			ratios[round] = float64(turns[i][round].cpuPerOp()) / float64(turns[1][round].cpuPerOp())
		}
		b.report(label, f.server.name, turns[i], 0)
		if i == 0 {
			fmt.Fprintf(b.out, "%-20s %-16s %.0f %% of the CPU time per delivered message of %s\n", label, f.server.name, 100*median(ratios), yardstick.server.name)
		}
	}
	return nil
}

func (f fanOut) join(ctx context.Context) (*members, error) {
	m := &members{posts: make(chan []byte)}
	for i := range roomMembers {
		s, err := dialSocket(ctx, f.server.addr, f.path(i))
		if err != nil {
			m.leave()
			return nil, err
		}
		m.sockets = append(m.sockets, s)
		m.wg.Go(func() { m.read(i, s, f.counts) })
	}
	for range publishers {
		c, err := dialHTTP(ctx, f.server.addr)
		if err != nil {
			m.leave()
			return nil, err
		}
		m.wg.Go(func() { m.post(c) })
	}
	return m, nil
}

// publishers are the HTTP clients that publish where no member does.
const publishers = 16

// post sends requests until there are no more.
func (m *members) post(c *httpConn) {
	defer c.Close()
	for request := range m.posts {
		if _, err := c.do(request); err != nil {
			m.lost.CompareAndSwap(nil, &err)
		}
	}
}

func (m *members) leave() {
	for _, s := range m.sockets {
		_ = s.Close()
	}
	close(m.posts)
	m.wg.Wait()
}

// run publishes messages in turn from all members, with a few under way at a time,
// until d has passed and all of them have arrived everywhere.
func (f fanOut) run(ctx context.Context, m *members, d time.Duration) (*sample, error) {
	const window = 16
	m.latency = histogram{}
	m.measuring.Store(true)
	defer m.measuring.Store(false)
	before, cpu, start := m.delivered.Load(), f.server.cpu(), time.Now()
	arrived := func() int64 { return m.delivered.Load() - before }
	published := 0
	for time.Since(start) < d {
		if int64(published)-arrived()/roomMembers >= window {
			time.Sleep(100 * time.Microsecond)
		} else {
			if err := f.publish(m, published); err != nil {
				return nil, err
			}
			published++
		}
		if err := m.failure(ctx); err != nil {
			return nil, err
		}
	}
	for deadline := time.Now().Add(10 * time.Second); arrived() < int64(published)*roomMembers; {
		if err := m.failure(ctx); err != nil {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("of %d messages to %d members only %d arrived", published, roomMembers, arrived())
		}
		time.Sleep(100 * time.Microsecond)
	}
	return &sample{ops: uint64(arrived()), elapsed: time.Since(start), cpu: f.server.cpu() - cpu, latency: m.latency}, nil
}

func (m *members) failure(ctx context.Context) error {
	if err := m.lost.Load(); err != nil {
		return *err
	}
	return ctx.Err()
}

func (m *members) read(i int, s *socket, counts func([]byte) bool) {
	for {
		message, err := s.read()
		if err != nil {
			err = fmt.Errorf("member %d: %w", i, err)
			m.lost.CompareAndSwap(nil, &err)
			return
		}
		if !counts(message) {
			continue
		}
		if sent, ok := stamped(message); ok && i == 0 && m.measuring.Load() {
			m.latency.record(time.Since(sent))
		}
		m.delivered.Add(1)
	}
}

// stamp precedes the time at which a message was sent, in microseconds.
const stamp = "sent="

// say posts a chat message. The members take turns, as people do: each has a rate
// limit of its own.
func say(m *members, n int) error {
	return m.sockets[n%len(m.sockets)].write(fmt.Appendf(nil, `{"type":"message","text":"%s%d the quick brown fox jumps over the lazy dog"}`, stamp, time.Now().UnixMicro()))
}

func incrementOver(m *members, _ int) error {
	m.posts <- increment("bench")
	return nil
}

// stamped returns when a message was sent, if it says so.
func stamped(message []byte) (time.Time, bool) {
	_, rest, ok := bytes.Cut(message, []byte(stamp))
	if !ok {
		return time.Time{}, false
	}
	digits, _, _ := bytes.Cut(rest, []byte(" "))
	sent, err := strconv.ParseInt(string(digits), 10, 64)
	return time.UnixMicro(sent), err == nil
}

// A socket is the client's end of a WebSocket: it reads frames that are not
// fragmented, and answers pings.
type socket struct {
	httpConn
	start   int // of the unread bytes in buf
	writing sync.Mutex
}

func dialSocket(ctx context.Context, addr, path string) (*socket, error) {
	c, err := dialHTTP(ctx, addr)
	if err != nil {
		return nil, err
	}
	s := &socket{httpConn: *c}
	s.buf = make([]byte, 4<<10)
	_, err = c.Write([]byte("GET " + path + " HTTP/1.1\r\nHost: " + addr + "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"))
	if err == nil {
		s.start, err = s.head()
	}
	if err == nil && !bytes.HasPrefix(s.buf[:s.have], []byte("HTTP/1.1 101")) {
		err = fmt.Errorf("%s was not upgraded: %q", path, s.buf[:s.have])
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return s, nil
}

// read returns the next message; it is valid until the next call.
func (s *socket) read() ([]byte, error) {
	for {
		opcode, payload, err := s.frame()
		if err != nil {
			return nil, err
		}
		switch opcode {
		case 1, 2:
			return payload, nil
		case 8:
			if len(payload) < 2 {
				return nil, io.EOF
			}
			return nil, fmt.Errorf("the server closed the socket with %d %s", binary.BigEndian.Uint16(payload), payload[2:])
		case 9:
			if err := s.send(0x8a, payload); err != nil {
				return nil, err
			}
		}
	}
}

func (s *socket) frame() (opcode byte, payload []byte, err error) {
	if err := s.need(2); err != nil {
		return 0, nil, err
	}
	opcode, header, length := s.buf[s.start]&0x0f, 2, int(s.buf[s.start+1]&0x7f)
	switch length {
	case 126:
		header = 4
		if err := s.need(header); err != nil {
			return 0, nil, err
		}
		length = int(binary.BigEndian.Uint16(s.buf[s.start+2:]))
	case 127:
		return 0, nil, errors.New("a frame is longer than any that was published")
	}
	if err := s.need(header + length); err != nil {
		return 0, nil, err
	}
	payload = s.buf[s.start+header : s.start+header+length]
	s.start += header + length
	return opcode, payload, nil
}

// need makes at least n unread bytes available in buf.
func (s *socket) need(n int) error {
	for s.have-s.start < n {
		if s.start > 0 {
			s.have = copy(s.buf, s.buf[s.start:s.have])
			s.start = 0
		}
		if n > len(s.buf) {
			s.buf = append(s.buf, make([]byte, n)...)
		}
		if err := s.fill(); err != nil {
			return err
		}
	}
	return nil
}

func (s *socket) write(message []byte) error { return s.send(0x81, message) }

// send writes one frame. A client must mask; a key of zeros is a key, too, and
// leaves the payload as it is.
func (s *socket) send(first byte, payload []byte) error {
	frame := append(make([]byte, 0, len(payload)+8), first, 0x80|byte(min(len(payload), 126)))
	if len(payload) >= 126 {
		frame = binary.BigEndian.AppendUint16(frame, uint16(len(payload)))
	}
	frame = append(frame, 0, 0, 0, 0)
	s.writing.Lock()
	defer s.writing.Unlock()
	_, err := s.Write(append(frame, payload...))
	if errors.Is(err, syscall.EPIPE) {
		return io.ErrClosedPipe
	}
	return err
}
