package transport

import (
	"context"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// Local is the transport of one group on a node that has no others. Its methods may be
// called from any goroutine.
type Local struct {
	addr raft.ServerAddress
	rpcs chan raft.RPC
}

var (
	_ raft.Transport   = (*Local)(nil)
	_ raft.WithPreVote = (*Local)(nil)
)

// NewLocal returns the transport of one group on a node with the given address.
func NewLocal(addr raft.ServerAddress) *Local {
	return &Local{addr: addr, rpcs: make(chan raft.RPC)}
}

// Stand makes the group stand for election now. Elections are always safe; this only
// saves the wait for a leader of whom it is known that there is none.
func (l *Local) Stand(ctx context.Context) error { return stand(ctx, l.rpcs, nil) }

// stand asks a group on this node to stand for election, as its leader would before it leaves.
func stand(ctx context.Context, rpcs chan<- raft.RPC, closed <-chan struct{}) error {
	answer := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{
		Command:  &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}},
		RespChan: answer,
	}
	select {
	case rpcs <- rpc:
	case <-closed:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case r := <-answer:
		return r.Error
	case <-closed:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Consumer returns the messages to this node's group.
func (l *Local) Consumer() <-chan raft.RPC { return l.rpcs }

// LocalAddr returns this node's address.
func (l *Local) LocalAddr() raft.ServerAddress { return l.addr }

// SetHeartbeatHandler does nothing; the package comment says why.
func (l *Local) SetHeartbeatHandler(func(raft.RPC)) {}

// EncodePeer returns an address as Raft stores it.
func (l *Local) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

// DecodePeer is the inverse of EncodePeer.
func (l *Local) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// AppendEntriesPipeline fails: there are no peers.
func (l *Local) AppendEntriesPipeline(id raft.ServerID, _ raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, noPeer(id)
}

// AppendEntries fails: there are no peers.
func (l *Local) AppendEntries(id raft.ServerID, _ raft.ServerAddress, _ *raft.AppendEntriesRequest, _ *raft.AppendEntriesResponse) error {
	return noPeer(id)
}

// RequestVote fails: there are no peers.
func (l *Local) RequestVote(id raft.ServerID, _ raft.ServerAddress, _ *raft.RequestVoteRequest, _ *raft.RequestVoteResponse) error {
	return noPeer(id)
}

// RequestPreVote fails: there are no peers.
func (l *Local) RequestPreVote(id raft.ServerID, _ raft.ServerAddress, _ *raft.RequestPreVoteRequest, _ *raft.RequestPreVoteResponse) error {
	return noPeer(id)
}

// InstallSnapshot fails: there are no peers.
func (l *Local) InstallSnapshot(id raft.ServerID, _ raft.ServerAddress, _ *raft.InstallSnapshotRequest, _ *raft.InstallSnapshotResponse, _ io.Reader) error {
	return noPeer(id)
}

// TimeoutNow fails: there are no peers.
func (l *Local) TimeoutNow(id raft.ServerID, _ raft.ServerAddress, _ *raft.TimeoutNowRequest, _ *raft.TimeoutNowResponse) error {
	return noPeer(id)
}

func noPeer(id raft.ServerID) error { return fmt.Errorf("send to node %s: %w", id, ErrNoPeer) }
