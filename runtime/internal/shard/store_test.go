package shard

import "github.com/holdfast-run/holdfast/runtime/internal/engine"

// What the engine asks for is what a shard gives.
var _ engine.Store = (*Store)(nil)
