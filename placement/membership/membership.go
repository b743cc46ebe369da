// Package membership finds the other nodes of a cluster and suspects their failure. It
// gossips by hashicorp/memberlist, encrypted with keys derived from the cluster's secret. It
// gives hints and nothing else: who owns what, Raft decides, and a node that
// is said to have failed must be asked before anything is moved. It promises:
//
//   - nodes of other clusters, and those without the secret, are never members;
//   - events of one node come in order, and [Membership.Members] is what they add up to;
//   - a node that starts again is believed at once to be alive: its incarnation is kept in
//     a file and is higher each time;
//   - after a partition, however long, the halves find each other again, if [Config.Known] says where
//     to look.
//
// It takes about 7 seconds to notice a crash.
package membership

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/holdfast-run/holdfast/placement"
)

// Config says how a node gossips. Fields without a default are required.
type Config struct {
	Self      Member
	Cluster   string         // the ID of the cluster
	Advertise netip.AddrPort // where the others reach this node's gossip
	Transport *Transport     // owned by the Membership from Open on
	Keys      [][]byte       // 32 bytes each: the first encrypts, all decrypt
	// Incarnation is the path of the file that keeps the incarnation. Default: it is not kept.
	Incarnation string

	// Known returns the nodes that should be members, with the addresses (host:port) of their gossip. Every
	// RejoinEvery those are looked for that are missing. Default: nobody is.
	Known       func() map[placement.NodeID]string
	RejoinEvery time.Duration // 10 s

	// OnEvent is called for each change, in order, one at a time. It must not block, nor call
	// other methods of the Membership than Members. Default: nobody is told.
	OnEvent func(Event)
	Logger  *slog.Logger // default: discard
}

// A Member is what a node says of itself.
type Member struct {
	ID      placement.NodeID `json:"id"`
	Addr    string           `json:"addr"` // host:port of everything but gossip
	Zone    string           `json:"zone,omitempty"`
	Version string           `json:"version"`

	Gossip string `json:"-"` // host:port of its gossip, filled in by the others
}

// An Event is a change of one member.
type Event struct {
	Kind Kind
	Member
}

// A Kind says what has changed.
type Kind string

// The kinds of events.
const (
	Joined  Kind = "joined"
	Updated Kind = "updated"
	Gone    Kind = "gone" // it has left, or failed as the others suspect: memberlist does not say which
)

// A Membership is this node's part in the gossip. Its methods may be called from any
// goroutine.
type Membership struct {
	cfg     Config
	meta    []byte
	list    *memberlist.Memberlist
	keyring *memberlist.Keyring

	mu      sync.Mutex // guards members
	members map[placement.NodeID]Member

	cancel  context.CancelFunc
	running sync.WaitGroup // the goroutine of rejoin, stopped by Stop
	stop    sync.Once
	stopErr error
}

// leaveTimeout bounds how long Leave waits until somebody has heard of it.
const leaveTimeout = 2 * time.Second

// Open begins to gossip. The node is alone until it has joined others.
func Open(cfg Config) (*Membership, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.RejoinEvery == 0 {
		cfg.RejoinEvery = 10 * time.Second
	}
	m := &Membership{cfg: cfg, members: make(map[placement.NodeID]Member)}
	if err := m.open(); err != nil {
		return nil, fmt.Errorf("begin to gossip: %w", errors.Join(err, cfg.Transport.Shutdown()))
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	if cfg.Known != nil {
		m.running.Go(func() { m.rejoin(ctx) })
	}
	return m, nil
}

func (m *Membership) open() (err error) {
	if len(m.cfg.Keys) == 0 {
		return errors.New("there is no key")
	}
	if m.keyring, err = memberlist.NewKeyring(m.cfg.Keys, m.cfg.Keys[0]); err != nil {
		return err
	}
	if m.meta, err = encodeMeta(meta{m.cfg.Cluster, m.cfg.Self}); err != nil {
		return err
	}
	incarnation, err := nextIncarnation(m.cfg.Incarnation)
	if err != nil {
		return err
	}
	if m.list, err = memberlist.Create(m.config()); err != nil {
		return err
	}
	// Nobody can be told the number to begin with, but each update raises it by one. As long as
	// nobody else is there they cost microseconds.
	for range incarnation {
		if err := m.list.UpdateNode(0); err != nil {
			return errors.Join(err, m.list.Shutdown())
		}
	}
	return nil
}

func (m *Membership) config() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = string(m.cfg.Self.ID)
	c.Label = m.cfg.Cluster
	c.Transport = m.cfg.Transport
	c.AdvertiseAddr = m.cfg.Advertise.Addr().String()
	c.AdvertisePort = int(m.cfg.Advertise.Port())
	c.Keyring = m.keyring
	c.Delegate = &delegate{m}
	c.Events = &delegate{m}
	c.Alive = &delegate{m}
	c.Merge = &delegate{m}
	c.EnableCompression = false // what is decompressed has no bound
	c.DeadNodeReclaimTime = time.Second
	c.Logger = newLogger(m.cfg.Logger)
	return c
}

