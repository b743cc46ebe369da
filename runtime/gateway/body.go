package gateway

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// bufferBody reads r's body into memory if it is short enough. Otherwise it stays one
// that is bounded in length and patience.
func (g *Gateway) bufferBody(a *answer, r *http.Request) error {
	b, ok := r.Body.(*body)
	if !ok || r.ContentLength > int64(g.cfg.BufferBytes) {
		return nil
	}
	if r.ContentLength >= 0 {
		data, err := g.collect(a, b, r.ContentLength)
		r.Body = newReadyBody(data)
		return err
	}
	head, err := g.collect(a, io.LimitReader(b, int64(g.cfg.BufferBytes)+1), -1)
	if err != nil {
		return err
	}
	if len(head) > g.cfg.BufferBytes {
		r.Body = &prefixedBody{head: head, body: b}
		return nil
	}
	r.Body, r.ContentLength, r.TransferEncoding = newReadyBody(head), int64(len(head)), nil
	return nil
}

// readAll reads a whole body of at most limit bytes.
func (g *Gateway) readAll(a *answer, r *http.Request, limit int64) ([]byte, error) {
	b, ok := r.Body.(*body)
	if !ok {
		return nil, nil
	}
	b.left, b.limit = limit, limit
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	return g.collect(a, b, r.ContentLength)
}

// freeBytes of a body are what a connection may have without being counted.
const freeBytes = 16 << 10

// collect reads a body to its end, which is known to come after size bytes or is not, if size is
// negative. Memory is taken as bytes come, whatever was promised, and never more than the node has for
// the bodies of all its clients. It is given back when the request has been answered.
func (g *Gateway) collect(a *answer, from io.Reader, size int64) ([]byte, error) {
	first := int64(freeBytes)
	if size >= 0 {
		first = min(first, size)
	}
	data := make([]byte, 0, first)
	for size < 0 || int64(len(data)) < size {
		if len(data) == cap(data) {
			bigger := 2 * int64(cap(data))
			if size >= 0 {
				bigger = min(bigger, size)
			}
			if err := g.hold(a, bigger); err != nil {
				return nil, err
			}
			data = append(make([]byte, 0, bigger), data...)
		}
		n, err := from.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		switch {
		case err == io.EOF && (size < 0 || int64(len(data)) == size):
			return data, nil
		case err == io.EOF:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
	}
	if b, ok := from.(*body); ok {
		b.settle()
	}
	return data, nil
}

// hold counts memory for a request's body, all that it has by now.
func (g *Gateway) hold(a *answer, bytes int64) error {
	more := bytes - a.held
	a.held = bytes
	if g.held.Add(more) <= g.cfg.BodiesBytes {
		return nil
	}
	e := host.Errorf(host.CodeOverloaded, "this node receives too many large bodies at once")
	e.Overloaded = true
	return e
}

func tooLarge(limit int64) error {
	return host.Errorf(host.CodeTooLarge, "the body is larger than %d bytes", limit)
}

// A body is a request's body with a limit in bytes and one in time: the client has
// patience, plus perByte for each byte it sent, to be spent while somebody waits for it.
type body struct {
	from     io.ReadCloser
	w        http.ResponseWriter
	left     int64
	limit    int64
	patience time.Duration
	perByte  time.Duration
	armed    time.Time // when the read deadline was set; zero if there is none
	err      error
}

func (g *Gateway) newBody(w http.ResponseWriter, from io.ReadCloser) *body {
	b := &body{
		from:     from,
		w:        w,
		left:     g.cfg.MaxBodyBytes,
		limit:    g.cfg.MaxBodyBytes,
		patience: g.cfg.BodyTimeout,
		perByte:  time.Second / time.Duration(g.cfg.MinBodyRate),
	}
	b.arm(time.Now())
	return b
}

// arm starts the clock. Not every writer has a connection under it (httptest's has
// none): then there is no clock.
func (b *body) arm(now time.Time) {
	if http.NewResponseController(b.w).SetReadDeadline(now.Add(b.patience)) == nil {
		b.armed = now
	}
}

// settle stops the clock. If it went on, net/http would take a client that just waits
// for its answer for one that has left.
func (b *body) settle() {
	if !b.armed.IsZero() {
		b.armed = time.Time{}
		_ = http.NewResponseController(b.w).SetReadDeadline(time.Time{})
	}
}

// Read reads from the client. A deadline is dear, so one that is about right is kept.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	start := time.Now()
	if start.Sub(b.armed) > b.patience/8 {
		b.arm(start)
	}
	n, err := b.from.Read(p)
	b.patience += time.Duration(n)*b.perByte - time.Since(start)
	b.left -= int64(n)
	switch {
	case b.left < 0:
		b.err = tooLarge(b.limit)
		n += int(b.left) // not a byte beyond the limit
	case err == io.EOF:
		b.err = io.EOF
		b.settle()
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.err = host.Errorf(codeTimeout, "the body came too slowly")
	case err != nil:
		b.err = host.Errorf(host.CodeBadRequest, "the body is malformed or ended early").Because(err)
	}
	return n, b.err
}

func (b *body) Close() error { return b.from.Close() }

// A readyBody is a body in memory.
type readyBody struct{ bytes.Reader }

func newReadyBody(data []byte) *readyBody {
	b := &readyBody{}
	b.Reset(data)
	return b
}

// Close implements [io.Closer].
func (*readyBody) Close() error { return nil }

// A prefixedBody is a body whose head has been read already.
type prefixedBody struct {
	head []byte
	body *body
}

func (b *prefixedBody) Read(p []byte) (int, error) {
	if len(b.head) > 0 {
		n := copy(p, b.head)
		b.head = b.head[n:]
		return n, nil
	}
	return b.body.Read(p)
}

func (b *prefixedBody) Close() error { return b.body.Close() }
