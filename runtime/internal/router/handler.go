package router

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// Handler serves what other nodes carry here. It must only be reachable by nodes of the
// cluster; peer tells which of them a request is from.
func (r *Router) Handler(peer func(context.Context) placement.NodeID) http.Handler {
	mux := http.NewServeMux()
	for op, serve := range map[string]func(context.Context, http.ResponseWriter, *http.Request, host.Ref) error{
		opFetch: r.serveFetch, opCall: r.serveCall, opLookup: r.serveLookup, opDestroy: r.serveDestroy,
	} {
		mux.HandleFunc("POST "+PathPrefix+op, func(w http.ResponseWriter, req *http.Request) {
			r.serveOp(w, req, peer(req.Context()), serve)
		})
	}
	mux.HandleFunc("POST "+PathPrefix+opList, r.serveList)
	return mux
}

// serveOp serves a request about one object.
func (r *Router) serveOp(w http.ResponseWriter, req *http.Request, from placement.NodeID, serve func(context.Context, http.ResponseWriter, *http.Request, host.Ref) error) {
	h := req.Header
	ref := host.Ref{Class: h.Get(headerClass)}
	id, err := placement.ParseID(ref.Class, h.Get(headerID))
	if err != nil {
		refuse(w, host.Errorf(host.CodeBadID, "%v", err))
		return
	}
	ref.ID = id
	if names := h[headerName]; len(names) == 1 {
		name, err := url.QueryUnescape(names[0])
		if err != nil || len(name) > host.MaxNameBytes {
			refuse(w, host.Errorf(host.CodeBadID, "malformed name"))
			return
		}
		ref.Name, ref.Named = name, true
	}
	w.Header().Set(headerClass, ref.Class) // it was understood
	shard := r.cfg.Table.ShardOf(id)
	if !r.cfg.Engine.Leads(shard) {
		owner, _ := r.cfg.Owners.Owner(shard)
		w.Header().Set(headerOwner, "?"+string(owner))
		w.WriteHeader(http.StatusMisdirectedRequest)
		return
	}
	ctx := host.WithGateway(req.Context(), from)
	if s := h.Get(headerDeadline); s != "" {
		left, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			refuse(w, host.Errorf(host.CodeBadRequest, "malformed deadline"))
			return
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(left)*time.Millisecond)
		defer cancel()
	}
	if s := h.Get(headerChain); s != "" {
		chain, err := decodeChain(s)
		if err != nil {
			refuse(w, err)
			return
		}
		ctx = host.WithChain(ctx, chain)
	}
	if err := serve(ctx, w, req, ref); err != nil {
		refuse(w, err)
	}
}

// refuse answers with an error, which keeps its identity.
func refuse(w http.ResponseWriter, err error) {
	text, merr := host.MarshalError(host.AsError(err))
	if merr != nil || isAbort(err) {
		panic(http.ErrAbortHandler)
	}
	h := w.Header()
	clear(h)
	h.Set(headerError, string(text))
	w.WriteHeader(http.StatusOK)
}

func (r *Router) serveCall(ctx context.Context, w http.ResponseWriter, req *http.Request, to host.Ref) error {
	args, err := io.ReadAll(io.LimitReader(req.Body, host.MaxCallBytes+1))
	if err != nil {
		return host.Errorf(host.CodeCanceled, "the caller went away before the event started: it did not happen")
	}
	reply, err := r.cfg.Engine.Call(ctx, to, req.Header.Get(headerMethod), args)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(reply)))
	_, _ = w.Write(reply)
	return nil
}

func (r *Router) serveFetch(ctx context.Context, w http.ResponseWriter, req *http.Request, to host.Ref) error {
	u, err := url.Parse(req.Header.Get(headerURL))
	if err != nil {
		return host.Errorf(host.CodeBadRequest, "malformed URL").Because(err)
	}
	in := req.Clone(ctx)
	in.Method, in.URL, in.RequestURI = req.Header.Get(headerMethod), u, ""
	in.Host, in.RemoteAddr = req.Header.Get(headerHost), req.Header.Get(headerRemote)
	upgrade := req.Header.Get(headerUpgrade)
	for name := range in.Header {
		if strings.HasPrefix(name, headerPrefix) {
			delete(in.Header, name)
		}
	}
	if upgrade != "" {
		in.Header.Set("Upgrade", upgrade)
		in.Header.Set("Connection", "Upgrade")
	}
	up, err := r.cfg.Engine.Serve(ctx, to, w, in)
	if err != nil {
		return err
	}
	if up.Socket != 0 {
		w.Header().Set(headerUpgrade, encodeUpgrade(up))
		w.WriteHeader(http.StatusOK)
	}
	return nil
}

func (r *Router) serveLookup(ctx context.Context, w http.ResponseWriter, _ *http.Request, to host.Ref) error {
	info, err := r.cfg.Engine.Lookup(ctx, to)
	if err != nil {
		return err
	}
	return answer(w, info)
}

func (r *Router) serveDestroy(ctx context.Context, _ http.ResponseWriter, _ *http.Request, to host.Ref) error {
	return r.cfg.Engine.Destroy(ctx, to)
}

func answer(w http.ResponseWriter, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return host.Errorf(host.CodeInternal, "encode the answer").Because(err)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	_, _ = w.Write(text)
	return nil
}
