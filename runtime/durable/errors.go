package durable

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// An Error is an answer that an object gives on purpose, as a typed constant:
//
//	const ErrTooMuch durable.Error = "ratelimit: request exceeds burst"
//
// A handler returns it, wrapped or not, and errors.Is(err, ErrTooMuch) holds for the
// caller on whatever node it is. Any other error of a handler reaches its caller as
// [ErrInternal].
type Error = host.Refusal

// A CallError is a failure as a caller sees it, the same on every node; find it with
// errors.As. Remote says that the object's own code failed; Retryable that it
// certainly did not happen, so that calling again is safe; Overloaded that one should
// not do so soon; Reset that the object was reset meanwhile.
type CallError = host.Error

// Errors to compare with errors.Is.
var (
	ErrBadRequest     error = host.ErrBadRequest                   // the arguments do not fit the method
	ErrBadID          error = &host.Error{Code: host.CodeBadID}    // malformed, or an ID of another class
	ErrUnknownClass   error = host.ErrUnknownClass                 // the node has no such class
	ErrUnknownMethod  error = host.ErrUnknownMethod                // the class has no such method or hook
	ErrNotFound       error = host.ErrNotFound                     // there is no such object, or no such socket
	ErrTooLarge       error = host.ErrTooLarge                     // over a limit
	ErrDeadlock       error = host.ErrDeadlock                     // the callee waits for the caller
	ErrCanceled       error = &host.Error{Code: host.CodeCanceled} // the caller went away
	ErrDeadline       error = &host.Error{Code: host.CodeDeadline} // the caller's deadline passed
	ErrInternal       error = host.ErrInternal                     // the object's code failed
	ErrUnavailable    error = host.ErrUnavailable                  // not now, and it did not happen
	ErrOverloaded     error = host.ErrOverloaded                   // the object has too much to do
	ErrStorageFull    error = host.ErrStorageFull                  // the node's disk is full
	ErrReset          error = host.ErrReset                        // the object was reset; it did not happen
	ErrUnknownOutcome error = host.ErrUnknownOutcome               // it may have happened
)

// A RetryPolicy says how often and after what waits something is tried again. The
// waits double from Base up to Cap. Zero fields mean the default of the place that
// takes the policy.
type RetryPolicy struct {
	Attempts  int // all tries together, the first one too
	Base, Cap time.Duration
}

// Retry calls fn until it succeeds, at most 3 times by default, with waits from 100 ms
// up to 20 s of which a random part is taken. It tries again only after an error that
// says that nothing happened (Retryable), and never after one that asks for rest
// (Overloaded). It returns the last error, or what ended ctx if that came first. An
// event that waits in Retry keeps its turn.
func Retry(ctx context.Context, policy RetryPolicy, fn func(ctx context.Context) error) error {
	p := policy.or(RetryPolicy{Attempts: 3, Base: 100 * time.Millisecond, Cap: 20 * time.Second})
	wait := p.Base
	for attempt := 1; ; attempt++ {
		err := fn(ctx)
		if err == nil {
			return nil
		}
		var e *CallError
		if attempt >= p.Attempts || !errors.As(err, &e) || !e.Retryable || e.Overloaded {
			return err
		}
		timer := time.NewTimer(max(rand.N(min(wait, p.Cap)+1), e.RetryAfter))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(context.Cause(ctx), err)
		}
		wait = min(2*wait, p.Cap)
	}
}

// or returns p with the zero fields of p taken from defaults.
func (p RetryPolicy) or(defaults RetryPolicy) RetryPolicy {
	if p.Attempts == 0 {
		p.Attempts = defaults.Attempts
	}
	if p.Base == 0 {
		p.Base = defaults.Base
	}
	if p.Cap == 0 {
		p.Cap = defaults.Cap
	}
	return p
}

// fail ends the running event with an error of ours: the engine recovers it, undoes the
// event, and gives the caller exactly this error.
func fail(code host.Code, format string, args ...any) {
	panic(host.Errorf(code, format, args...))
}
