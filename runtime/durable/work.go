package durable

import (
	"context"
	"fmt"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// Go starts background work that belongs to the object: work runs on a goroutine of its
// own once the event is durable, while other events go on; what it found out comes back as
// an event, in which then may use it. The object stays in memory meanwhile.
//
//	err := durable.Go(tx, func(ctx context.Context) (Quote, error) { return fetchQuote(ctx) }, (*Ticker).quoted)
//
// work has no Tx and must not touch the object's memory. then may be nil. Work is not
// durable: a crash ends it, and so does a reset of the object. What must happen, whatever
// happens, belongs in a [Schedule]. The error is [ErrOverloaded] if the object has too
// much work under way.
func Go[T, R any](tx *Tx, work func(ctx context.Context) (R, error), then func(obj *T, ctx context.Context, tx *Tx, result R, err error) error) error {
	if _, ok := tx.obj.(*T); !ok && then != nil {
		panic(fmt.Sprintf("durable: an object of class %q started work that ends in a %T", tx.Class(), (*T)(nil)))
	}
	var result R
	return tx.turn.Go(
		func(ctx context.Context) (err error) {
			result, err = work(ctx)
			return err
		},
		func(ctx context.Context, turn host.Turn, err error) error {
			if then == nil {
				return nil
			}
			tx := turn.(resumed).tx
			return then(tx.obj.(*T), ctx, tx, result, err)
		},
	)
}

// resumed carries the Tx of the event that ends background work through the engine's
// form of a follow-up, to the instance that is in memory by then.
type resumed struct {
	host.Turn
	tx *Tx
}
