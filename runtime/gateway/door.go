package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/gateway/internal/socket"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// ServeHTTP is the gateway as a handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := &answer{ResponseWriter: w} // not pooled: somebody may hold on to it after a cancelled event
	defer g.release(a)
	defer g.done(a, r)
	g.serve(a, r)
}

// done counts a request, and turns a panic into an answer.
func (g *Gateway) done(a *answer, r *http.Request) {
	if p := recover(); p != nil {
		if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(p)
		}
		g.log.Error("panic in a request", slog.Any("panic", p), slog.String("method", r.Method), slog.String("stack", string(debug.Stack())))
		if a.status != 0 {
			panic(http.ErrAbortHandler)
		}
		a.fail(host.Errorf(host.CodeInternal, ""))
	}
	g.metrics.request(a.class, a.status)
	g.metrics.bytesOut.Add(float64(a.bytes))
}

// release gives back what a request's body took.
func (g *Gateway) release(a *answer) {
	if a.held > 0 {
		g.held.Add(-a.held)
	}
}

// serve decides what a request is for.
func (g *Gateway) serve(a *answer, r *http.Request) {
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		a.Header().Set("Connection", "close")
		a.fail(host.Errorf(codeMethodNotAllowed, "the method %s is not served here", r.Method))
		return
	}
	if len(r.TransferEncoding) > 0 {
		// A chunked request may have had a Content-Length as well; net/http hides it. Somebody
		// in front of us may believe the length, so nothing more is read from this connection.
		a.Header().Set("Connection", "close")
	}
	if r.Body != nil && r.Body != http.NoBody {
		// From here on nobody waits for a client for ever, not even net/http, which
		// reads what a handler left.
		r.Body = g.newBody(a.ResponseWriter, r.Body)
	}
	if !g.hosts.allow(r.Host) {
		a.fail(errForeignHost(r.Host))
		return
	}
	path := r.URL.EscapedPath()
	if route, ok := parseRoute(path); ok {
		if err := g.object(a, r, route); err != nil {
			g.fail(a, r, err)
		}
		return
	}
	switch path {
	case "/healthz":
		a.text(http.StatusOK, "ok\n")
	case "/readyz":
		if err := g.cfg.Ready(); err != nil {
			a.text(http.StatusServiceUnavailable, err.Error()+"\n")
			return
		}
		a.text(http.StatusOK, "ready\n")
	case "/metrics":
		g.cfg.Metrics.ServeHTTP(a, r)
	default:
		g.cfg.Other.ServeHTTP(a, r)
	}
}

// object serves a request under /objects/.
func (g *Gateway) object(a *answer, r *http.Request, to route) error {
	class, ok := g.to.Class(to.class)
	if !ok {
		return host.Errorf(host.CodeUnknownClass, "there is no class %q", to.class)
	}
	a.class = to.class
	if to.whole {
		return g.create(a, r, to.class)
	}
	ref, err := g.refs.ref(to.class, to.object)
	if err != nil {
		return err
	}
	if r.ContentLength > g.cfg.MaxBodyBytes {
		return tooLarge(g.cfg.MaxBodyBytes)
	}
	upgrade := isUpgrade(r)
	stripHeaders(r.Header, upgrade)
	if upgrade {
		if !class.Fetch {
			return host.Errorf(host.CodeUnknownMethod, "the class %q does not serve sockets", to.class)
		}
		return g.upgrade(a, r, ref, to.rest)
	}
	// A POST whose rest is just the name of a public method calls it; all else is Fetch's.
	if r.Method == http.MethodPost {
		if method := to.rest[1:]; class.Methods[method] {
			return g.call(a, r, ref, method)
		}
	}
	if !class.Fetch {
		return host.Errorf(host.CodeUnknownMethod, "the class %q has no such public method, and does not serve requests", to.class)
	}
	return g.fetch(a, r, ref, to.rest)
}

// create makes the ID of a new object; the object itself comes to be with its first write.
func (g *Gateway) create(a *answer, r *http.Request, class string) error {
	if r.Method != http.MethodPost {
		a.Header().Set("Allow", http.MethodPost)
		return host.Errorf(codeMethodNotAllowed, "POST here makes an object; name one to use it: /objects/%s/{name}", class)
	}
	if !g.origins.allow(r) {
		return errForeignOrigin()
	}
	a.json(http.StatusCreated, []byte(`{"id":"`+placement.UniqueID(class).String()+`"}`))
	return nil
}

