// Package durable is the object author's whole world.
//
// A durable object is a small program with a name, its own storage, and the promise
// that one event at a time runs on it, on one node at a time, for ever: "the room
// lobby", "the counter visits", "the rate limiter of ada". Any number of them
// exist; the ones nobody talks to cost disk only.
//
//	const (
//		Class durable.Class[Counter]                = "counter"
//		Add   durable.Method[Counter, int64, int64] = "add"
//
//		total durable.Key[int64] = "total"
//	)
//
//	var Definition = durable.Define(Class, Add.Handle((*Counter).add))
//
//	type Counter struct{} // memory is only a cache
//
//	func (*Counter) add(ctx context.Context, tx *durable.Tx, by int64) (int64, error) {
//		n := total.Get(tx) + by
//		total.Put(tx, n)
//		return n, nil
//	}
//
// Anything that can call, a [Scope], reaches it: another object, a node, a test.
//
//	n, err := counter.Add.Call(ctx, counter.Class.Named(tx, "visits"), 1)
//
// # Names are typed constants
//
// A name is a string on the wire and in storage, and a type in the compiler. The const
// block of a class is its schema: its [Class], its [Method]s and [Schedule]s, the
// [Key]s and [Map]s it stores, the [Attachment] of its sockets, the [Error]s it
// answers with. There is nothing to generate and nothing to register; a stub of
// another class does not compile.
//
// # An event is all or nothing
//
// A request, a call, a message from a socket, an alarm: each is one event, and its
// [Tx] is all that it may do. If the handler returns nil, everything it wrote commits
// together. If it returns an error or panics, nothing of it happened, and the instance
// is built anew, so that memory and storage cannot disagree.
//
// Nothing leaves an object before the writes that came before it are durable: no
// reply, no message, no call. So whatever somebody outside has seen is true, even if
// the machine loses power in the next moment. The next event does not wait for that; it
// starts at once on the state that the last one left behind.
//
// Some things divide an event, because they let others see what was written so far. At
// such a commit point the writes before it are committed, and a later error does not
// undo them: a call to another object, [Tx.Outside], [Tx.Sync], [Tx.Commit], and
// flushing a response.
//
// # Reads cannot fail
//
// Storage of an object is local to it. [Key.Get] has no error to handle: if the node
// cannot read, or a stored value is not what its type says, or a write is over a limit,
// the event ends there and then with an error of its own, and is undone.
//
// # Hooks
//
// An object takes part in more than calls by having more methods: [Loader],
// [Fetcher], [Alarmer], [AlarmFailer], [WebSocketMessageHandler],
// [WebSocketCloseHandler], [WebSocketErrorHandler] and [Stopper]. They are found
// when the class is defined; a hook with the wrong signature is refused there. A Fetch hook
// that answers more than one path has a table of [Routes], and [ReadJSON], [WriteJSON] and
// [WriteError] for what goes in and out.
//
// # Memory
//
// The fields of an object are a cache. They survive from event to event while the
// object stays awake, and are gone after it slept, failed, or moved to another node.
// Load may fill them. No goroutine of an object outlives its event, except work that
// is started with [Go].
package durable
