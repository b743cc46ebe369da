package durable

import (
	"context"
	"net/http"
)

// A Loader prepares its memory. Load is the first event of every instance, before the
// event that woke the object; if it fails, so does that event.
type Loader interface {
	Load(ctx context.Context, tx *Tx) error
}

// A Fetcher answers HTTP requests. The request's path is what follows the object's
// name in the URL. The response leaves when the event has ended and its writes are
// durable; flushing w, or writing more than fits its buffer, streams, and is a commit
// point. To open a WebSocket, Fetch calls [Tx.Accept] and writes nothing.
type Fetcher interface {
	Fetch(ctx context.Context, tx *Tx, w http.ResponseWriter, r *http.Request) error
}

// An Alarmer handles the object's alarm; see [Tx.SetAlarm]. If Alarm fails, it is
// tried again: after 2 s, with doubling waits, 6 times.
type Alarmer interface {
	Alarm(ctx context.Context, tx *Tx) error
}

// An AlarmFailer learns that an alarm or schedule is given up because its last retry
// failed. Without this hook it is only logged.
type AlarmFailer interface {
	AlarmFailed(ctx context.Context, tx *Tx, failure AlarmFailure) error
}

// A WebSocketMessageHandler receives the messages of its clients. The messages of one
// socket arrive in order, each after the handler of the one before has returned. An
// error undoes the event and leaves the socket open.
type WebSocketMessageHandler interface {
	WebSocketMessage(ctx context.Context, tx *Tx, ws *Socket, m Message) error
}

// A WebSocketCloseHandler learns that a socket has ended, exactly once for each. The
// socket is still among [Tx.Sockets] while the event runs.
type WebSocketCloseHandler interface {
	WebSocketClose(ctx context.Context, tx *Tx, ws *Socket, c CloseEvent) error
}

// A WebSocketErrorHandler learns what went wrong with a socket that did not simply
// drop. The close event follows.
type WebSocketErrorHandler interface {
	WebSocketError(ctx context.Context, tx *Tx, ws *Socket, err error) error
}

// A Stopper learns that its instance will leave memory. It is best effort: a crash
// asks nobody, so an object must not need it.
type Stopper interface {
	Stopping(ctx context.Context, tx *Tx, reason StopReason) error
}

// A StopReason says why an instance leaves memory.
type StopReason string

// The reasons.
const (
	StopIdle     StopReason = "idle"     // nobody needed it for a while
	StopEvicted  StopReason = "evicted"  // somebody asked for it
	StopShutdown StopReason = "shutdown" // the node stops
	StopMoved    StopReason = "moved"    // another node becomes its owner
)
