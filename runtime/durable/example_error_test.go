package durable_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	Purses durable.Class[Purse]                = "purse"
	Pay    durable.Method[Purse, int64, int64] = "pay"

	// ErrTooPoor is the same value on every node.
	ErrTooPoor durable.Error = "purse: not enough coins"

	coins durable.Key[int64] = "coins"
)

type Purse struct{}

func (*Purse) pay(_ context.Context, tx *durable.Tx, price int64) (int64, error) {
	n, ok := coins.Lookup(tx)
	if !ok {
		n = 10 // a new purse is not empty
	}
	n -= price
	coins.Put(tx, n)
	if n < 0 {
		return 0, fmt.Errorf("%w: %d short", ErrTooPoor, -n) // the Put did not happen
	}
	return n, nil
}

// An event is all or nothing: with an error, nothing that the handler wrote has happened.
// The error keeps its identity on its way to the caller.
func ExampleError() {
	ctx := context.Background()
	world := durabletest.Open(durable.Define(Purses, Pay.Handle((*Purse).pay)))
	defer world.Close()

	purse := Purses.Named(world, "ada")
	fmt.Println(Pay.Call(ctx, purse, 7))
	_, err := Pay.Call(ctx, purse, 7)
	fmt.Println(errors.Is(err, ErrTooPoor), err)
	fmt.Println(Pay.Call(ctx, purse, 3))

	// Output:
	// 3 <nil>
	// true purse: not enough coins: 4 short
	// 0 <nil>
}
