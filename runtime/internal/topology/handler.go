package topology

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/holdfast-run/holdfast/placement"
)

// Where members and guests find what they need.
const (
	pathPropose = "/topology/propose"
	pathState   = "/topology/state"
	pathStatus  = "/topology/status"
	pathHealth  = "/topology/health"
	pathJoin    = "/join"
	pathHello   = "/hello"
)

// Protocol numbers the commands of the placement group. A node with another number would not
// understand the table.
const Protocol = 1

// Handler serves the other members of the cluster, under /topology/.
func (t *Topology) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathPropose, t.servePropose)
	mux.HandleFunc("GET "+pathState, func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, t.State()) })
	mux.HandleFunc("GET "+pathStatus, func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, t.cfg.Reporter.Report()) })
	mux.HandleFunc("GET "+pathHealth, t.serveHealth)
	return mux
}

// Guests serves those who hold the secret and belong to no cluster yet: GET /hello and POST
// /join.
func (t *Topology) Guests() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathJoin, t.serveJoin)
	mux.HandleFunc("GET "+pathHello, t.serveHello)
	return mux
}

func (t *Topology) servePropose(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCommand))
	if err != nil {
		reply(w, http.StatusBadRequest, answer{Error: err.Error()})
		return
	}
	c, err := parseCommand(text)
	if err != nil || c.Found != nil {
		reply(w, http.StatusBadRequest, answer{Refused: "node " + string(t.cfg.Self.ID) + " does not know what is proposed: are all nodes of one version?"})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), offerTimeout)
	defer cancel()
	var refusal Refusal
	switch err := t.commit(ctx, c); {
	case err == nil:
		reply(w, http.StatusOK, answer{})
	case errors.As(err, &refusal):
		reply(w, http.StatusConflict, answer{Refused: refusal.Error()})
	case errors.Is(err, errNotLeader):
		leader, _ := t.Leader()
		reply(w, http.StatusMisdirectedRequest, answer{Leader: leader})
	default:
		reply(w, http.StatusServiceUnavailable, answer{Error: err.Error()})
	}
}

func (t *Topology) serveHealth(w http.ResponseWriter, _ *http.Request) {
	if h := t.health.Load(); h != nil {
		reply(w, http.StatusOK, h)
		return
	}
	reply(w, http.StatusMisdirectedRequest, answer{Error: errNotLeader.Error()})
}

// Health returns what the placement group's leader sees of the cluster.
func (t *Topology) Health(ctx context.Context) (*Health, error) {
	if h := t.health.Load(); h != nil {
		return h, nil
	}
	leader, ok := t.Leader()
	if !ok || leader == t.cfg.Self.ID {
		return nil, errors.New("ask for the cluster's health: the placement group has no leader at the moment")
	}
	ctx, cancel := context.WithTimeout(ctx, offerTimeout)
	defer cancel()
	var h Health
	status, err := call(ctx, t.cfg.RoundTripper(leader), http.MethodGet, "http://node"+pathHealth, nil, &h)
	if err == nil && status != http.StatusOK {
		err = errNotLeader
	}
	if err != nil {
		return nil, fmt.Errorf("ask node %s for the cluster's health: %w", leader, err)
	}
	return &h, nil
}

// report asks a node for its report.
func (t *Topology) report(ctx context.Context, id placement.NodeID) (r Report, err error) {
	if id == t.cfg.Self.ID {
		return t.cfg.Reporter.Report(), nil
	}
	status, err := call(ctx, t.cfg.RoundTripper(id), http.MethodGet, "http://node"+pathStatus, nil, &r)
	if err == nil && (status != http.StatusOK || r.Node != id) {
		err = fmt.Errorf("node %s answers with status %d, as node %q", id, status, r.Node)
	}
	return r, err
}

func reply(w http.ResponseWriter, status int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(text)
}
