// Package ratelimit is a durable object that says "not so fast": one object per whatever is
// limited, such as a user, an address or an API key.
//
//	POST /objects/ratelimit/{key}/check?limit=100&window=60s&cost=1&algorithm=gcra
//	GET  /objects/ratelimit/{key}/      the same answer, without counting anything
//
// A check answers 200 if the request may go on and 429 if it may not, with
// {"allowed":true,"limit":100,"remaining":99,"resetAfter":0.6,"retryAfter":0}, times in
// seconds, and with the fields RateLimit and RateLimit-Policy of the IETF's draft (in whole
// seconds, rounded up). Every parameter may be left out: the example shows the values that it
// then has. GET starts from those of the last check instead. A limiter has one
// state: a check with another limit, window or algorithm than the one before goes on with what
// was spent so far.
//
// What it teaches: memory as a cache of storage. A limiter is asked far more often than
// a disk could follow, so it counts in memory, where it is exact for as long as its
// owner lives. It saves its state once a second, unconfirmed, so that no check waits for
// a disk, and once more when it leaves memory in good order. If its owner dies, at most
// about a second of counting is lost: some requests too many are let through, none too
// few. An alarm removes a limiter when nothing is left to remember.
package ratelimit

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/holdfast-run/holdfast/runtime/durable"
)

const (
	Class durable.Class[Limiter] = "ratelimit"

	// Check asks whether a request may go on, and counts it if it may.
	Check durable.Method[Limiter, Request, Verdict] = "check"

	// ErrBadRequest is the answer to a request that makes no sense, such as one that costs
	// more than the whole limit.
	ErrBadRequest durable.Error = "ratelimit: bad request"

	saved durable.Key[state] = "state"
)

// Definition is the class.
var Definition = durable.Define(Class, Check.Handle((*Limiter).checkCall))

const (
	saveEvery = time.Second
	linger    = time.Minute // how long a limiter that is free again is kept
)

// Limiter counts the requests of one key.
type Limiter struct {
	state  state
	stored bool      // there is a state in storage
	ahead  bool      // and it is not this one
	last   time.Time // when the state was stored or loaded
	head   fields
	body   []byte
}

// Load takes up where the last owner stopped.
func (l *Limiter) Load(_ context.Context, tx *durable.Tx) error {
	l.state, l.stored = saved.Lookup(tx)
	l.last = time.Now()
	return nil
}

// Fetch answers the requests above.
func (l *Limiter) Fetch(_ context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	switch {
	case r.URL.Path == "/check" && r.Method == http.MethodPost:
		req := Request{}.orDefaults(Rule{})
		if err := req.parse(r.URL.RawQuery); err != nil {
			badRequest(w, err)
			return nil
		}
		l.answer(w, req.Rule, l.check(tx, req), http.StatusTooManyRequests)
	case r.URL.Path == "/" && r.Method == http.MethodGet:
		req := Request{}.orDefaults(l.state.Rule)
		if err := req.parse(r.URL.RawQuery); err != nil {
			badRequest(w, err)
			return nil
		}
		l.answer(w, req.Rule, l.state.peek(req.Rule, req.Cost, time.Now().UnixMicro()), http.StatusOK)
	case r.URL.Path == "/check":
		notAllowed(w, http.MethodPost)
	case r.URL.Path == "/":
		notAllowed(w, http.MethodGet)
	default:
		notFound(w)
	}
	return nil
}

func (l *Limiter) checkCall(_ context.Context, tx *durable.Tx, req Request) (Verdict, error) {
	req = req.orDefaults(Rule{})
	if err := req.valid(); err != nil {
		// An error costs the instance its memory, but must not cost it what it counted.
		l.save(tx)
		tx.Commit()
		return Verdict{}, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	return l.check(tx, req), nil
}

// check is where everything happens. It does nothing that waits.
func (l *Limiter) check(tx *durable.Tx, req Request) Verdict {
	now := time.Now()
	v := l.state.check(req.Rule, req.Cost, now.UnixMicro())
	l.ahead = l.ahead || v.Allowed
	if now.Sub(l.last) >= saveEvery {
		l.save(tx)
	}
	return v
}

// save stores what has been counted since the last time. The alarm is set only if there
// is none: it looks for itself whether it came too early.
func (l *Limiter) save(tx *durable.Tx) {
	if !l.ahead {
		return
	}
	saved.Put(tx.Unconfirmed(), l.state)
	l.stored, l.ahead, l.last = true, false, time.Now()
	if _, set := tx.Alarm(); !set {
		tx.SetAlarm(l.last.Add(l.state.busy(l.last.UnixMicro()) + linger))
	}
}

// Alarm removes the limiter if nothing is left to remember.
func (l *Limiter) Alarm(_ context.Context, tx *durable.Tx) error {
	now := time.Now()
	if busy := l.state.busy(now.UnixMicro()); busy > 0 {
		tx.SetAlarm(now.Add(busy + linger))
		return nil
	}
	tx.Destroy()
	return nil
}

// Stopping saves exactly. A limiter that was free again before it was ever stored leaves
// no trace.
func (l *Limiter) Stopping(_ context.Context, tx *durable.Tx, _ durable.StopReason) error {
	if l.stored || l.state.busy(time.Now().UnixMicro()) > 0 {
		l.save(tx)
	}
	return nil
}