// Join makes this node and those at some addresses (host:port) members of each other, and
// all that they know. It returns nil if it reached one of them.
func (m *Membership) Join(addrs []string) error {
	if _, err := m.list.Join(addrs); err != nil {
		return fmt.Errorf("join the gossip: %w", err)
	}
	return nil
}

// Members returns the other nodes that are there, in order of their IDs.
func (m *Membership) Members() []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := slices.Collect(maps.Values(m.members))
	slices.SortFunc(list, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Rotate uses other keys from now on: the first encrypts, all decrypt.
func (m *Membership) Rotate(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("rotate the gossip keys: there is none")
	}
	old := m.keyring.GetKeys()
	for _, k := range keys {
		if err := m.keyring.AddKey(k); err != nil {
			return fmt.Errorf("rotate the gossip keys: %w", err)
		}
	}
	if err := m.keyring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("rotate the gossip keys: %w", err)
	}
	for _, k := range old {
		if !slices.ContainsFunc(keys, func(n []byte) bool { return string(n) == string(k) }) {
			if err := m.keyring.RemoveKey(k); err != nil {
				return fmt.Errorf("rotate the gossip keys: %w", err)
			}
		}
	}
	return nil
}

// Leave tells the others that this node goes, so that they do not take it for failed.
// Afterwards it can only be stopped.
func (m *Membership) Leave() error {
	if err := m.list.Leave(leaveTimeout); err != nil {
		return fmt.Errorf("leave the gossip: %w", err)
	}
	return nil
}

// Stop stops gossiping. Without Leave the others take the node for failed. It may be
// called twice.
func (m *Membership) Stop() error {
	m.stop.Do(func() {
		m.cancel()
		m.running.Wait()
		m.stopErr = m.list.Shutdown()
	})
	return m.stopErr
}

// rejoin looks for members that are missing: memberlist forgets the dead.
func (m *Membership) rejoin(ctx context.Context) {
	tick := time.NewTicker(m.cfg.RejoinEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, addr := range m.missing() {
			if _, err := m.list.Join([]string{addr}); err == nil || ctx.Err() != nil {
				break // it knows the others
			}
		}
	}
}

// missing returns where the nodes are that should be members and are not.
func (m *Membership) missing() []string {
	known := m.cfg.Known()
	m.mu.Lock()
	defer m.mu.Unlock()
	var addrs []string
	for _, id := range slices.Sorted(maps.Keys(known)) {
		if _, ok := m.members[id]; !ok && id != m.cfg.Self.ID && known[id] != "" {
			addrs = append(addrs, known[id])
		}
	}
	return addrs
}

// meta is what a node gossips about itself.
type meta struct {
	Cluster string `json:"cluster"`
	Member
}

func encodeMeta(m meta) ([]byte, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if len(text) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("what the node says of itself has %d bytes, at most %d can be gossiped: use shorter names", len(text), memberlist.MetaMaxSize)
	}
	return text, nil
}

// parse reads what another node says of itself.
func (m *Membership) parse(n *memberlist.Node) (Member, error) {
	var said meta
	if err := json.Unmarshal(n.Meta, &said); err != nil {
		return Member{}, fmt.Errorf("what node %q says of itself cannot be read: %w", n.Name, err)
	}
	switch {
	case said.Cluster != m.cfg.Cluster:
		return Member{}, fmt.Errorf("node %q belongs to cluster %q", n.Name, said.Cluster)
	case string(said.ID) != n.Name:
		return Member{}, fmt.Errorf("node %q calls itself %q", n.Name, said.ID)
	}
	said.Gossip = n.Address()
	return said.Member, nil
}

// delegate is what memberlist sees of a Membership. It calls the methods about events with
// its own lock held.
type delegate struct{ *Membership }

func (d *delegate) NodeMeta(int) []byte             { return d.meta }
func (d *delegate) NotifyMsg([]byte)                {}
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d *delegate) LocalState(bool) []byte          { return nil }
func (d *delegate) MergeRemoteState([]byte, bool)   {}

// NotifyAlive refuses nodes of other clusters.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	_, err := d.parse(n)
	return err
}

// NotifyMerge refuses to join nodes of other clusters.
func (d *delegate) NotifyMerge(nodes []*memberlist.Node) error {
	for _, n := range nodes {
		if _, err := d.parse(n); err != nil {
			return err
		}
	}
	return nil
}

func (d *delegate) NotifyJoin(n *memberlist.Node)   { d.notify(Joined, n) }
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.notify(Updated, n) }
func (d *delegate) NotifyLeave(n *memberlist.Node)  { d.notify(Gone, n) }

func (d *delegate) notify(kind Kind, n *memberlist.Node) {
	said, err := d.parse(n)
	if err != nil || said.ID == d.cfg.Self.ID {
		return
	}
	d.mu.Lock()
	if kind == Gone {
		delete(d.members, said.ID)
	} else {
		d.members[said.ID] = said
	}
	d.mu.Unlock()
	if d.cfg.OnEvent != nil {
		d.cfg.OnEvent(Event{kind, said})
	}
}
