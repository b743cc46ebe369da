package durable_test

import (
	"context"
	"fmt"
	"net/http"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	Rooms durable.Class[Room] = "room"

	member durable.Attachment[Member] = "member"
)

// A Member is what the room remembers of a socket.
type Member struct {
	Name string `json:"name"`
	Said int    `json:"said"`
}

type Room struct{}

func (*Room) Fetch(_ context.Context, tx *durable.Tx, _ http.ResponseWriter, r *http.Request) error {
	ws, err := tx.Accept(durable.AcceptOptions{})
	if err != nil {
		return err
	}
	m := Member{Name: r.FormValue("name")}
	member.Put(ws, m)
	tx.Broadcast(durable.Text(m.Name+" is here"), "", ws)
	return nil
}

func (*Room) WebSocketMessage(_ context.Context, tx *durable.Tx, ws *durable.Socket, msg durable.Message) error {
	m := member.Get(ws)
	m.Said++
	member.Put(ws, m)
	tx.Broadcast(durable.Text(fmt.Sprintf("%s (%d): %s", m.Name, m.Said, msg.Data)), "")
	return nil
}

func (*Room) WebSocketClose(_ context.Context, tx *durable.Tx, ws *durable.Socket, _ durable.CloseEvent) error {
	tx.Broadcast(durable.Text(member.Get(ws).Name+" has left"), "", ws)
	return nil
}

// A socket stays open while its object sleeps, and what the object attached to it
// stays with it.
func ExampleSocket() {
	world := durabletest.Open(durable.Define(Rooms))
	defer world.Close()

	room := Rooms.Named(world, "lobby")
	ada := world.Connect(room, "/?name=ada")
	bob := world.Connect(room, "/?name=bob")
	fmt.Println(ada.Receive())

	bob.Send("hi")
	fmt.Println(ada.Receive())

	world.Evict(room) // the object sleeps; nobody notices
	bob.Send("still here?")
	fmt.Println(ada.Receive())

	bob.Close(1000, "")
	fmt.Println(ada.Receive())

	// Output:
	// bob is here
	// bob (1): hi
	// bob (2): still here?
	// bob has left
}
