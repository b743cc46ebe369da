package durable_test

import (
	"context"
	"fmt"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	Orders durable.Class[Order]                  = "order"
	Import durable.Method[Order, []int64, int64] = "import"

	sum durable.Key[int64] = "sum"
)

type Order struct{}

// imports takes the good numbers and leaves out the bad ones.
func (*Order) imports(_ context.Context, tx *durable.Tx, numbers []int64) (int64, error) {
	for _, n := range numbers {
		err := tx.Nested(func() error {
			sum.Put(tx, sum.Get(tx)+n)
			if n < 0 {
				return fmt.Errorf("%d is negative", n)
			}
			return nil
		})
		if err != nil {
			fmt.Println("left out:", err)
		}
	}
	return sum.Get(tx), nil
}

// A nested transaction undoes a part of an event.
func ExampleTx_Nested() {
	world := durabletest.Open(durable.Define(Orders, Import.Handle((*Order).imports)))
	defer world.Close()

	fmt.Println(Import.Call(context.Background(), Orders.Unique(world), []int64{1, -5, 10}))

	// Output:
	// left out: -5 is negative
	// 11 <nil>
}
