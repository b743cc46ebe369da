package durable_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	halls durable.Class[hall]                              = "hall"
	look  durable.Method[hall, durable.None, durable.None] = "look"

	guest durable.Attachment[string] = "guest"
	order durable.Attachment[int64]  = "guest" // the same attachment, with another type
)

// A hall takes every visitor in; its other events do what a test asks for.
type hall struct{}

// hallWorld has one hall; its look calls see.
func hallWorld(t *testing.T, see *func(tx *durable.Tx) error) (*durabletest.World, durable.Stub[hall]) {
	t.Helper()
	w := durabletest.New(t, durable.Define(halls, look.Handle(
		func(_ *hall, _ context.Context, tx *durable.Tx, _ durable.None) (durable.None, error) {
			return durable.None{}, (*see)(tx)
		})))
	return w, halls.Named(w, "it")
}

func (*hall) Load(_ context.Context, tx *durable.Tx) error {
	return tx.SetAutoResponses(durable.AutoResponse{Request: "ping", Response: "pong"}, durable.AutoResponse{Request: "a", Response: "b"})
}

func (*hall) Fetch(_ context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("X-Hall", "great")
	ws, err := tx.Accept(durable.AcceptOptions{Tags: r.URL.Query()["tag"]})
	if err != nil {
		return err
	}
	guest.Put(ws, r.URL.Path)
	return nil
}

func (*hall) WebSocketMessage(_ context.Context, tx *durable.Tx, ws *durable.Socket, m durable.Message) error {
	var v struct{ N int }
	if err := m.Decode(&v); err != nil {
		return ws.Send(durable.Text(fmt.Sprint(errors.Is(err, durable.ErrBadRequest))))
	}
	return ws.Send(durable.JSON(v))
}

func TestWhatAHallSees(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var see func(tx *durable.Tx) error
		w, it := hallWorld(t, &see)
		event := func(f func(tx *durable.Tx) error) error {
			see = f
			_, err := look.Call(t.Context(), it, durable.None{})
			return err
		}
		began := time.Now()
		ada := w.Connect(it, "/ada?tag=x&tag=y&tag=x")
		if got := ada.Header().Get("X-Hall"); got != "great" {
			t.Errorf("the handshake's header says %q", got)
		}
		time.Sleep(time.Minute)
		bob := w.Connect(it, "/bob?tag=y")
		ada.Send("ping")
		pinged := time.Now()
		time.Sleep(time.Minute)

		var bobID durable.SocketID
		err := event(func(tx *durable.Tx) error {
			all := slices.Collect(tx.Sockets("y"))
			if len(all) != 2 || guest.Get(all[0]) != "/ada" || guest.Get(all[1]) != "/bob" || all[0].ID() == all[1].ID() {
				t.Fatalf("%d sockets: %v", len(all), all)
			}
			if tags := all[0].Tags(); !slices.Equal(tags, []string{"x", "y"}) {
				t.Errorf("ada has the tags %q", tags)
			}
			if !all[0].Accepted().Equal(began) || !all[1].Accepted().Equal(began.Add(time.Minute)) {
				t.Errorf("accepted at %v and %v", all[0].Accepted(), all[1].Accepted())
			}
			if !all[0].AutoResponded().Equal(pinged) || !all[1].AutoResponded().IsZero() {
				t.Errorf("answered at %v and %v", all[0].AutoResponded(), all[1].AutoResponded())
			}
			bobID = all[1].ID()
			for range tx.Sockets("z") {
				t.Error("a socket has the tag z")
			}
			guest.Put(all[1], "bobby")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		w.Evict(it)
		if got := ada.Receive(); got != "pong" {
			t.Errorf("received %q", got)
		}
		ada.SendJSON(map[string]int{"N": 5})
		var v struct{ N int }
		if ada.ReceiveJSON(&v); v.N != 5 {
			t.Errorf("received %+v", v)
		}
		ada.Send("no JSON")
		if got := ada.Receive(); got != "true" {
			t.Errorf("received %q", got)
		}

		err = event(func(tx *durable.Tx) error {
			for ws := range tx.Sockets("") {
				if ws.ID() != bobID {
					continue
				}
				if name := guest.Get(ws); name != "bobby" {
					t.Errorf("bob is %q after a sleep", name)
				}
				for _, bad := range []error{ws.Close(1006, ""), ws.Close(2000, ""), ws.Close(1000, strings.Repeat("x", 124))} {
					if bad == nil {
						t.Error("a wrong way to close was accepted")
					}
				}
				if err := ws.Close(4001, "enough"); err != nil || !ws.Closing() {
					t.Errorf("Close: %v, closing %v", err, ws.Closing())
				}
				if err := ws.Send(durable.Text("late")); !errors.Is(err, durable.ErrNotFound) {
					t.Errorf("Send on a closing socket: %v", err)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if end := bob.Closed(); end.Code != 4001 || end.Reason != "enough" {
			t.Errorf("bob was closed with %+v", end)
		}

		for name, f := range map[string]func(tx *durable.Tx, ws *durable.Socket){
			"too large an attachment":       func(_ *durable.Tx, ws *durable.Socket) { guest.Put(ws, strings.Repeat("x", 16<<10)) },
			"an attachment of another type": func(_ *durable.Tx, ws *durable.Socket) { order.Get(ws) },
			"too large a message":           func(tx *durable.Tx, _ *durable.Socket) { tx.Broadcast(durable.Binary(make([]byte, 32<<20+1)), "") },
		} {
			err := event(func(tx *durable.Tx) error {
				for ws := range tx.Sockets("") {
					f(tx, ws)
				}
				t.Errorf("%s: the event went on", name)
				return nil
			})
			if err == nil {
				t.Errorf("%s: no error", name)
			}
		}
		err = event(func(tx *durable.Tx) error {
			if _, err := tx.Accept(durable.AcceptOptions{}); !errors.Is(err, durable.ErrBadRequest) {
				t.Errorf("Accept in a call: %v", err)
			}
			return tx.SetAutoResponses(make([]durable.AutoResponse, 17)...)
		})
		if !errors.Is(err, durable.ErrTooLarge) {
			t.Errorf("17 automatic responses: %v", err)
		}
	})
}

func TestKeys(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mustEvent(func(tx *durable.Tx) {
		if number.Get(tx) != 0 || number.Delete(tx) {
			t.Error("the number is there before it was put")
		}
		number.Put(tx, 5)
		if n, ok := number.Lookup(tx); n != 5 || !ok || !number.Delete(tx) || number.Get(tx) != 0 {
			t.Errorf("the number is %d, %v", n, ok)
		}
	})
}

// What goes wrong with a world of an example ends the example.
func TestMisuse(t *testing.T) {
	t.Parallel()
	var see func(tx *durable.Tx) error
	_, it := hallWorld(t, &see)
	w := durabletest.Open(durable.Define(halls))
	conn := w.Connect(it, "/ada")
	conn.Close(1000, "")
	for want, f := range map[string]func(){
		"the socket is closed": func() { conn.Send("hi") },
		"closed with 1000":     func() { conn.Receive() },
		"defined twice":        func() { durabletest.Open(durable.Define(halls), durable.Define(halls)) },
		"a tag":                func() { w.Connect(it, "/bob?tag=") },
	} {
		func() {
			defer func() {
				if r := fmt.Sprint(recover()); !strings.Contains(r, want) {
					t.Errorf("panic is %q, want one with %q", r, want)
				}
			}()
			f()
		}()
	}
	w.Close()
}
