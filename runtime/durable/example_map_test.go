package durable_test

import (
	"context"
	"fmt"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	Journals durable.Class[Journal]                        = "journal"
	Write    durable.Method[Journal, string, durable.None] = "write"
	Latest   durable.Method[Journal, int, []string]        = "latest"

	entries durable.Map[int64, string] = "entries" // by number
	last    durable.Key[int64]         = "last"
)

type Journal struct{}

func (*Journal) write(_ context.Context, tx *durable.Tx, text string) (durable.None, error) {
	n := last.Get(tx) + 1
	last.Put(tx, n)
	entries.Put(tx, n, text)
	return durable.None{}, nil
}

func (*Journal) latest(_ context.Context, tx *durable.Tx, limit int) ([]string, error) {
	var list []string
	for n, text := range entries.Reverse().Limit(limit).All(tx) {
		list = append(list, fmt.Sprintf("%d: %s", n, text))
	}
	return list, nil
}

// A Map keeps any number of values in the order of their keys.
func ExampleMap() {
	ctx := context.Background()
	world := durabletest.Open(durable.Define(Journals, Write.Handle((*Journal).write), Latest.Handle((*Journal).latest)))
	defer world.Close()

	journal := Journals.Named(world, "mine")
	for _, text := range []string{"woke up", "had coffee", "wrote a test", "slept"} {
		if _, err := Write.Call(ctx, journal, text); err != nil {
			fmt.Println(err)
		}
	}
	list, err := Latest.Call(ctx, journal, 2)
	fmt.Println(list, err)

	// Output:
	// [4: slept 3: wrote a test] <nil>
}
