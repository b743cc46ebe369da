package durable_test

import (
	"context"
	"fmt"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	Dictionaries durable.Class[Dictionary]                  = "dictionary"
	Learn        durable.Method[Dictionary, [2]string, int] = "learn"

	words durable.Map[string, string] = "words"
)

// A Dictionary keeps its words at hand. They are stored, too: the map is gone whenever
// the object leaves memory.
type Dictionary struct{ words map[string]string }

func (d *Dictionary) Load(_ context.Context, tx *durable.Tx) error {
	d.words = map[string]string{}
	for word, meaning := range words.All(tx) {
		d.words[word] = meaning
	}
	fmt.Println("loaded", len(d.words))
	return nil
}

func (d *Dictionary) learn(_ context.Context, tx *durable.Tx, entry [2]string) (int, error) {
	d.words[entry[0]] = entry[1]
	words.Put(tx, entry[0], entry[1])
	return len(d.words), nil
}

// Load fills an object's memory when it wakes.
func ExampleLoader() {
	ctx := context.Background()
	world := durabletest.Open(durable.Define(Dictionaries, Learn.Handle((*Dictionary).learn)))
	defer world.Close()

	d := Dictionaries.Named(world, "english")
	fmt.Println(Learn.Call(ctx, d, [2]string{"hold", "to keep"}))
	fmt.Println(Learn.Call(ctx, d, [2]string{"fast", "firmly"}))
	world.Evict(d)
	fmt.Println(Learn.Call(ctx, d, [2]string{"holdfast", "what keeps firmly"}))

	// Output:
	// loaded 0
	// 1 <nil>
	// 2 <nil>
	// loaded 2
	// 3 <nil>
}
