package topology

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// A State is the whole table at one moment. It is never changed: what changes it makes a
// new one.
type State struct {
	placement.Cluster

	ID       string            `json:"id"`      // of the cluster; "" until it is founded
	Version  uint64            `json:"version"` // index of the entry that made it
	Settings map[string]string `json:"settings,omitempty"`
}

// A Setting is the name of what an operator can set for the whole cluster.
type Setting string

// The settings.
const (
	SettingReplicas  Setting = "replicas"   // of each shard: auto, or 1 to 7
	SettingVoters    Setting = "voters"     // of the placement group, at most: auto (5), 1, 3, 5 or 7
	SettingLostAfter Setting = "lost-after" // a node's absence until its replicas are made anew elsewhere; 10m
	SettingMaxMoving Setting = "max-moving" // shards that change their replicas at once; 16
)

// Defaults and limits of the settings, and of the table.
const (
	DefaultLostAfter = 10 * time.Minute
	DefaultMaxMoving = 16
	DefaultVoters    = 5

	maxReplicas  = 7
	maxMoving    = 64
	minLostAfter = time.Second
	auto         = "auto"

	maxNodes = 1024 // removed ones included, whose IDs must be remembered
	maxText  = 256  // bytes of a name or an address
)

// Shard returns a shard's record, and false if there is none.
func (s *State) Shard(id placement.ShardID) (placement.Shard, bool) {
	if int(id) >= len(s.Shards) {
		return placement.Shard{}, false
	}
	return s.Shards[id], true
}

// Present returns the nodes that have not been removed, in order of their IDs.
func (s *State) Present() []placement.Node {
	var list []placement.Node
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		if n := s.Nodes[id]; n.State != placement.NodeRemoved {
			list = append(list, n)
		}
	}
	return list
}

// LostAfter returns how long a node may be away before its replicas are made anew.
func (s *State) LostAfter() time.Duration {
	d, err := time.ParseDuration(s.Settings[string(SettingLostAfter)])
	if err != nil {
		return DefaultLostAfter
	}
	return d
}

// MaxMoving returns how many shards may change their replicas at once.
func (s *State) MaxMoving() int { return s.number(SettingMaxMoving, DefaultMaxMoving) }

// MaxVoters returns how many voters the placement group may have.
func (s *State) MaxVoters() int { return s.number(SettingVoters, DefaultVoters) }

func (s *State) number(name Setting, def int) int {
	n, err := strconv.Atoi(s.Settings[string(name)])
	if err != nil {
		return def
	}
	return n
}

// check returns what is wrong with a value of the setting.
func (name Setting) check(value string) error {
	n, err := strconv.Atoi(value)
	switch name {
	case SettingReplicas:
		if value != auto && (err != nil || n < 1 || n > maxReplicas) {
			return Refusal(fmt.Sprintf("replicas is %q, want auto or a number from 1 to %d", value, maxReplicas))
		}
	case SettingVoters:
		if value != auto && (err != nil || n < 1 || n > maxReplicas || n%2 == 0) {
			return Refusal(fmt.Sprintf("voters is %q, want auto, 1, 3, 5 or 7", value))
		}
	case SettingMaxMoving:
		if err != nil || n < 1 || n > maxMoving {
			return Refusal(fmt.Sprintf("max-moving is %q, want a number from 1 to %d", value, maxMoving))
		}
	case SettingLostAfter:
		if d, err := time.ParseDuration(value); err != nil || d < minLostAfter {
			return Refusal(fmt.Sprintf("lost-after is %q, want a time like 10m, at least %v", value, minLostAfter))
		}
	default:
		return Refusal(fmt.Sprintf("there is no setting %q", string(name)))
	}
	return nil
}

// A Refusal says in a sentence why the table was not changed. The same request would be
// refused again.
type Refusal string

func (r Refusal) Error() string { return string(r) }

// A command is one change of the table. One of the fields after Token is set.
type command struct {
	Token string `json:"token,omitempty"` // whoever proposed it finds the answer by it

	Found *founding        `json:"found,omitempty"`
	Put   *placement.Node  `json:"put,omitempty"`
	Mark  *marking         `json:"mark,omitempty"`
	Moves []placement.Move `json:"moves,omitempty"`
	Set   *setting         `json:"set,omitempty"`
}

type founding struct {
	Cluster string         `json:"cluster"`
	Shards  int            `json:"shards"`
	Node    placement.Node `json:"node"` // the first, which holds everything
}

type marking struct {
	Node  placement.NodeID    `json:"node"`
	State placement.NodeState `json:"state"`
}

type setting struct {
	Name  Setting `json:"name"`
	Value string  `json:"value"`
}

// maxCommand bounds a command: the longest has a move for every shard.
const maxCommand = 4 << 20

// errUnknown stops a node whose program is too old for its cluster: if it went on, its table
// would differ from the others'.
var errUnknown = errors.New("the placement log has a command that this version does not know: run the newer version")

func (c command) encode() ([]byte, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...), nil
}

