package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Messages are written field by field: numbers as varints, bytes with their length before
// them. A node's name is mostly the sender's own, which the receiver knows. Fields that Raft has
// only for members older than its RPCHeader are left out.

// Ways to name a node.
const (
	whoNone   = 0
	whoSender = 1
	whoOther  = 2 // bytes follow
)

// The least an entry takes: index, term, type, data, extensions, time.
const minEntryBytes = 6

var errMessage = errors.New("malformed message")

// confirmAnswer is a member's current term.
type confirmAnswer uint64

// appendMessage appends a message of a node. It knows every type that is sent.
func appendMessage(b []byte, self string, message any) []byte {
	switch m := message.(type) {
	case nil:
	case *raft.AppendEntriesRequest:
		b = appendHeader(b, self, m.RPCHeader)
		b = appendUints(b, m.Term, m.PrevLogEntry, m.PrevLogTerm, m.LeaderCommitIndex)
		b = appendEntries(b, m.Entries)
	case *raft.AppendEntriesResponse:
		b = appendHeader(b, self, m.RPCHeader)
		b = appendUints(b, m.Term, m.LastLog)
		b = append(b, flag(m.Success)|flag(m.NoRetryBackoff)<<1)
	case *raft.RequestVoteRequest:
		b = appendHeader(b, self, m.RPCHeader)
		b = appendUints(b, m.Term, m.LastLogIndex, m.LastLogTerm)
		b = append(b, flag(m.LeadershipTransfer))
	case *raft.RequestVoteResponse:
		b = appendHeader(b, self, m.RPCHeader)
		b = binary.AppendUvarint(b, m.Term)
		b = appendBytes(b, m.Peers)
		b = append(b, flag(m.Granted))
	case *raft.RequestPreVoteRequest:
		b = appendHeader(b, self, m.RPCHeader)
		b = appendUints(b, m.Term, m.LastLogIndex, m.LastLogTerm)
	case *raft.RequestPreVoteResponse:
		b = appendHeader(b, self, m.RPCHeader)
		b = binary.AppendUvarint(b, m.Term)
		b = append(b, flag(m.Granted))
	case *raft.TimeoutNowRequest:
		b = appendHeader(b, self, m.RPCHeader)
	case *raft.TimeoutNowResponse:
		b = appendHeader(b, self, m.RPCHeader)
	case *raft.InstallSnapshotRequest:
		b = appendHeader(b, self, m.RPCHeader)
		b = appendUints(b, uint64(m.SnapshotVersion), m.Term, m.LastLogIndex, m.LastLogTerm, m.ConfigurationIndex, uint64(m.Size))
		b = appendWho(b, self, m.Leader)
		b = appendBytes(b, m.Peers)
		b = appendBytes(b, m.Configuration)
	case *raft.InstallSnapshotResponse:
		b = appendHeader(b, self, m.RPCHeader)
		b = binary.AppendUvarint(b, m.Term)
		b = append(b, flag(m.Success))
	case confirmAnswer:
		b = binary.AppendUvarint(b, uint64(m))
	case error:
		b = append(b, m.Error()...)
	default:
		panic(fmt.Sprintf("transport: a message cannot be a %T", message))
	}
	return b
}

// decodeRequest reads a request of a kind. What it returns keeps pieces of the payload.
func decodeRequest(k kind, payload, sender []byte) (any, error) {
	d := &decoder{rest: payload, sender: sender}
	var message any
	switch k {
	case kindAppend:
		message = d.appendEntries()
	case kindVote:
		message = &raft.RequestVoteRequest{
			RPCHeader: d.header(),
			Term:      d.uint(), LastLogIndex: d.uint(), LastLogTerm: d.uint(),
			LeadershipTransfer: d.byte()&1 != 0,
		}
	case kindPreVote:
		message = &raft.RequestPreVoteRequest{RPCHeader: d.header(), Term: d.uint(), LastLogIndex: d.uint(), LastLogTerm: d.uint()}
	case kindTimeoutNow:
		message = &raft.TimeoutNowRequest{RPCHeader: d.header()}
	case kindSnapshot:
		message = d.installSnapshot()
	default:
		return nil, fmt.Errorf("%w: kind %d is no request", errMessage, k)
	}
	return message, d.end()
}

// decodeAnswer reads an answer into the message that the request's sender gave for it.
// It keeps nothing of the payload.
func decodeAnswer(payload, sender []byte, message any) error {
	d := &decoder{rest: payload, sender: sender}
	switch m := message.(type) {
	case *raft.AppendEntriesResponse:
		m.RPCHeader, m.Term, m.LastLog = d.header(), d.uint(), d.uint()
		flags := d.byte()
		m.Success, m.NoRetryBackoff = flags&1 != 0, flags&2 != 0
	case *raft.RequestVoteResponse:
		m.RPCHeader, m.Term, m.Peers = d.header(), d.uint(), bytes.Clone(d.bytes())
		m.Granted = d.byte()&1 != 0
	case *raft.RequestPreVoteResponse:
		m.RPCHeader, m.Term, m.Granted = d.header(), d.uint(), d.byte()&1 != 0
	case *raft.TimeoutNowResponse:
		m.RPCHeader = d.header()
	case *raft.InstallSnapshotResponse:
		m.RPCHeader, m.Term, m.Success = d.header(), d.uint(), d.byte()&1 != 0
	case *confirmAnswer:
		*m = confirmAnswer(d.uint())
	default:
		panic(fmt.Sprintf("transport: an answer cannot be a %T", message))
	}
	return d.end()
}

