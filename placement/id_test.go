package placement

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"testing"
)

func TestMACIsHMAC(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 16, 55, 64, 191, 192, 193, 1024} {
		key := sha256.Sum256([]byte{byte(n)})
		message := bytes.Repeat([]byte{7}, n)
		want := hmac.New(sha256.New, key[:])
		want.Write(message)
		if got := mac(key, message); !bytes.Equal(got[:], want.Sum(nil)) {
			t.Errorf("of %d bytes: got %x", n, got)
		}
	}
}

func BenchmarkNamedID(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		NamedID("counter", "visits")
	}
}
