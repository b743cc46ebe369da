package socket

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// comings are the sockets that a handshake waits for. Where the object is at another node,
// the answer to the client's request and the socket itself come by different ways.
type comings struct {
	mu     sync.Mutex // guards the following
	waited map[host.SocketID]chan struct{}
}

// await returns a socket, for which it waits a while if it is not there yet; nil if it does
// not come.
func (h *Hub) await(ctx context.Context, id placement.ObjectID, wanted host.SocketID) *socket {
	if s := h.find(id, wanted); s != nil || h.cfg.AcceptWait <= 0 {
		return s
	}
	arrived := h.comings.wait(wanted)
	defer h.comings.arrived(wanted)
	if s := h.find(id, wanted); s != nil {
		return s
	}
	timeout := time.NewTimer(h.cfg.AcceptWait)
	defer timeout.Stop()
	select {
	case <-arrived:
	case <-timeout.C:
	case <-ctx.Done():
	case <-h.ctx.Done():
	}
	return h.find(id, wanted)
}

// wait returns a channel that is closed when a socket arrives.
func (c *comings) wait(socket host.SocketID) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waited == nil {
		c.waited = make(map[host.SocketID]chan struct{})
	}
	arrived, ok := c.waited[socket]
	if !ok {
		arrived = make(chan struct{})
		c.waited[socket] = arrived
	}
	return arrived
}

// arrived wakes who waits for a socket.
func (c *comings) arrived(socket host.SocketID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if arrived, ok := c.waited[socket]; ok {
		close(arrived)
		delete(c.waited, socket)
	}
}
