package durable

import (
	"encoding/json"
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

type point struct {
	X int64  `json:"x"`
	S string `json:"s,omitempty"`
}

type level string

type seq uint32

// roundTrip checks the stored form of a value, and that it comes back.
func roundTrip[V any](t *testing.T, v V, want string) {
	t.Helper()
	b, err := encodeValue(v)
	if err != nil || string(b) != want {
		t.Errorf("encodeValue(%#v) = %q, %v; want %q", v, b, err, want)
	}
	got, err := decodeValue[V](b)
	if err != nil || !cmp.Equal(got, v) {
		t.Errorf("decodeValue(%q) = %#v, %v; want %#v", b, got, err, v)
	}
}

func TestStoredForms(t *testing.T) {
	t.Parallel()
	roundTrip(t, []byte("a\x00<b"), "a\x00<b")
	roundTrip(t, []byte{}, "")
	roundTrip(t, "not \"quoted\" \xff", "not \"quoted\" \xff")
	roundTrip(t, int64(math.MinInt64), "-9223372036854775808")
	roundTrip(t, int64(math.MaxInt64), "9223372036854775807")
	roundTrip(t, uint64(math.MaxUint64), "18446744073709551615")
	roundTrip(t, -7, "-7")
	roundTrip(t, true, "true")
	roundTrip(t, 1.5, "1.5")
	roundTrip(t, level("<b>"), `"<b>"`)
	roundTrip(t, point{X: 1 << 60, S: "a&b"}, `{"x":1152921504606846976,"s":"a&b"}`)
	roundTrip(t, []string{"a"}, `["a"]`)
	roundTrip(t, map[string]int64{"a": 1}, `{"a":1}`)
	roundTrip(t, &point{X: 1}, `{"x":1}`)
	roundTrip(t, None{}, `{}`)
	roundTrip(t, netip.MustParsePrefix("10.0.0.0/8").Bits(), "8")

	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC) // has a binary form of its own
	binary, err := at.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, at, string(binary))
}

// What the fast paths write is JSON, too: a field may change from int64 to float64, and
// the console can show it.
func TestFastPathsAreJSON(t *testing.T) {
	t.Parallel()
	for _, v := range []any{int64(-5), true, false, None{}} {
		var b []byte
		var err error
		switch v := v.(type) {
		case int64:
			b, err = encodeJSON(v)
		case bool:
			b, err = encodeJSON(v)
		case None:
			b, err = encodeJSON(v)
		}
		want, _ := json.Marshal(v)
		if err != nil || string(b) != string(want) {
			t.Errorf("encodeJSON(%v) = %s, %v; want %s", v, b, err, want)
		}
	}
}

func TestDecodedValuesAreCopies(t *testing.T) {
	t.Parallel()
	stored := []byte("abc")
	v, err := decodeValue[[]byte](stored)
	if err != nil {
		t.Fatal(err)
	}
	v[0] = 'x'
	encoded, err := encodeValue(v)
	if err != nil {
		t.Fatal(err)
	}
	v[1] = 'y'
	if string(stored) != "abc" || string(encoded) != "xbc" {
		t.Errorf("values share memory: stored %q, encoded %q", stored, encoded)
	}
}

func TestUnreadableValues(t *testing.T) {
	t.Parallel()
	for name, read := range map[string]func() error{
		"int64":  func() error { _, err := decodeValue[int64]([]byte("1.5")); return err },
		"bool":   func() error { _, err := decodeValue[bool]([]byte("maybe")); return err },
		"struct": func() error { _, err := decodeValue[point]([]byte(`{"x":`)); return err },
		"time":   func() error { _, err := decodeValue[time.Time]([]byte("noon")); return err },
		"args":   func() error { _, err := decodeJSON[point]([]byte(`[]`)); return err },
		"number": func() error { _, err := decodeJSON[int64]([]byte(`"5"`)); return err },
		"nil":    func() error { _, err := encodeValue(func() {}); return err },
	} {
		if read() == nil {
			t.Errorf("%s: no error", name)
		}
	}

	defer func() {
		e, ok := recover().(*host.Error)
		if !ok || e.Code != host.CodeInternal || !strings.Contains(e.Message, `"total"`) {
			t.Errorf("recovered %v, want an internal error that names the key", e)
		}
	}()
	mustDecode[int64]("total", []byte("x"))
}

