package router

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A listRequest asks a node for objects of shards that it leads.
type listRequest struct {
	Shards []placement.ShardID
	Class  string
	host.ListOptions
}

// maxListRequest bounds a listRequest on the wire.
const maxListRequest = 64 << 10

// ListObjects returns one page of the stored objects of a class, by name, then by ID. It
// asks all owners, and again those that moved meanwhile.
func (r *Router) ListObjects(ctx context.Context, class string, o host.ListOptions) (host.ListPage, error) {
	limit := o.Limit
	if limit <= 0 || limit > host.MaxListLimit {
		limit = host.MaxListLimit
	}
	left := make([]placement.ShardID, r.cfg.Table.Shards())
	for i := range left {
		left[i] = placement.ShardID(i)
	}
	var pages []host.ListPage
	start, wait := time.Now(), firstWait
	for {
		var err error
		pages, left, err = r.listFrom(ctx, pages, left, class, o)
		switch {
		case len(left) == 0:
			return host.MergePages(limit, pages...), nil
		case !isUnavailable(err), time.Since(start) > r.cfg.RetryFor:
			return host.ListPage{}, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return host.ListPage{}, err
		}
		wait = min(2*wait, maxWait)
	}
}

// listFrom asks the owners of some shards. It returns the shards that are left, and why.
func (r *Router) listFrom(ctx context.Context, pages []host.ListPage, shards []placement.ShardID, class string, o host.ListOptions) ([]host.ListPage, []placement.ShardID, error) {
	byOwner := make(map[placement.NodeID][]placement.ShardID)
	var left []placement.ShardID
	for _, s := range shards {
		switch owner, ok := r.cfg.Owners.Owner(s); {
		case r.cfg.Engine.Leads(s):
			byOwner[r.cfg.Self] = append(byOwner[r.cfg.Self], s)
		case ok && owner != r.cfg.Self:
			byOwner[owner] = append(byOwner[owner], s)
		default:
			left = append(left, s)
		}
	}
	var failed error = errNoOwner()
	for owner, theirs := range byOwner {
		page, err := r.listAt(ctx, owner, listRequest{theirs, class, o})
		var wrong *notOwner
		switch {
		case err == nil:
			pages = append(pages, page)
		case isUnavailable(err), errors.As(err, &wrong), errors.Is(err, ErrNotSent), errors.Is(err, host.ErrUnknownOutcome):
			left = append(left, theirs...) // a read may be tried again, whatever became of it
		default:
			return pages, append(left, theirs...), err
		}
	}
	return pages, left, failed
}

func (r *Router) listAt(ctx context.Context, owner placement.NodeID, l listRequest) (page host.ListPage, err error) {
	if owner == r.cfg.Self {
		return r.cfg.Engine.ListShards(ctx, l.Shards, l.Class, l.ListOptions)
	}
	text, err := json.Marshal(l)
	if err != nil {
		return page, host.Errorf(host.CodeInternal, "the request cannot be carried").Because(err)
	}
	req, err := r.request(ctx, http.MethodPost, opList, host.Ref{Class: l.Class}, bytes.NewReader(text))
	if err != nil {
		return page, err
	}
	resp, err := r.carry(ctx, owner, req)
	if err != nil {
		return page, err
	}
	body, err := readReply(ctx, resp)
	if err == nil {
		err = json.Unmarshal(body, &page)
	}
	if err != nil {
		return page, lost(err)
	}
	return page, nil
}

func (r *Router) serveList(w http.ResponseWriter, req *http.Request) {
	w.Header().Set(headerClass, req.Header.Get(headerClass))
	var l listRequest
	if err := json.NewDecoder(io.LimitReader(req.Body, maxListRequest)).Decode(&l); err != nil {
		refuse(w, host.Errorf(host.CodeBadRequest, "malformed list request").Because(err))
		return
	}
	for _, s := range l.Shards {
		if int(s) >= r.cfg.Table.Shards() {
			refuse(w, host.Errorf(host.CodeBadRequest, "there is no shard %d", s))
			return
		}
	}
	page, err := r.cfg.Engine.ListShards(req.Context(), l.Shards, l.Class, l.ListOptions)
	if err == nil {
		err = answer(w, page)
	}
	if err != nil {
		refuse(w, err)
	}
}

func isAbort(err error) bool { return errors.Is(err, http.ErrAbortHandler) }
