package durable

import "github.com/holdfast-run/holdfast/runtime/internal/host"

// A Key is the name of one stored value of type V.
//
// A []byte or a string is stored as it is. A type that brings its own binary form
// (encoding.BinaryMarshaler and encoding.BinaryUnmarshaler) is stored in that. Everything else
// is stored as JSON, so fields may be added to a struct later and the console can show it.
type Key[V any] string

// Get returns the value, or the zero V if there is none.
func (k Key[V]) Get(tx *Tx) V {
	v, _ := k.Lookup(tx)
	return v
}

// Lookup returns the value, and whether there is one.
func (k Key[V]) Lookup(tx *Tx) (V, bool) {
	b, ok := tx.turn.Get(string(k))
	if !ok {
		var zero V
		return zero, false
	}
	return mustDecode[V](string(k), b), true
}

// Put sets the value.
func (k Key[V]) Put(tx *Tx, v V) { tx.put(string(k), mustEncode(string(k), v)) }

// Delete removes the value and reports whether there was one.
func (k Key[V]) Delete(tx *Tx) bool { return tx.Delete(string(k)) }

// mustEncode ends the event if v cannot be stored.
func mustEncode[V any](key string, v V) []byte {
	b, err := encodeValue(v)
	if err != nil {
		panic(host.Errorf(host.CodeInternal, "the value for key %q cannot be stored: %v", key, err).Because(err))
	}
	return b
}

// mustDecode ends the event if what is stored is not a V.
func mustDecode[V any](key string, b []byte) V {
	v, err := decodeValue[V](b)
	if err != nil {
		panic(host.Errorf(host.CodeInternal, "what is stored under key %q is not a %T: %v", key, v, err).Because(err))
	}
	return v
}
