package durable_test

import (
	"context"
	"fmt"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	Shops durable.Class[Shop]                        = "shop"
	Sell  durable.Method[Shop, string, durable.None] = "sell"
	Stock durable.Class[Shelf]                       = "shelf"
	Take  durable.Method[Shelf, durable.None, int64] = "take"

	sold   durable.Key[int64] = "sold"
	onHand durable.Key[int64] = "on-hand"
)

type Shop struct{}

// sell calls another object. The call is a commit point: what was written before it is
// durable when the shelf hears of it, and is not undone by what comes later.
func (*Shop) sell(ctx context.Context, tx *durable.Tx, what string) (durable.None, error) {
	sold.Put(tx, sold.Get(tx)+1)
	left, err := Take.Call(ctx, Stock.Named(tx, what), durable.None{})
	if err != nil {
		return durable.None{}, fmt.Errorf("take %s: %w", what, err)
	}
	fmt.Printf("sold %d, %d %s left\n", sold.Get(tx), left, what)
	return durable.None{}, nil
}

type Shelf struct{}

func (*Shelf) take(_ context.Context, tx *durable.Tx, _ durable.None) (int64, error) {
	n, ok := onHand.Lookup(tx)
	if !ok {
		n = 100
	}
	onHand.Put(tx, n-1)
	return n - 1, nil
}

// An object reaches others through its Tx, of its own class or of another.
func ExampleMethod_Call() {
	ctx := context.Background()
	world := durabletest.Open(
		durable.Define(Shops, Sell.Handle((*Shop).sell)),
		durable.Define(Stock, Take.Handle((*Shelf).take)),
	)
	defer world.Close()

	shop := Shops.Named(world, "corner")
	for _, what := range []string{"apples", "pears", "apples"} {
		if _, err := Sell.Call(ctx, shop, what); err != nil {
			fmt.Println(err)
		}
	}

	// Output:
	// sold 1, 99 apples left
	// sold 2, 99 pears left
	// sold 3, 98 apples left
}
