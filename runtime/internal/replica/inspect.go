package replica

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// Errors of Open, to compare with errors.Is: what one of the two, state and log,
// remembers, the other has lost.
var (
	ErrLogLost   = errors.New("the log has lost entries")
	ErrStateLost = errors.New("the state has lost entries")
)

// Keys of the stable store. The first is Raft's.
var (
	keyTerm     = []byte("CurrentTerm")
	keyRestored = []byte("Restored") // index of the last snapshot received
	keyDropping = []byte("Dropping") // 1 while the group is being deleted here
	keyFloor    = []byte("Floor")    // a floor, once the group has been deleted here
)

// inspect compares log and state, and founds the group if there is neither. What would make
// Raft panic, or lose something in silence, is an error here.
func (r *Replica) inspect() error {
	log := r.cfg.Log
	durable, _ := r.cfg.Machine.Durable()
	first, err1 := log.FirstIndex()
	last, err2 := log.LastIndex()
	term, err3 := log.GetUint64(keyTerm)
	restored, err4 := log.GetUint64(keyRestored)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	switch {
	case last == 0 && durable == 0:
		if r.cfg.Join {
			return nil
		}
		if term > 1 {
			return fmt.Errorf("%w: it is empty, but term %d was reached", ErrLogLost, term)
		}
		return r.found()
	case last < durable && durable > restored:
		return fmt.Errorf("%w: it ends at index %d, but the state is at %d; are log and data directory of the same node?", ErrLogLost, last, durable)
	case last < durable:
		return log.DeleteRange(first, last) // older than the snapshot that was received
	case first > durable+1:
		return fmt.Errorf("%w: it is at index %d, but the log begins at %d; put the state's file back, or rebuild the replica from another", ErrStateLost, durable, first)
	}
	return log.Check(durable + 1)
}

// found makes this node the only member of a new group. It can be repeated after a
// crash in the middle, unlike raft.BootstrapCluster.
func (r *Replica) found() error {
	members := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter,
		ID:       r.cfg.NodeID,
		Address:  r.cfg.Transport.LocalAddr(),
	}}}
	if err := r.cfg.Log.SetUint64(keyTerm, 1); err != nil {
		return err
	}
	return r.cfg.Log.StoreLog(&raft.Log{
		Index: 1,
		Term:  1,
		Type:  raft.LogConfiguration,
		Data:  raft.EncodeConfiguration(members),
	})
}
