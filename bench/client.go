//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// The load shares its two cores with what it measures, so it is as cheap as it can
// be made: requests are bytes prepared beforehand, and of a response it reads the
// status, the length and nothing else.

// A load is a closed loop: every connection sends a request, waits for its answer
// and sends the next one.
type load struct {
	conns    int
	requests [][]byte // each connection walks through all of them from a place of its own
}

// A sample is what one turn of a load measured.
type sample struct {
	ops     uint64
	elapsed time.Duration
	latency histogram
	cpu     time.Duration // of the server
}

func (s *sample) rate() float64 { return float64(s.ops) / s.elapsed.Seconds() }

func (s *sample) cpuPerOp() time.Duration { return s.cpu / time.Duration(max(s.ops, 1)) }

// run applies the load to a server for a time.
func (l load) run(ctx context.Context, to *server, d time.Duration) (*sample, error) {
	conns := make([]*httpConn, l.conns)
	for i := range conns {
		c, err := dialHTTP(ctx, to.addr)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		conns[i] = c
	}
	var (
		stop      atomic.Bool
		wg        sync.WaitGroup
		latencies = make([]histogram, l.conns)
		errs      = make([]error, l.conns)
	)
	cpu, start := to.cpu(), time.Now()
	for i, c := range conns {
		wg.Go(func() {
			errs[i] = l.walk(c, i*len(l.requests)/l.conns, &stop, &latencies[i])
			if errs[i] != nil {
				stop.Store(true)
			}
		})
	}
	sleepUntil(ctx, d, &stop)
	stop.Store(true)
	wg.Wait()
	s := &sample{elapsed: time.Since(start), cpu: to.cpu() - cpu}
	for i := range latencies {
		s.latency.merge(&latencies[i])
	}
	s.ops = s.latency.total
	return s, errors.Join(append(errs, ctx.Err())...)
}

func (l load) walk(c *httpConn, next int, stop *atomic.Bool, latency *histogram) error {
	for !stop.Load() {
		start := time.Now()
		if _, err := c.do(l.requests[next]); err != nil {
			return err
		}
		latency.record(time.Since(start))
		if next++; next == len(l.requests) {
			next = 0
		}
	}
	return nil
}

// once sends every request exactly once, as fast as the connections allow.
func (l load) once(ctx context.Context, to *server) (*sample, error) {
	var (
		next      atomic.Int64
		wg        sync.WaitGroup
		latencies = make([]histogram, l.conns)
		errs      = make([]error, l.conns)
	)
	cpu, start := to.cpu(), time.Now()
	for i := range l.conns {
		wg.Go(func() {
			c, err := dialHTTP(ctx, to.addr)
			if err != nil {
				errs[i] = err
				return
			}
			defer c.Close()
			for ctx.Err() == nil && errs[i] == nil {
				n := next.Add(1) - 1
				if n >= int64(len(l.requests)) {
					return
				}
				start := time.Now()
				_, errs[i] = c.do(l.requests[n])
				latencies[i].record(time.Since(start))
			}
		})
	}
	wg.Wait()
	s := &sample{elapsed: time.Since(start), cpu: to.cpu() - cpu}
	for i := range latencies {
		s.latency.merge(&latencies[i])
	}
	s.ops = s.latency.total
	return s, errors.Join(append(errs, ctx.Err())...)
}

// sleepUntil waits for d, or until the load stopped by itself or ctx ended.
func sleepUntil(ctx context.Context, d time.Duration, stopped *atomic.Bool) {
	end := time.Now().Add(d)
	for !stopped.Load() && ctx.Err() == nil && time.Now().Before(end) {
		time.Sleep(min(50*time.Millisecond, time.Until(end)))
	}
}

// request returns the bytes of a request without a body.
func request(method, path string) []byte {
	length := ""
	if method == "POST" {
		length = "Content-Length: 0\r\n"
	}
	return []byte(method + " " + path + " HTTP/1.1\r\nHost: localhost\r\n" + length + "\r\n")
}

// An httpConn is one HTTP/1.1 connection with one request under way at a time.
type httpConn struct {
	net.Conn
	buf  []byte
	have int // bytes read into buf and not consumed
}

func dialHTTP(ctx context.Context, addr string) (*httpConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &httpConn{Conn: c, buf: make([]byte, 16<<10)}, nil
}

// do sends a request and returns the body of the answer, which is valid until the
// next call. Any status but 200 and 101 is an error.
func (c *httpConn) do(request []byte) ([]byte, error) {
	if _, err := c.Write(request); err != nil {
		return nil, err
	}
	head, err := c.head()
	if err != nil {
		return nil, err
	}
	length, err := contentLength(c.buf[:head])
	if err != nil {
		return nil, err
	}
	if need := head + length; need > len(c.buf) {
		c.buf = append(c.buf, make([]byte, need-len(c.buf))...)
	}
	for c.have < head+length {
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
	body := c.buf[head : head+length]
	if status := string(c.buf[9:12]); status != "200" {
		return nil, fmt.Errorf("%q was answered with status %s: %s", firstLine(request), status, body)
	}
	c.have = 0 // nothing follows an answer before the next request
	return body, nil
}

// head reads until the end of a response's header and returns its length.
func (c *httpConn) head() (int, error) {
	for {
		if end := bytes.Index(c.buf[:c.have], []byte("\r\n\r\n")); end >= 0 {
			return end + 4, nil
		}
		if c.have == len(c.buf) {
			return 0, errors.New("a response header is longer than the buffer")
		}
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
}

func (c *httpConn) fill() error {
	n, err := c.Read(c.buf[c.have:])
	c.have += n
	if n > 0 {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func contentLength(head []byte) (int, error) {
	const field = "\r\nContent-Length: "
	i := bytes.Index(head, []byte(field))
	if i < 0 {
		return 0, fmt.Errorf("the response has no Content-Length: %q", head)
	}
	value := head[i+len(field):]
	return strconv.Atoi(string(value[:bytes.IndexByte(value, '\r')]))
}

func firstLine(request []byte) []byte {
	line, _, _ := bytes.Cut(request, []byte("\r\n"))
	return line
}
