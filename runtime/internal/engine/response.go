package engine

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// Serve runs a fetch event. If it returns nil and the zero Upgrade, the response has
// been written to w; with a socket, nothing has but what the handler set in its header, and
// the gateway makes the handshake.
// On an error nothing has been written, unless the error is [http.ErrAbortHandler]: then
// the response was under way and the connection must be broken off.
func (e *Engine) Serve(ctx context.Context, to host.Ref, w http.ResponseWriter, r *http.Request) (host.Upgrade, error) {
	return e.serve(ctx, to, w, r, isUpgrade(r), nil)
}

// Fetch is Serve without WebSockets.
func (e *Engine) Fetch(ctx context.Context, to host.Ref, w http.ResponseWriter, r *http.Request) error {
	_, err := e.serve(ctx, to, w, r, false, nil)
	return err
}

func (e *Engine) serve(ctx context.Context, to host.Ref, w http.ResponseWriter, r *http.Request, upgradable bool, left func(error)) (host.Upgrade, error) {
	if info, ok := e.Class(to.Class); ok && !info.Fetch {
		return host.Upgrade{}, host.Errorf(host.CodeUnknownMethod, "class %q does not answer HTTP requests", to.Class)
	}
	f := &struct {
		event
		host.Fetch
		response
	}{}
	f.response.w, f.response.upgradable, f.response.limit = w, upgradable, e.cfg.ResponseBuffer
	f.Fetch = host.Fetch{W: &f.response, R: r}
	size := eventOverhead
	if r.ContentLength > 0 {
		size += int(min(r.ContentLength, 1<<20))
	}
	f.event = event{kind: kindFetch, ctx: ctx, to: to, what: &f.Fetch, size: size, resp: &f.response, left: left, called: left != nil}
	err := e.do(ctx, to, &f.event)
	if err != nil {
		if f.response.detach() {
			return host.Upgrade{}, errors.Join(http.ErrAbortHandler, err)
		}
		return host.Upgrade{}, err
	}
	if up := f.response.turn.upgrade; up.Socket != 0 {
		f.response.handOver()
		return up, nil
	}
	return host.Upgrade{}, f.response.complete()
}

func isUpgrade(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// A response is the http.ResponseWriter that an object writes to. It keeps what is
// written until the event is durable. A response that is flushed, or outgrows its
// buffer, goes out in chunks, each of which waits at the gate.
//
// Its handler may run on another goroutine than the one that serves the connection.
// That one may go away first; then the response is detached and takes nothing more.
type response struct {
	turn       *turn
	limit      int
	upgradable bool
	inline     bool // the handler runs on the goroutine that serves the connection

	mu        sync.Mutex
	w         http.ResponseWriter // nil if detached
	header    http.Header         // the handler's own, if not inline
	status    int
	body      []byte
	streaming bool // the head has been written to w
}

// Header returns the header to be sent. A handler on the connection's own goroutine
// gets the connection's, for speed: nobody else can touch it while the handler runs.
func (r *response) Header() http.Header {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inline && r.w != nil {
		return r.w.Header()
	}
	if r.header == nil {
		r.header = make(http.Header)
	}
	return r.header
}

func (r *response) WriteHeader(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status == 0 && status >= 200 {
		r.status = status
	}
}

func (r *response) Write(p []byte) (int, error) {
	r.mu.Lock()
	if r.w == nil {
		r.mu.Unlock()
		return 0, context.Canceled
	}
	if r.status == 0 {
		r.status = http.StatusOK
	}
	if len(r.body)+len(p) <= r.limit {
		r.body = append(r.body, p...)
		r.mu.Unlock()
		return len(p), nil
	}
	r.mu.Unlock()
	if err := r.flush(); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.w == nil {
		return 0, context.Canceled
	}
	return r.w.Write(p)
}

// WriteString is Write.
func (r *response) WriteString(s string) (int, error) { return r.Write([]byte(s)) }

// FlushError sends what has been written. It is a commit point.
func (r *response) FlushError() error {
	if err := r.flush(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.w == nil {
		return context.Canceled
	}
	return http.NewResponseController(r.w).Flush()
}

// Flush is FlushError for those who know only [http.Flusher].
func (r *response) Flush() { _ = r.FlushError() }

// flush lets what was written so far leave, through the gate.
func (r *response) flush() error {
	t := r.turn
	if t.upgrade.Socket != 0 {
		return host.Errorf(host.CodeBadRequest, "the request has been answered with a WebSocket")
	}
	if !t.outside { // inside Outside the gate has been passed
		if err := t.passGate(t.ev.ctx); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.w == nil {
		return context.Canceled
	}
	if !r.streaming {
		// The handler may go on reading the request while it answers.
		_ = http.NewResponseController(r.w).EnableFullDuplex()
	}
	return r.send()
}

// send writes the head, if it has not been written, and the body so far. The caller
// holds mu.
func (r *response) send() error {
	if !r.streaming {
		r.streaming = true
		head := r.w.Header()
		for k, v := range r.header {
			head[k] = v
		}
		if r.status == 0 {
			r.status = http.StatusOK
		}
		r.w.WriteHeader(r.status)
	}
	body := r.body
	r.body = r.body[:0]
	if len(body) == 0 {
		return nil
	}
	_, err := r.w.Write(body)
	return err
}

// complete writes what the gate has let go. The handler has ended.
func (r *response) complete() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.streaming && len(r.body) > 2048 { // net/http counts shorter ones itself
		head := r.w.Header()
		if r.header != nil {
			head = r.header
		}
		if head.Get("Content-Length") == "" && r.status != http.StatusNoContent && r.status != http.StatusNotModified {
			head.Set("Content-Length", strconv.Itoa(len(r.body)))
		}
	}
	if r.send() != nil {
		return http.ErrAbortHandler // the client has gone
	}
	return nil
}

// handOver leaves what the handler set in the header to the answer of a handshake, except
// for what is the handshake's own, or between two neighbours.
func (r *response) handOver() {
	r.mu.Lock()
	defer r.mu.Unlock()
	head := r.w.Header()
	maps.Copy(head, r.header)
	for name := range head {
		if strings.HasPrefix(name, "Sec-Websocket-") || handshakeOnly[name] {
			delete(head, name)
		}
	}
}

var handshakeOnly = map[string]bool{
	"Connection": true, "Upgrade": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true, "Trailer": true,
	"Transfer-Encoding": true, "Content-Length": true,
}

// detach takes the connection away from the handler, and reports whether part of the
// response has been sent.
func (r *response) detach() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.w != nil && r.inline && !r.streaming {
		clear(r.w.Header())
	}
	r.w = nil
	return r.streaming
}

// begun reports whether the handler has written anything.
func (r *response) begun() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.streaming || len(r.body) > 0
}
