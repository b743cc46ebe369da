package durable

import (
	"encoding/json"
	"errors"
	"iter"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A Socket is the WebSocket of one client. The connection is held by the node's front
// door: it stays open while the object sleeps, and its messages wake the object. What the object
// must remember about a client goes into the socket's [Attachment].
//
// A Socket belongs to the event that it was got in, like its [Tx]; another event finds
// it again with [Tx.Sockets], or is given it.
type Socket struct {
	tx *Tx
	s  host.Socket
}

// A SocketID names a socket for as long as it lives.
type SocketID uint64

// A Message is one WebSocket message. Its data is shared on the way, so it must not be
// changed once it was sent, or received.
type Message struct {
	Data   []byte
	Binary bool // text otherwise
}

// Text makes a text message.
func Text(s string) Message { return Message{Data: []byte(s)} }

// Binary makes a binary message.
func Binary(b []byte) Message { return Message{Data: b, Binary: true} }

// JSON makes a text message of v's JSON. It panics if v has none, so v should be of a
// type made for the wire.
func JSON(v any) Message {
	b, err := marshal(v)
	if err != nil {
		panic("durable: encode a message: " + err.Error())
	}
	return Message{Data: b}
}

// Decode reads a message of JSON into v. The error is an [ErrBadRequest].
func (m Message) Decode(v any) error {
	if err := json.Unmarshal(m.Data, v); err != nil {
		return host.Errorf(host.CodeBadRequest, "the message does not decode: %v", err).Because(err)
	}
	return nil
}

// A CloseEvent is the end of a socket.
type CloseEvent struct {
	Code   int // 1006 if the connection dropped
	Reason string
	Clean  bool // both sides took leave
}

// AcceptOptions say how a socket is accepted. The zero value is fine.
type AcceptOptions struct {
	// Tags are up to 10 labels of up to 256 bytes by which [Tx.Sockets] and
	// [Tx.Broadcast] find the socket.
	Tags []string
	// Subprotocols are those that the object speaks, most wanted first.
	Subprotocols []string
}

// Accept answers the request of the running [Fetcher] hook by making it a WebSocket. The
// handshake happens when the event has ended and its writes are durable, and messages that
// were sent to the socket until then follow it. What the hook sets in the response's header, such
// as a cookie, is part of the handshake's answer.
func (tx *Tx) Accept(o AcceptOptions) (*Socket, error) {
	id, err := tx.turn.Accept(host.AcceptOptions{Tags: o.Tags, Subprotocols: o.Subprotocols})
	if err != nil {
		return nil, err
	}
	return tx.socket(id), nil
}

// Sockets yields the open sockets, oldest first; with a tag, only those that have it.
// Sockets that are about to close may be among them.
func (tx *Tx) Sockets(tag string) iter.Seq[*Socket] {
	sockets := tx.turn.Sockets(tag)
	return func(yield func(*Socket) bool) {
		for _, s := range sockets {
			if !yield(&Socket{tx: tx, s: s}) {
				return
			}
		}
	}
}

// Broadcast sends m to every socket that has the tag (all of them if it is ""), but
// not to those in except. However many they are, the message is carried once.
func (tx *Tx) Broadcast(m Message, tag string, except ...*Socket) {
	var ids []host.SocketID
	for _, s := range except {
		ids = append(ids, s.s.ID)
	}
	tx.turn.Broadcast(host.Message(m), tag, ids)
}

// An AutoResponse is an answer that the front door gives to a text message that equals
// Request, without waking the object.
type AutoResponse struct{ Request, Response string }

// SetAutoResponses replaces the object's automatic responses: up to 16 pairs of up to
// 2,048 bytes each. They last as long as the object's sockets; Load is a good place to
// set them.
func (tx *Tx) SetAutoResponses(pairs ...AutoResponse) error {
	list := make([]host.AutoResponse, len(pairs))
	for i, p := range pairs {
		list[i] = host.AutoResponse(p)
	}
	return tx.turn.SetAutoResponses(list)
}

// ID returns the socket's ID.
func (ws *Socket) ID() SocketID { return SocketID(ws.s.ID) }

// Tags returns the tags that the socket was accepted with. They must not be modified.
func (ws *Socket) Tags() []string { return ws.s.Tags }

// Accepted returns when the socket was accepted.
func (ws *Socket) Accepted() time.Time { return ws.s.Accepted }

// AutoResponded returns when the last automatic response was sent to the client, or
// the zero time.
func (ws *Socket) AutoResponded() time.Time {
	s, _ := ws.tx.turn.Socket(ws.s.ID)
	return s.AutoResponse
}

// Closing reports whether the socket is about to close: nothing can be sent any more.
func (ws *Socket) Closing() bool { return ws.s.Closing }

// Send sends a message to the client. It leaves when the event's writes so far are
// durable. An error means that the socket is closed or the message over 32 MiB.
func (ws *Socket) Send(m Message) error {
	return ws.tx.turn.Send(ws.s.ID, host.Message(m))
}

// Close closes the socket, after what was sent before. The code is one that may be sent
// (1000 to 1003, 1007 to 1014, 3000 to 4999), the reason has at most 123 bytes. The close
// event follows when the client has answered, or has not for too long.
func (ws *Socket) Close(code int, reason string) error {
	if !validCloseCode(code) {
		return host.Errorf(host.CodeBadRequest, "%d is no close code that may be sent", code)
	}
	if err := ws.tx.turn.CloseSocket(ws.s.ID, code, reason); err != nil {
		return err
	}
	ws.s.Closing = true
	return nil
}

// An Attachment is what an object remembers of each of its sockets: one value of type V per
// socket, at most 16 KiB of JSON, kept with the connection while the object sleeps.
// Its name appears in errors only.
type Attachment[V any] string

// Get returns the socket's attachment, or the zero V if there is none.
func (a Attachment[V]) Get(ws *Socket) V {
	v, err := decodeJSON[V](ws.s.Attachment)
	if err != nil {
		panic(host.Errorf(host.CodeInternal, "attachment %q of a socket is not a %T: %v", string(a), v, err).Because(err))
	}
	return v
}

// Put sets the socket's attachment.
func (a Attachment[V]) Put(ws *Socket, v V) {
	b, err := encodeJSON(v)
	if err != nil {
		panic(host.Errorf(host.CodeInternal, "encode attachment %q: %v", string(a), err).Because(err))
	}
	// A socket that is gone needs no attachment.
	if err := ws.tx.turn.SetAttachment(ws.s.ID, b); err != nil && !errors.Is(err, ErrNotFound) {
		panic(host.AsError(err))
	}
	ws.s.Attachment = b
}

// socket returns the handle of a socket, which may be gone already.
func (tx *Tx) socket(id host.SocketID) *Socket {
	s, ok := tx.turn.Socket(id)
	if !ok {
		s = host.Socket{ID: id, Closing: true}
	}
	return &Socket{tx: tx, s: s}
}

// validCloseCode reports whether a code may be sent: RFC 6455 keeps 1004 to 1006 and
// 1015 for use inside of programs, and what else is below 3000 for its own future.
func validCloseCode(code int) bool {
	return code >= 1000 && code <= 1003 || code >= 1007 && code <= 1014 || code >= 3000 && code <= 4999
}
