// Package chatroom is a chat room with a memory: who is here, what was said, in one order for
// everybody.
//
//	GET /objects/chatroom/{room}/                  the chat page
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
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/holdfast-run/holdfast/objects/ratelimit"
	"github.com/holdfast-run/holdfast/runtime/durable"
)

const (
	// Class is the rooms' class.
	Class durable.Class[Room] = "chatroom"

	retention durable.Schedule[Room, durable.None] = "retention"

	last     durable.Key[int64]          = "last"    // the latest message's seq
	messages durable.Map[int64, Message] = "message" // by seq
	posted   durable.Map[string, int64]  = "posted"  // seq by member and client id, as long as the message is kept
	member   durable.Attachment[string]  = "member"  // the name
)

// Definition is the class.
var Definition = durable.Define(Class, retention.Handle((*Room).sweep))

// Limits of every room.
const (
	maxName = 32    // characters
	maxText = 4_000 // characters
	maxID   = 64    // bytes

	paceLimit  = 20               // messages that a member may post at once, and from then on
	paceWindow = 10 * time.Second // in so long a time
)

// Room keeps nothing in memory.
type Room struct{}

var routes = durable.Routes[Room]{
	"GET /":          (*Room).page,
	"GET /websocket": (*Room).join,
	"GET /members":   (*Room).members,
	"GET /messages":  (*Room).messages,
}

// Fetch answers the requests above.
func (room *Room) Fetch(ctx context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	return routes.Serve(ctx, room, tx, w, r)
}

// A frame is what a room sends, if it is not a Message.
type frame map[string]any

func send(ws *durable.Socket, f frame) error { return ws.Send(durable.JSON(f)) }

func refuse(ws *durable.Socket, id, code, message string) error {
	return send(ws, frame{"type": "error", "code": code, "message": message, "id": id})
}

// Load sets what is answered without waking the room.
func (*Room) Load(_ context.Context, tx *durable.Tx) error {
	return tx.SetAutoResponses(durable.AutoResponse{Request: "ping", Response: "pong"})
}

// WebSocketMessage posts what a member says.
func (*Room) WebSocketMessage(ctx context.Context, tx *durable.Tx, ws *durable.Socket, m durable.Message) error {
	name := member.Get(ws)
	if name == "" { // refused, and not gone yet
		return nil
	}
	var said struct{ Type, Text, ID string }
	switch {
	case m.Binary || m.Decode(&said) != nil || said.Type != "message":
		return refuse(ws, "", "bad_frame", `Want {"type":"message","text":"…"}.`)
	case len(said.ID) > maxID:
		return refuse(ws, "", "bad_id", "An id has at most 64 bytes.")
	case strings.TrimSpace(said.Text) == "":
		return refuse(ws, said.ID, "empty_text", "A message needs a text.")
	case utf8.RuneCountInString(said.Text) > maxText:
		return refuse(ws, said.ID, "text_too_long", "A message has at most 4,000 characters.")
	}
	key := postedKey(name, said.ID)
	if seq, again := posted.Lookup(tx, key); again && said.ID != "" {
		return ws.Send(durable.JSON(messages.Get(tx, seq)))
	}
	if wait := tooFast(ctx, tx, name); wait > 0 {
		return send(ws, frame{"type": "error", "code": "rate_limited", "message": "Too many messages at once.", "id": said.ID, "retryAfter": wait})
	}

	msg := Message{"message", last.Get(tx) + 1, name, said.Text, time.Now().UTC(), said.ID}
	last.Put(tx, msg.Seq)
	messages.Put(tx, msg.Seq, msg)
	if msg.ID != "" {
		posted.Put(tx, key, msg.Seq)
	}
	expire(tx, msg)
	tx.Broadcast(durable.JSON(msg), "")
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

// postedKey keeps the ids of members apart: no name has a 0.
func postedKey(name, id string) string { return name + "\x00" + id }
