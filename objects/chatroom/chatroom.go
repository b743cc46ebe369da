// Package chatroom is a chat room with a memory: who is here, what was said, in one order for
// everybody.
//
//	GET /objects/chatroom/{room}/                  the chat page for a browser; otherwise what the room is, as JSON
//	GET /objects/chatroom/{room}/websocket?name=N  joins as N
//	GET /objects/chatroom/{room}/messages?before=SEQ&limit=N
//	GET /objects/chatroom/{room}/members
//
// A member who joins is sent {"type":"welcome","name":…,"members":[…]} and
// {"type":"history","messages":[…],"more":…}, the latest messages in order. Everybody is sent
//
//	{"type":"message","seq":17,"from":"ada","text":"hi","at":"2026-01-02T03:04:05Z","id":…}
//	{"type":"join","name":"ada"}   with the first of her tabs
//	{"type":"leave","name":"ada"}  with the last
//
// and a member says {"type":"message","text":"hi","id":"…"}. The id is optional, and the
// client's own: a message that is sent again under its id, after a reconnect, is not posted twice;
// the member is sent the one that was. What cannot be done is answered with
// {"type":"error","code":…,"message":…,"id":…}; with code rate_limited, retryAfter says in
// how many seconds it can. The text message ping is answered with pong.
//
// There are no accounts: whoever says that she is ada is ada.
//
// What it teaches: hibernation. The room keeps nothing in memory. Its members' names are
// attached to their sockets, which stay open while it sleeps; everything else is in storage.
// So it can be gone from memory between any two messages, and nobody can tell.
package chatroom

import (
	"context"
	"slices"
	"time"

	"github.com/holdfast-run/holdfast/objects/ratelimit"
	"github.com/holdfast-run/holdfast/runtime/durable"
)

const (
	// Class is the rooms' class.
	Class durable.Class[Room] = "chatroom"

	retention durable.Schedule[Room, durable.None] = "retention"

	last     durable.Key[int64]          = "last" // the latest message's seq
	messages durable.Map[int64, Message] = "message"
	posted   durable.Map[string, int64]  = "posted" // seq by client id and member, as long as the message is kept
	member   durable.Attachment[string]  = "member" // the name
)

// Limits of every room.
const (
	maxName    = 32    // characters
	maxText    = 4_000 // characters
	maxID      = 64    // bytes
	historyLen = 50    // messages sent to whoever joins

	paceLimit  = 20               // messages that a member may post at once, and from then on
	paceWindow = 10 * time.Second // in so long a time
)

// Definition is the class.
var Definition = durable.Define(Class, retention.Handle((*Room).sweep))

// Room keeps nothing in memory.
type Room struct{}

// Load sets what is answered without waking the room.
func (*Room) Load(_ context.Context, tx *durable.Tx) error {
	return tx.SetAutoResponses(durable.AutoResponse{Request: "ping", Response: "pong"})
}

// join makes the running request a member's socket. The tag finds the member's other
// tabs. A browser cannot read the answer to a handshake that is refused, so a bad name
// is told over the socket.
func join(tx *durable.Tx, name string) error {
	if !validName(name) {
		ws, err := tx.Accept(durable.AcceptOptions{})
		if err != nil {
			return err
		}
		if err := ws.Send(durable.JSON(refusal("bad_name", "A name has 1 to 32 visible characters."))); err != nil {
			return err
		}
		return ws.Close(1008, "bad name")
	}
	here := isHere(tx, name, 0)
	ws, err := tx.Accept(durable.AcceptOptions{Tags: []string{name}})
	if err != nil {
		return err
	}
	member.Put(ws, name)
	if err := ws.Send(durable.JSON(welcome{"welcome", name, members(tx)})); err != nil {
		return err
	}
	if err := ws.Send(durable.JSON(pageBefore(tx, last.Get(tx)+1, historyLen))); err != nil {
		return err
	}
	if !here {
		tx.Broadcast(durable.JSON(presence{"join", name}), "", ws)
	}
	return nil
}

// WebSocketMessage posts what a member says.
func (*Room) WebSocketMessage(ctx context.Context, tx *durable.Tx, ws *durable.Socket, m durable.Message) error {
	name := member.Get(ws)
	if name == "" { // refused, and not gone yet
		return nil
	}
	var said struct{ Type, Text, ID string }
	if m.Binary || m.Decode(&said) != nil || said.Type != "message" {
		return ws.Send(durable.JSON(refusal("bad_frame", `Want {"type":"message","text":"…"}.`)))
	}
	if no := check(said.Text, said.ID); no.Code != "" {
		return ws.Send(durable.JSON(no))
	}
	key := said.ID + "/" + name
	if seq, again := posted.Lookup(tx, key); again && said.ID != "" {
		return ws.Send(durable.JSON(messages.Get(tx, seq)))
	}
	if wait := tooFast(ctx, tx, name); wait > 0 {
		return ws.Send(durable.JSON(failure{"error", "rate_limited", "Too many messages at once.", said.ID, wait}))
	}

	msg := Message{Type: "message", Seq: last.Get(tx) + 1, From: name, Text: said.Text, At: time.Now().UTC(), ID: said.ID}
	last.Put(tx, msg.Seq)
	messages.Put(tx, msg.Seq, msg)
	if msg.ID != "" {
		posted.Put(tx, key, msg.Seq)
	}
	sweepLater(tx, msg)
	tx.Broadcast(durable.JSON(msg), "")
	return nil
}

// WebSocketClose tells the others if it was the member's last socket.
func (*Room) WebSocketClose(_ context.Context, tx *durable.Tx, ws *durable.Socket, _ durable.CloseEvent) error {
	if name := member.Get(ws); name != "" && !isHere(tx, name, ws.ID()) {
		tx.Broadcast(durable.JSON(presence{"leave", name}), "", ws)
	}
	return nil
}

// tooFast asks the member's limiter, and returns how many seconds to wait if it says no. A
// limiter that cannot answer holds nobody up. Nothing has been written yet, so that the
// call, which is a commit point, divides nothing.
func tooFast(ctx context.Context, tx *durable.Tx, name string) float64 {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	limiter := ratelimit.Class.Named(tx, "chatroom/"+tx.ID().String()+"/"+name)
	v, err := ratelimit.Check.Call(ctx, limiter, ratelimit.Request{Rule: ratelimit.Rule{Limit: paceLimit, Window: paceWindow}})
	if err != nil {
		return 0
	}
	return v.RetryAfter
}

// isHere reports whether the member has a socket other than the one given.
func isHere(tx *durable.Tx, name string, but durable.SocketID) bool {
	for ws := range tx.Sockets(name) {
		if ws.ID() != but {
			return true
		}
	}
	return false
}

// members lists who is here. However many tabs somebody has, she counts once.
func members(tx *durable.Tx) []string {
	names := []string{}
	for ws := range tx.Sockets("") {
		if name := member.Get(ws); name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
