package relay

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// An area is a shard as the gateway half of this node sees it: the sockets here of the shard's
// objects, and who owns them.
//
//	        Gather               Reign
//	nobody -------> being gathered -----> ready ---- refused, or the reign here has ended ---> not ready
//	                      ^                 |                                                  |
//	                      +---- a newer Gather ------------------------------------------------+
//
// Messages flow while it is ready, and outputs of its epoch only are let through.
type area struct {
	r      *Relay
	shard  placement.ShardID
	window window

	mu      sync.RWMutex // guards the following
	epoch   placement.Epoch
	owner   placement.NodeID
	isReady bool
	out     time.Time // since when the owner cannot be reached; zero if it can
	rooms   map[placement.ObjectID]*room
}

// A room is the sockets here of one object.
type room struct {
	ref      host.Ref
	seen     atomic.Uint64 // the newest of its outputs that have come
	couriers map[host.SocketID]*courier
}

func (a *area) init(r *Relay, shard placement.ShardID) {
	a.r, a.shard, a.rooms = r, shard, make(map[placement.ObjectID]*room)
	a.window.limit = r.cfg.ShardBytes
}

// enter lets an output of an epoch through, unless that is over. If it returns true the
// caller has mu to unlock.
func (a *area) enter(epoch placement.Epoch) bool {
	a.mu.RLock()
	if a.epoch == epoch {
		return true
	}
	a.mu.RUnlock()
	a.r.metrics.fenced.Inc()
	return false
}

// begin notes that a reign begins. It reports false if a newer one is known.
func (a *area) begin(epoch placement.Epoch, owner placement.NodeID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if epoch <= a.epoch {
		return false
	}
	a.epoch, a.owner, a.isReady = epoch, owner, false
	if a.out.IsZero() {
		a.out = time.Now()
	}
	return true
}

// ready notes that a reign has begun, which delivers anew all that is not settled. Sockets that the owner
// does not know are closed.
func (a *area) ready(epoch placement.Epoch, owner placement.NodeID, known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if epoch < a.epoch {
		return
	}
	a.epoch, a.owner, a.isReady, a.out = epoch, owner, true, time.Time{}
	if known {
		a.each(func(c *courier) { c.knownBy(epoch) })
	} else {
		a.orphanAll("the object's new owner does not know the connection")
	}
	a.restart()
}

// unready notes that a reign has ended.
func (a *area) unready(owner placement.NodeID, epoch placement.Epoch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.owner == owner && a.epoch == epoch && a.isReady {
		a.isReady, a.out = false, time.Now()
	}
}

// restart delivers anew what is not settled. The caller holds mu.
func (a *area) restart() { a.each((*courier).restart) }

func (a *area) orphanAll(why string) { a.each(func(c *courier) { c.orphan(why) }) }

func (a *area) each(fn func(*courier)) {
	for _, ro := range a.rooms {
		for _, c := range ro.couriers {
			fn(c)
		}
	}
}

// restartFor delivers anew what was on its way to a node, or what its answers were on.
func (r *Relay) restartFor(owner placement.NodeID) {
	for i := range r.areas {
		a := &r.areas[i]
		a.mu.Lock()
		if a.owner == owner {
			a.restart()
		}
		a.mu.Unlock()
	}
}

// look closes sockets that have waited too long for their owner.
func (a *area) look() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.owner == "" || len(a.rooms) == 0 {
		return
	}
	away := !a.isReady
	if a.owner != a.r.cfg.Self {
		p := a.r.peer(a.owner)
		if a.isReady && p.in.silent() > a.r.cfg.LostAfter {
			a.orphanAll("the object's owner cannot be reached") // it has given us up, too
		}
		away = away || p.link.suspect()
	}
	switch {
	case !away:
		a.out = time.Time{}
	case a.out.IsZero():
		a.out = time.Now()
	case time.Since(a.out) > a.r.cfg.RetryFor:
		a.giveUp()
	}
}

// giveUp closes the sockets that have something to deliver.
func (a *area) giveUp() {
	a.each(func(c *courier) {
		if c.waits() {
			c.orphan("the object has no owner")
		}
	})
}

// accept makes a new socket known to the hub, with a courier for it.
func (a *area) accept(epoch placement.Epoch, ref host.Ref, s host.Socket) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.epoch != epoch {
		a.r.metrics.fenced.Inc()
		return
	}
	ro := a.rooms[ref.ID]
	if ro == nil {
		ro = &room{ref: ref, couriers: make(map[host.SocketID]*courier)}
		a.rooms[ref.ID] = ro
	}
	ro.saw(s.Seen)
	ro.couriers[s.ID] = &courier{area: a, ref: ref, id: s.ID, attempt: 1, fresh: true, known: epoch}
	a.r.hub.Accept(ref, s)
}

func (ro *room) saw(n uint64) {
	for {
		old := ro.seen.Load()
		if n <= old || ro.seen.CompareAndSwap(old, n) {
			return
		}
	}
}

// mark notes an object's outputs. The caller holds mu, for reading at least.
func (a *area) mark(id placement.ObjectID, outputs uint64) {
	if ro := a.rooms[id]; ro != nil {
		ro.saw(outputs)
	}
}

