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
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"

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
	tx.Broadcast(durable.Message{Data: body(n)}, "")
}

// Fetch answers HTTP requests. It refuses by writing a response and returning nil:
// nothing was changed, so there is nothing to undo.
func (c *Counter) Fetch(ctx context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	switch allow := methodOf(r.URL.Path); {
	case allow == "":
		refuse(w, http.StatusNotFound, "not_found", "a counter has no "+r.URL.Path)
		return nil
	case allow != r.Method:
		w.Header().Set("Allow", allow)
		refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", r.URL.Path+" takes "+allow+" only")
		return nil
	}
	switch r.URL.Path {
	case "/":
		answer(w, total.Get(tx))
	case "/increment":
		c.addOver(ctx, tx, w, r, +1)
	case "/decrement":
		c.addOver(ctx, tx, w, r, -1)
	case "/reset":
		set(tx, 0)
		answer(w, 0)
	case "/watch":
		return watch(tx)
	}
	return nil
}

func methodOf(path string) string {
	switch path {
	case "/", "/watch":
		return http.MethodGet
	case "/increment", "/decrement", "/reset":
		return http.MethodPost
	}
	return ""
}

func (c *Counter) addOver(ctx context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request, sign int64) {
	by, err := readBy(r)
	if err != nil {
		refuse(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	n, err := c.add(ctx, tx, sign*by)
	if err != nil {
		refuse(w, http.StatusConflict, "overflow", err.Error())
		return
	}
	answer(w, n)
}

// watch makes the request a WebSocket. The counter may sleep while it is open.
func watch(tx *durable.Tx) error {
	ws, err := tx.Accept(durable.AcceptOptions{})
	if err != nil { // it did not ask for one
		return err
	}
	return ws.Send(durable.Message{Data: body(total.Get(tx))})
}

const maxBody = 1024 // bytes

// readBy reads the optional body {"by":n}.
func readBy(r *http.Request) (int64, error) {
	if r.ContentLength == 0 {
		return 1, nil
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	switch {
	case err != nil:
		return 0, fmt.Errorf("read the body: %w", err)
	case len(b) == 0:
		return 1, nil
	case len(b) > maxBody:
		return 0, fmt.Errorf("the body is over %d bytes: want {\"by\":n}", maxBody)
	}
	var req struct {
		By *int64 `json:"by"`
	}
	switch err := json.Unmarshal(b, &req); {
	case err != nil:
		return 0, errors.New(`the body is not {"by":n} with a whole number of 64 bits`)
	case req.By == nil:
		return 1, nil
	case *req.By == math.MinInt64: // has no opposite
		return 0, fmt.Errorf("by must be more than %d", int64(math.MinInt64))
	}
	return *req.By, nil
}

func body(n int64) []byte {
	b := append(make([]byte, 0, 32), `{"value":`...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, '}')
}

func answer(w http.ResponseWriter, n int64) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body(n)) // whether or not somebody still listens, the value is what it is
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": code, "message": message}})
}
