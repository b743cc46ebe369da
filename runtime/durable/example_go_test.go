package durable_test

import (
	"context"
	"fmt"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	Tickers durable.Class[Ticker]                              = "ticker"
	Refresh durable.Method[Ticker, durable.None, durable.None] = "refresh"
	Price   durable.Method[Ticker, durable.None, float64]      = "price"

	price durable.Key[float64] = "price"
)

type Ticker struct{}

// refresh starts work that takes a while and answers at once. The work's result comes
// back as an event of its own.
func (*Ticker) refresh(_ context.Context, tx *durable.Tx, _ durable.None) (durable.None, error) {
	return durable.None{}, durable.Go(tx, askTheMarket, (*Ticker).quoted)
}

func (*Ticker) quoted(_ context.Context, tx *durable.Tx, quote float64, err error) error {
	if err != nil {
		return err
	}
	price.Put(tx, quote)
	return nil
}

func (*Ticker) price(_ context.Context, tx *durable.Tx, _ durable.None) (float64, error) {
	return price.Get(tx), nil
}

// askTheMarket stands for a request to somebody else's service.
func askTheMarket(context.Context) (float64, error) { return 12.5, nil }

// Go is for work that must not keep the object from its other events.
func ExampleGo() {
	ctx := context.Background()
	world := durabletest.Open(durable.Define(Tickers, Refresh.Handle((*Ticker).refresh), Price.Handle((*Ticker).price)))
	defer world.Close()

	ticker := Tickers.Named(world, "HOLD")
	if _, err := Refresh.Call(ctx, ticker, durable.None{}); err != nil {
		fmt.Println(err)
	}
	world.Restart() // waits for the work
	fmt.Println(Price.Call(ctx, ticker, durable.None{}))

	// Output:
	// 12.5 <nil>
}
