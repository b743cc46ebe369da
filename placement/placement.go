// Package placement says where things are. It is the vocabulary of the whole
// system (objects, slots, shards, nodes, epochs) and the pure rules over it: which
// slot an object hashes to, which shard owns a slot.
//
// Nothing here does I/O, reads a clock or starts a goroutine: every rule is a
// function from tables to tables and is tested as one.
//
//	class + name --HMAC--> ObjectID --its first 14 bits--> Slot --Table--> ShardID
package placement

import (
	"fmt"
	"math/bits"
)

// Slots is the number of slots that all object IDs hash to. It never changes: the
// slot is the first part of every stored key, so that splitting a shard later is
// copying a range.
const Slots = 1 << 14

// DefaultShards is the number of shards a cluster is born with.
const DefaultShards = 32

// MaxShards bounds the number of shards: a Raft round costs the same whatever it
// carries, so more groups than this only cost throughput.
const MaxShards = 1024

// A Slot is one of the [Slots] equal parts of the ID space.
type Slot uint16

// A ShardID numbers the shards of a cluster from 0.
type ShardID uint32

// An Epoch numbers the reigns over one shard: it is the term of the shard's Raft
// group. A higher epoch has always the newer owner.
type Epoch uint64

// A NodeID names a node for the whole life of its data directory.
type NodeID string

// SlotOf returns the slot an object belongs to: the first 14 bits of its ID, whose base
// is a hash or random, so that objects spread evenly whatever their names.
func SlotOf(id ObjectID) Slot {
	return Slot(id[0])<<6 | Slot(id[1])>>2
}

// A Table maps every slot to the shard that owns it. The zero Table is not valid;
// make one with [Even].
type Table struct {
	shards int
	shift  int
}

// Even returns the table in which each of n shards owns an equal, contiguous range
// of slots. n must be a power of two between 1 and [MaxShards].
func Even(n int) (Table, error) {
	if n < 1 || n > MaxShards || bits.OnesCount(uint(n)) != 1 {
		return Table{}, fmt.Errorf("number of shards is %d, want a power of two from 1 to %d", n, MaxShards)
	}
	return Table{shards: n, shift: bits.TrailingZeros(uint(Slots / n))}, nil
}

// Shards returns how many shards the table has; their IDs run from 0.
func (t Table) Shards() int { return t.shards }

// Shard returns the shard that owns s.
func (t Table) Shard(s Slot) ShardID { return ShardID(s >> t.shift) }

// ShardOf returns the shard that owns id.
func (t Table) ShardOf(id ObjectID) ShardID { return t.Shard(SlotOf(id)) }

// Range returns the first slot of a shard and the first slot after it.
func (t Table) Range(id ShardID) (first, end int) {
	return int(id) << t.shift, int(id+1) << t.shift
}
