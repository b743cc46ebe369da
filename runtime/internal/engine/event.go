package engine

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// An event is one host.Event on its way through an object's mailbox, its turn and
// the output gate.
type event struct {
	what     host.Event
	kind     kind
	ctx      context.Context
	to       host.Ref
	size     int       // bytes that count against the mailbox
	queued   time.Time // zero if it never waited
	internal bool      // of the engine's own: neither refused nor counted
	patient  bool      // waits for room in the mailbox instead of being refused

	// direct, if set, runs instead of the instance's handler.
	direct func(t *turn) error
	// bare events need no instance.
	bare bool
	// ended, if set, is called when the handler is done, before the gate. err is
	// what the handler returned.
	ended func(err error)
	// left, if set, is called once the outcome is final: the event is durable, or failed.
	left func(err error)

	called   bool      // an object's turn waits for it
	resp     *response // of a fetch
	unloaded bool      // it did not run because the object could not be loaded
	post     *post     // what it was made of, if it must not be lost with the object

	progress atomic.Uint32 // waiting, started or abandoned
	latch    latch
}

// kind labels events in metrics.
type kind uint8

const (
	kindFetch kind = iota
	kindCall
	kindAlarm
	kindMessage
	kindClose
	kindError
	kindWork
	kindSystem
	kinds
)

var kindNames = [kinds]string{"fetch", "call", "alarm", "message", "close", "error", "work", "system"}

const (
	eventWaiting = iota
	eventStarted
	eventAbandoned
)

// eventOverhead is what an event counts against the mailbox beside its arguments.
const eventOverhead = 256

// start claims the event for its turn; false means that its caller has gone.
func (ev *event) start() bool { return ev.progress.CompareAndSwap(eventWaiting, eventStarted) }

// abandon reports whether the event has not started, and now never will.
func (ev *event) abandon() bool { return ev.progress.CompareAndSwap(eventWaiting, eventAbandoned) }

// refused ends an event that did not run.
func (ev *event) refused(err error) {
	if ev.ended != nil {
		ev.ended(err)
	}
	ev.finish(err)
}

// finish makes the outcome known, once.
func (ev *event) finish(err error) {
	if ev.left != nil {
		ev.left(err)
	}
	ev.latch.finish(err)
}

// wait returns the event's outcome. If ctx ends first, the error says whether the
// event certainly did not happen.
func (ev *event) wait(ctx context.Context) error {
	if ev.latch.wait(ctx.Done()) {
		return ev.latch.err
	}
	return errCanceled(ctx, ev.abandon())
}

// A latch is one result for one waiter. Nothing is allocated if the result is there
// before somebody waits.
type latch struct {
	state atomic.Uint32 // 0 open, 1 finished, 2 somebody waits on ch
	ch    chan struct{}
	err   error
}

func (l *latch) finish(err error) {
	l.err = err
	if !l.state.CompareAndSwap(0, 1) {
		close(l.ch)
	}
}

// wait reports whether the result came before done was closed.
func (l *latch) wait(done <-chan struct{}) bool {
	if l.state.Load() == 1 {
		return true
	}
	l.ch = make(chan struct{})
	if !l.state.CompareAndSwap(0, 2) {
		return true
	}
	if done == nil {
		<-l.ch
		return true
	}
	select {
	case <-l.ch:
		return true
	case <-done:
		select { // a result that is there wins
		case <-l.ch:
			return true
		default:
			return false
		}
	}
}
