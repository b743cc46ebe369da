package durable

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
)

// Routes are the HTTP requests that a class answers, each with a method like Fetch under the
// request's method and path:
//
//	var routes = durable.Routes[Room]{
//		"GET /":         (*Room).home,
//		"GET /messages": (*Room).page,
//	}
//
//	func (r *Room) Fetch(ctx context.Context, tx *durable.Tx, w http.ResponseWriter, req *http.Request) error {
//		return routes.Serve(ctx, r, tx, w, req)
//	}
//
// Paths are compared as they are: there are no patterns.
type Routes[T any] map[string]func(*T, context.Context, *Tx, http.ResponseWriter, *http.Request) error

// Serve answers a request with the route that it fits; HEAD fits GET. Others are refused
// with 404, or with 405 and the methods that there are.
func (routes Routes[T]) Serve(ctx context.Context, obj *T, tx *Tx, w http.ResponseWriter, r *http.Request) error {
	route, ok := routes[r.Method+" "+r.URL.Path]
	if !ok && r.Method == http.MethodHead {
		route, ok = routes[http.MethodGet+" "+r.URL.Path]
	}
	if ok {
		return route(obj, ctx, tx, w, r)
	}
	var allow []string
	for name := range routes {
		if method, ok := strings.CutSuffix(name, " "+r.URL.Path); ok {
			allow = append(allow, method)
		}
	}
	if len(allow) == 0 {
		WriteError(w, http.StatusNotFound, "not_found", "there is no "+r.URL.Path+" here")
		return nil
	}
	slices.Sort(allow)
	w.Header().Set("Allow", strings.Join(allow, ", "))
	WriteError(w, http.StatusMethodNotAllowed, "method_not_allowed", r.URL.Path+" takes "+strings.Join(allow, " and ")+" only")
	return nil
}

// WriteJSON answers with v's JSON. It panics if v has none, so v should be of a type made
// for the wire.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("durable: encode a response: " + err.Error())
	}
	h := w.Header()
	h["Content-Type"], h["X-Content-Type-Options"] = contentJSON, noSniff
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // nobody may be there to read it; the event goes on
}

// Header values that all responses share; nobody changes them in place.
var (
	contentJSON = []string{"application/json"}
	noSniff     = []string{"nosniff"}
)

// WriteError answers with an error in the form that all errors of a node have:
// {"error":{"code":"…","message":"…"}}. A handler that refuses so and returns nil keeps its
// memory and its writes; one that returns an error has neither.
func WriteError(w http.ResponseWriter, status int, code, message string) {
	type refusal struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	WriteJSON(w, status, map[string]refusal{"error": {code, message}})
}

// MaxJSONBody is the longest body that [ReadJSON] reads, in bytes.
const MaxJSONBody = 1 << 20

// ReadJSON reads a request's body, one value of JSON, into v. Without a body it leaves v
// alone. It returns false if that cannot be done, and has then answered the request with 400 or 413.
func ReadJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	if r.Body == nil || r.ContentLength == 0 {
		return true
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, MaxJSONBody+1))
	switch {
	case err != nil:
		WriteError(w, http.StatusBadRequest, "bad_request", "the body cannot be read")
	case len(b) > MaxJSONBody:
		WriteError(w, http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("the body is larger than %d bytes", MaxJSONBody))
	case len(bytes.TrimSpace(b)) == 0:
		return true
	default:
		if err = json.Unmarshal(b, v); err == nil {
			return true
		}
		WriteError(w, http.StatusBadRequest, "bad_request", "the body is not the JSON that is wanted: "+whatIsWrong(err))
	}
	return false
}

// whatIsWrong says why JSON did not decode, in words that are not Go's.
func whatIsWrong(err error) string {
	var wrong *json.UnmarshalTypeError
	switch {
	case !errors.As(err, &wrong):
		return err.Error()
	case wrong.Field == "":
		return "it must not be: " + short(wrong.Value)
	}
	return fmt.Sprintf("%q must not be: %s", short(wrong.Field), short(wrong.Value))
}

func short(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:60], "") + "…"
	}
	return s
}
