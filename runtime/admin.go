package runtime

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/topology"
	"github.com/holdfast-run/holdfast/runtime/internal/transport"
)

// An Admin asks any node of a cluster about it, and tells it what to do. It proves itself with
// the cluster's secret. Its methods may be called from any goroutine.
type Admin struct {
	network *transport.Network
	addr    string
}

// Connect returns an Admin that asks the node with the given address for other nodes. Nothing
// is sent yet.
func Connect(c Cluster, addr string) (*Admin, error) {
	c = c.withDefaults()
	if addr == "" {
		addr = c.Listen
	}
	if c.SecretFile == "" {
		return nil, errors.New("the cluster's secret is missing (--cluster-secret-file)")
	}
	_, proof, err := c.open()
	if err != nil {
		return nil, err
	}
	network, err := transport.New(transport.Config{Self: adminID, Credentials: proof, Dial: c.Network.Dial})
	if err != nil {
		return nil, err
	}
	return &Admin{network, addr}, nil
}

// adminID is the name of a tool in its certificate; no node has it.
const adminID placement.NodeID = "admin"

// Close ends the connection.
func (a *Admin) Close() error { return a.network.Stop(context.Background()) }

// A Member is one node of a cluster, as its leader sees it.
type Member struct {
	ID      string    `json:"id"`
	Addr    string    `json:"addr"`
	Zone    string    `json:"zone,omitempty"`
	Version string    `json:"version"`
	State   string    `json:"state"` // up, leaving, draining or removed
	Down    bool      `json:"down"`  // it does not answer
	Seen    time.Time `json:"seen"`  // when it last answered
	Leader  bool      `json:"leader"`
	Voter   bool      `json:"voter"`  // of the placement group
	Owns    int       `json:"owns"`   // shards that it leads
	Holds   int       `json:"holds"`  // shards that it has replicas of
	Wanted  int       `json:"wanted"` // shards that it should have replicas of
}

// A ShardInfo is what is known of one shard.
type ShardInfo struct {
	ID       uint32   `json:"id"`
	Owner    string   `json:"owner,omitempty"` // who leads it; "" if nobody is known to
	Epoch    uint64   `json:"epoch,omitempty"`
	Applied  uint64   `json:"applied,omitempty"`
	Voters   []string `json:"voters,omitempty"`
	Replicas []string `json:"replicas"`  // those that it should have
	Wanted   string   `json:"preferred"` // the owner that it should have
	Moving   bool     `json:"moving"`    // the voters are not yet those replicas
}

// A Location is where an object is.
type Location struct {
	Class    string   `json:"class"`
	Name     string   `json:"name,omitempty"`
	ID       string   `json:"id"`
	Slot     int      `json:"slot"`
	Shard    uint32   `json:"shard"`
	Owner    string   `json:"owner"`
	Addr     string   `json:"addr,omitempty"` // of the owner, for other nodes
	Replicas []string `json:"replicas"`
}

// Members returns the cluster's nodes.
func (a *Admin) Members(ctx context.Context) (list []Member, err error) {
	return list, a.do(ctx, http.MethodGet, "members", nil, &list)
}

// Shards returns the cluster's shards.
func (a *Admin) Shards(ctx context.Context) (list []ShardInfo, err error) {
	return list, a.do(ctx, http.MethodGet, "shards", nil, &list)
}

// Where returns where the object of a class with a name is. A name like "id:…" is an ID.
func (a *Admin) Where(ctx context.Context, class, name string) (l Location, err error) {
	return l, a.do(ctx, http.MethodGet, "where", url.Values{"class": {class}, "name": {name}}, &l)
}

// Drain makes a node give up everything it has, for good. It returns at once; Members shows how
// far that is. Return undoes it.
func (a *Admin) Drain(ctx context.Context, node string) error {
	return a.do(ctx, http.MethodPost, "drain", url.Values{"node": {node}}, nil)
}

// Return makes a draining or leaving node a member like any other.
func (a *Admin) Return(ctx context.Context, node string) error {
	return a.do(ctx, http.MethodPost, "return", url.Values{"node": {node}}, nil)
}

// Remove gives up a node that will not come back. Its ID is never used again.
func (a *Admin) Remove(ctx context.Context, node string) error {
	return a.do(ctx, http.MethodPost, "remove", url.Values{"node": {node}}, nil)
}

// Set changes a setting of the cluster: replicas, voters, lost-after or max-moving.
func (a *Admin) Set(ctx context.Context, name, value string) error {
	return a.do(ctx, http.MethodPost, "set", url.Values{"name": {name}, "value": {value}}, nil)
}

func (a *Admin) do(ctx context.Context, method, op string, q url.Values, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+adminPrefix+op+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	if into == nil {
		into = new(struct{})
	}
	if err := doJSON(a.network.RoundTripperTo(a.addr), req, into); err != nil {
		return fmt.Errorf("ask the node at %s: %w", a.addr, err)
	}
	return nil
}

// What follows is the node's side.

const adminPrefix = "/admin/"

type adminError struct {
	Error string `json:"error"`
}

