package durable_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

// The objects of a class can be listed, asked for without making them, and destroyed.
func ExampleClass_List() {
	ctx := context.Background()
	world := durabletest.Open(CounterDefinition)
	defer world.Close()

	for _, name := range []string{"pages/a", "pages/b", "users"} {
		if _, err := Add.Call(ctx, Visits.Named(world, name), 1); err != nil {
			fmt.Println(err)
		}
	}
	if err := Visits.Named(world, "pages/a").Destroy(ctx); err != nil {
		fmt.Println(err)
	}
	for object, err := range Visits.List(ctx, world, durable.ListOptions{Prefix: "pages/"}) {
		fmt.Println(object.Name, err)
	}
	_, err := Visits.Existing(ctx, world, "nobody")
	fmt.Println(errors.Is(err, durable.ErrNotFound))

	// Output:
	// pages/b <nil>
	// true
}
