package replica

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
)

// Seed prepares a log that has nothing of a group, for a state that was made elsewhere and ends with
// an entry of that index and term: as if the node had received it as a snapshot. Terms go on from
// there, so every reign over the state is later than those that made it.
func Seed(log *raftlog.Group, index, term uint64) error {
	last, err1 := log.LastIndex()
	before, err2 := log.GetUint64(keyTerm)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if last != 0 || before != 0 || index == 0 || term == 0 {
		return fmt.Errorf("seed a log for index %d of term %d: it has index %d and term %d", index, term, last, before)
	}
	if err := log.SetUint64(keyTerm, term); err != nil {
		return err
	}
	return log.SetUint64(keyRestored, index)
}

// SoleMember returns the members of a group of one node, as a state machine keeps them.
func SoleMember(id raft.ServerID) []byte {
	return raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter,
		ID:       id,
		Address:  raft.ServerAddress(id),
	}}})
}
