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
	Notes durable.Class[Note] = "note"

	text durable.Key[string] = "text"
)

type Note struct{}

// Fetch is an ordinary HTTP handler. Its response leaves when what it wrote is durable.
func (*Note) Fetch(_ context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodPut {
		fmt.Fprintln(w, text.Get(tx))
		return nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	text.Put(tx, string(body))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// An object with a Fetch hook answers HTTP requests. From outside it is reached as
// /objects/note/{name}.
func ExampleFetcher() {
	world := durabletest.Open(durable.Define(Notes))
	defer world.Close()

	note := Notes.Named(world, "shopping")
	for _, r := range []*http.Request{
		httptest.NewRequest(http.MethodPut, "/", strings.NewReader("apples")),
		httptest.NewRequest(http.MethodGet, "/", nil),
	} {
		resp, err := world.Do(note, r)
		if err != nil {
			fmt.Println(err)
			return
		}
		body, _ := io.ReadAll(resp.Body)
		fmt.Printf("%d %q\n", resp.StatusCode, body)
	}

	// Output:
	// 204 ""
	// 200 "apples\n"
}
