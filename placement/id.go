package placement

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// An ObjectID identifies one object of one class. Its first 16 bytes are the base
// (derived from a name, or random); the last 16 are a MAC over the base, keyed by
// the class, so that an ID of another class is recognised and refused. IDs are
// equal if their 32 bytes are.
type ObjectID [32]byte

// Reasons for refusing a string as an ID.
var (
	ErrBadID      = errors.New("not an object ID: want 64 hexadecimal digits")
	ErrWrongClass = errors.New("the object ID belongs to another class")
)

// NamedID returns the ID of the object of a class that has the given name. It is a
// pure function: the same class and name give the same ID on every node, for ever.
func NamedID(class, name string) ObjectID {
	key := classKey(class)
	sum := mac(key, name)
	return seal(key, [16]byte(sum[:16]))
}

// UniqueID returns a new random ID of a class.
func UniqueID(class string) ObjectID {
	var base [16]byte
	rand.Read(base[:]) // never fails: crypto/rand ends the process instead
	return seal(classKey(class), base)
}

// ParseID reads the 64 hexadecimal digits of an ID of the given class. The error is
// [ErrBadID] or [ErrWrongClass].
func ParseID(class, s string) (ObjectID, error) {
	var id ObjectID
	if len(s) != 2*len(id) {
		return ObjectID{}, fmt.Errorf("%w, got %d characters", ErrBadID, len(s))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ObjectID{}, ErrBadID
	}
	if !id.Of(class) {
		return ObjectID{}, ErrWrongClass
	}
	return id, nil
}

// Of reports whether id is an ID of the given class.
func (id ObjectID) Of(class string) bool {
	want := seal(classKey(class), [16]byte(id[:16]))
	return hmac.Equal(id[16:], want[16:])
}

// String returns the ID as 64 lower-case hexadecimal digits.
func (id ObjectID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText is [ObjectID.String] as an encoding.TextMarshaler.
func (id ObjectID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText reads 64 hexadecimal digits. It does not know the class: use
// [ParseID] for IDs that come from outside.
func (id *ObjectID) UnmarshalText(text []byte) error {
	if len(text) != 2*len(id) {
		return ErrBadID
	}
	if _, err := hex.Decode(id[:], text); err != nil {
		return ErrBadID
	}
	return nil
}

func classKey(class string) [32]byte {
	const label = "holdfast class\x00"
	var buf [128]byte
	return sha256.Sum256(append(append(buf[:0], label...), class...))
}

func seal(key [32]byte, base [16]byte) ObjectID {
	var id ObjectID
	copy(id[:], base[:])
	sum := mac(key, base[:])
	copy(id[16:], sum[:])
	return id
}

// mac is HMAC-SHA-256. Every stub made from a name needs two, and crypto/hmac allocates
// four times for each; this does not, for names of ordinary length.
func mac[T string | []byte](key [32]byte, message T) [32]byte {
	const block = sha256.BlockSize
	var inner [4 * block]byte
	var outer [block + sha256.Size]byte
	for i := range block {
		inner[i], outer[i] = 0x36, 0x5c
	}
	for i, k := range key {
		inner[i] ^= k
		outer[i] ^= k
	}
	sum := sha256.Sum256(append(inner[:block], message...))
	copy(outer[block:], sum[:])
	return sha256.Sum256(outer[:])
}
