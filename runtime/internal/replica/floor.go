package replica

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
)

// A floor is what a dropped replica remembers of the log it had: it knew everything up to an
// entry that was in the log of the leader of a term. Raft's promise that a leader has every
// committed entry rests on the memory of those who vote, and this is what is left of it:
//
//   - it votes only for a candidate whose log has come as far;
//   - what the log says of members before that is over: in it, the replica has no vote. So it
//     does not stand for election while it is given the same entries once more, of which
//     the first may say that it is the only voter.
type floor struct{ term, index uint64 }

// reached reports whether a log that ends with an entry of that term and index has
// come as far.
func (f floor) reached(term, index uint64) bool {
	return term > f.term || term == f.term && index >= f.index
}

// mask takes a node's vote in a configuration that is older than the floor.
func (f floor) mask(node raft.ServerID, index uint64, members raft.Configuration) raft.Configuration {
	if index >= f.index {
		return members
	}
	members = members.Clone()
	for i := range members.Servers {
		if members.Servers[i].ID == node {
			members.Servers[i].Suffrage = raft.Nonvoter
		}
	}
	return members
}

// readFloor returns the floor that is stored; the zero floor is reached by every log.
func readFloor(log *raftlog.Group) (f floor, err error) {
	b, err := log.Get(keyFloor)
	switch {
	case err != nil || len(b) == 0:
		return floor{}, err
	case len(b) != 16:
		return floor{}, fmt.Errorf("read %q: %w: %d bytes", keyFloor, raftlog.ErrCorrupt, len(b))
	}
	return floor{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}, nil
}

func (f floor) store(log *raftlog.Group) error {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16), f.term)
	return log.Set(keyFloor, binary.BigEndian.AppendUint64(b, f.index))
}

// end returns term and index of the last entry that is in the log or the state.
func (r *Replica) end() (term, index uint64, err error) {
	durable, durableTerm := r.cfg.Machine.Durable()
	last, err := r.cfg.Log.LastIndex()
	if err != nil || last <= durable {
		return durableTerm, durable, err
	}
	var log raft.Log
	err = r.cfg.Log.GetLog(last, &log)
	return log.Term, last, err
}

// A gate stands before a replica that is below its floor: messages pass through it.
type gate struct {
	Transport
	replica *Replica
	rpcs    chan raft.RPC
}

// aboveFloor returns the transport for Raft: the configured one, or a gate before it.
func (r *Replica) aboveFloor() (raft.Transport, *gate, error) {
	f, err := readFloor(r.cfg.Log)
	if err != nil || f == (floor{}) {
		return r.cfg.Transport, nil, err
	}
	r.floor = f
	term, index, err := r.end()
	if err != nil || f.reached(term, index) {
		return r.cfg.Transport, nil, err
	}
	g := &gate{Transport: r.cfg.Transport, replica: r, rpcs: make(chan raft.RPC)}
	return g, g, nil
}

// Consumer returns the messages that have passed.
func (g *gate) Consumer() <-chan raft.RPC { return g.rpcs }

// Close closes the transport beneath, if it can be closed.
func (g *gate) Close() error {
	if c, ok := g.Transport.(raft.WithClose); ok {
		return c.Close()
	}
	return nil
}

// run is the goroutine that passes messages on. Replica.halt stops it.
func (g *gate) run() {
	for {
		select {
		case <-g.replica.stopping:
			return
		case rpc := <-g.Transport.Consumer():
			if !g.pass(&rpc) {
				continue
			}
			select {
			case g.rpcs <- rpc:
			case <-g.replica.stopping:
				rpc.Respond(nil, raft.ErrRaftShutdown)
				return
			}
		}
	}
}

// pass refuses a vote for a candidate below the floor, and masks old members. What it
// changes it copies: in memory, the sender has the same.
func (g *gate) pass(rpc *raft.RPC) bool {
	r := g.replica
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(r.cfg.NodeID), Addr: []byte(r.cfg.Transport.LocalAddr())}
	switch c := rpc.Command.(type) {
	case *raft.RequestVoteRequest:
		if !r.floor.reached(c.LastLogTerm, c.LastLogIndex) {
			rpc.Respond(&raft.RequestVoteResponse{RPCHeader: header, Term: r.raft.CurrentTerm()}, nil)
			return false
		}
	case *raft.RequestPreVoteRequest:
		if !r.floor.reached(c.LastLogTerm, c.LastLogIndex) {
			rpc.Respond(&raft.RequestPreVoteResponse{RPCHeader: header, Term: r.raft.CurrentTerm()}, nil)
			return false
		}
	case *raft.AppendEntriesRequest:
		rpc.Command = r.maskEntries(c)
	case *raft.InstallSnapshotRequest:
		masked := *c
		members := r.floor.mask(r.cfg.NodeID, c.ConfigurationIndex, raft.DecodeConfiguration(c.Configuration))
		masked.Configuration = raft.EncodeConfiguration(members)
		rpc.Command = &masked
	}
	return true
}

func (r *Replica) maskEntries(c *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	masked := *c
	masked.Entries = append([]*raft.Log(nil), c.Entries...)
	for i, e := range masked.Entries {
		if e.Type == raft.LogConfiguration && e.Index < r.floor.index {
			copied := *e
			copied.Data = raft.EncodeConfiguration(r.floor.mask(r.cfg.NodeID, e.Index, raft.DecodeConfiguration(e.Data)))
			masked.Entries[i] = &copied
		}
	}
	return &masked
}
