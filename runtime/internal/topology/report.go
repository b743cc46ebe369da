package topology

import (
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// A Reporter says what a node does. It is asked once a second by the placement group's leader
// and must not block.
type Reporter interface{ Report() Report }

// A Report is what a node says of itself.
type Report struct {
	Node  placement.NodeID    `json:"node"`
	Holds []placement.ShardID `json:"holds,omitempty"` // of which it has a replica on its disk
	Leads []Leadership        `json:"leads,omitempty"`
}

// A Leadership is what the leader of a shard says of it.
type Leadership struct {
	Shard    placement.ShardID  `json:"shard"`
	Epoch    placement.Epoch    `json:"epoch"`
	Applied  uint64             `json:"applied"`            // index of the last entry applied
	Members  []placement.NodeID `json:"members"`            // of its Raft group
	Voters   []placement.NodeID `json:"voters"`             // those of them that vote
	CaughtUp []placement.NodeID `json:"caughtUp,omitempty"` // those of them that lack nothing to speak of
}

// silent is the Reporter of a node that has nothing to say.
type silent struct{ id placement.NodeID }

func (s silent) Report() Report { return Report{Node: s.id} }

// Health is what the placement group's leader sees of the cluster.
type Health struct {
	Leader placement.NodeID                       `json:"leader"`
	At     time.Time                              `json:"at"`
	Nodes  map[placement.NodeID]NodeHealth        `json:"nodes"`
	Shards map[placement.ShardID]Leadership       `json:"shards"` // those that somebody leads
	Owners map[placement.ShardID]placement.NodeID `json:"owners"` // who that is
	Moving []placement.ShardID                    `json:"moving,omitempty"`
}

// NodeHealth is what the leader sees of a node.
type NodeHealth struct {
	Seen  time.Time           `json:"seen"` // when it last answered
	Down  bool                `json:"down"`
	Lost  bool                `json:"lost"`
	Voter bool                `json:"voter"` // in the placement group
	Holds []placement.ShardID `json:"holds,omitempty"`
}
