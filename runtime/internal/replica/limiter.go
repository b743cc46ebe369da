package replica

import (
	"errors"
	"time"
)

// DefaultSnapshots is how many snapshots a node sends at a time: they compete with commits
// for its disk and its network.
const DefaultSnapshots = 2

// snapshotIdle is how long a snapshot that is being sent may wait for its reader. While it is
// open the state's file grows, since no page that it reads can be used again.
const snapshotIdle = 30 * time.Second

var errIdle = errors.New("nobody has read the snapshot for too long")

// A Limiter bounds how many snapshots the replicas of a node send at a time; the others
// wait. A nil Limiter bounds nothing.
type Limiter struct{ places chan struct{} }

// NewLimiter returns a limiter with so many places.
func NewLimiter(n int) *Limiter { return &Limiter{make(chan struct{}, n)} }

// enter waits for a place. leave must be called once if it returned nil.
func (l *Limiter) enter(stopping <-chan struct{}) error {
	if l == nil {
		return nil
	}
	select {
	case l.places <- struct{}{}:
		return nil
	case <-stopping:
		return ErrStopped
	}
}

func (l *Limiter) leave() {
	if l != nil {
		<-l.places
	}
}
