// Package counter is the smallest useful durable object: a number with a name.
//
//	GET  /objects/counter/{name}            {"value":3}
//	POST /objects/counter/{name}/increment  adds 1, or n with the body {"by":n}
//	POST /objects/counter/{name}/decrement  takes 1 or n away
//	POST /objects/counter/{name}/reset      makes it 0
//	GET  /objects/counter/{name}/watch      a WebSocket that is told the value, now and at every change
//
// What it teaches: an event is all or nothing. The value is read, changed and stored
// without a lock or a transaction to remember, since nothing else runs on this
// counter meanwhile; and neither the caller nor a watcher hears of a value that is
// not durable yet, though nothing here waits for a disk.
package counter

import (
	"context"
	"fmt"
	"math"
	"net/http"

	"github.com/holdfast-run/holdfast/runtime/durable"
)

const (
	// Class is the counters' class.
	Class durable.Class[Counter] = "counter"

	// Add adds a number, which may be negative, and answers with the sum.
	Add durable.Method[Counter, int64, int64] = "add"
	// Value answers with the value.
	Value durable.Method[Counter, durable.None, int64] = "value"
	// Reset makes the value 0 and answers with what it was.
	Reset durable.Method[Counter, durable.None, int64] = "reset"

	// ErrOverflow is the answer to a sum that is no int64. The value stays as it was.
	ErrOverflow durable.Error = "counter: the sum does not fit into 64 bits"

	total durable.Key[int64] = "total"
)

// Definition is the class.
var Definition = durable.Define(
	Class,
	Add.Handle((*Counter).add),
	Value.Handle((*Counter).value),
	Reset.Handle((*Counter).reset),
)

var routes = durable.Routes[Counter]{
	"GET /":           (*Counter).read,
	"POST /increment": (*Counter).increment,
	"POST /decrement": (*Counter).decrement,
	"POST /reset":     (*Counter).clear,
	"GET /watch":      (*Counter).watch,
}

// Counter keeps nothing in memory.
type Counter struct{}

func (*Counter) add(_ context.Context, tx *durable.Tx, by int64) (int64, error) {
	n := total.Get(tx)
	if by > 0 && n > math.MaxInt64-by || by < 0 && n < math.MinInt64-by {
		return n, fmt.Errorf("%w: %d%+d", ErrOverflow, n, by)
	}
	set(tx, n+by)
	return n + by, nil
}

func (*Counter) value(_ context.Context, tx *durable.Tx, _ durable.None) (int64, error) {
	return total.Get(tx), nil
}

func (*Counter) reset(_ context.Context, tx *durable.Tx, _ durable.None) (int64, error) {
	was := total.Get(tx)
	set(tx, 0)
	return was, nil
}

// set stores the value and tells those who watch. They hear of it when it is durable.
func set(tx *durable.Tx, n int64) {
	total.Put(tx, n)
	tx.Broadcast(durable.JSON(state{n}), "")
}

// state is what HTTP clients and watchers see.
type state struct {
	Value int64 `json:"value"`
}

// Fetch answers HTTP requests. A refusal is a response like any other, and no error:
// nothing was changed, so there is nothing to undo.
func (c *Counter) Fetch(ctx context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	return routes.Serve(ctx, c, tx, w, r)
}

func (*Counter) read(_ context.Context, tx *durable.Tx, w http.ResponseWriter, _ *http.Request) error {
	durable.WriteJSON(w, http.StatusOK, state{total.Get(tx)})
	return nil
}

func (c *Counter) increment(ctx context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	return c.change(ctx, tx, w, r, +1)
}

func (c *Counter) decrement(ctx context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	return c.change(ctx, tx, w, r, -1)
}

func (c *Counter) change(ctx context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request, sign int64) error {
	body := struct {
		By int64 `json:"by"`
	}{1}
	if !durable.ReadJSON(w, r, &body) {
		return nil
	}
	if body.By == math.MinInt64 { // has no opposite
		durable.WriteError(w, http.StatusBadRequest, "bad_request", "by is too far below zero")
		return nil
	}
	n, err := c.add(ctx, tx, sign*body.By)
	if err != nil {
		durable.WriteError(w, http.StatusConflict, "overflow", err.Error())
		return nil
	}
	durable.WriteJSON(w, http.StatusOK, state{n})
	return nil
}

func (*Counter) clear(_ context.Context, tx *durable.Tx, w http.ResponseWriter, _ *http.Request) error {
	set(tx, 0)
	durable.WriteJSON(w, http.StatusOK, state{0})
	return nil
}

// watch makes the request a WebSocket. The counter may sleep while it is open.
func (*Counter) watch(_ context.Context, tx *durable.Tx, _ http.ResponseWriter, _ *http.Request) error {
	ws, err := tx.Accept(durable.AcceptOptions{})
	if err != nil { // it did not ask for one
		return err
	}
	return ws.Send(durable.JSON(state{total.Get(tx)}))
}
