package socket

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
)

// A wire is the connection as coder/websocket sees it. Reads go to the client; writes,
// which are control frames only, go to the socket's queue; Close means that the library
// is done.
type wire struct {
	net.Conn
	socket *socket
	early  []byte // read by net/http before the handshake
	err    error  // of Read: tells a broken connection from a broken protocol; the reader's own
}

func (w *wire) Read(p []byte) (int, error) {
	if len(w.early) > 0 {
		n := copy(p, w.early)
		if w.early = w.early[n:]; len(w.early) == 0 {
			w.early = nil
		}
		return n, nil
	}
	n, err := w.Conn.Read(p)
	if n > 0 && !w.socket.heard.Load() {
		w.socket.heard.Store(true)
	}
	if err != nil {
		w.err = err
	}
	return n, err
}

// Write queues one control frame. The library buffers a whole one before it writes.
func (w *wire) Write(p []byte) (int, error) {
	if len(p) < 2 || p[0]&finBit == 0 || len(p) != 2+int(p[1]) {
		return 0, fmt.Errorf("write %d bytes to a WebSocket: not one control frame", len(p))
	}
	w.socket.control(p[0]&0xf, p[2:])
	return len(p), nil
}

func (w *wire) Close() error {
	w.socket.finished()
	return nil
}

// Sizes of the library's buffers for one connection. A control frame is at most 127
// bytes; messages beyond the read buffer are read past it.
const (
	readBufferBytes  = 512
	writeBufferBytes = 128
)

// A hijacker gives the library our wire instead of the connection, and small buffers
// instead of net/http's.
type hijacker struct {
	http.ResponseWriter
	wire *wire
}

// Hijack implements [http.Hijacker].
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.wire.Conn = c
	if n := rw.Reader.Buffered(); n > 0 {
		h.wire.early = make([]byte, n)
		_, _ = io.ReadFull(rw.Reader, h.wire.early) // it is buffered
	}
	return h.wire, bufio.NewReadWriter(bufio.NewReaderSize(h.wire, readBufferBytes), bufio.NewWriterSize(h.wire, writeBufferBytes)), nil
}

// rawConn returns the means to write to c without waiting, or nil.
func rawConn(c net.Conn) syscall.RawConn {
	for {
		if sc, ok := c.(syscall.Conn); ok && canWriteRaw {
			raw, err := sc.SyscallConn()
			if err != nil {
				return nil
			}
			return raw
		}
		// Not NetConn, which a tls.Conn has, too.
		u, ok := c.(interface{ Unwrap() net.Conn })
		if !ok {
			return nil
		}
		c = u.Unwrap()
	}
}
