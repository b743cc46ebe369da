package host

import (
	"context"

	"github.com/holdfast-run/holdfast/placement"
)

type gatewayKey struct{}

// WithGateway notes which other node holds the connection that an event came from.
func WithGateway(ctx context.Context, n placement.NodeID) context.Context {
	return context.WithValue(ctx, gatewayKey{}, n)
}

// GatewayOf returns what WithGateway noted; "" means this node.
func GatewayOf(ctx context.Context) placement.NodeID {
	n, _ := ctx.Value(gatewayKey{}).(placement.NodeID)
	return n
}
