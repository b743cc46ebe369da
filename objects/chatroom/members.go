package chatroom

import (
	"context"
	"errors"
	"math"
	"net/http"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-run/holdfast/runtime/durable"
)

// join makes the running request a member's socket. The tag finds the member's other
// tabs. A browser cannot read the answer to a handshake that is refused, so a bad name
// is told over the socket.
func (*Room) join(_ context.Context, tx *durable.Tx, _ http.ResponseWriter, r *http.Request) error {
	name := strings.TrimSpace(r.URL.Query().Get("name"))
	if !validName(name) {
		ws, err := tx.Accept(durable.AcceptOptions{})
		if err != nil {
			return err
		}
		return errors.Join(refuse(ws, "", "bad_name", "A name has 1 to 32 visible characters."), ws.Close(1008, "bad name"))
	}
	here := membersOf(tx)
	ws, err := tx.Accept(durable.AcceptOptions{Tags: []string{name}})
	if err != nil {
		return err
	}
	member.Put(ws, name)
	err = errors.Join(send(ws, frame{"type": "welcome", "name": name, "members": membersOf(tx)}), send(ws, history(tx, math.MaxInt64, pageLen)))
	if !slices.Contains(here, name) {
		tx.Broadcast(durable.JSON(frame{"type": "join", "name": name}), "", ws)
	}
	return err
}

// WebSocketClose tells the others if it was the member's last socket.
func (*Room) WebSocketClose(_ context.Context, tx *durable.Tx, ws *durable.Socket, _ durable.CloseEvent) error {
	name := member.Get(ws)
	if name == "" {
		return nil
	}
	for other := range tx.Sockets(name) {
		if other.ID() != ws.ID() {
			return nil
		}
	}
	tx.Broadcast(durable.JSON(frame{"type": "leave", "name": name}), "", ws)
	return nil
}

func (*Room) members(_ context.Context, tx *durable.Tx, w http.ResponseWriter, _ *http.Request) error {
	durable.WriteJSON(w, http.StatusOK, frame{"members": membersOf(tx)})
	return nil
}

// membersOf lists who is here. However many tabs somebody has, she counts once.
func membersOf(tx *durable.Tx) []string {
	names := []string{}
	for ws := range tx.Sockets("") {
		if name := member.Get(ws); name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// validName accepts 1 to 32 characters that can be seen, and spaces between them.
func validName(name string) bool {
	return name != "" && utf8.ValidString(name) && utf8.RuneCountInString(name) <= maxName &&
		!strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
}
