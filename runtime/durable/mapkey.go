package durable

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strconv"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// encodeKey returns the stored form of a map's key; see [Map].
func encodeKey[K any](k K) string {
	switch k := any(k).(type) {
	case string:
		return k
	case int64:
		return orderedInt(k)
	case int:
		return orderedInt(int64(k))
	case uint64:
		return orderedUint(k)
	}
	return encodeOtherKey(k)
}

func encodeOtherKey[K any](k K) string {
	var b []byte
	var err error
	switch p := any(&k).(type) {
	case encoding.TextMarshaler:
		b, err = p.MarshalText()
	case encoding.BinaryMarshaler:
		b, err = p.MarshalBinary()
	default:
		switch v := reflect.ValueOf(k); {
		case v.Kind() == reflect.String:
			return v.String()
		case v.CanInt():
			return orderedInt(v.Int())
		case v.CanUint():
			return orderedUint(v.Uint())
		}
		err = errors.New("want a string, an integer, or a type with a text or binary form")
	}
	if err != nil {
		panic(host.Errorf(host.CodeInternal, "a %T cannot be the key of a map: %v", k, err).Because(err))
	}
	return string(b)
}

// decodeKey reads what encodeKey wrote.
func decodeKey[K any](s string) (K, error) {
	var k K
	var err error
	switch p := any(&k).(type) {
	case *string:
		*p = s
		return k, nil
	case *int64:
		*p, err = parseOrderedInt(s)
		return k, err
	}
	return decodeOtherKey[K](s)
}

func decodeOtherKey[K any](s string) (K, error) {
	var k K
	switch p := any(&k).(type) {
	case encoding.TextUnmarshaler:
		return k, p.UnmarshalText([]byte(s))
	case encoding.BinaryUnmarshaler:
		return k, p.UnmarshalBinary([]byte(s))
	}
	switch v := reflect.ValueOf(&k).Elem(); {
	case v.Kind() == reflect.String:
		v.SetString(s)
		return k, nil
	case v.CanInt():
		n, err := parseOrderedInt(s)
		if err == nil && v.OverflowInt(n) {
			err = fmt.Errorf("%d does not fit", n)
		}
		v.SetInt(n)
		return k, err
	case v.CanUint():
		n, err := parseOrderedUint(s)
		if err == nil && v.OverflowUint(n) {
			err = fmt.Errorf("%d does not fit", n)
		}
		v.SetUint(n)
		return k, err
	}
	return k, errors.New("want a string, an integer, or a type with a text or binary form")
}

// Integers are stored so that the order of the bytes is the order of the numbers, and
// so that a reader of the console can tell which one it is: a letter for the number of
// digits, then the digits. 7 is a7, 17 is b17, the largest uint64 is t18446744073709551615. A
// negative number begins with a capital letter, the earlier the more digits it has, and
// then has every digit subtracted from 9: -1 is Z8, -17 is Y82.

func orderedUint(n uint64) string {
	var buf [1 + 20]byte
	b := strconv.AppendUint(buf[:1], n, 10)
	b[0] = byte('a' + len(b) - 2)
	return string(b)
}

func orderedInt(n int64) string {
	if n >= 0 {
		return orderedUint(uint64(n))
	}
	var buf [1 + 20]byte
	b := strconv.AppendUint(buf[:1], -uint64(n), 10)
	b[0] = byte('Z' - (len(b) - 2))
	for i, digit := range b[1:] {
		b[1+i] = '0' + '9' - digit
	}
	return string(b)
}

var errNotOrdered = errors.New("not an integer in ordered form")

func parseOrderedUint(s string) (uint64, error) {
	if len(s) < 2 {
		return 0, errNotOrdered
	}
	n, err := strconv.ParseUint(s[1:], 10, 64)
	if err != nil || orderedUint(n) != s { // one number has one form
		return 0, errNotOrdered
	}
	return n, nil
}

func parseOrderedInt(s string) (int64, error) {
	if len(s) < 2 {
		return 0, errNotOrdered
	}
	digits := []byte(s)
	if s[0] <= 'Z' {
		digits[0] = '-'
		for i, digit := range digits[1:] {
			digits[1+i] = '0' + '9' - digit
		}
	} else {
		digits = digits[1:]
	}
	n, err := strconv.ParseInt(string(digits), 10, 64)
	if err != nil || orderedInt(n) != s {
		return 0, errNotOrdered
	}
	return n, nil
}
