//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

// The yardsticks do what the node does with nothing around it. They keep no object
// apart, check nothing and could not be restarted: they show what the standard
// library, the disk and the WebSocket library cost by themselves.

const (
	bareHTTP   = "net/http"       // answers, and stores nothing
	fsyncHTTP  = "net/http+fsync" // answers when its record is on the disk
	bareSocket = "coder/websocket"
)

// serveYardstick is the main function of a yardstick process.
func serveYardstick(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("usage: bench yardstick KIND ADDR DIR")
	}
	kind, addr, dir := args[0], args[1], args[2]
	var handler http.Handler
	switch kind {
	case bareHTTP:
		handler = new(bareCounter)
	case fsyncHTTP:
		l, err := newGroupLog(filepath.Join(dir, "log"))
		if err != nil {
			return err
		}
		handler = &durableCounter{log: l}
	case bareSocket:
		handler = &hub{clients: map[*client]bool{}}
	default:
		return fmt.Errorf("there is no yardstick %q", kind)
	}
	s := &http.Server{Addr: addr, Handler: handler, ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// A bareCounter answers the next number.
type bareCounter struct{ n atomic.Int64 }

func (c *bareCounter) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	writeValue(w, c.n.Add(1))
}

func writeValue(w http.ResponseWriter, n int64) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"value":%d}`, n)
}

// A durableCounter answers the next number once it is on the disk.
type durableCounter struct {
	n   atomic.Int64
	log *groupLog
}

func (c *durableCounter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := c.n.Add(1)
	// About as many bytes as the node logs for one increment.
	if err := c.log.append(fmt.Appendf(nil, "%064d %-31s\n", n, r.URL.Path)); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeValue(w, n)
}

// A groupLog appends records to a file: those that wait at the same time share one
// write and one fdatasync.
type groupLog struct {
	file *os.File

	mu   sync.Mutex
	next *group
	wake chan struct{}
}

type group struct {
	records []byte
	synced  chan struct{}
	err     error
}

func newGroupLog(path string) (*groupLog, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	l := &groupLog{file: f, next: &group{synced: make(chan struct{})}, wake: make(chan struct{}, 1)}
	go l.write() // for the life of the process
	return l, nil
}

func (l *groupLog) append(record []byte) error {
	l.mu.Lock()
	g := l.next
	g.records = append(g.records, record...)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	<-g.synced
	return g.err
}

func (l *groupLog) write() {
	for range l.wake {
		l.mu.Lock()
		g := l.next
		l.next = &group{synced: make(chan struct{})}
		l.mu.Unlock()
		if len(g.records) > 0 {
			_, g.err = l.file.Write(g.records)
			g.err = errors.Join(g.err, syscall.Fdatasync(int(l.file.Fd())))
		}
		close(g.synced)
	}
}

// A hub sends every message that it gets, from a socket or as a POST, to every socket.
type hub struct {
	mu      sync.Mutex
	clients map[*client]bool
	seq     int
}

type client struct{ messages chan []byte }

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Header.Get("Upgrade") != "":
		h.serveSocket(w, r)
	case r.Method == http.MethodPost:
		h.mu.Lock()
		h.seq++
		n := h.seq
		h.mu.Unlock()
		h.broadcast(fmt.Appendf(nil, `{"value":%d}`, n))
		writeValue(w, int64(n))
	default:
		writeValue(w, 0)
	}
}

func (h *hub) serveSocket(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow() //nolint:errcheck // closed either way
	c := &client{messages: make(chan []byte, 256)}
	h.mu.Lock()
	h.clients[c] = true
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.clients, c)
		h.mu.Unlock()
	}()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go c.write(ctx, conn)
	for {
		_, message, err := conn.Read(ctx)
		if err != nil {
			return
		}
		// Around the client's frame comes what a chat room adds.
		h.broadcast(fmt.Appendf(nil, `{"type":"message","seq":17,"from":"member","at":%q,%s`, time.Now().Format(time.RFC3339), message[1:]))
	}
}

func (h *hub) broadcast(message []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.clients {
		select {
		case c.messages <- message:
		default: // a bare fan-out forgets what a slow client does not take
		}
	}
}

func (c *client) write(ctx context.Context, conn *websocket.Conn) {
	for {
		select {
		case message := <-c.messages:
			timed, cancel := context.WithTimeout(ctx, 5*time.Second)
			err := conn.Write(timed, websocket.MessageText, message)
			cancel()
			if err != nil && !errors.Is(err, io.EOF) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
