package durable_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	Lists durable.Class[List] = "list"

	listed   durable.Map[int64, string] = "item"
	lastItem durable.Key[int64]         = "count"
)

type List struct{}

var listRoutes = durable.Routes[List]{
	"GET /items":  (*List).show,
	"POST /items": (*List).add,
}

func (l *List) Fetch(ctx context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	return listRoutes.Serve(ctx, l, tx, w, r)
}

func (*List) show(_ context.Context, tx *durable.Tx, w http.ResponseWriter, _ *http.Request) error {
	all := []string{}
	for _, item := range listed.All(tx) {
		all = append(all, item)
	}
	durable.WriteJSON(w, http.StatusOK, all)
	return nil
}

func (*List) add(_ context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	var body struct{ Item string }
	if !durable.ReadJSON(w, r, &body) {
		return nil
	}
	if body.Item == "" {
		durable.WriteError(w, http.StatusBadRequest, "empty", "an item has a name")
		return nil
	}
	n := lastItem.Get(tx) + 1
	lastItem.Put(tx, n)
	listed.Put(tx, n, body.Item)
	durable.WriteJSON(w, http.StatusCreated, body)
	return nil
}

// A table of routes answers requests for several paths, in JSON.
func ExampleRoutes() {
	world := durabletest.Open(durable.Define(Lists))
	defer world.Close()

	shopping := Lists.Named(world, "shopping")
	for _, r := range []*http.Request{
		httptest.NewRequest(http.MethodPost, "/items", strings.NewReader(`{"item":"apples"}`)),
		httptest.NewRequest(http.MethodPost, "/items", nil),
		httptest.NewRequest(http.MethodGet, "/items", nil),
		httptest.NewRequest(http.MethodDelete, "/items", nil),
	} {
		resp, err := world.Do(shopping, r)
		if err != nil {
			fmt.Println(err)
			return
		}
		body, _ := io.ReadAll(resp.Body)
		fmt.Printf("%d %s", resp.StatusCode, body)
	}

	// Output:
	// 201 {"Item":"apples"}
	// 400 {"error":{"code":"empty","message":"an item has a name"}}
	// 200 ["apples"]
	// 405 {"error":{"code":"method_not_allowed","message":"/items takes GET and POST only"}}
}
