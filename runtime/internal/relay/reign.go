package relay

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A reign is this node's ownership of a shard during one epoch: the sockets of its objects
// that other nodes hold. Those of this node are in its area.
type reign struct {
	r     *Relay
	shard placement.ShardID
	epoch placement.Epoch
	area  *area
	ctx   context.Context // ends with the reign

	remote atomic.Int64  // entries at gateways that live
	news   chan struct{} // told when waiting has become shorter

	mu      sync.Mutex // guards the following
	ready   bool       // all have been told that the reign has begun
	objects map[placement.ObjectID]*roster
	waiting map[placement.NodeID]bool       // gateways that have been asked
	told    map[placement.NodeID]bool       // those that know of the reign; true if the reign knows their sockets, too
	ended   map[host.SocketID]struct{}      // sockets that the reign did not know, and whose end it has told
	autos   map[placement.ObjectID]struct{} // objects here that have set automatic responses
}

// A roster is the sockets of one object at other nodes.
type roster struct {
	ref  host.Ref
	byID map[host.SocketID]*entry
	at   map[placement.NodeID]int
	auto []host.AutoResponse
}

// An entry is one of them, and its inbox.
type entry struct {
	ref    host.Ref
	sock   host.Socket
	gone   bool // its gateway has been given up
	closed bool // its close event is in the inbox, or has been
	over   bool // the engine has its close event
	inbox
}

var errDeposed = errors.New("a newer owner of the shard is known")

// Gather begins a reign: it asks the nodes that are there for their sockets of a shard's objects,
// and tells them of the reign. It returns when they have answered, or when those that have not will have to
// close their sockets. It must be called before the engine leads the shard, and [Relay.End] after
// it has ceased to. ctx lasts as long as the reign. If it fails this node is no longer the owner.
func (r *Relay) Gather(ctx context.Context, shard placement.ShardID, epoch placement.Epoch) error {
	g := &reign{
		r: r, shard: shard, epoch: epoch, area: &r.areas[shard], ctx: ctx, news: make(chan struct{}, 1),
		objects: make(map[placement.ObjectID]*roster),
		waiting: make(map[placement.NodeID]bool),
		told:    make(map[placement.NodeID]bool),
		ended:   make(map[host.SocketID]struct{}),
		autos:   make(map[placement.ObjectID]struct{}),
	}
	if !g.area.begin(epoch, r.cfg.Self) {
		return errDeposed
	}
	r.reigns[shard].Store(g)
	asked := g.ask()
	g.await(asked)
	g.begin(asked)
	g.area.ready(epoch, r.cfg.Self, true)
	return context.Cause(ctx)
}

// End ends a reign.
func (r *Relay) End(shard placement.ShardID, epoch placement.Epoch) {
	g := r.reigns[shard].Load()
	if g == nil || g.epoch != epoch {
		return
	}
	r.reigns[shard].Store(nil)
	g.area.unready(r.cfg.Self, epoch)
	g.mu.Lock()
	autos := g.autos
	g.mu.Unlock()
	for id := range autos {
		r.hub.Release(id) // which keeps what sockets need
	}
}

