package transport_test

import (
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
	"github.com/holdfast-run/holdfast/runtime/internal/secret"
	"github.com/holdfast-run/holdfast/runtime/internal/transport"
)

// What others ask of this package, and what it asks of others.
var (
	_ replica.Transport     = (*transport.Group)(nil)
	_ replica.Confirmer     = (*transport.Group)(nil)
	_ transport.Credentials = (*secret.Ring)(nil)
	_ transport.Credentials = (*secret.Files)(nil)
)
