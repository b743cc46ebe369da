// Package console is the page that a node shows to whoever opens its address in a
// browser, and the JSON behind that page:
//
//	GET /                    what this node is and what to try
//	GET /console/api/status  a Status
//
// It only looks. It asks one small interface, Source, for everything it shows, changes
// nothing, and shows no stored value and nothing that is secret. The page is one
// embedded file that loads nothing from elsewhere; its content security policy names the
// hashes of its own script and style and allows nothing else.
package console

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// A Source tells the console about the node that it runs in. Its method is called for
// every refresh of every open page, from any goroutine, so it should be cheap.
type Source interface {
	Status(ctx context.Context) Status
}

// Status is a node at one moment.
type Status struct {
	Version string    `json:"version"`
	Node    string    `json:"node"`    // the node's ID
	DataDir string    `json:"dataDir"` // where its data is
	Started time.Time `json:"started"`
	Now     time.Time `json:"now"`

	Classes []Class  `json:"classes"`
	Awake   int      `json:"awake"`   // objects in memory, of all classes
	Objects []Object `json:"objects"` // some of these
	Shards  []Shard  `json:"shards"`  // the replicas that this node holds
}

// Class is a class of objects that this node can run.
type Class struct {
	Name      string   `json:"name"`
	Fetch     bool     `json:"fetch"`     // answers HTTP under /objects/{class}/{name}/
	WebSocket bool     `json:"webSocket"` // handles the messages of WebSockets
	Methods   []string `json:"methods"`
}

// Object is an object that is in memory.
type Object struct {
	Class   string    `json:"class"`
	ID      string    `json:"id"`
	Name    string    `json:"name,omitempty"`
	Mailbox int       `json:"mailbox"` // events that wait for their turn
	Sockets int       `json:"sockets"`
	Held    int       `json:"held"` // outputs that wait at the gate
	Idle    time.Time `json:"idleSince,omitzero"`
}

// Shard is a shard's replica on this node.
type Shard struct {
	ID      uint32 `json:"id"`
	Leader  string `json:"leader"` // the leading node's ID, if one is known
	Leads   bool   `json:"leads"`  // this node is the leader
	Epoch   uint64 `json:"epoch"`
	Applied uint64 `json:"applied"` // index of the last applied log entry
}

//go:embed page.html
var page []byte

// Handler serves the console.
func Handler(source Source) http.Handler {
	policy := "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" +
		"; script-src '" + hash("script") + "'; style-src '" + hash("style") + "'"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/" && r.URL.Path != "/console/api/status":
			refuse(w, http.StatusNotFound, "not_found", "there is nothing here; objects are at /objects/{class}/{name}")
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", http.MethodGet)
			refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "the console is read with GET")
		case r.URL.Path == "/":
			w.Header().Set("Content-Security-Policy", policy)
			answer(w, http.StatusOK, "text/html; charset=utf-8", page)
		default:
			writeJSON(w, http.StatusOK, listed(source.Status(r.Context())))
		}
	})
}

// listed makes every list one, so that readers never meet a null.
func listed(s Status) Status {
	s.Classes = append([]Class{}, s.Classes...)
	for i := range s.Classes {
		s.Classes[i].Methods = append([]string{}, s.Classes[i].Methods...)
	}
	s.Objects = append([]Object{}, s.Objects...)
	s.Shards = append([]Shard{}, s.Shards...)
	return s
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, map[string]any{"error": map[string]string{"code": code, "message": message}})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // what a console tells always encodes
		panic(err)
	}
	answer(w, status, "application/json", body)
}

func answer(w http.ResponseWriter, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) // a reader who left
}

// hash is the content security policy's source for the page's script or style element.
func hash(element string) string {
	_, rest, _ := bytes.Cut(page, []byte("<"+element+">"))
	content, _, _ := bytes.Cut(rest, []byte("</"+element+">"))
	sum := sha256.Sum256(content)
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}
