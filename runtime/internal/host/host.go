// Package host is the seam between the author's API (package durable) and the
// engine that runs objects: what each asks of the other, as interfaces and plain
// values. Nothing here does any work.
//
//	durable.Definition  is a host.Class      the engine builds instances of it
//	an author's object  is a host.Instance   the engine hands it one Event at a time
//	durable.Tx          wraps a host.Turn    all that an event may do while it runs
//	durable.Stub        holds a host.Caller  how anything reaches an object
//
// An event is a value and an instance is an interface, so that objects in another
// language can stand behind the same seam later. Arguments, replies and stored
// values cross it as bytes in a language-neutral form.
package host

import (
	"context"
	"iter"
	"net/http"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// A Ref names one object.
type Ref struct {
	Class string
	ID    placement.ObjectID
	Name  string // as given by the caller; only meaningful if Named
	Named bool
}

// A Class is what the engine knows of one class of objects.
type Class interface {
	// Name is the class's name, as in URLs and in storage.
	Name() string
	// New makes an instance in memory; the engine follows with a [Load] event.
	// It must not do I/O.
	New() Instance
	// Info describes what the class can do. It never changes.
	Info() ClassInfo
}

// ClassInfo describes a class.
type ClassInfo struct {
	Fetch         bool            // handles [Fetch]
	Alarm         bool            // handles [Alarm] with the empty schedule kind
	AlarmFailed   bool            // handles [AlarmFailed]
	Stopping      bool            // handles [Stopping]
	SocketMessage bool            // handles [SocketMessage]
	SocketClose   bool            // handles [SocketClose]
	SocketError   bool            // handles [SocketError]
	Methods       map[string]bool // every method; true if it may be called from outside over HTTP
	Schedules     map[string]bool // every kind of named schedule that has a handler

	IdleAfter time.Duration // how long it stays in memory unused; 0 means the engine's default
}

// An Instance is one object in memory. The engine never calls Handle twice at once
// for one object, except that while a turn is inside [Turn.Outside] other events may
// run. If Handle returns an error or panics, the event's writes since its last
// commit point are undone and the instance is thrown away.
type Instance interface {
	Handle(ctx context.Context, turn Turn, ev Event) error
}

// An Event is one thing that happens to an object. The concrete types are the
// pointers to the structs below.
type Event interface{ event() }

// Load is the first event of every instance, before the event that woke it.
type Load struct{}

// Fetch is an HTTP request. What is written to W stays inside until the writes
// before it are durable. Flushing W, and outgrowing its buffer, are commit points.
type Fetch struct {
	W http.ResponseWriter
	R *http.Request
}

// Call is a method call; the handler sets Reply. Both are JSON.
type Call struct {
	Method string
	Args   []byte
	Reply  []byte
}

// Alarm is a schedule that has come due.
type Alarm struct {
	Schedule  Schedule
	Scheduled time.Time // when it was due; the first try starts no earlier
	Attempt   int       // 0 for the first try
}

// AlarmFailed tells that a schedule's retries are used up; Err is the last error.
type AlarmFailed struct {
	Schedule  Schedule
	Scheduled time.Time
	Attempts  int
	Err       error
}

// SocketMessage is one message from a client.
type SocketMessage struct {
	Socket SocketID
	Data   []byte
	Binary bool
	// Seq numbers the messages of one socket from 1, so that one which is delivered again,
	// to the object's next owner, is not handled twice. 0 means that it never is.
	Seq uint64
}

// SocketClose is the end of a socket; every accepted socket gets exactly one. The
// socket is still listed while the event runs, and gone afterwards.
type SocketClose struct {
	Socket SocketID
	Code   int // 1006 if the connection dropped
	Reason string
	Clean  bool // both sides finished the closing handshake
}

// SocketError is a failure of a socket other than a drop. A [SocketClose] follows.
type SocketError struct {
	Socket SocketID
	Err    error
}

// Work is the end of background work started with [Turn.Go].
type Work struct {
	Err  error
	Then func(ctx context.Context, turn Turn, err error) error
}

// Stopping tells an instance that it will leave memory. It is best effort: a crash
// sends none.
type Stopping struct {
	Reason string // "idle", "evicted", "shutdown" or "moved"
}

func (*Load) event()          {}
func (*Fetch) event()         {}
func (*Call) event()          {}
func (*Alarm) event()         {}
func (*AlarmFailed) event()   {}
func (*SocketMessage) event() {}
func (*SocketClose) event()   {}
func (*SocketError) event()   {}
func (*Work) event()          {}
func (*Stopping) event()      {}

// A Turn is all that one event may do while it runs. It may be used by the
// handler's goroutine only, and not after the handler returned.
//
// Reads see the event's own writes. They cannot fail: a broken store ends the event
// with a panic that the engine catches. Values handed out must not be modified;
// values handed in are not modified and must not be changed by the caller later.
type Turn interface {
	Ref() Ref
	// Caller reaches other objects. A call through it is a commit point, waits at
	// the output gate, and keeps the turn.
	Caller

	Get(key string) ([]byte, bool)
	// Put and Delete take effect at the end of the event. With unconfirmed the
	// output gate does not wait for them.
	Put(key string, value []byte, unconfirmed bool)
	Delete(key string, unconfirmed bool) bool
	// List yields the keys of r in order, as they are when the iteration begins.
	List(r Range) iter.Seq2[string, []byte]
	// DeleteAll removes every key and every schedule.
	DeleteAll()

	// Nested runs fn; if it returns an error or panics, the writes made in it
	// are undone.
	Nested(fn func() error) error
	// Commit ends the current batch: what was written so far will be committed
	// as one and is not undone by a later error. It does not wait.
	Commit()
	// Sync is Commit and waits until every write so far is durable.
	Sync(ctx context.Context) error

	// Schedules. The name "" is the default alarm. The schedule that is running
	// is invisible until it is set again.
	Schedule(name string) (Schedule, bool)
	SetSchedule(s Schedule)
	DeleteSchedule(name string) bool
	Schedules() []Schedule

	// Outside commits, waits at the gate, gives up the turn, runs fn, and takes
	// the turn again. Other events may run meanwhile.
	Outside(ctx context.Context, fn func(ctx context.Context) error) error
	// Go starts work once the event is durable. It runs outside the turn and
	// keeps the object in memory; then runs as an event of its own. It returns
	// ErrOverloaded if the object has too much work under way.
	Go(work func(ctx context.Context) error, then func(ctx context.Context, turn Turn, err error) error) error

	// Accept answers the fetch event's request by making it a WebSocket.
	Accept(o AcceptOptions) (SocketID, error)
	Socket(id SocketID) (Socket, bool)
	// Sockets lists the open sockets, oldest first; with a tag only those that
	// have it. Sockets that are closing may be among them.
	Sockets(tag string) []Socket
	Send(id SocketID, m Message) error
	// Broadcast sends m to every socket with the tag ("" means all) but those in except.
	Broadcast(m Message, tag string, except []SocketID)
	CloseSocket(id SocketID, code int, reason string) error
	SetAttachment(id SocketID, attachment []byte) error
	// SetAutoResponses replaces the object's pairs of request and response.
	SetAutoResponses(pairs []AutoResponse) error

	// DestroySelf removes the object at the end of this event: storage, schedules and
	// name; its sockets are closed and its instance goes.
	DestroySelf()
	// Abort ends the event and resets the object; it does not return.
	Abort(reason error)
}

// A Caller reaches objects.
type Caller interface {
	// Call runs a method of an object and returns its reply.
	Call(ctx context.Context, to Ref, method string, args []byte) ([]byte, error)
	// Fetch hands an HTTP request to an object. An upgrade to a WebSocket is refused here:
	// only the gateway can carry it.
	Fetch(ctx context.Context, to Ref, w http.ResponseWriter, r *http.Request) error
	// Lookup returns what is stored about an object, or ErrNotFound.
	Lookup(ctx context.Context, to Ref) (ObjectInfo, error)
	// ListObjects returns one page of the stored objects of a class, by name, then by ID.
	ListObjects(ctx context.Context, class string, o ListOptions) (ListPage, error)
	// Destroy removes an object, as [Turn.DestroySelf] does. It is no error if there is none.
	Destroy(ctx context.Context, to Ref) error
}

// ObjectInfo describes a stored object.
type ObjectInfo struct {
	Ref
	Created time.Time // when its first write was made
}

// ListOptions select objects. The zero value is the first page of all of them.
type ListOptions struct {
	Prefix string // of the name
	Cursor string // from the page before
	Limit  int    // 1 to 1,000; 0 means 1,000
}

// ListPage is one page of objects. An empty Cursor means that there are no more.
type ListPage struct {
	Objects []ObjectInfo
	Cursor  string
}

// A Range selects keys in ascending order of their UTF-8 bytes. Start is inclusive,
// StartAfter and End are exclusive; "" means unbounded. Reverse turns the order, not
// the bounds. Limit 0 means none.
type Range struct {
	Start, StartAfter, End, Prefix string
	Reverse                        bool
	Limit                          int
}

// A Schedule says when an object is to be woken, and how failures are retried.
type Schedule struct {
	Name string `json:"name"` // "" for the default alarm; otherwise kind, or kind/key
	// At is when it is due next; never zero in a stored schedule.
	At time.Time `json:"at"`
	// Every and Cron make it recur: at a fixed interval, or by a cron expression
	// of five fields in the time zone Zone ("" is UTC).
	Every time.Duration `json:"every,omitempty"`
	Cron  string        `json:"cron,omitempty"`
	Zone  string        `json:"zone,omitempty"`
	Retry Retry         `json:"retry,omitzero"`
	Args  []byte        `json:"args,omitempty"` // JSON for the handler

	// While failures are being retried: the time it was due, and how many
	// counted tries have failed, the last one how. Set by the engine only.
	Due      time.Time `json:"due,omitzero"`
	Attempts int       `json:"attempts,omitempty"`
	Failure  string    `json:"failure,omitempty"`
}

// Retry says how a failing schedule is retried. The zero value is the default.
type Retry struct {
	Max  int           `json:"max,omitempty"`  // counted retries; 0 means 6, negative none
	Base time.Duration `json:"base,omitempty"` // first wait, doubled each time; 0 means 2 s
	Cap  time.Duration `json:"cap,omitempty"`  // longest wait; 0 means 1,024 s
}

// A SocketID names one accepted WebSocket.
type SocketID uint64

// A Socket is a WebSocket as its object sees it.
type Socket struct {
	ID           SocketID
	Tags         []string
	Attachment   []byte
	Accepted     time.Time
	AutoResponse time.Time // when the last auto-response was sent; zero if never
	Closing      bool

	Gateway placement.NodeID // the node that holds the connection; "" if it is this one
	Seen    uint64           // number of the newest outputs of the object that its gateway has got
}

// A Message is what is sent to a client.
type Message struct {
	Data   []byte
	Binary bool
}

// AcceptOptions say how a WebSocket is accepted.
type AcceptOptions struct {
	Tags         []string
	Attachment   []byte
	Subprotocols []string // those the object speaks, most wanted first
}

// An AutoResponse is answered by the gateway, without waking the object, when a
// text message equals Request.
type AutoResponse struct{ Request, Response string }

// An Upgrade is the answer to a fetch that the object made a WebSocket. The zero
// Upgrade means that it was answered as ordinary HTTP.
type Upgrade struct {
	Socket       SocketID
	Subprotocols []string
}
