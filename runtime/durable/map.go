package durable

import (
	"iter"
	"strings"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A Map is the name of any number of stored values of type V, each under its own K,
// in the order of the Ks. The value under k is stored under the key name/k.
//
// K is a string type, an integer type (ordered by number; 17 is stored as b17, where the
// letter counts the digits), or a type that has a text or a binary form (ordered by the
// bytes of that).
// V is stored as with [Key].
type Map[K, V any] string

// Get returns the value under k, or the zero V if there is none.
func (m Map[K, V]) Get(tx *Tx, k K) V {
	v, _ := m.Lookup(tx, k)
	return v
}

// Lookup returns the value under k, and whether there is one.
func (m Map[K, V]) Lookup(tx *Tx, k K) (V, bool) { return Key[V](m.key(k)).Lookup(tx) }

// Put sets the value under k.
func (m Map[K, V]) Put(tx *Tx, k K, v V) { Key[V](m.key(k)).Put(tx, v) }

// Delete removes the value under k and reports whether there was one.
func (m Map[K, V]) Delete(tx *Tx, k K) bool { return tx.Delete(m.key(k)) }

// All yields everything in the map in order, as it is when the loop begins.
func (m Map[K, V]) All(tx *Tx) iter.Seq2[K, V] { return m.span().All(tx) }

// Clear removes everything in the map.
func (m Map[K, V]) Clear(tx *Tx) { m.span().Clear(tx) }

// From selects k and what comes after it. It and the methods below narrow down what a
// [Span] selects:
//
//	for seq, m := range messages.Before(seq).Reverse().Limit(50).All(tx) { ... }
func (m Map[K, V]) From(k K) Span[K, V] { return m.span().From(k) }

// After selects what comes after k.
func (m Map[K, V]) After(k K) Span[K, V] { return m.span().After(k) }

// Before selects what comes before k.
func (m Map[K, V]) Before(k K) Span[K, V] { return m.span().Before(k) }

// Prefix selects the keys that begin with p, in their stored form.
func (m Map[K, V]) Prefix(p string) Span[K, V] { return m.span().Prefix(p) }

// Reverse selects everything, last first.
func (m Map[K, V]) Reverse() Span[K, V] { return m.span().Reverse() }

// Limit selects the first n.
func (m Map[K, V]) Limit(n int) Span[K, V] { return m.span().Limit(n) }

func (m Map[K, V]) span() Span[K, V] { return Span[K, V]{m: m, r: host.Range{Prefix: m.prefix()}} }

func (m Map[K, V]) prefix() string { return string(m) + "/" }

func (m Map[K, V]) key(k K) string { return m.prefix() + encodeKey(k) }

// A Span is a part of a [Map]. Its methods return narrower spans.
type Span[K, V any] struct {
	m Map[K, V]
	r host.Range
}

// From begins the span with k.
func (s Span[K, V]) From(k K) Span[K, V] {
	s.r.Start = s.m.key(k)
	return s
}

// After begins the span after k.
func (s Span[K, V]) After(k K) Span[K, V] {
	s.r.StartAfter = s.m.key(k)
	return s
}

// Before ends the span before k.
func (s Span[K, V]) Before(k K) Span[K, V] {
	s.r.End = s.m.key(k)
	return s
}

// Prefix keeps the keys that begin with p, in their stored form.
func (s Span[K, V]) Prefix(p string) Span[K, V] {
	s.r.Prefix = s.m.prefix() + p
	return s
}

// Reverse turns the order of the span.
func (s Span[K, V]) Reverse() Span[K, V] {
	s.r.Reverse = !s.r.Reverse
	return s
}

// Limit keeps the first n of the span, in its order. There is no limit if n is 0.
func (s Span[K, V]) Limit(n int) Span[K, V] {
	s.r.Limit = n
	return s
}

// All yields the span in its order, as it is when the loop begins: the loop may change
// the map.
func (s Span[K, V]) All(tx *Tx) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for key, b := range tx.turn.List(s.r) {
			if !yield(s.decodeKey(key), mustDecode[V](key, b)) {
				return
			}
		}
	}
}

// Keys yields the keys of the span and leaves the values alone.
func (s Span[K, V]) Keys(tx *Tx) iter.Seq[K] {
	return func(yield func(K) bool) {
		for key := range tx.turn.List(s.r) {
			if !yield(s.decodeKey(key)) {
				return
			}
		}
	}
}

// Clear removes what the span selects.
func (s Span[K, V]) Clear(tx *Tx) {
	for key := range tx.turn.List(s.r) {
		tx.Delete(key)
	}
}

func (s Span[K, V]) decodeKey(key string) K {
	k, err := decodeKey[K](strings.TrimPrefix(key, s.m.prefix()))
	if err != nil {
		fail(host.CodeInternal, "the stored key %q does not belong to map %q of %T: %v", key, string(s.m), k, err)
	}
	return k
}
