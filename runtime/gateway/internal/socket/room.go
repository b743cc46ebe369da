package socket

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// roomShards spread the rooms, so that objects do not wait for each other.
const roomShards = 256

type roomShard struct {
	mu    sync.RWMutex
	rooms map[placement.ObjectID]*room
}

// A room is the sockets of one object. It exists while it has sockets or auto-responses.
//
// Locks nest in this order: roomShard, room, socket, and the leaves (writers, pulse).
type room struct {
	auto atomic.Pointer[map[string]*frame] // by request; nil if there are none

	mu      sync.Mutex // guards the following, and its sockets' attachments
	sockets []*socket  // oldest first
	byID    map[host.SocketID]*socket
	byTag   map[string][]*socket
	ready   []*socket // scratch of Broadcast
	last    uint64    // order of the newest socket

	round     time.Time // when the last large broadcast was given to the writers
	gathering bool      // a timer will give the next one
}

func (h *Hub) shard(id placement.ObjectID) *roomShard { return &h.rooms[id[0]] }

func (h *Hub) room(id placement.ObjectID) *room {
	sh := h.shard(id)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	return sh.rooms[id]
}

func (h *Hub) find(id placement.ObjectID, socket host.SocketID) *socket {
	r := h.room(id)
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byID[socket]
}

// enter puts a new socket into its object's room.
func (h *Hub) enter(s *socket) {
	h.withRoom(s.ref.ID, true, func(r *room) { r.add(s) })
}

// withRoom runs fn with the object's room, made anew if there is none and create is set.
// A room that is left empty goes.
func (h *Hub) withRoom(id placement.ObjectID, create bool, fn func(*room)) {
	sh := h.shard(id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := sh.rooms[id]
	if r == nil {
		if !create {
			return
		}
		r = &room{byID: make(map[host.SocketID]*socket)}
		if sh.rooms == nil {
			sh.rooms = make(map[placement.ObjectID]*room)
		}
		sh.rooms[id] = r
	}
	r.mu.Lock()
	fn(r)
	empty := len(r.sockets) == 0 && r.auto.Load() == nil
	r.mu.Unlock()
	if empty {
		delete(sh.rooms, id)
	}
}

// each runs fn for every socket there is now.
func (h *Hub) each(fn func(*socket)) {
	for i := range h.rooms {
		sh := &h.rooms[i]
		var all []*socket
		sh.mu.RLock()
		for _, r := range sh.rooms {
			r.mu.Lock()
			all = append(all, r.sockets...)
			r.mu.Unlock()
		}
		sh.mu.RUnlock()
		for _, s := range all {
			fn(s)
		}
	}
}

func (r *room) add(s *socket) {
	r.last++
	s.room, s.order = r, r.last
	r.sockets = append(r.sockets, s)
	r.byID[s.id] = s
	for _, tag := range s.tags {
		if r.byTag == nil {
			r.byTag = make(map[string][]*socket)
		}
		r.byTag[tag] = append(r.byTag[tag], s)
	}
}

func (r *room) remove(id host.SocketID) {
	s := r.byID[id]
	if s == nil {
		return
	}
	delete(r.byID, id)
	r.sockets = without(r.sockets, s)
	for _, tag := range s.tags {
		if rest := without(r.byTag[tag], s); len(rest) > 0 {
			r.byTag[tag] = rest
		} else {
			delete(r.byTag, tag)
		}
	}
}

// gatherSockets is how many sockets make a broadcast a large one.
const gatherSockets = 32

// gather reports whether a large broadcast should wait for the next ones, so that one
// write per socket carries several frames. A write costs far more than a frame: this is
// what bounds the cost of a busy room. It never delays by more than Gather, nor what
// follows a pause; and a message for a single socket takes all that is queued along.
func (r *room) gather(h *Hub) bool {
	now := time.Now()
	wait := h.cfg.Gather - now.Sub(r.round)
	if wait <= 0 && !r.gathering {
		r.round = now
		return false
	}
	if !r.gathering {
		r.gathering = true
		time.AfterFunc(wait, func() { h.endRound(r) })
	}
	return true
}

// endRound gives what has gathered to the writers.
func (h *Hub) endRound(r *room) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gathering = false
	r.round = time.Now()
	ready := r.ready[:0]
	for _, s := range r.sockets {
		if s.wake() {
			ready = append(ready, s)
		}
	}
	h.writers.push(ready...)
	clear(ready)
	r.ready = ready
}

// tagged returns the sockets with a tag, or all, oldest first.
func (r *room) tagged(tag string) []*socket {
	if tag == "" {
		return r.sockets
	}
	return r.byTag[tag]
}

// without removes a socket from a list that is in order of age.
func without(list []*socket, s *socket) []*socket {
	i, ok := slices.BinarySearchFunc(list, s.order, func(t *socket, order uint64) int {
		switch {
		case t.order < order:
			return -1
		case t.order > order:
			return 1
		}
		return 0
	})
	if !ok {
		return list
	}
	return slices.Delete(list, i, i+1)
}
