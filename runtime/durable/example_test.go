package durable_test

import (
	"context"
	"fmt"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

// The names of the class: what it is called, what it can do, what it stores.
const (
	Visits durable.Class[Counter]                = "counter"
	Add    durable.Method[Counter, int64, int64] = "add"

	total durable.Key[int64] = "total"
)

var CounterDefinition = durable.Define(Visits, Add.Handle((*Counter).add))

type Counter struct{} // memory is only a cache, and a counter needs none

func (*Counter) add(_ context.Context, tx *durable.Tx, by int64) (int64, error) {
	n := total.Get(tx) + by
	total.Put(tx, n)
	return n, nil
}

// A counter is a whole object: names, a definition, a type and its handler.
func Example() {
	ctx := context.Background()
	world := durabletest.Open(CounterDefinition) // a node would do as well
	defer world.Close()

	visits := Visits.Named(world, "visits")
	for range 3 {
		n, err := Add.Call(ctx, visits, 1)
		fmt.Println(n, err)
	}

	world.Crash() // an answer was only given for what is durable
	n, err := Add.Call(ctx, visits, 1)
	fmt.Println(n, err)

	// Output:
	// 1 <nil>
	// 2 <nil>
	// 3 <nil>
	// 4 <nil>
}
