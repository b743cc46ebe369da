package relay

import (
	"slices"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// This file is what the engine asks of a gateway and of a carrier. Sockets of this node are the
// hub's; what goes to those of others is put on the links to their gateways.

// Objects returns the objects of a shard that have sockets anywhere.
func (r *Relay) Objects(shard placement.ShardID) []placement.ObjectID {
	ids := r.areas[shard].objects()
	g := r.reigns[shard].Load()
	if g == nil {
		return ids
	}
	here := make(map[placement.ObjectID]bool, len(ids))
	for _, id := range ids {
		here[id] = true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for id := range g.objects {
		if !here[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// Sockets returns the open sockets of an object, oldest first.
func (r *Relay) Sockets(id placement.ObjectID) []host.Socket {
	list := r.area(id).sockets(id)
	g := r.reign(id)
	if g == nil {
		return list
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	ro := g.objects[id]
	if ro == nil || len(ro.byID) == 0 {
		return list
	}
	for _, e := range ro.byID {
		s := e.sock
		s.Closing = s.Closing || e.closed
		list = append(list, s)
	}
	slices.SortStableFunc(list, func(a, b host.Socket) int { return a.Accepted.Compare(b.Accepted) })
	return list
}

// Accept registers a socket whose handshake follows at its gateway.
func (r *Relay) Accept(ref host.Ref, s host.Socket) {
	g := r.reign(ref.ID)
	if g == nil {
		return
	}
	if s.Gateway == "" || s.Gateway == r.cfg.Self {
		s.Gateway = ""
		g.area.accept(g.epoch, ref, s)
		return
	}
	p := r.peer(s.Gateway)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.introduce(p)
	ro := g.objects[ref.ID]
	if ro != nil && ro.at[p.id] == 0 && len(ro.auto) > 0 {
		p.link.tell(&frame{kind: kindAuto, epoch: g.epoch, object: ref.ID, pairs: ro.auto})
	}
	g.add(ref, s)
	p.link.tell(&frame{kind: kindAccept, epoch: g.epoch, object: ref.ID, members: []member{{ref, s}}})
}

// Send sends a message to one socket.
func (r *Relay) Send(id placement.ObjectID, to host.SocketID, m host.Message) {
	g := r.reign(id)
	if g == nil || g.toEntry(id, to, &frame{kind: kindSend, flag: m.Binary, data: m.Data}) {
		return
	}
	if a := g.area; a.enter(g.epoch) {
		r.hub.Send(id, to, m)
		a.mu.RUnlock()
	}
}

// Broadcast sends a message to every socket with a tag but some: once to each gateway.
func (r *Relay) Broadcast(id placement.ObjectID, m host.Message, tag string, except []host.SocketID) {
	g := r.reign(id)
	if g == nil {
		return
	}
	if a := g.area; a.enter(g.epoch) {
		r.hub.Broadcast(id, m, tag, except)
		a.mu.RUnlock()
	}
	if len(except) > maxAddressed {
		except = except[:maxAddressed] // more than there can be sockets
	}
	g.toGateways(&frame{kind: kindBroadcast, object: id, text: tag, ids: except, flag: m.Binary, data: m.Data})
}

// Close begins to close a socket.
func (r *Relay) Close(id placement.ObjectID, s host.SocketID, code int, reason string) {
	g := r.reign(id)
	if g == nil || g.toEntry(id, s, &frame{kind: kindClose, code: code, text: reason}) {
		return
	}
	if a := g.area; a.enter(g.epoch) {
		r.hub.Close(id, s, code, reason)
		a.mu.RUnlock()
	}
}

// CloseAll begins to close every socket of an object.
func (r *Relay) CloseAll(id placement.ObjectID, code int, reason string) {
	g := r.reign(id)
	if g == nil {
		return
	}
	if a := g.area; a.enter(g.epoch) {
		r.hub.CloseAll(id, code, reason)
		a.mu.RUnlock()
	}
	g.toGateways(&frame{kind: kindCloseAll, object: id, code: code, text: reason})
}

// SetAttachment replaces what the object keeps with a socket.
func (r *Relay) SetAttachment(id placement.ObjectID, s host.SocketID, attachment []byte) {
	g := r.reign(id)
	if g == nil || g.toEntry(id, s, &frame{kind: kindAttach, data: attachment}) {
		return
	}
	if a := g.area; a.enter(g.epoch) {
		r.hub.SetAttachment(id, s, attachment)
		a.mu.RUnlock()
	}
}

// SetAutoResponses replaces an object's pairs, at every gateway that has sockets of it now or later.
func (r *Relay) SetAutoResponses(id placement.ObjectID, pairs []host.AutoResponse) {
	g := r.reign(id)
	if g == nil {
		return
	}
	if a := g.area; a.enter(g.epoch) {
		r.hub.SetAutoResponses(id, pairs)
		a.mu.RUnlock()
	}
	g.mu.Lock()
	g.autos[id] = struct{}{}
	ro := g.objects[id]
	if ro == nil && len(pairs) > 0 {
		ro = &roster{ref: host.Ref{ID: id}}
		g.objects[id] = ro
	}
	if ro != nil {
		ro.auto = pairs[:len(pairs):len(pairs)]
		if len(pairs) == 0 {
			ro.auto = nil
		}
		g.prune(ro)
	}
	g.mu.Unlock()
	g.toGateways(&frame{kind: kindAuto, object: id, pairs: pairs})
}

// AutoResponse returns when a socket was last answered automatically. For one at another
// node that is as of its last message.
func (r *Relay) AutoResponse(id placement.ObjectID, s host.SocketID) time.Time {
	if g := r.reign(id); g != nil && g.remote.Load() > 0 {
		g.mu.Lock()
		_, e := g.find(id, s)
		var at time.Time
		if e != nil {
			at = e.sock.AutoResponse
		}
		g.mu.Unlock()
		if e != nil {
			return at
		}
	}
	return r.hub.AutoResponse(id, s)
}

// Forget drops a socket whose close event has run.
func (r *Relay) Forget(id placement.ObjectID, s host.SocketID) {
	g := r.reign(id)
	if g == nil {
		return
	}
	g.mu.Lock()
	ro, e := g.find(id, s)
	if e != nil {
		if !e.gone {
			r.peer(e.sock.Gateway).link.tell(&frame{kind: kindForget, epoch: g.epoch, object: id, socket: s})
		}
		g.remove(ro, e)
	}
	g.mu.Unlock()
	if e == nil {
		g.area.forget(g.epoch, id, s, false)
	}
}

// Release tells that an object has left memory.
func (r *Relay) Release(id placement.ObjectID) {
	g := r.reign(id)
	if g == nil {
		return
	}
	if a := g.area; a.enter(g.epoch) {
		r.hub.Release(id)
		a.mu.RUnlock()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.autos, id)
	if ro := g.objects[id]; ro != nil && len(ro.byID) == 0 {
		ro.auto = nil
		g.prune(ro)
	}
}

// Mark tells the gateways of an object that they have got everything up to its outputs of a
// number.
func (r *Relay) Mark(id placement.ObjectID, outputs uint64) {
	g := r.reign(id)
	if g == nil {
		return
	}
	if a := g.area; a.enter(g.epoch) {
		a.mark(id, outputs)
		a.mu.RUnlock()
	}
	g.toGateways(&frame{kind: kindMark, object: id, number: outputs})
}

// toEntry sends a frame about a socket to its gateway. It reports false if this is not a socket of
// another node.
func (g *reign) toEntry(id placement.ObjectID, s host.SocketID, f *frame) bool {
	if g.remote.Load() == 0 {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, e := g.find(id, s)
	if e == nil {
		return false
	}
	if f.kind == kindAttach {
		e.sock.Attachment = f.data
	}
	if !e.gone {
		f.epoch, f.object, f.socket = g.epoch, id, s
		g.r.peer(e.sock.Gateway).link.tell(f)
	}
	return true
}

// toGateways sends a frame to every other node that has sockets of an object, and to which
// it matters.
func (g *reign) toGateways(f *frame) {
	if g.remote.Load() == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	ro := g.objects[f.object]
	if ro == nil || len(ro.at) == 0 {
		return
	}
	f.epoch = g.epoch
	p := pack(f)
	for n := range ro.at {
		if f.kind != kindBroadcast || ro.addressed(n, f) {
			g.r.peer(n).link.send(p)
		}
	}
}

// addressed reports whether a broadcast is for any socket at a gateway.
func (ro *roster) addressed(n placement.NodeID, f *frame) bool {
	if f.text == "" && len(f.ids) < ro.at[n] {
		return true
	}
	for id, e := range ro.byID {
		if e.sock.Gateway == n && (f.text == "" || slices.Contains(e.sock.Tags, f.text)) && !slices.Contains(f.ids, id) {
			return true
		}
	}
	return false
}
