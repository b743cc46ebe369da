package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/placement/membership"
	"github.com/holdfast-run/holdfast/runtime/internal/engine"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/relay"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
	"github.com/holdfast-run/holdfast/runtime/internal/router"
	"github.com/holdfast-run/holdfast/runtime/internal/secret"
	"github.com/holdfast-run/holdfast/runtime/internal/shard"
	"github.com/holdfast-run/holdfast/runtime/internal/topology"
	"github.com/holdfast-run/holdfast/runtime/internal/transport"
)

type transportCredentials = transport.Credentials

// cluster is what a node has beside the parts of one that runs alone: its connections with
// the others, the way to their objects, and the gossip.
type cluster struct {
	node    *Node
	cfg     Cluster
	secret  *secret.Ring
	proof   credentials
	network *transport.Network
	router  *router.Router
	relay   *relay.Relay
	gossip  *membership.Membership
	joined  []placement.Node // the members, if the node has just joined

	// table is the node's topology once it is open: the network asks for addresses before.
	table atomic.Pointer[topology.Topology]

	mu      sync.Mutex // guards refused
	refused map[placement.NodeID]time.Time
}

// enterCluster takes the address for other nodes, and finds a cluster for a node that has none.
func (n *Node) enterCluster(ctx context.Context) error {
	cfg := n.cfg.Cluster
	if cfg == nil {
		switch {
		case !n.dirs.born():
			return n.dirs.found(n.cfg.Shards)
		case n.dirs.id.Joined:
			return errNotAlone
		}
		return nil
	}
	ring, proof, err := cfg.open()
	if err != nil {
		return err
	}
	n.cluster = &cluster{node: n, cfg: *cfg, secret: ring, proof: proof, refused: make(map[placement.NodeID]time.Time)}
	listener, err := n.cluster.listen(ctx, cfg.Listen)
	if err != nil {
		return err
	}
	n.clusterAddr = listener.Addr().String()
	if n.dirs.born() {
		return n.cluster.connect(listener)
	}
	if err := n.cluster.enter(ctx, listener); err != nil {
		return err
	}
	if listener, err = n.cluster.listen(ctx, n.clusterAddr); err != nil {
		return err
	}
	return n.cluster.connect(listener)
}

func (c *cluster) listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := c.cfg.Network.Listen(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("listen for other nodes on %s: %w", addr, socketReason(err))
	}
	return l, nil
}

// enter finds a cluster for a node that has none: it founds one, joins one, or forms one
// with others. The listener is closed in the end.
func (c *cluster) enter(ctx context.Context, listener net.Listener) (err error) {
	d := c.node.dirs
	self, err := c.node.self()
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	guest, err := c.newNetwork(listener, "")
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer func() { err = errors.Join(err, guest.Stop(ctx)) }()
	join := c.cfg.Join
	switch {
	case c.cfg.Expect > 1:
		formed, err := c.form(ctx, guest, self)
		if err != nil {
			return err
		}
		if formed.Found {
			return d.found(c.node.cfg.Shards)
		}
		join = formed.Join
	case c.cfg.Bootstrap || c.cfg.Expect == 1:
		return d.found(c.node.cfg.Shards)
	case len(join) == 0:
		return errors.New("the data directory is new: say whether the node founds a cluster (--bootstrap) or joins one (--join host:port)")
	}
	c.node.cfg.Logger.Info("joining", slog.Any("addresses", join))
	joined, err := topology.Join(ctx, guest.RoundTripperTo, join, self)
	if err != nil {
		return err
	}
	c.joined = joined.Members
	return d.join(joined.Cluster, joined.Shards)
}

func (c *cluster) form(ctx context.Context, guest *transport.Network, self placement.Node) (topology.Formed, error) {
	f, err := topology.NewForming(topology.FormConfig{
		Self:         self,
		Expect:       c.cfg.Expect,
		Addrs:        c.cfg.Join,
		RoundTripper: guest.RoundTripperTo,
		Logger:       c.node.cfg.Logger,
	})
	if err != nil {
		return topology.Formed{}, err
	}
	guest.Serve(http.NotFoundHandler(), f.Guests())
	guest.Start()
	return f.Run(ctx)
}

func (c *cluster) newNetwork(listener net.Listener, name string) (*transport.Network, error) {
	return transport.New(transport.Config{
		Self:        c.node.dirs.id.Node,
		Cluster:     name,
		Credentials: c.proof,
		Listener:    listener,
		Dial:        c.cfg.Network.Dial,
		Resolve:     c.resolve,
		OnRefused:   c.peerGone,
		Logger:      c.node.cfg.Logger,
	})
}

// connect makes the network of the cluster that the node belongs to. It is reached from
// serve on.
func (c *cluster) connect(listener net.Listener) (err error) {
	if c.network, err = c.newNetwork(listener, c.node.dirs.id.Cluster); err != nil {
		return errors.Join(err, listener.Close())
	}
	return nil
}