func (g *reign) ask() []*peer {
	var asked []*peer
	for _, n := range g.r.cfg.Live() {
		if n != g.r.cfg.Self {
			asked = append(asked, g.r.peer(n))
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range asked {
		g.waiting[p.id] = true
		p.link.tell(&frame{kind: kindGather, epoch: g.epoch, shard: g.shard})
	}
	return asked
}

// await waits for the answers of all who seem to be there.
func (g *reign) await(asked []*peer) {
	const lookEvery = 10 * time.Millisecond
	timeout := time.NewTimer(g.r.cfg.GatherTimeout)
	defer timeout.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for slices.ContainsFunc(asked, g.mayAnswer) {
		select {
		case <-g.news:
		case <-look.C:
		case <-timeout.C:
			return
		case <-g.ctx.Done():
			return
		}
	}
}

func (g *reign) mayAnswer(p *peer) bool {
	g.mu.Lock()
	waits := g.waiting[p.id]
	g.mu.Unlock()
	return waits && !p.link.suspect()
}

// begin tells all that were asked that the reign has begun, and drops what those that did not
// finish their answers have told.
func (g *reign) begin(asked []*peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range asked {
		if g.waiting[p.id] {
			g.dropMembers(p.id)
		}
		known := g.told[p.id]
		if !known {
			g.r.metrics.missed.Inc()
			g.r.log.Info("a node has not told its sockets to the new owner in time", slog.String("peer", string(p.id)), slog.Uint64("shard", uint64(g.shard)), slog.Uint64("epoch", uint64(g.epoch)))
		}
		g.tell(p, known)
	}
	clear(g.waiting)
	g.ready = true
}

// tell tells a gateway of the reign. The caller holds mu.
func (g *reign) tell(p *peer, known bool) {
	g.told[p.id] = known
	p.link.insist(&frame{kind: kindReign, epoch: g.epoch, shard: g.shard, flag: known})
}

// introduce is tell for a gateway that does not know of the reign yet.
func (g *reign) introduce(p *peer) {
	if _, ok := g.told[p.id]; !ok {
		g.tell(p, false)
	}
}

func (r *Relay) tellNewcomers() {
	live := r.cfg.Live()
	for i := range r.reigns {
		g := r.reigns[i].Load()
		if g == nil || g.ctx.Err() != nil {
			continue
		}
		for _, n := range live {
			if n != r.cfg.Self {
				g.tellNewcomer(r.peer(n))
			}
		}
	}
}

func (g *reign) tellNewcomer(p *peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ready {
		g.introduce(p)
	}
}

// joined takes a gateway's sockets.
func (r *Relay) joined(p *peer, f *frame) {
	if int(f.shard) >= len(r.reigns) {
		return
	}
	g := r.reigns[f.shard].Load()
	if g == nil || g.epoch != f.epoch {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.waiting[p.id] {
		return // too late
	}
	for i := range f.members {
		m := &f.members[i]
		if r.cfg.Table.ShardOf(m.ref.ID) == g.shard {
			m.sock.Gateway = p.id
			g.add(m.ref, m.sock)
		}
	}
	if f.flag {
		delete(g.waiting, p.id)
		g.told[p.id] = true
		select {
		case g.news <- struct{}{}:
		default:
		}
	}
}

// add enters a socket. The caller holds mu.
func (g *reign) add(ref host.Ref, s host.Socket) *entry {
	ro := g.objects[ref.ID]
	if ro == nil {
		ro = &roster{ref: ref}
		g.objects[ref.ID] = ro
	}
	if ro.byID == nil {
		ro.byID, ro.at = make(map[host.SocketID]*entry), make(map[placement.NodeID]int)
	}
	if e := ro.byID[s.ID]; e != nil {
		return e
	}
	e := &entry{ref: ref, sock: s}
	ro.byID[s.ID] = e
	ro.at[s.Gateway]++
	g.remote.Add(1)
	return e
}

// leave notes that an entry's gateway need not be told anything more of it.
func (g *reign) leave(ro *roster, e *entry) {
	if e.gone {
		return
	}
	e.gone = true
	g.remote.Add(-1)
	if ro.at[e.sock.Gateway]--; ro.at[e.sock.Gateway] == 0 {
		delete(ro.at, e.sock.Gateway)
	}
}

// remove drops an entry, and its roster with the last one.
func (g *reign) remove(ro *roster, e *entry) {
	g.leave(ro, e)
	delete(ro.byID, e.sock.ID)
	g.prune(ro)
}

func (g *reign) prune(ro *roster) {
	if len(ro.byID) == 0 && ro.auto == nil {
		delete(g.objects, ro.ref.ID)
	}
}

// find returns an entry, if there is one. The caller holds mu.
func (g *reign) find(id placement.ObjectID, s host.SocketID) (*roster, *entry) {
	ro := g.objects[id]
	if ro == nil {
		return nil, nil
	}
	return ro, ro.byID[s]
}

// dropMembers forgets the sockets of a gateway that could not tell all of them.
func (g *reign) dropMembers(n placement.NodeID) {
	for _, ro := range g.objects {
		for _, e := range ro.byID {
			if e.sock.Gateway == n {
				g.remove(ro, e)
			}
		}
	}
}

// dropGateway ends the sockets of a gateway whose session is given up: their objects see
// them drop.
func (r *Relay) dropGateway(p *peer) {
	for i := range r.reigns {
		if g := r.reigns[i].Load(); g != nil {
			g.dropGateway(p)
		}
	}
}

func (g *reign) dropGateway(p *peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.ready { // it will be told when the others are
		delete(g.waiting, p.id)
		delete(g.told, p.id)
		g.dropMembers(p.id)
		return
	}
	for _, ro := range g.objects {
		for _, e := range ro.byID {
			if e.sock.Gateway != p.id || e.gone {
				continue
			}
			g.leave(ro, e)
			g.closeEntry(e, &host.SocketClose{Socket: e.sock.ID, Code: closeAbnormal})
		}
	}
	g.tell(p, false)
}

const closeAbnormal = 1006

func (r *Relay) reign(id placement.ObjectID) *reign {
	return r.reigns[r.cfg.Table.ShardOf(id)].Load()
}
