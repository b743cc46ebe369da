package router

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// What one node asks another is an HTTP request to /object/{op}. What it is about is in
// headers; arguments and bodies are bodies, so that they stream.
const (
	// PathPrefix is where [Router.Handler] is to be found.
	PathPrefix = "/object/"

	opFetch   = "fetch"
	opCall    = "call"
	opLookup  = "lookup"
	opDestroy = "destroy"
	opList    = "list"

	headerClass    = "Holdfast-Class"
	headerID       = "Holdfast-Id"
	headerName     = "Holdfast-Name"     // percent-encoded; absent if there is none
	headerMethod   = "Holdfast-Method"   // of a call, or of a fetch's request
	headerURL      = "Holdfast-Url"      // of a fetch's request
	headerHost     = "Holdfast-Host"     // likewise
	headerRemote   = "Holdfast-Remote"   // likewise: the client's address
	headerUpgrade  = "Holdfast-Upgrade"  // the request asks for a WebSocket; in the answer: the socket
	headerDeadline = "Holdfast-Deadline" // milliseconds that are left
	headerChain    = "Holdfast-Chain"    // the objects whose turns wait for the answer
	headerError    = "Holdfast-Error"    // the answer is this error, in JSON
	headerOwner    = "Holdfast-Owner"    // the answer is: not here, but there
	headerPrefix   = "Holdfast-"
)

// carry sends a request to a node and returns its answer, if that is not an error.
func (r *Router) carry(ctx context.Context, to placement.NodeID, req *http.Request) (*http.Response, error) {
	if deadline, ok := ctx.Deadline(); ok {
		left := max(time.Until(deadline), time.Millisecond)
		req.Header.Set(headerDeadline, strconv.FormatInt(left.Milliseconds(), 10))
	}
	if chain := host.ChainOf(ctx); len(chain) > 0 {
		req.Header.Set(headerChain, encodeChain(chain))
	}
	resp, err := r.cfg.Network.RoundTripper(to).RoundTrip(req)
	switch {
	case err == nil:
	case errors.Is(err, ErrNotSent):
		return nil, err
	case ctx.Err() != nil:
		return nil, canceled(ctx)
	default:
		return nil, lost(err)
	}
	if owner := resp.Header.Get(headerOwner); owner != "" {
		drop(resp)
		return nil, &notOwner{owner: placement.NodeID(strings.TrimPrefix(owner, "?"))}
	}
	if text := resp.Header.Get(headerError); text != "" {
		drop(resp)
		e, err := host.UnmarshalError([]byte(text))
		if err != nil {
			return nil, lost(err)
		}
		return nil, e
	}
	if resp.StatusCode == http.StatusNotFound && resp.Header.Get(headerClass) == "" {
		drop(resp)
		return nil, lost(fmt.Errorf("node %s does not know this kind of request", to))
	}
	return resp, nil
}

// drop ends an answer that nobody reads.
func drop(resp *http.Response) { _ = resp.Body.Close() }

func (r *Router) request(ctx context.Context, method, op string, to host.Ref, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+PathPrefix+op, body)
	if err != nil {
		return nil, host.Errorf(host.CodeInternal, "the request cannot be carried").Because(err)
	}
	req.Header.Set(headerClass, to.Class)
	req.Header.Set(headerID, to.ID.String())
	if to.Named {
		req.Header.Set(headerName, url.QueryEscape(to.Name))
	}
	return req, nil
}

func (r *Router) carryCall(ctx context.Context, n placement.NodeID, to host.Ref, method string, args []byte) ([]byte, error) {
	req, err := r.request(ctx, http.MethodPost, opCall, to, bytes.NewReader(args))
	if err != nil {
		return nil, err
	}
	req.Header.Set(headerMethod, method)
	resp, err := r.carry(ctx, n, req)
	if err != nil {
		return nil, err
	}
	return readReply(ctx, resp)
}

func (r *Router) carryJSON(ctx context.Context, n placement.NodeID, op string, to host.Ref, reply any) error {
	req, err := r.request(ctx, http.MethodPost, op, to, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := r.carry(ctx, n, req)
	if err != nil {
		return err
	}
	body, err := readReply(ctx, resp)
	if err != nil || reply == nil {
		return err
	}
	if err := json.Unmarshal(body, reply); err != nil {
		return lost(err)
	}
	return nil
}

// readReply reads an answer whole.
func readReply(ctx context.Context, resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, host.MaxCallBytes+1))
	switch {
	case err == nil && len(reply) <= host.MaxCallBytes:
		return reply, nil
	case err == nil:
		return nil, host.Errorf(host.CodeTooLarge, "the reply is longer than %d bytes; the call has happened", host.MaxCallBytes)
	case ctx.Err() != nil:
		return nil, canceled(ctx)
	default:
		return nil, lost(err)
	}
}

