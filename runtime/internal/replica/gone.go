package replica

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
)

// How a dead leader is succeeded: its voters are asked one after another, each when the
// one before has had time to be elected.
const (
	successorDelay = 150 * time.Millisecond
	standTimeout   = electionTimeout // to pass the word to the group's main loop
)

// LeaderGone tells the replica that a node's process has ended, and not only a connection
// to it. If that node led the group, its successor stands for election at once, where it would have
// been missed after more than a second only: the first voter after it, in the order of the IDs,
// that is alive. The next ones stand if there is no leader by then. Standing is always safe,
// and a candidate that lacks entries is not elected.
//
// It returns when this member has stood or need not, which takes some hundred
// milliseconds, or when ctx has ended.
func (r *Replica) LeaderGone(ctx context.Context, peer placement.NodeID, alive func(placement.NodeID) bool) {
	if leader, _ := r.Leader(); placement.NodeID(leader) != peer {
		return
	}
	place, ok := r.succession(peer, alive)
	if !ok || !r.standing.CompareAndSwap(false, true) {
		return
	}
	defer r.standing.Store(false)
	select {
	case <-ctx.Done():
		return
	case <-r.stopping:
		return
	case <-time.After(time.Duration(place) * successorDelay):
	}
	if leader, _ := r.Leader(); leader != "" && placement.NodeID(leader) != peer || r.raft.State() != raft.Follower {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, standTimeout)
	defer cancel()
	if err := r.cfg.Transport.Stand(ctx); err != nil {
		r.log.Warn("stand for election after the leader has gone", slog.String("leader", string(peer)), slog.Any("error", err))
		return
	}
	r.log.Info("the leader's process has ended: standing for election", slog.String("leader", string(peer)))
}

// succession returns how many voters come before this member in the succession of a node.
func (r *Replica) succession(peer placement.NodeID, alive func(placement.NodeID) bool) (place int, ok bool) {
	self := placement.NodeID(r.cfg.NodeID)
	var heirs []placement.NodeID
	_, voters := r.voters() // as of the log's end: who loses its vote now must not stand
	for _, s := range voters {
		id := placement.NodeID(s.ID)
		if id != peer && (id == self || alive == nil || alive(id)) {
			heirs = append(heirs, id)
		}
	}
	slices.SortFunc(heirs, func(a, b placement.NodeID) int {
		if (a > peer) != (b > peer) { // those after it first
			if a > peer {
				return -1
			}
			return 1
		}
		if a < b {
			return -1
		}
		return 1
	})
	place = slices.Index(heirs, self)
	return place, place >= 0
}