// resolve returns where a node is.
func (c *cluster) resolve(id placement.NodeID) (string, bool) {
	t := c.table.Load()
	if t == nil {
		return "", false
	}
	n, ok := t.Node(id)
	return n.Addr, ok && n.State != placement.NodeRemoved
}

// peerGone acts on the news that a node's process is gone.
func (c *cluster) peerGone(peer placement.NodeID) {
	c.mu.Lock()
	c.refused[peer] = time.Now()
	c.mu.Unlock()
	if t := c.table.Load(); t != nil {
		t.Suspect(peer)
	}
	if s := c.node.shards; s != nil {
		s.peerGone(peer)
	}
	if c.relay != nil {
		c.relay.Gone(peer)
	}
}

// refusedFor is how long a node is not given anything after its process was gone.
const refusedFor = 5 * time.Second

// gone reports whether a node's process was gone a moment ago.
func (c *cluster) gone(id placement.NodeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.refused[id]
	return ok && time.Since(at) < refusedFor
}

// fit reports whether a node may be given a shard to lead.
func (n *Node) fit(id placement.NodeID) bool {
	if n.topology.State().Nodes[id].State != placement.NodeUp {
		return false
	}
	return n.cluster == nil || !n.cluster.gone(id)
}

// raft returns the transport of a Raft group.
func (n *Node) raft(group uint64) replica.Transport {
	if n.cluster == nil {
		return transport.NewLocal(raft.ServerAddress(n.dirs.id.Node))
	}
	return n.cluster.network.Raft(group)
}

// wrap makes router and relay, and gives them to the engine as its ways to objects and
// sockets elsewhere.
func (c *cluster) wrap(cfg *engine.Config) (err error) {
	n := c.node
	c.router = router.New(router.Config{
		Self:    n.dirs.id.Node,
		Table:   n.table,
		Owners:  n.shards,
		Network: c.network,
		Logger:  n.cfg.Logger,
	})
	c.relay, err = relay.New(relay.Config{
		Self:    n.dirs.id.Node,
		Table:   n.table,
		Hub:     n.gateway,
		Network: c.network,
		Service: serviceRelay,
		Live:    c.live,
		Logger:  n.cfg.Logger,
	})
	if err != nil {
		return err
	}
	cfg.Far, cfg.Gateway, cfg.Carrier = c.router, c.relay, c.relay
	return nil
}

// serviceRelay is what the network calls the relay's connections.
const serviceRelay = 'k'

// live returns the other nodes that may be there.
func (c *cluster) live() []placement.NodeID {
	var live []placement.NodeID
	for _, n := range c.node.topology.State().Present() {
		if n.ID != c.node.dirs.id.Node && !c.gone(n.ID) {
			live = append(live, n.ID)
		}
	}
	return live
}

// attach puts router and relay between gateway and engine, and begins to answer other nodes.
func (c *cluster) attach(ctx context.Context) error {
	c.router.Attach(c.node.engine)
	c.relay.Start(c.node.engine)
	c.node.gateway.Attach(dispatcher{c.router, c.relay})
	c.serve()
	self, err := c.node.self()
	if err != nil {
		return err
	}
	return c.startGossip(ctx, self)
}

// A dispatcher finds the objects that the gateway's requests and messages are for.
type dispatcher struct {
	*router.Router
	events
}

// events is where what happens on sockets goes.
type events interface {
	Message(ctx context.Context, to host.Ref, m *host.SocketMessage) error
	SocketClosed(to host.Ref, c *host.SocketClose)
	SocketFailed(to host.Ref, f *host.SocketError)
}

// startGossip begins to look for the other nodes, and to be seen by them.
func (c *cluster) startGossip(ctx context.Context, self placement.Node) error {
	listener, err := c.cfg.Network.Listen(ctx, c.cfg.Gossip)
	if err != nil {
		return fmt.Errorf("listen for gossip on %s: %w", c.cfg.Gossip, socketReason(err))
	}
	packets, err := c.cfg.Network.ListenPacket(ctx, listener.Addr().String())
	if err != nil {
		return errors.Join(fmt.Errorf("listen for gossip on %s: %w", c.cfg.Gossip, socketReason(err)), listener.Close())
	}
	advertise, err := lookUp(ctx, self.Gossip)
	if err != nil {
		return errors.Join(err, listener.Close(), packets.Close())
	}
	c.gossip, err = membership.Open(membership.Config{ //nolint:contextcheck // it lives until stop
		Self:        membership.Member{ID: self.ID, Addr: self.Addr, Zone: self.Zone, Version: self.Version},
		Cluster:     c.node.dirs.id.Cluster,
		Advertise:   advertise,
		Transport:   membership.NewTransport(packets, listener, c.cfg.Network.Dial),
		Keys:        c.secret.GossipKeys(),
		Incarnation: c.node.dirs.incarnation(),
		Known:       c.known,
		OnEvent: func(e membership.Event) {
			if e.Kind == membership.Gone {
				c.node.topology.Suspect(e.ID)
			}
		},
		Logger: c.node.cfg.Logger,
	})
	return err
}

