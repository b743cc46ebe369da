package engine

import (
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

// A Store is one shard's storage during one reign: from the moment this node leads
// the shard (and has applied all that was committed before) until it loses it. All
// methods may be called from any goroutine. Once the reign is over, commits fail
// and reads may be stale, so nothing of them may leave.
type Store interface {
	// Epoch is the reign's.
	Epoch() placement.Epoch

	// Get returns a stored value. The caller must not modify it.
	Get(id placement.ObjectID, space storage.Space, key string) ([]byte, bool, error)
	// List returns up to limit rows of a range in order, and whether there are
	// more. It is one consistent view.
	List(id placement.ObjectID, space storage.Space, r storage.Range, limit int) ([]storage.Row, bool, error)
	// Lookup returns an object's metadata.
	Lookup(id placement.ObjectID) (storage.Object, bool, error)
	// Objects lists objects of a class after a position, in order of (name, id).
	Objects(class, prefix string, after storage.Position, limit int) ([]storage.Object, error)
	// DueAlarms returns up to limit alarms that are due at or before a time (Unix
	// milliseconds), earliest first, and when the first one after those is due.
	DueAlarms(now int64, limit int) (due []storage.Alarm, next int64, err error)

	// Commit makes one object's batch durable on a quorum. Batches of one reign
	// commit in the order of the calls. done is called once, from a goroutine of the
	// store, in that order; it must not block. After the first error every later
	// batch of the reign fails too. The batch must not be changed afterwards.
	Commit(batch []byte, done func(error))
	// Confirm calls done(nil) once it is certain that this reign was not over when
	// Confirm was called; at once, on the caller's goroutine, where that is certain
	// already (one voter). It must not block.
	Confirm(done func(error))
	// Writable returns nil, or why writes are refused now (ErrStorageFull).
	Writable() error
}

// A Gateway holds the clients' sockets. The engine calls it when the output gate
// opens, in the order of the object's events; no method may block. The data of a
// message is shared, never copied or changed.
type Gateway interface {
	// Sockets returns the open sockets of an object, oldest first. The engine asks
	// when it wakes the object, and keeps its own list from then on.
	Sockets(id placement.ObjectID) []host.Socket
	// Accept registers a socket whose handshake follows: frames sent to it before
	// the handshake is done are queued.
	Accept(ref host.Ref, s host.Socket)
	Send(id placement.ObjectID, to host.SocketID, m host.Message)
	Broadcast(id placement.ObjectID, m host.Message, tag string, except []host.SocketID)
	Close(id placement.ObjectID, s host.SocketID, code int, reason string)
	SetAttachment(id placement.ObjectID, s host.SocketID, attachment []byte)
	SetAutoResponses(id placement.ObjectID, pairs []host.AutoResponse)
	// AutoResponse returns when a socket was last answered automatically; zero if never.
	AutoResponse(id placement.ObjectID, s host.SocketID) time.Time
	// Forget drops a socket whose close event has run; until then Sockets lists it
	// as closing.
	Forget(id placement.ObjectID, s host.SocketID)
	// Release tells that an object has left memory: what is not about its open sockets,
	// such as its automatic responses, it will say again when it loads.
	Release(id placement.ObjectID)
	// CloseAll closes every socket of an object.
	CloseAll(id placement.ObjectID, code int, reason string)
}

// A Carrier is told what a gateway needs that outlives the owner of an object: sockets
// whose connections are held by other nodes. Without one, gateway and owner share one fate.
type Carrier interface {
	// Objects returns the objects of a shard that have sockets anywhere. The engine asks when
	// a reign begins.
	Objects(shard placement.ShardID) []placement.ObjectID
	// Mark tells, in order with what is sent, that everything up to the object's outputs of
	// a number has been given to its gateways.
	Mark(id placement.ObjectID, outputs uint64)
}
