package chatroom

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/holdfast-run/holdfast/runtime/durable"
)

//go:embed page.html
var page []byte

// policy lets the page run its own script and style, talk to its own node, and nothing else.
var policy = "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" +
	"; script-src '" + hash("script") + "'; style-src '" + hash("style") + "'"

// pageLimits of GET /messages.
const (
	defaultPage = 50
	maxPage     = 200
)

// info is what a room says of itself.
type info struct {
	Room    string   `json:"room"` // empty if it has an ID only
	Members []string `json:"members"`
	LastSeq int64    `json:"lastSeq"` // of the latest message; 0 if there was none yet
}

// Fetch answers HTTP requests.
func (*Room) Fetch(_ context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "a room is read with GET and spoken to over its WebSocket")
		return nil
	}
	switch r.URL.Path {
	case "/":
		if strings.Contains(r.Header.Get("Accept"), "text/html") {
			servePage(w)
			return nil
		}
		name, _ := tx.Name()
		answer(w, http.StatusOK, info{name, members(tx), last.Get(tx)})
	case "/websocket":
		return join(tx, strings.TrimSpace(r.URL.Query().Get("name")))
	case "/members":
		answer(w, http.StatusOK, map[string]any{"members": members(tx)})
	case "/messages":
		before, limit, ok := pageOf(r)
		if !ok {
			refuse(w, http.StatusBadRequest, "bad_request", "want before=SEQ, a number from 1 on, and limit=N from 1 to 200")
			return nil
		}
		answer(w, http.StatusOK, pageBefore(tx, before, limit))
	default:
		refuse(w, http.StatusNotFound, "not_found", "a room has /, /websocket, /messages and /members")
	}
	return nil
}

// pageOf reads before and limit, which may both be left out.
func pageOf(r *http.Request) (before int64, limit int, ok bool) {
	before, limit = math.MaxInt64, defaultPage
	var err error
	q := r.URL.Query()
	if s := q.Get("before"); s != "" {
		if before, err = strconv.ParseInt(s, 10, 64); err != nil || before < 1 {
			return 0, 0, false
		}
	}
	if s := q.Get("limit"); s != "" {
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 || limit > maxPage {
			return 0, 0, false
		}
	}
	return before, limit, true
}

func servePage(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", policy)
	h.Set("Cache-Control", "no-cache")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Vary", "Accept")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(page) // a reader who left
}

// hash is the content security policy's source for the page's script or style element.
func hash(element string) string {
	_, rest, _ := bytes.Cut(page, []byte("<"+element+">"))
	content, _, _ := bytes.Cut(rest, []byte("</"+element+">"))
	sum := sha256.Sum256(content)
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	answer(w, status, map[string]any{"error": map[string]string{"code": code, "message": message}})
}

func answer(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Vary", "Accept")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a reader who left
}