func TestNoArguments(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"", "null", "{}"} {
		if _, err := decodeJSON[None]([]byte(body)); err != nil {
			t.Errorf("decode None of %q: %v", body, err)
		}
	}
	if n, err := decodeJSON[int64](nil); n != 0 || err != nil {
		t.Errorf("decode int64 of nothing: %d, %v", n, err)
	}
	if n, err := decodeJSON[int64]([]byte(" 5\n")); n != 5 || err != nil {
		t.Errorf("decode int64 with spaces: %d, %v", n, err)
	}
}

// keys encodes ks, checks that they come back, and that they are in the order of their
// stored forms.
func keys[K any](t *testing.T, ks ...K) []string {
	t.Helper()
	var stored []string
	for _, k := range ks {
		s := encodeKey(k)
		back, err := decodeKey[K](s)
		if err != nil || !cmp.Equal(back, k, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) {
			t.Errorf("key %v is stored as %q and comes back as %v, %v", k, s, back, err)
		}
		stored = append(stored, s)
	}
	if !slices.IsSorted(stored) {
		t.Errorf("keys %v are stored out of order: %q", ks, stored)
	}
	return stored
}

func TestMapKeys(t *testing.T) {
	t.Parallel()
	numbers := []int64{math.MinInt64, math.MinInt64 + 1, -1000, -999, -100, -99, -10, -9, -2, -1, 0, 1, 9, 10, 99, 100, 12345, math.MaxInt64}
	keys(t, numbers...)
	keys[uint64](t, 0, 1, 9, 10, math.MaxInt64, math.MaxUint64)
	keys(t, -100, -1, 0, 7, 1<<40)
	keys[int8](t, -128, -1, 0, 127)
	keys[seq](t, 0, 9, 10, math.MaxUint32)
	keys(t, "", "a", "a/b", "ä", "\xff")
	keys[level](t, "a", "b")
	keys(t, placement.NamedID("room", "lobby"))
	keys(t, netip.MustParseAddr("10.0.0.1"))

	want := []string{"Z8", "a0", "a7", "b17", "s9223372036854775807"}
	if got := keys[int64](t, -1, 0, 7, 17, math.MaxInt64); !slices.Equal(got, want) {
		t.Errorf("stored as %q, want %q", got, want)
	}
	if a, b := encodeKey(int64(17)), encodeKey(uint8(17)); a != b {
		t.Errorf("17 is %q and %q: the width must not matter", a, b)
	}
}

func TestForeignMapKeys(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "a", "17", "b7", "a17", "axx", "Zx", "Y8", "Z", "t18446744073709551616", "b+7", "Y+8", "b07", "Z9"} {
		if n, err := decodeKey[int64](s); err == nil {
			t.Errorf("%q decodes as %d", s, n)
		}
	}
	if n, err := decodeKey[int8]("c128"); err == nil {
		t.Errorf("c128 decodes as an int8: %d", n)
	}
	if n, err := decodeKey[uint8]("c256"); err == nil {
		t.Errorf("c256 decodes as a uint8: %d", n)
	}
	if _, err := decodeKey[placement.ObjectID]("abc"); !errors.Is(err, placement.ErrBadID) {
		t.Errorf("decode an ID: %v", err)
	}
}

func FuzzMapKeys(f *testing.F) {
	f.Add(int64(0), int64(-1))
	f.Add(int64(math.MaxInt64), int64(math.MinInt64))
	f.Fuzz(func(t *testing.T, a, b int64) {
		x, y := encodeKey(a), encodeKey(b)
		if (a < b) != (x < y) || (a == b) != (x == y) {
			t.Errorf("%d and %d are stored as %q and %q", a, b, x, y)
		}
		if back, err := decodeKey[int64](x); err != nil || back != a {
			t.Errorf("%q comes back as %d, %v; want %d", x, back, err, a)
		}
	})
}

func FuzzDecodeMapKey(f *testing.F) {
	for _, s := range []string{"a0", "b17", "Z8", "", "a", "t99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		// What decodes is what encodes to the same: two stored keys are never one.
		if n, err := decodeKey[int64](s); err == nil && encodeKey(n) != s {
			t.Errorf("%q decodes as %d, which is stored as %q", s, n, encodeKey(n))
		}
		if n, err := decodeKey[uint64](s); err == nil && encodeKey(n) != s {
			t.Errorf("%q decodes as %d, which is stored as %q", s, n, encodeKey(n))
		}
	})
}

func BenchmarkEncodeInt64(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		v, _ := encodeValue(int64(123456))
		n, _ := decodeValue[int64](v)
		_ = n
	}
}

func BenchmarkMapKey(b *testing.B) {
	b.ReportAllocs()
	m := Map[int64, string]("messages")
	for b.Loop() {
		_ = m.key(123456)
	}
}
