package shard

import "github.com/holdfast-run/holdfast/placement"

// A Report is what a node says of one shard that it holds. Only the owner's knows who has
// caught up.
type Report struct {
	ID      placement.ShardID `json:"id"`
	Leader  placement.NodeID  `json:"leader,omitempty"` // as far as the node knows
	Leads   bool              `json:"leads,omitempty"`  // the node is the owner, and ready
	Epoch   placement.Epoch   `json:"epoch,omitempty"`  // of its reign, if it leads
	Applied uint64            `json:"applied"`          // index of the last entry applied
	Durable uint64            `json:"durable"`          // index of the last entry in the state's file
	Index   uint64            `json:"index"`            // of the entry that made the members
	Members []ReportedMember  `json:"members,omitempty"`
}

// A ReportedMember is one member of the shard's group.
type ReportedMember struct {
	ID       placement.NodeID `json:"id"`
	Voter    bool             `json:"voter,omitempty"`
	CaughtUp bool             `json:"caughtUp,omitempty"`
}

// Report returns what this node knows of the shard.
func (s *Shard) Report() Report {
	r := Report{ID: s.id, Leader: s.Leader()}
	r.Epoch, r.Leads = s.Reign()
	r.Applied, r.Durable = s.Applied()
	group := s.replica.Members()
	r.Index = group.Index
	for _, m := range group.Members {
		r.Members = append(r.Members, ReportedMember{ID: m.ID, Voter: m.Voter, CaughtUp: r.Leads && group.CaughtUp(m.ID)})
	}
	return r
}

// Voters returns the IDs of those that vote.
func (r Report) Voters() (ids []placement.NodeID) {
	for _, m := range r.Members {
		if m.Voter {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// Lacks reports whether a leader says that a node is no member: then what the node has of
// the shard can be dropped; see [Shard.Drop].
func (r Report) Lacks(node placement.NodeID) bool {
	for _, m := range r.Members {
		if m.ID == node {
			return false
		}
	}
	return r.Leads && r.Index > 0
}
