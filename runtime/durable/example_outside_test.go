package durable_test

import (
	"context"
	"fmt"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	Uploads durable.Class[Upload]                        = "upload"
	Publish durable.Method[Upload, durable.None, string] = "publish"

	state durable.Key[string] = "state"
)

type Upload struct{}

// publish does slow work in the middle of an event. Before the work starts, it is durable
// that it was about to; while it goes on, other events may run.
func (*Upload) publish(ctx context.Context, tx *durable.Tx, _ durable.None) (string, error) {
	if s := state.Get(tx); s != "" {
		return "already " + s, nil
	}
	state.Put(tx, "publishing")
	err := tx.Outside(ctx, func(ctx context.Context) error {
		// Other events may run now, even one of the same kind: it is told that this one is at work.
		other, err := Publish.Call(ctx, Uploads.ByID(tx, tx.ID()), durable.None{})
		fmt.Println("meanwhile:", other, err)
		return nil
	})
	if err != nil {
		return "", err
	}
	state.Put(tx, "published")
	return "published", nil
}

// Outside gives up the turn for a while.
func ExampleTx_Outside() {
	world := durabletest.Open(durable.Define(Uploads, Publish.Handle((*Upload).publish)))
	defer world.Close()

	fmt.Println(Publish.Call(context.Background(), Uploads.Named(world, "report.pdf"), durable.None{}))

	// Output:
	// meanwhile: already publishing <nil>
	// published <nil>
}
