package durable_test

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	Batches durable.Class[Batch]                        = "batch"
	Collect durable.Method[Batch, string, durable.None] = "collect"

	items durable.Map[int64, string] = "items"
	count durable.Key[int64]         = "count"
)

type Batch struct{}

// collect gathers items, and sees to it that they are handled together, 10 s after the
// first of them.
func (*Batch) collect(_ context.Context, tx *durable.Tx, item string) (durable.None, error) {
	n := count.Get(tx)
	items.Put(tx, n, item)
	count.Put(tx, n+1)
	if _, set := tx.Alarm(); !set {
		tx.SetAlarm(time.Now().Add(10 * time.Second))
	}
	return durable.None{}, nil
}

func (*Batch) Alarm(_ context.Context, tx *durable.Tx) error {
	for _, item := range items.All(tx) {
		fmt.Println("handle", item)
	}
	tx.DeleteAll() // an object with nothing stored does not exist
	return nil
}

// An alarm wakes an object, on whatever node it is by then.
func ExampleAlarmer() {
	ctx := context.Background()
	world := durabletest.Open(durable.Define(Batches, Collect.Handle((*Batch).collect)))
	defer world.Close()

	batch := Batches.Named(world, "today")
	for _, item := range []string{"a", "b", "c"} {
		if _, err := Collect.Call(ctx, batch, item); err != nil {
			fmt.Println(err)
		}
	}
	fmt.Println("fired:", world.FireAlarm(batch)) // this test does not wait for 10 s
	fmt.Println("fired:", world.FireAlarm(batch))

	// Output:
	// handle a
	// handle b
	// handle c
	// fired: true
	// fired: false
}
