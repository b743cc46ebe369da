package runtime

import "slices"

// A ReplicaInfo is what a node has of one shard.
type ReplicaInfo struct {
	Shard   uint32 `json:"shard"`
	Leads   bool   `json:"leads,omitempty"`
	Epoch   uint64 `json:"epoch,omitempty"` // if it leads
	Applied uint64 `json:"applied"`         // index of the last entry that Digest stands for
	Digest  uint64 `json:"digest"`          // of everything applied: the same on all replicas at the same index
}

// Replicas returns what the node holds.
func (n *Node) Replicas() []ReplicaInfo {
	list := []ReplicaInfo{}
	for id, h := range n.shards.all() {
		r := ReplicaInfo{Shard: uint32(id)}
		epoch, leads := h.Reign()
		r.Epoch, r.Leads = uint64(epoch), leads
		r.Applied, r.Digest = h.Digest()
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b ReplicaInfo) int { return int(a.Shard) - int(b.Shard) })
	return list
}
