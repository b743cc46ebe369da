package durable_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const desks durable.Class[desk] = "desk"

type desk struct{}

var deskRoutes = durable.Routes[desk]{
	"GET /":     (*desk).show,
	"PUT /note": (*desk).take,
	"GET /note": (*desk).show,
}

func (d *desk) Fetch(ctx context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	return deskRoutes.Serve(ctx, d, tx, w, r)
}

func (*desk) show(_ context.Context, _ *durable.Tx, w http.ResponseWriter, _ *http.Request) error {
	durable.WriteJSON(w, http.StatusOK, map[string]string{"text": "<b>"})
	return nil
}

func (*desk) take(_ context.Context, _ *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	note := struct{ N int64 }{7}
	if !durable.ReadJSON(w, r, &note) {
		return nil
	}
	durable.WriteJSON(w, http.StatusCreated, note)
	return nil
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	w := durabletest.New(t, durable.Define(desks))
	for _, c := range []struct {
		method, path, body string
		status             int
		allow, answer      string
	}{
		{"GET", "/", "", 200, "", `{"text":"<b>"}` + "\n"},
		{"HEAD", "/note", "", 200, "", `{"text":"<b>"}` + "\n"}, // net/http leaves it out
		{"PUT", "/note", `{"n":9007199254740993}`, 201, "", `{"N":9007199254740993}` + "\n"},
		{"PUT", "/note", "", 201, "", `{"N":7}` + "\n"},
		{"PUT", "/note", " \n", 201, "", `{"N":7}` + "\n"},
		{"DELETE", "/note", "", 405, "GET, PUT", `{"error":{"code":"method_not_allowed","message":"/note takes GET and PUT only"}}` + "\n"},
		{"GET", "/note/", "", 404, "", `{"error":{"code":"not_found","message":"there is no /note/ here"}}` + "\n"},
		{"GET", "//", "", 404, "", `{"error":{"code":"not_found","message":"there is no // here"}}` + "\n"},
	} {
		r, err := w.Do(desks.Named(w, "d"), httptest.NewRequestWithContext(t.Context(), c.method, c.path, strings.NewReader(c.body)))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		if r.StatusCode != c.status || string(b) != c.answer || r.Header.Get("Allow") != c.allow || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %d, Allow %q, %s", c.method, c.path, r.StatusCode, r.Header.Get("Allow"), b)
		}
	}
	for _, c := range []struct {
		body   string
		status int
		answer string
	}{
		{`{"n":1}x`, 400, `invalid character 'x' after top-level value`},
		{`{"n":1}{"n":2}`, 400, `after top-level value`},
		{`{"n":1e400}`, 400, `\"N\" must not be: number 1e400`},
		{`{"n":` + strings.Repeat("1", 1e5) + `}`, 400, `\"N\" must not be: number 11111`},
		{`{"n":NaN}`, 400, `invalid character`},
		{`[]`, 400, `it must not be: array`},
		{"\xef\xbb\xbf{}", 400, `invalid character`},
		{strings.Repeat("[", 2e5), 400, `exceeded max depth`},
		{strings.Repeat(" ", durable.MaxJSONBody+1), 413, `"too_large"`},
	} {
		r, err := w.Do(desks.Named(w, "d"), httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/note", strings.NewReader(c.body)))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r.Body); err != nil || r.StatusCode != c.status || !strings.Contains(string(b), c.answer) {
			t.Errorf("%.20q: %d %s, %v; want %d %s", c.body, r.StatusCode, b, err, c.status, c.answer)
		}
	}
}