// carryFetch sends a client's request to the owner and its answer to the client, as
// both come.
func (r *Router) carryFetch(ctx context.Context, n placement.NodeID, to host.Ref, w http.ResponseWriter, in *http.Request) (host.Upgrade, error) {
	body := io.Reader(http.NoBody)
	if in.Body != nil && in.Body != http.NoBody {
		body = in.Body
	}
	req, err := r.request(ctx, http.MethodPost, opFetch, to, body)
	if err != nil {
		return host.Upgrade{}, err
	}
	req.ContentLength = in.ContentLength
	for name, values := range in.Header {
		if !strings.HasPrefix(name, headerPrefix) && !hopByHop[name] {
			req.Header[name] = values
		}
	}
	req.Header.Set(headerMethod, in.Method)
	req.Header.Set(headerURL, in.URL.String())
	req.Header.Set(headerHost, in.Host)
	req.Header.Set(headerRemote, in.RemoteAddr)
	if in.Header.Get("Upgrade") != "" {
		req.Header.Set(headerUpgrade, "websocket")
	}
	resp, err := r.carry(ctx, n, req)
	if err != nil {
		return host.Upgrade{}, err
	}
	defer resp.Body.Close()
	if up := resp.Header.Get(headerUpgrade); up != "" {
		copyHeader(w.Header(), resp.Header)
		w.Header().Del("Content-Length") // of the answer between nodes
		return decodeUpgrade(up)
	}
	return host.Upgrade{}, relay(w, resp)
}

// relay writes an answer to the client. What comes is flushed at once, unless all of it
// is there already.
func relay(w http.ResponseWriter, resp *http.Response) error {
	copyHeader(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	if resp.ContentLength >= 0 {
		if _, err := io.Copy(w, resp.Body); err != nil {
			return http.ErrAbortHandler
		}
		return nil
	}
	flusher := http.NewResponseController(w)
	_ = flusher.EnableFullDuplex()
	buf := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil || flusher.Flush() != nil {
				return http.ErrAbortHandler
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return http.ErrAbortHandler
		}
	}
}

// copyHeader copies what is not between nodes.
func copyHeader(to, from http.Header) {
	for name, values := range from {
		if !strings.HasPrefix(name, headerPrefix) {
			to[name] = values
		}
	}
}

// hopByHop headers are between a client and its gateway.
var hopByHop = map[string]bool{
	"Connection": true, "Upgrade": true, "Keep-Alive": true, "Te": true, "Trailer": true, "Transfer-Encoding": true,
	"Sec-Websocket-Key": true, "Sec-Websocket-Version": true, "Sec-Websocket-Extensions": true,
}

// rewind makes a request's body readable from its beginning again, if it can be.
func rewind(req *http.Request) bool {
	if req.GetBody == nil {
		return true // a body that was not touched, or none
	}
	body, err := req.GetBody()
	if err != nil {
		return false
	}
	req.Body = body
	return true
}

// A onceBody notes whether it has been read.
type onceBody struct {
	io.ReadCloser
	touched atomic.Bool
}

func (b *onceBody) Read(p []byte) (int, error) {
	b.touched.Store(true)
	return b.ReadCloser.Read(p)
}

// Close leaves the body open: an attempt that failed before reading must not end it. The
// server that made the request closes it.
func (b *onceBody) Close() error { return nil }

func canceled(ctx context.Context) error {
	code, verb := host.CodeCanceled, "the caller went away"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code, verb = host.CodeDeadline, "the deadline passed"
	}
	return host.Errorf(code, "%s while the event was on its way: it may have happened", verb).
		Because(errors.Join(host.ErrUnknownOutcome, ctx.Err()))
}

func lost(err error) error {
	return host.Errorf(host.CodeUnknownOutcome, "the connection to the object's owner was lost: it may have happened").Because(err)
}

func encodeUpgrade(up host.Upgrade) string {
	return strconv.FormatUint(uint64(up.Socket), 16) + " " + strings.Join(up.Subprotocols, " ")
}

func decodeUpgrade(s string) (host.Upgrade, error) {
	id, protocols, _ := strings.Cut(s, " ")
	n, err := strconv.ParseUint(id, 16, 64)
	if err != nil || n == 0 {
		return host.Upgrade{}, lost(fmt.Errorf("malformed upgrade %q", s))
	}
	return host.Upgrade{Socket: host.SocketID(n), Subprotocols: strings.Fields(protocols)}, nil
}

// A chain travels as class/id, one after another.
func encodeChain(chain []host.Ref) string {
	var b strings.Builder
	for i, ref := range chain {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(url.QueryEscape(ref.Class))
		b.WriteByte('/')
		b.WriteString(ref.ID.String())
		if ref.Named {
			b.WriteByte('/')
			b.WriteString(url.QueryEscape(ref.Name))
		}
	}
	return b.String()
}

func decodeChain(s string) ([]host.Ref, error) {
	var chain []host.Ref
	for _, f := range strings.Fields(s) {
		parts := strings.Split(f, "/")
		if len(parts) < 2 || len(parts) > 3 || len(chain) == host.MaxChain {
			return nil, host.Errorf(host.CodeBadRequest, "malformed chain of calls")
		}
		var ref host.Ref
		var err error
		if ref.Class, err = url.QueryUnescape(parts[0]); err == nil {
			err = ref.ID.UnmarshalText([]byte(parts[1]))
		}
		if err == nil && len(parts) == 3 {
			ref.Named = true
			ref.Name, err = url.QueryUnescape(parts[2])
		}
		if err != nil {
			return nil, host.Errorf(host.CodeBadRequest, "malformed chain of calls").Because(err)
		}
		chain = append(chain, ref)
	}
	return chain, nil
}