// known returns the nodes that should gossip with this one.
func (c *cluster) known() map[placement.NodeID]string {
	known := make(map[placement.NodeID]string)
	for _, n := range c.node.topology.State().Present() {
		if n.Gossip != "" && n.ID != c.node.dirs.id.Node {
			known[n.ID] = n.Gossip
		}
	}
	return known
}

// lookUp returns an address with its host as a number.
func lookUp(ctx context.Context, addr string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddrPort(addr); err == nil {
		return a, nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("the port of %q is no number", addr)
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("find the advertised address %s: %w", addr, err)
	}
	return netip.AddrPortFrom(ips[0].Unmap(), uint16(n)), nil
}

// relieve tells the objects on other nodes that their sockets here are closed.
func (c *cluster) relieve(ctx context.Context) {
	if c.relay == nil {
		return
	}
	if err := c.relay.Stop(ctx); err != nil {
		c.node.cfg.Logger.Warn("some objects on other nodes were not told that their sockets here are closed", slog.String("reason", err.Error()))
	}
}

// stop ends what connects the node with others.
func (c *cluster) stop(ctx context.Context) {
	if c.gossip != nil {
		err := errors.Join(c.gossip.Leave(), c.gossip.Stop())
		if err != nil {
			c.node.cfg.Logger.Debug("the gossip did not end in good order", slog.Any("error", err))
		}
	}
	if c.network == nil {
		return
	}
	if err := c.network.Stop(ctx); err != nil {
		c.node.cfg.Logger.Warn("cut off what other nodes were being told", slog.String("reason", err.Error()))
	}
}

// serve begins to answer other nodes.
func (c *cluster) serve() {
	members := http.NewServeMux()
	members.Handle("/topology/", c.node.topology.Handler())
	members.HandleFunc("GET "+pathShardReport, c.serveReport)
	members.HandleFunc("GET "+pathShardSnapshot, c.node.serveSnapshot)
	members.Handle(router.PathPrefix, c.router.Handler(transport.PeerFrom))
	guests := http.NewServeMux()
	guests.Handle("/", c.node.topology.Guests())
	guests.Handle(adminPrefix, c.node.adminHandler())
	c.network.Serve(members, guests)
	c.network.Accept(serviceRelay, c.relay.Serve)
	c.network.Start()
}

const pathShardReport = "/shards/report"

// report asks a node what it knows of a shard.
func (c *cluster) report(ctx context.Context, from placement.NodeID, id placement.ShardID) (r shard.Report, err error) {
	const timeout = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = getJSON(ctx, c.network.RoundTripper(from), pathShardReport+"?id="+strconv.Itoa(int(id)), &r)
	return r, err
}

func (c *cluster) serveReport(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.URL.Query().Get("id"), 10, 32)
	sh := c.node.shards.get(placement.ShardID(id))
	if err != nil || sh == nil {
		http.Error(w, "there is no replica of the shard here", http.StatusNotFound)
		return
	}
	answerJSON(w, http.StatusOK, sh.Report())
}

// maxAnswer bounds what one node reads of another's answer about itself.
const maxAnswer = 16 << 20

func getJSON(ctx context.Context, rt http.RoundTripper, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+path, nil)
	if err != nil {
		return err
	}
	return doJSON(rt, req, into)
}

func doJSON(rt http.RoundTripper, req *http.Request, into any) error {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body := http.MaxBytesReader(nil, resp.Body, maxAnswer)
	if resp.StatusCode != http.StatusOK {
		return answeredError(resp)
	}
	return json.NewDecoder(body).Decode(into)
}

// answeredError returns what a node answered instead.
func answeredError(resp *http.Response) error {
	var e adminError
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxAnswer)).Decode(&e); err != nil || e.Error == "" {
		return fmt.Errorf("the node answered %s", resp.Status)
	}
	return errors.New(e.Error)
}

func answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a reader who left
}

// leaveTimeout bounds how long a node that stops waits for others to take its shards.
const leaveTimeout = 5 * time.Second

// leave gives everything that this node owns to others, so that clients notice nothing of
// its stop.
func (n *Node) leave(ctx context.Context) {
	if n.cluster == nil || n.topology == nil || n.shards == nil || len(n.topology.State().Present()) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	err := n.topology.Leave(ctx, n.dirs.id.Node)
	for err == nil && n.shards.leads() > 0 {
		select {
		case <-time.After(leavePoll):
		case <-ctx.Done():
			err = fmt.Errorf("%d shards are still owned here", n.shards.leads())
		}
	}
	if err != nil {
		n.cfg.Logger.Warn("stopping without a hand-over", slog.String("reason", err.Error()))
	}
}

const leavePoll = 10 * time.Millisecond

// ReloadSecret reads the cluster's secret and the node's certificates again. A rotation is
// three of them on every node: the new secret below the old one, above it, and alone.
func (n *Node) ReloadSecret() error {
	if n.cluster == nil {
		return errors.New("the node runs alone, without a secret")
	}
	if err := errors.Join(n.cluster.secret.Reload(), n.cluster.proof.Reload()); err != nil {
		return err
	}
	return n.cluster.gossip.Rotate(n.cluster.secret.GossipKeys())
}
