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
// owner lives, and no check writes anything. What was counted is saved unconfirmed a
// second later, by background work that ends in an event of its own, and exactly when the
// limiter leaves memory in good order. If its owner dies, what it counted in about the last
// second is lost, or the last twentieth of its limit if that is more: some requests too many
// are let through, none too few. An alarm removes a limiter when nothing is left to remember.
package ratelimit

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/holdfast-run/holdfast/runtime/durable"
)

const (
	// Class is the limiters' class.
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

var routes = durable.Routes[Limiter]{
	"POST /check": (*Limiter).checkHTTP,
	"GET /":       (*Limiter).read,
}

const (
	saveAfter = time.Second
	saveShare = 20          // what is less than this part of the limit is not worth saving
	linger    = time.Minute // how long a limiter that is free again is kept
)

// Limiter counts the requests of one key.
type Limiter struct {
	state   state
	stored  bool  // there is a state in storage
	unsaved int64 // what was counted since it was stored
	saving  bool  // it will be stored soon
}

// Load takes up where the last owner stopped.
func (l *Limiter) Load(_ context.Context, tx *durable.Tx) error {
	l.state, l.stored = saved.Lookup(tx)
	return nil
}

// Fetch answers the requests above.
func (l *Limiter) Fetch(ctx context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	return routes.Serve(ctx, l, tx, w, r)
}

func (l *Limiter) checkHTTP(_ context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	req, err := parse(r.URL.RawQuery, Rule{})
	if err != nil {
		durable.WriteError(w, http.StatusBadRequest, "bad_request", err.Error())
		return nil
	}
	v, status := l.check(tx, req), http.StatusOK
	if !v.Allowed {
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", wholeSeconds(v.RetryAfter))
	}
	answer(w, status, req.Rule, v)
	return nil
}

func (l *Limiter) read(_ context.Context, _ *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	req, err := parse(r.URL.RawQuery, l.state.Rule)
	if err != nil {
		durable.WriteError(w, http.StatusBadRequest, "bad_request", err.Error())
		return nil
	}
	answer(w, http.StatusOK, req.Rule, l.state.peek(req.Rule, req.Cost, time.Now().UnixMicro()))
	return nil
}

func answer(w http.ResponseWriter, status int, rule Rule, v Verdict) {
	h := w.Header() // its keys as it likes them: others cost a new string each
	h.Set("Ratelimit-Policy", `"default";q=`+strconv.FormatInt(rule.Limit, 10)+";w="+wholeSeconds(rule.Window.Seconds()))
	h.Set("Ratelimit", `"default";r=`+strconv.FormatInt(v.Remaining, 10)+";t="+wholeSeconds(v.ResetAfter))
	durable.WriteJSON(w, status, v)
}

func wholeSeconds(s float64) string { return strconv.FormatInt(int64(math.Ceil(s)), 10) }

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
	v := l.state.check(req.Rule, req.Cost, time.Now().UnixMicro())
	if v.Allowed {
		l.unsaved += req.Cost
		if !l.saving && l.unsaved >= req.Limit/saveShare {
			l.saving = durable.Go(tx, second, (*Limiter).saveSoon) == nil
		}
	}
	return v
}

// second is all of the background work: what makes the saving is the event after it.
func second(ctx context.Context) (durable.None, error) {
	timer := time.NewTimer(saveAfter)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return durable.None{}, ctx.Err()
}

func (l *Limiter) saveSoon(_ context.Context, tx *durable.Tx, _ durable.None, _ error) error {
	l.saving = false
	l.save(tx)
	return nil
}

// save stores what was counted since the last time. The alarm is set only if there is none: it
// looks for itself whether it came too early.
func (l *Limiter) save(tx *durable.Tx) {
	if l.unsaved == 0 {
		return
	}
	saved.Put(tx.Unconfirmed(), l.state)
	l.stored, l.unsaved = true, 0
	if _, set := tx.Alarm(); !set {
		now := time.Now()
		tx.SetAlarm(now.Add(l.state.busy(now.UnixMicro()) + linger))
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
