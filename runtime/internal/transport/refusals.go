package transport

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// refusals remembers what was logged, so that somebody who tries again and again is told of
// once a minute.
type refusals struct {
	mu     sync.Mutex // guards logged
	logged map[string]time.Time
}

const (
	logAgain   = time.Minute
	maxRefused = 256 // remembered at the same time
)

// first reports whether a refusal is to be logged.
func (r *refusals) first(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if last, ok := r.logged[key]; ok && now.Sub(last) < logAgain {
		return false
	}
	if r.logged == nil || len(r.logged) >= maxRefused {
		r.logged = make(map[string]time.Time)
	}
	r.logged[key] = now
	return true
}

// refusedIn notes that a connection from outside did not come to be.
func (n *Network) refusedIn(from net.Addr, err error) {
	if errors.Is(err, io.EOF) || n.isStopped() {
		return // somebody looked whether the port is open
	}
	n.metrics.refusedIn.Inc()
	host, _, splitErr := net.SplitHostPort(from.String())
	if splitErr != nil {
		host = from.String()
	}
	if n.refusals.first("in " + host + reason(err)) {
		n.log.Warn("refused a connection of another node", slog.String("from", from.String()), slog.Any("error", err))
	}
}

// refusedOut notes that a connection that was made here was not welcome.
func (n *Network) refusedOut(addr string, err error) {
	why := reason(err)
	if why == "" {
		return // down, or cut off: whoever wanted the connection tells
	}
	n.metrics.refusedOut.Inc()
	if n.refusals.first("out " + addr + why) {
		n.log.Warn("a connection to another node was refused", slog.String("to", addr), slog.Any("error", err))
	}
}

// reason returns which refusal an error is, or nothing.
func reason(err error) string {
	for _, why := range []error{ErrOtherSecret, ErrOtherCluster, ErrOtherVersion, ErrOtherNode, ErrRefused, errNotTLS} {
		if errors.Is(err, why) {
			return why.Error()
		}
	}
	return ""
}
