package topology

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// FormConfig says who forms a cluster. All fields but Logger are required.
type FormConfig struct {
	Self         placement.Node // its ID is the candidate's; it must stay the same over restarts
	Expect       int            // nodes that must be there before one of them founds the cluster
	Addrs        []string       // of all nodes that may be part of it; Self's own may be among them
	RoundTripper func(addr string) http.RoundTripper
	Logger       *slog.Logger
}

// A Forming is the part of one node in the birth of a cluster: several nodes without a cluster start
// with the same list of addresses, one of them founds it, the others join. It promises that no two
// found, as long as their lists are the same and no node forgets during the forming whom
// it favoured (which a restart makes it do).
//
// Each node says in its greeting whom it favours as founder: the lowest candidate that it
// saw when it first saw enough of them. It keeps to that, unless this one itself favours
// another, or is not there any more under its address. A node founds when as many as are expected, and
// more than half of the list, favour it; whoever meets a node that belongs to a cluster
// joins there.
type Forming struct {
	cfg FormConfig

	mu     sync.Mutex // guards ballot
	ballot ballot
}

// Formed says how a forming ended.
type Formed struct {
	Found bool     // this node founds the cluster
	Join  []string // else, the addresses of nodes that belong to it
}

// A greeting is what a node says of itself to those without a cluster.
type greeting struct {
	Cluster   string           `json:"cluster,omitempty"`   // that it belongs to
	Candidate placement.NodeID `json:"candidate,omitempty"` // its ID, if it belongs to none
	Favours   placement.NodeID `json:"favours,omitempty"`   // as founder
}

// Timing of forming.
const (
	formEvery   = 250 * time.Millisecond
	formTimeout = time.Second // of one greeting
)

// NewForming returns a Forming. Its Guests must be served before Run is called.
func NewForming(cfg FormConfig) (*Forming, error) {
	if cfg.Expect < 1 || cfg.Expect > len(cfg.Addrs)+1 {
		return nil, fmt.Errorf("form a cluster: %d nodes are expected, but %d addresses of others are given", cfg.Expect, len(cfg.Addrs))
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Forming{cfg: cfg, ballot: ballot{self: cfg.Self.ID, expect: cfg.Expect}}, nil
}

// Guests answers the other nodes that form the cluster. It must go on to do so after Run has
// returned, until [Topology.Guests] takes its place.
func (f *Forming) Guests() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathHello, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, f.greeting())
	})
	mux.HandleFunc("POST "+pathJoin, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusServiceUnavailable, joinAnswer{Error: "this node belongs to no cluster yet"})
	})
	return mux
}

func (f *Forming) greeting() greeting {
	f.mu.Lock()
	defer f.mu.Unlock()
	return greeting{Candidate: f.cfg.Self.ID, Favours: f.ballot.favours}
}

// Run greets the others until it is known who founds the cluster.
func (f *Forming) Run(ctx context.Context) (Formed, error) {
	seen := 0
	for {
		greetings := f.greet(ctx)
		if ctx.Err() != nil {
			return Formed{}, fmt.Errorf("form a cluster: %d of %d nodes are there: %w", seen, f.cfg.Expect, context.Cause(ctx))
		}
		f.mu.Lock()
		formed, decided, err := f.ballot.count(greetings)
		f.mu.Unlock()
		if err != nil {
			return Formed{}, fmt.Errorf("form a cluster: %w", err)
		}
		if decided {
			return formed, nil
		}
		if n := present(f.cfg.Self.ID, greetings); n != seen {
			seen = n
			f.cfg.Logger.Info("waiting for the nodes that form the cluster", slog.Int("present", n), slog.Int("expected", f.cfg.Expect))
		}
		pause(ctx, formEvery)
	}
}