// nextCommand takes the first command out of the batches of an entry.
func nextCommand(batches []byte) (c command, rest []byte, err error) {
	if len(batches) < 4 {
		return c, nil, errors.New("a command is torn")
	}
	n := binary.BigEndian.Uint32(batches)
	if n > maxCommand || int(n) > len(batches)-4 {
		return c, nil, fmt.Errorf("a command has %d bytes, but %d are left", n, len(batches)-4)
	}
	c, err = parseCommand(batches[4 : 4+n])
	return c, batches[4+n:], err
}

func parseCommand(text []byte) (c command, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, errors.Join(errUnknown, err)
	}
	return c, nil
}

// with returns the state that a command at an index makes, or this one and why not. It is
// a pure function: all replicas come to the same.
func (s *State) with(c command, index uint64) (*State, error) {
	next := s.clone()
	var err error
	switch {
	case c.Found != nil:
		err = next.found(*c.Found)
	case s.ID == "":
		err = Refusal("the cluster is not founded yet")
	case c.Put != nil && s.Nodes[c.Put.ID] == *c.Put:
		return s, nil // as after every start of a node
	case c.Put != nil:
		err = next.put(*c.Put)
	case c.Mark != nil:
		err = next.mark(*c.Mark)
	case c.Set != nil:
		err = next.set(*c.Set)
	default:
		err = next.move(c.Moves)
	}
	if err != nil {
		return s, err
	}
	next.Version = index
	return next, nil
}

func (s *State) clone() *State {
	next := *s
	next.Nodes = maps.Clone(s.Nodes)
	next.Shards = slices.Clone(s.Shards)
	next.Settings = maps.Clone(s.Settings)
	return &next
}

func (s *State) found(f founding) error {
	if s.ID != "" {
		return Refusal(fmt.Sprintf("the cluster is founded already: it is %s", s.ID))
	}
	if _, err := placement.Even(f.Shards); err != nil {
		return Refusal(err.Error())
	}
	s.ID = f.Cluster
	for range f.Shards {
		s.Shards = append(s.Shards, placement.Shard{Replicas: []placement.NodeID{f.Node.ID}, Owner: f.Node.ID, Version: 1})
	}
	return s.put(f.Node)
}

// put adds a node, or says anew where it is. A node that was removed stays so.
func (s *State) put(n placement.Node) error {
	if n.State == "" {
		n.State = placement.NodeUp
	}
	old, known := s.Nodes[n.ID]
	switch {
	case n.ID == "" || n.Addr == "":
		return Refusal("a node needs an ID and an address")
	case max(len(n.ID), len(n.Addr), len(n.Gossip), len(n.Zone), len(n.Version)) > maxText:
		return Refusal(fmt.Sprintf("a node's name or address is longer than %d bytes", maxText))
	case n.State != placement.NodeUp && n.State != placement.NodeLeaving && n.State != placement.NodeDraining:
		return Refusal(fmt.Sprintf("a node cannot join as %q", n.State))
	case old.State == placement.NodeRemoved:
		return Refusal(fmt.Sprintf("node %s was removed from the cluster, and its ID is never used again: start it with new data and log directories", n.ID))
	case !known && len(s.Nodes) >= maxNodes:
		return Refusal(fmt.Sprintf("the cluster has had %d nodes, which is the most it can have", maxNodes))
	}
	if s.Nodes == nil {
		s.Nodes = make(map[placement.NodeID]placement.Node)
	}
	s.Nodes[n.ID] = n
	return nil
}

func (s *State) mark(m marking) error {
	n, ok := s.Nodes[m.Node]
	switch {
	case !ok:
		return Refusal(fmt.Sprintf("there is no node %s", m.Node))
	case n.State == placement.NodeRemoved && m.State != placement.NodeRemoved:
		return Refusal(fmt.Sprintf("node %s was removed from the cluster", m.Node))
	}
	switch m.State {
	case placement.NodeUp, placement.NodeLeaving, placement.NodeDraining:
	case placement.NodeRemoved:
		if len(s.Present()) == 1 && n.State != placement.NodeRemoved {
			return Refusal(fmt.Sprintf("node %s is the last one", m.Node))
		}
	default:
		return Refusal(fmt.Sprintf("%q is no state of a node", m.State))
	}
	n.State = m.State
	s.Nodes[m.Node] = n
	return nil
}

func (s *State) set(c setting) error {
	if err := c.Name.check(c.Value); err != nil {
		return err
	}
	if s.Settings == nil {
		s.Settings = make(map[string]string)
	}
	s.Settings[string(c.Name)] = c.Value
	if c.Name == SettingReplicas {
		s.Replicas, _ = strconv.Atoi(c.Value) // auto is 0
	}
	return nil
}

// move makes those moves whose records are still those they are based upon.
func (s *State) move(moves []placement.Move) error {
	made := 0
	for _, m := range moves {
		if r, ok := s.Shard(m.ID); !ok || r.Version != m.Version || len(m.Replicas) == 0 {
			continue
		}
		m.Version++
		s.Shards[m.ID] = m.Shard
		made++
	}
	if made == 0 {
		return Refusal("the records have changed meanwhile")
	}
	return nil
}