// forget drops a socket whose close event has run. What outlives the last one of an object goes if the
// object is elsewhere; if it is here, its engine releases it.
func (a *area) forget(epoch placement.Epoch, id placement.ObjectID, s host.SocketID, release bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.epoch != epoch {
		a.r.metrics.fenced.Inc()
		return
	}
	a.r.hub.Forget(id, s)
	ro := a.rooms[id]
	if ro == nil {
		return
	}
	if c := ro.couriers[s]; c != nil {
		c.orphan("")
		delete(ro.couriers, s)
	}
	if len(ro.couriers) == 0 {
		delete(a.rooms, id)
		if release {
			a.r.hub.Release(id)
		}
	}
}

// courier returns a socket's courier, or nil.
func (a *area) courier(id placement.ObjectID, s host.SocketID) *courier {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if ro := a.rooms[id]; ro != nil {
		return ro.couriers[s]
	}
	return nil
}

func (a *area) objects() []placement.ObjectID {
	a.mu.RLock()
	defer a.mu.RUnlock()
	ids := make([]placement.ObjectID, 0, len(a.rooms))
	for id := range a.rooms {
		ids = append(ids, id)
	}
	return ids
}

// sockets returns the sockets here of an object, and how much of its outputs they have got.
func (a *area) sockets(id placement.ObjectID) []host.Socket {
	a.mu.RLock()
	defer a.mu.RUnlock()
	list := a.r.hub.Sockets(id)
	if ro := a.rooms[id]; ro != nil {
		seen := ro.seen.Load()
		for i := range list {
			list[i].Seen = seen
		}
	}
	return list
}

// settled reports whether no close event is on its way.
func (a *area) settled() bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, ro := range a.rooms {
		for _, c := range ro.couriers {
			if c.waits() {
				return false
			}
		}
	}
	return true
}

// gathered answers the owner that begins to reign.
func (r *Relay) gathered(p *peer, f *frame) {
	if int(f.shard) >= len(r.areas) {
		return
	}
	a := &r.areas[f.shard]
	if !a.begin(f.epoch, p.id) {
		return
	}
	for _, part := range a.snapshot() {
		part.kind, part.epoch, part.shard = kindSockets, f.epoch, f.shard
		p.link.tell(part)
	}
}

// snapshot lists all sockets of the area, in frames of which the last one says so.
func (a *area) snapshot() []*frame {
	a.mu.Lock()
	defer a.mu.Unlock()
	part, size := &frame{}, 0
	parts := []*frame{part}
	for id, ro := range a.rooms {
		seen := ro.seen.Load()
		for _, s := range a.r.hub.Sockets(id) {
			c := ro.couriers[s.ID]
			if c == nil {
				continue
			}
			if len(part.members) == maxMembers || size > memberBytes {
				part, size = &frame{}, 0
				parts = append(parts, part)
			}
			s.Seen, s.Closing = seen, s.Closing || c.isOrphan()
			part.members = append(part.members, member{ro.ref, s})
			size += minMemberBytes + len(ro.ref.Class) + len(ro.ref.Name) + len(s.Attachment)
			for _, tag := range s.Tags {
				size += len(tag)
			}
		}
	}
	part.flag = true
	return parts
}

// ruled notes that a reign has begun.
func (r *Relay) ruled(p *peer, f *frame) {
	if int(f.shard) < len(r.areas) {
		r.areas[f.shard].ready(f.epoch, p.id, f.flag)
	}
}

// output gives the hub what an owner has sent.
func (r *Relay) output(p *peer, f *frame) {
	if f.kind == kindAccept {
		if len(f.members) == 1 {
			m := f.members[0]
			m.sock.Gateway = ""
			r.area(m.ref.ID).accept(f.epoch, m.ref, m.sock)
		}
		return
	}
	a, id := r.area(f.object), f.object
	if f.kind == kindForget {
		a.forget(f.epoch, id, f.socket, true)
		return
	}
	if !a.enter(f.epoch) {
		return
	}
	defer a.mu.RUnlock()
	switch f.kind {
	case kindSend:
		r.hub.Send(id, f.socket, host.Message{Data: f.data, Binary: f.flag})
	case kindBroadcast:
		r.hub.Broadcast(id, host.Message{Data: f.data, Binary: f.flag}, f.text, f.ids)
	case kindClose:
		r.hub.Close(id, f.socket, f.code, f.text)
	case kindCloseAll:
		r.hub.CloseAll(id, f.code, f.text)
	case kindAttach:
		r.hub.SetAttachment(id, f.socket, slices.Clip(f.data))
	case kindAuto:
		if a.rooms[id] != nil || len(f.pairs) > 0 {
			r.hub.SetAutoResponses(id, f.pairs)
		}
	case kindMark:
		a.mark(id, f.number)
	default:
	}
}

// answered takes what an owner says of messages.
func (r *Relay) answered(p *peer, f *frame) {
	a := r.area(f.object)
	c := a.courier(f.object, f.socket)
	if f.kind == kindRefused && !f.flag {
		a.unready(p.id, f.epoch)
	}
	if c == nil {
		return
	}
	switch f.kind {
	case kindEnded:
		var err error
		if len(f.data) > 0 {
			e, merr := host.UnmarshalError(f.data)
			if err = e; merr != nil {
				err = merr
			}
		}
		c.ended(f.attempt, f.number, err)
	case kindSettled:
		c.settledAt(f.attempt, f.number)
	case kindRefused:
		c.refused(f.attempt)
	default:
		c.orphan("the object's owner does not know the connection")
	}
}
