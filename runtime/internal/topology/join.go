package topology

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// Joined is what a node learns when it has joined: all that it needs to start.
type Joined struct {
	Cluster string           `json:"cluster"` // the cluster's ID
	Shards  int              `json:"shards"`
	Members []placement.Node `json:"members"` // those that there are; the node itself may be missing
}

type joinRequest struct {
	Protocol int            `json:"protocol"`
	Node     placement.Node `json:"node"`
}

type joinAnswer struct {
	Joined
	Refused string `json:"refused,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Limits of joining.
const (
	maxJoin     = 64 << 10 // bytes of a request
	joinTimeout = 10 * time.Second
	joinPause   = 500 * time.Millisecond
)

// Join asks the nodes at some addresses, one after another, to take a node into their
// cluster, until one does, one refuses (the error is a [Refusal]), or ctx has ended. It may be
// repeated: the same node ID joins once.
func Join(ctx context.Context, roundTripper func(addr string) http.RoundTripper, addrs []string, node placement.Node) (Joined, error) {
	if len(addrs) == 0 {
		return Joined{}, errors.New("join a cluster: no address of a member is given")
	}
	body, err := json.Marshal(joinRequest{Protocol, node})
	if err != nil {
		return Joined{}, fmt.Errorf("join a cluster: %w", err)
	}
	for {
		var reasons []error
		for _, addr := range addrs {
			joined, err := joinAt(ctx, roundTripper(addr), addr, body)
			if err == nil {
				return joined, nil
			}
			if errors.As(err, new(Refusal)) {
				return Joined{}, err
			}
			reasons = append(reasons, err)
		}
		pause(ctx, joinPause)
		if ctx.Err() != nil {
			return Joined{}, fmt.Errorf("%w; %w", errors.Join(reasons...), context.Cause(ctx))
		}
	}
}

func joinAt(ctx context.Context, rt http.RoundTripper, addr string, body []byte) (Joined, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	var a joinAnswer
	status, err := call(ctx, rt, http.MethodPost, "http://node"+pathJoin, body, &a)
	switch {
	case err != nil:
		return Joined{}, fmt.Errorf("join at %s: %w", addr, err)
	case a.Refused != "":
		return Joined{}, fmt.Errorf("join at %s: %w", addr, Refusal(a.Refused))
	case status != http.StatusOK:
		return Joined{}, fmt.Errorf("join at %s: it answers: %s", addr, a.Error)
	}
	if _, err := placement.Even(a.Shards); err != nil || a.Cluster == "" || len(a.Members) == 0 {
		return Joined{}, fmt.Errorf("join at %s: the answer names no cluster", addr)
	}
	return a.Joined, nil
}

func (t *Topology) serveJoin(w http.ResponseWriter, r *http.Request) {
	var req joinRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxJoin)).Decode(&req); err != nil {
		reply(w, http.StatusBadRequest, joinAnswer{Refused: "the request to join cannot be read: " + err.Error()})
		return
	}
	joined, err := t.admit(r.Context(), req)
	var refusal Refusal
	switch {
	case err == nil:
		t.log.Info("a node joins", slog.String("node", string(req.Node.ID)), slog.String("address", req.Node.Addr))
		reply(w, http.StatusOK, joinAnswer{Joined: joined})
	case errors.As(err, &refusal):
		t.log.Warn("a node was refused", slog.String("node", string(req.Node.ID)),
			slog.String("address", req.Node.Addr), slog.String("reason", refusal.Error()))
		reply(w, http.StatusConflict, joinAnswer{Refused: refusal.Error()})
	default:
		reply(w, http.StatusServiceUnavailable, joinAnswer{Error: err.Error()})
	}
}

// admit takes a node into the cluster.
func (t *Topology) admit(ctx context.Context, req joinRequest) (Joined, error) {
	if req.Protocol != Protocol {
		return Joined{}, Refusal(fmt.Sprintf("node %s speaks placement protocol %d, and this cluster %d: run the version that the cluster runs", req.Node.ID, req.Protocol, Protocol))
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout*9/10) // so that the answer still arrives
	defer cancel()
	if err := t.Wait(ctx, func(s *State) bool { return s.ID != "" }); err != nil {
		return Joined{}, err
	}
	req.Node.State = placement.NodeUp
	if err := t.PutNode(ctx, req.Node); err != nil {
		return Joined{}, err
	}
	s := t.State()
	return Joined{Cluster: s.ID, Shards: len(s.Shards), Members: s.Present()}, nil
}