func appendHeader(b []byte, self string, h raft.RPCHeader) []byte {
	b = binary.AppendUvarint(b, uint64(h.ProtocolVersion))
	return appendWho(appendWho(b, self, h.ID), self, h.Addr)
}

func appendWho(b []byte, self string, name []byte) []byte {
	switch {
	case len(name) == 0:
		return append(b, whoNone)
	case string(name) == self:
		return append(b, whoSender)
	default:
		return appendBytes(append(b, whoOther), name)
	}
}

func appendEntries(b []byte, entries []*raft.Log) []byte {
	b = binary.AppendUvarint(b, uint64(len(entries)))
	for _, e := range entries {
		b = appendUints(b, e.Index, e.Term)
		b = append(b, byte(e.Type))
		b = appendBytes(appendBytes(b, e.Data), e.Extensions)
		var at int64
		if !e.AppendedAt.IsZero() {
			at = e.AppendedAt.UnixNano()
		}
		b = binary.AppendVarint(b, at)
	}
	return b
}

func appendUints(b []byte, values ...uint64) []byte {
	for _, v := range values {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func appendBytes(b, v []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// A decoder reads a payload from its beginning. After the first thing that is not there it
// returns zeros, and end tells.
type decoder struct {
	rest   []byte
	sender []byte
	bad    bool
}

func (d *decoder) appendEntries() *raft.AppendEntriesRequest {
	m := &raft.AppendEntriesRequest{
		RPCHeader: d.header(),
		Term:      d.uint(), PrevLogEntry: d.uint(), PrevLogTerm: d.uint(), LeaderCommitIndex: d.uint(),
	}
	n := d.uint()
	if n > uint64(len(d.rest)/minEntryBytes) {
		d.bad = true
	}
	if n == 0 || d.bad {
		return m
	}
	logs := make([]raft.Log, n)
	m.Entries = make([]*raft.Log, n)
	for i := range logs {
		d.entry(&logs[i])
		m.Entries[i] = &logs[i]
	}
	return m
}

func (d *decoder) entry(e *raft.Log) {
	e.Index, e.Term, e.Type = d.uint(), d.uint(), raft.LogType(d.byte())
	e.Data, e.Extensions = d.bytes(), d.bytes()
	if at := d.int(); at != 0 {
		e.AppendedAt = time.Unix(0, at)
	}
}

func (d *decoder) installSnapshot() *raft.InstallSnapshotRequest {
	m := &raft.InstallSnapshotRequest{
		RPCHeader:       d.header(),
		SnapshotVersion: raft.SnapshotVersion(d.uint()),
		Term:            d.uint(), LastLogIndex: d.uint(), LastLogTerm: d.uint(), ConfigurationIndex: d.uint(),
		Size: int64(d.uint()), Leader: d.who(), Peers: d.bytes(), Configuration: d.bytes(),
	}
	if m.Size < 0 || m.SnapshotVersion < 0 {
		d.bad = true
	}
	return m
}

func (d *decoder) header() raft.RPCHeader {
	h := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersion(d.uint()), ID: d.who(), Addr: d.who()}
	if h.ProtocolVersion < 0 {
		d.bad = true
	}
	return h
}

func (d *decoder) who() []byte {
	switch d.byte() {
	case whoNone:
		return nil
	case whoSender:
		return d.sender
	case whoOther:
		return bytes.Clone(d.bytes())
	default:
		d.bad = true
		return nil
	}
}

func (d *decoder) byte() byte {
	if len(d.rest) == 0 {
		d.bad = true
		return 0
	}
	v := d.rest[0]
	d.rest = d.rest[1:]
	return v
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.rest)
	return v & d.advance(n)
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.rest)
	return v & int64(d.advance(n))
}

// advance goes on by what a varint took, and returns a mask that makes a missing one zero.
func (d *decoder) advance(n int) uint64 {
	if n <= 0 {
		d.bad, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[n:]
	return ^uint64(0)
}

// bytes returns nil for no bytes: Raft makes no difference.
func (d *decoder) bytes() []byte {
	n := d.uint()
	if n > uint64(len(d.rest)) {
		d.bad, d.rest = true, nil
		return nil
	}
	if n == 0 {
		return nil
	}
	v := d.rest[:n:n]
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) end() error {
	if d.bad || len(d.rest) > 0 {
		return errMessage
	}
	return nil
}
