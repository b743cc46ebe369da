package durable_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-run/holdfast/runtime/durable"
)

func TestRetry(t *testing.T) {
	t.Parallel()
	again := &durable.CallError{Code: "unavailable", Retryable: true}
	for _, c := range []struct {
		name  string
		err   error
		tries int
	}{
		{"certain not to have happened", again, 3},
		{"wrapped", fmt.Errorf("call: %w", again), 3},
		{"overloaded", &durable.CallError{Code: "overloaded", Retryable: true, Overloaded: true}, 1},
		{"unknown outcome", durable.ErrUnknownOutcome, 1},
		{"another error", errors.New("no"), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start, tries := time.Now(), 0
				err := durable.Retry(t.Context(), durable.RetryPolicy{}, func(context.Context) error { tries++; return c.err })
				if !errors.Is(err, c.err) || tries != c.tries {
					t.Errorf("%d tries and %v, want %d and %v", tries, err, c.tries, c.err)
				}
				if waited := time.Since(start); waited > 300*time.Millisecond {
					t.Errorf("waited %v, want at most 100 ms and 200 ms", waited)
				}
			})
		})
	}
}

func TestRetrySucceeds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		err := durable.Retry(t.Context(), durable.RetryPolicy{Attempts: 10}, func(context.Context) error {
			if tries++; tries < 5 {
				return &durable.CallError{Retryable: true}
			}
			return nil
		})
		if err != nil || tries != 5 {
			t.Errorf("%d tries, %v", tries, err)
		}
	})
}

// A hint is a lower bound, and the context an upper one.
func TestRetryWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		busy := &durable.CallError{Retryable: true, RetryAfter: time.Minute}
		_ = durable.Retry(t.Context(), durable.RetryPolicy{Attempts: 2}, func(context.Context) error { return busy })
		if waited := time.Since(start); waited != time.Minute {
			t.Errorf("waited %v, want the minute asked for", waited)
		}

		start = time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := durable.Retry(ctx, durable.RetryPolicy{}, func(context.Context) error { return busy })
		if waited := time.Since(start); waited != time.Second {
			t.Errorf("waited %v, want as long as the context lasted", waited)
		}
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, busy) {
			t.Errorf("the error is %v, want both reasons", err)
		}
	})
}