// call runs a public method.
func (g *Gateway) call(a *answer, r *http.Request, to host.Ref, method string) error {
	if !g.origins.allow(r) {
		return errForeignOrigin()
	}
	args, err := g.readAll(a, r, min(g.cfg.MaxBodyBytes, host.MaxCallBytes))
	if err != nil {
		return err
	}
	if len(args) == 0 {
		args = []byte("null")
	} else if !json.Valid(args) {
		return host.Errorf(host.CodeBadRequest, "the body is not one JSON value")
	}
	reply, err := g.to.Call(r.Context(), to, method, args)
	if err != nil {
		return err
	}
	a.json(http.StatusOK, reply)
	return nil
}

// fetch hands a request to the object's Fetch.
func (g *Gateway) fetch(a *answer, r *http.Request, to host.Ref, rest string) error {
	inner := innerRequest(r, rest)
	if err := g.bufferBody(a, inner); err != nil {
		return err
	}
	up, err := g.to.Serve(r.Context(), to, a, inner)
	if err != nil {
		return err
	}
	if up.Socket != 0 {
		g.Hub.Abandon(to.ID, up.Socket)
		clear(a.Header())
		return host.Errorf(codeUpgradeRequired, "this is a WebSocket's address: the request must ask for an upgrade")
	}
	return nil
}

// upgrade runs the fetch event of a request for a WebSocket, and the handshake if the
// object accepted it. All that can be wrong with the request is found before the
// object is woken.
func (g *Gateway) upgrade(a *answer, r *http.Request, to host.Ref, rest string) error {
	if !g.origins.allow(r) {
		return errForeignOrigin()
	}
	if err := checkHandshake(r); err != nil {
		a.Header().Set("Sec-WebSocket-Version", "13")
		return err
	}
	if !g.Hub.HasRoom() {
		e := host.Errorf(host.CodeOverloaded, "this node has as many sockets as it can hold")
		e.Overloaded = true
		return e
	}
	up, err := g.to.Serve(r.Context(), to, a, innerRequest(r, rest))
	if err != nil {
		return err
	}
	if up.Socket == 0 {
		return nil // the object answered as HTTP
	}
	err = g.Hub.Adopt(a.ResponseWriter, r, to.ID, up)
	if errors.Is(err, socket.ErrNoSocket) {
		clear(a.Header())
		return host.Errorf(host.CodeUnavailable, "the socket was closed before its handshake")
	}
	a.status = http.StatusSwitchingProtocols
	if err != nil {
		g.log.Debug("WebSocket handshake", slog.String("class", to.Class), slog.String("object", to.ID.String()), slog.Any("error", err))
	}
	return nil
}

// innerRequest is the request as the object sees it: its path is what follows the
// object's name, and it has no authority of its own.
func innerRequest(r *http.Request, rest string) *http.Request {
	type both struct {
		r http.Request
		u url.URL
	}
	b := &both{u: url.URL{Path: rest, RawQuery: r.URL.RawQuery, ForceQuery: r.URL.ForceQuery}}
	if strings.Contains(rest, "%") {
		b.u.RawPath = rest
		b.u.Path, _ = url.PathUnescape(rest) // it was decoded before, as a part of the whole path
	}
	b.r = *r
	b.r.URL = &b.u
	return &b.r
}

// fail answers a request with an error, and logs those that are not the client's.
func (g *Gateway) fail(a *answer, r *http.Request, err error) {
	if errors.Is(err, http.ErrAbortHandler) {
		panic(http.ErrAbortHandler)
	}
	e := host.AsError(err)
	// net/http cancels the context of a request whose body is late, too; that client is there.
	if r.Context().Err() == context.Canceled && e.Code != codeTimeout {
		a.status = statusClientClosed
		g.metrics.request(a.class, a.status)
		panic(http.ErrAbortHandler) // nobody is there to read an answer
	}
	if e.Code == host.CodeInternal {
		g.log.Debug("an object failed", slog.String("class", a.class), slog.Any("error", err))
	}
	a.fail(e)
}

func notFound(w http.ResponseWriter, _ *http.Request) {
	writeError(w, host.Errorf(host.CodeNotFound, "there is nothing here; objects are at /objects/{class}/{name}"))
}
