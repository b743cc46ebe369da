package engine

import (
	"encoding/binary"
	"log/slog"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// This file is about sockets that outlive the owner of their object. Two numbers are
// committed with an object's writes, so that its next owner can tell what was done:
//
//   - for each socket, the newest message that was handled with effect: it is not handled
//     again when the gateway delivers it again, not knowing;
//   - for the object, how many times it has written and sent. A gateway that has not got
//     the newest outputs may have lost messages with the old owner; its sockets are closed with
//     1012, rather than left with a hole.

// carried is what an object knows of the two numbers.
type carried struct {
	known   bool
	outputs uint64
	handled map[host.SocketID]handled
}

type handled struct {
	seq    uint64
	stored bool // the number is in storage, not only in memory
}

func socketKey(id host.SocketID) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(id)))
}

// outputsKey cannot be a socket's.
const outputsKey = ""

func (r *reign) number(id placement.ObjectID, key string) (n uint64, ok bool, err error) {
	v, ok, err := r.store.Get(id, storage.SpaceSocket, key)
	if err != nil || !ok {
		return 0, false, err
	}
	n, size := binary.Uvarint(v)
	if size <= 0 {
		return 0, false, storage.ErrCorrupt
	}
	return n, true, nil
}

// checkSockets closes the sockets that may have lost messages with the last owner.
func (r *reign) checkSockets() {
	cfg := &r.engine.cfg
	if cfg.Carrier == nil {
		return
	}
	for _, id := range cfg.Carrier.Objects(r.shard) {
		outputs, _, err := r.number(id, outputsKey)
		if err != nil {
			cfg.Logger.Error("read what sockets were sent", slog.Any("object", id), slog.Any("shard", r.shard), slog.Any("err", err))
		}
		for _, s := range cfg.Gateway.Sockets(id) {
			if s.Seen < outputs || err != nil {
				cfg.Gateway.Close(id, s.ID, closeServiceRestart, "messages may have been lost with the object's owner")
			}
		}
	}
}

// lastHandled returns the newest message of a socket that was handled.
func (o *object) lastHandled(id host.SocketID) (uint64, error) {
	if h, ok := o.carried.handled[id]; ok {
		return h.seq, nil
	}
	seq, stored, err := o.reign.number(o.ref.ID, socketKey(id))
	if err != nil {
		return 0, o.storeFailed(err)
	}
	o.carried.note(id, handled{seq, stored})
	return seq, nil
}

func (c *carried) note(id host.SocketID, h handled) {
	if c.handled == nil {
		c.handled = make(map[host.SocketID]handled)
	}
	c.handled[id] = h
}

// outputs returns how many times the object has written and sent.
func (o *object) outputs() (uint64, error) {
	if !o.carried.known {
		n, _, err := o.reign.number(o.ref.ID, outputsKey)
		if err != nil {
			return 0, o.storeFailed(err)
		}
		o.carried.known, o.carried.outputs = true, n
	}
	return o.carried.outputs, nil
}

// stamp adds the numbers to a batch that is about to be submitted.
func (t *turn) stamp() error {
	o, carrier := t.o, t.o.reign.engine.cfg.Carrier
	if carrier == nil {
		return nil
	}
	if t.wiped {
		o.carried = carried{known: true}
		return nil
	}
	if m, ok := t.ev.what.(*host.SocketMessage); ok && m.Seq > 0 {
		t.putNumber(socketKey(m.Socket), m.Seq)
		o.carried.note(m.Socket, handled{m.Seq, true})
	}
	if !t.sends {
		return nil
	}
	if _, err := o.outputs(); err != nil {
		return err
	}
	o.carried.outputs++
	outputs, id := o.carried.outputs, o.ref.ID
	t.out(func() { carrier.Mark(id, outputs) })
	t.putNumber(outputsKey, outputs)
	return nil
}

func (t *turn) putNumber(key string, n uint64) {
	t.batch.Put(storage.SpaceSocket, key, binary.AppendUvarint(nil, n))
}

// endSocket forgets a socket's numbers.
func (t *turn) endSocket(id host.SocketID) error {
	if t.o.reign.engine.cfg.Carrier == nil || !t.o.state.exists {
		return nil
	}
	if _, err := t.o.lastHandled(id); err != nil {
		return err
	}
	if t.o.carried.handled[id].stored {
		t.begin(false, true)
		t.batch.Delete(storage.SpaceSocket, socketKey(id))
	}
	delete(t.o.carried.handled, id)
	return nil
}