// greet asks all addresses at once. Nobody's answer is missing from the map.
func (f *Forming) greet(ctx context.Context) map[string]greeting {
	ctx, cancel := context.WithTimeout(ctx, formTimeout)
	defer cancel()
	answers := make([]greeting, len(f.cfg.Addrs))
	errs := make([]error, len(f.cfg.Addrs))
	var wg sync.WaitGroup
	for i, addr := range f.cfg.Addrs {
		if addr == f.cfg.Self.Addr {
			answers[i] = f.greeting()
			continue
		}
		wg.Go(func() {
			_, errs[i] = call(ctx, f.cfg.RoundTripper(addr), http.MethodGet, "http://node"+pathHello, nil, &answers[i])
		})
	}
	wg.Wait()
	greetings := make(map[string]greeting)
	for i, addr := range f.cfg.Addrs {
		g := greeting{}
		if errs[i] == nil {
			g = answers[i]
		}
		greetings[addr] = g
	}
	return greetings
}

// present returns how many nodes without a cluster are there, this one included.
func present(self placement.NodeID, greetings map[string]greeting) int {
	candidates := map[placement.NodeID]bool{self: true}
	for _, g := range greetings {
		if g.Candidate != "" {
			candidates[g.Candidate] = true
		}
	}
	return len(candidates)
}

// A ballot is what one node thinks of who should found the cluster. It is pure: greetings
// in, decision out.
type ballot struct {
	self    placement.NodeID
	expect  int
	favours placement.NodeID // "" until enough nodes were seen
	address string           // where that one is; "" if it is this node
}

// errTwoClusters means that the list of addresses is wrong.
var errTwoClusters = errors.New("the addresses lead to nodes of two clusters")

// count considers the answers of one round: one greeting for each address, empty where
// nobody answered.
func (b *ballot) count(greetings map[string]greeting) (_ Formed, decided bool, err error) {
	if born, err := clusterOf(greetings); len(born) > 0 || err != nil {
		return Formed{Join: born}, true, err
	}
	nodes := map[placement.NodeID]string{b.self: ""} // with their addresses
	votes := map[placement.NodeID]bool{}
	listed := len(greetings) + 1
	for addr, g := range greetings {
		switch g.Candidate {
		case "":
		case b.self:
			listed-- // the list has this node, too
		default:
			nodes[g.Candidate] = addr
			votes[g.Candidate] = g.Favours == b.self
		}
	}
	before := b.favours
	if len(nodes) >= b.expect {
		b.reconsider(nodes, greetings)
	}
	if before != b.self || b.favours != b.self {
		return Formed{}, false, nil // the others have not been asked since this node favours itself
	}
	yes := 1
	for _, vote := range votes {
		if vote {
			yes++
		}
	}
	return Formed{Found: true}, yes >= max(b.expect, listed/2+1), nil
}

// reconsider chooses whom to favour. A node that favours another cannot be sure that this
// one has not founded already, so it is faithful; of itself it knows.
func (b *ballot) reconsider(nodes map[placement.NodeID]string, greetings map[string]greeting) {
	if b.favours != "" && b.favours != b.self {
		g := greetings[b.address]
		renounced := g.Candidate == b.favours && g.Favours != "" && g.Favours != b.favours
		replaced := g.Candidate != "" && g.Candidate != b.favours
		if !renounced && !replaced {
			return
		}
	}
	lowest := b.self
	for id := range nodes {
		lowest = min(lowest, id)
	}
	b.favours, b.address = lowest, nodes[lowest]
}

// clusterOf returns the addresses of the nodes that belong to a cluster.
func clusterOf(greetings map[string]greeting) (addrs []string, err error) {
	cluster := ""
	for addr, g := range greetings {
		if g.Cluster == "" {
			continue
		}
		if cluster != "" && cluster != g.Cluster {
			return nil, errTwoClusters
		}
		cluster = g.Cluster
		addrs = append(addrs, addr)
	}
	slices.Sort(addrs)
	return addrs, nil
}

func (t *Topology) serveHello(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, greeting{Cluster: t.cfg.Cluster})
}