// adminHandler serves those who hold the cluster's secret.
func (n *Node) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+adminPrefix+"snapshot/shard", n.adminSnapshotShard)
	for pattern, serve := range map[string]func(*http.Request) (any, error){
		"GET members":  n.adminMembers,
		"GET shards":   n.adminShards,
		"GET where":    n.adminWhere,
		"POST drain":   n.adminMark(n.topologyDrain),
		"POST return":  n.adminMark(n.topologyReturn),
		"POST remove":  n.adminMark(n.topologyRemove),
		"POST set":     n.adminSet,
		"GET snapshot": n.adminSnapshot,
	} {
		method, op, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" "+adminPrefix+op, func(w http.ResponseWriter, r *http.Request) {
			answer, err := serve(r)
			if err != nil {
				answerJSON(w, http.StatusConflict, adminError{err.Error()})
				return
			}
			answerJSON(w, http.StatusOK, answer)
		})
	}
	return mux
}

func (n *Node) adminMembers(r *http.Request) (any, error) {
	table := n.topology.State()
	health, err := n.topology.Health(r.Context())
	if err != nil {
		health = &topology.Health{} // what the table says is better than nothing
	}
	wanted := make(map[placement.NodeID]int)
	for _, s := range table.Shards {
		for _, id := range s.Replicas {
			wanted[id]++
		}
	}
	owns := make(map[placement.NodeID]int)
	for _, id := range health.Owners {
		owns[id]++
	}
	list := []Member{}
	for _, node := range table.Nodes {
		h := health.Nodes[node.ID]
		list = append(list, Member{
			ID: string(node.ID), Addr: node.Addr, Zone: node.Zone, Version: node.Version, State: string(node.State),
			Down: h.Down, Seen: h.Seen, Leader: node.ID == health.Leader, Voter: h.Voter,
			Owns: owns[node.ID], Holds: len(h.Holds), Wanted: wanted[node.ID],
		})
	}
	slices.SortFunc(list, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

func (n *Node) adminShards(r *http.Request) (any, error) {
	table := n.topology.State()
	health, err := n.topology.Health(r.Context())
	if err != nil {
		return nil, err
	}
	list := make([]ShardInfo, len(table.Shards))
	for i, s := range table.Shards {
		id := placement.ShardID(i)
		l := health.Shards[id]
		list[i] = ShardInfo{
			ID: uint32(id), Owner: string(health.Owners[id]), Epoch: uint64(l.Epoch), Applied: l.Applied,
			Voters: texts(l.Voters), Replicas: texts(s.Replicas), Wanted: string(s.Owner),
			Moving: slices.Contains(health.Moving, id),
		}
	}
	return list, nil
}

func (n *Node) adminWhere(r *http.Request) (any, error) {
	class, name := r.URL.Query().Get("class"), r.URL.Query().Get("name")
	if _, ok := n.engine.Class(class); !ok {
		return nil, fmt.Errorf("there is no class %q", class)
	}
	id := placement.NamedID(class, name)
	if hex, ok := strings.CutPrefix(name, "id:"); ok {
		var err error
		if id, err = placement.ParseID(class, hex); err != nil {
			return nil, err
		}
		name = ""
	}
	shard := n.table.ShardOf(id)
	record, _ := n.topology.State().Shard(shard)
	l := Location{Class: class, Name: name, ID: id.String(), Slot: int(placement.SlotOf(id)), Shard: uint32(shard), Replicas: texts(record.Replicas)}
	owner, known := n.shards.Owner(shard)
	if n.engine.Leads(shard) {
		owner, known = n.dirs.id.Node, true
	}
	if known {
		l.Owner = string(owner)
		node, _ := n.topology.Node(owner)
		l.Addr = node.Addr
	}
	return l, nil
}

func (n *Node) adminMark(mark func(context.Context, placement.NodeID) error) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		id, err := n.find(r.URL.Query().Get("node"))
		if err != nil {
			return nil, err
		}
		return struct{}{}, mark(r.Context(), id)
	}
}

// find returns the node whose ID begins so, "" meaning this one.
func (n *Node) find(prefix string) (placement.NodeID, error) {
	if prefix == "" {
		return n.dirs.id.Node, nil
	}
	var found []placement.NodeID
	for id := range n.topology.State().Nodes {
		if string(id) == prefix {
			return id, nil
		}
		if strings.HasPrefix(string(id), prefix) {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("there is no node %s", prefix)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%d nodes have IDs that begin with %s", len(found), prefix)
}

func (n *Node) topologyDrain(ctx context.Context, id placement.NodeID) error {
	return n.topology.Drain(ctx, id)
}

func (n *Node) topologyReturn(ctx context.Context, id placement.NodeID) error {
	return n.topology.Return(ctx, id)
}

func (n *Node) topologyRemove(ctx context.Context, id placement.NodeID) error {
	return n.topology.Remove(ctx, id)
}

func (n *Node) adminSet(r *http.Request) (any, error) {
	q := r.URL.Query()
	return struct{}{}, n.topology.Set(r.Context(), topology.Setting(q.Get("name")), q.Get("value"))
}

func texts(ids []placement.NodeID) []string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = string(id)
	}
	return list
}
