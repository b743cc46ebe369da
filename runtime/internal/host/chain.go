package host

import "context"

// MaxChain bounds how many objects may wait for each other in one chain of calls.
const MaxChain = 64

type chainKey struct{}

// WithChain notes the objects whose turns wait for what is done with ctx, outermost first.
func WithChain(ctx context.Context, chain []Ref) context.Context {
	return context.WithValue(ctx, chainKey{}, chain)
}

// ChainOf returns what WithChain noted.
func ChainOf(ctx context.Context) []Ref {
	chain, _ := ctx.Value(chainKey{}).([]Ref)
	return chain
}
