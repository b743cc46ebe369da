package secret_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/secret"
)

func TestParse(t *testing.T) {
	t.Parallel()
	a, b, c, d := secret.New(), secret.New(), secret.New(), secret.New()
	raw := bytes.Repeat([]byte{0xfb, 0xef, 0xff}, 11)
	for name, test := range map[string]struct {
		text string
		want error
		keys int
	}{
		"one":             {text: a, keys: 1},
		"three":           {text: a + "\n" + b + "\n" + c + "\n", keys: 3},
		"comments":        {text: "# old\n\n  " + a + "\t\r\n#new\n" + b, keys: 2},
		"padded":          {text: base64.URLEncoding.EncodeToString(append(raw, 1)), keys: 1},
		"standard":        {text: base64.StdEncoding.EncodeToString(append(raw, 1)), keys: 1},
		"longer":          {text: base64.RawURLEncoding.EncodeToString(bytes.Repeat(raw, 9)), keys: 1},
		"nothing":         {text: "", want: secret.ErrNone},
		"only a comment":  {text: "# " + a, want: secret.ErrNone},
		"short":           {text: a[:40], want: secret.ErrShort},
		"no base64":       {text: strings.Repeat("wrong! ", 9), want: secret.ErrText},
		"four":            {text: strings.Join([]string{a, b, c, d}, "\n"), want: secret.ErrMany},
		"twice":           {text: a + "\n" + a + "=", want: secret.ErrTwice},
		"a line too long": {text: strings.Repeat("A", 100_000), want: secret.ErrText},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ring, err := secret.Parse([]byte(test.text))
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if err == nil && len(ring.GossipKeys()) != test.keys {
				t.Errorf("%d keys, want %d", len(ring.GossipKeys()), test.keys)
			}
		})
	}
}

// TestDerivation pins what nodes of different versions must agree on.
func TestDerivation(t *testing.T) {
	t.Parallel()
	ring := parse(t, base64.RawURLEncoding.EncodeToString(make([]byte, 32)))
	const want = "3adab07f32a7936632438e77249ed1d0f92325ba2eb4ce49c7237bef478ac434"
	if got := hex.EncodeToString(ring.GossipKeys()[0]); got != want {
		t.Errorf("the gossip key is %s, was %s", got, want)
	}
}

func TestCertificateProvesTheSecret(t *testing.T) {
	t.Parallel()
	text := secret.New()
	cert, err := parse(t, text).Certificate("c-1", "n-1")
	if err != nil {
		t.Fatal(err)
	}
	cluster, node, err := parse(t, text).Verify(chain(t, cert))
	if err != nil || cluster != "c-1" || node != "n-1" {
		t.Errorf("got %q, %q, %v", cluster, node, err)
	}
	if _, _, err := parse(t, secret.New()).Verify(chain(t, cert)); !errors.Is(err, secret.ErrStranger) {
		t.Errorf("another secret: got %v", err)
	}
	if _, _, err := parse(t, text).Verify(nil); !errors.Is(err, secret.ErrStranger) {
		t.Errorf("no certificate: got %v", err)
	}
	unborn, err := parse(t, text).Certificate("", "n-1")
	if err != nil {
		t.Fatal(err)
	}
	if cluster, node, err := parse(t, text).Verify(chain(t, unborn)); err != nil || cluster != "" || node != "n-1" {
		t.Errorf("without a cluster: got %q, %q, %v", cluster, node, err)
	}
}

// TestRotation walks two nodes through a rotation, one after the other: they accept each
// other after every step.
func TestRotation(t *testing.T) {
	t.Parallel()
	old, young := secret.New(), secret.New()
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	var rings []*secret.Ring
	for _, path := range paths {
		write(t, path, old)
		ring, err := secret.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		rings = append(rings, ring)
	}
	for _, step := range []string{old + "\n" + young, young + "\n" + old, young} {
		for i, ring := range rings {
			write(t, paths[i], step)
			if err := ring.Reload(); err != nil {
				t.Fatal(err)
			}
			accept(t, rings[0], rings[1])
			accept(t, rings[1], rings[0])
			if !bytes.Equal(rings[0].GossipKeys()[0], rings[1].GossipKeys()[0]) && i == 1 {
				t.Error("after a step the nodes gossip with different keys")
			}
		}
	}
	write(t, paths[0], "no sense!")
	if err := rings[0].Reload(); !errors.Is(err, secret.ErrText) || !strings.Contains(err.Error(), paths[0]) {
		t.Errorf("got %v", err)
	}
	accept(t, rings[0], rings[1])
	if _, err := secret.Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	t.Parallel()
	text := secret.New()
	ring := parse(t, text)
	printed := fmt.Sprintf("%v %s", ring, ring.LogValue())
	if strings.Contains(printed, text) || printed != "1 secrets 1 secrets" {
		t.Errorf("printed as %q", printed)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ours, theirs := newCA(t, dir, "ours"), newCA(t, dir, "theirs")
	a, err := secret.OpenFiles(ours.issue(t, dir, "a"), filepath.Join(dir, "a.key"), ours.path)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := a.Certificate("c", "n")
	if cluster, node, err := a.Verify(chain(t, cert)); err != nil || cluster != "" || node != "" {
		t.Errorf("got %q, %q, %v", cluster, node, err)
	}
	strange, err := secret.OpenFiles(theirs.issue(t, dir, "b"), filepath.Join(dir, "b.key"), theirs.path)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ = strange.Certificate("c", "n")
	if _, _, err := a.Verify(chain(t, cert)); !errors.Is(err, secret.ErrStranger) {
		t.Errorf("got %v", err)
	}
	if _, err := secret.OpenFiles(filepath.Join(dir, "a.pem"), filepath.Join(dir, "a.key"), theirs.path); err == nil {
		t.Error("a certificate that the node's own authorities refuse was taken")
	}
	if _, err := secret.OpenFiles(filepath.Join(dir, "a.pem"), filepath.Join(dir, "a.key"), filepath.Join(dir, "a.key")); err == nil {
		t.Error("a key was taken for an authority")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(secret.New()))
	f.Add([]byte("#\n\n" + secret.New() + "\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		ring, err := secret.Parse(text)
		if err == nil && (len(ring.GossipKeys()) == 0 || len(ring.GossipKeys()) > secret.MaxSecrets) {
			t.Errorf("%d keys", len(ring.GossipKeys()))
		}
	})
}

func parse(t *testing.T, text string) *secret.Ring {
	t.Helper()
	ring, err := secret.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func accept(t *testing.T, verifier, prover *secret.Ring) {
	t.Helper()
	cert, err := prover.Certificate("c", "n")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := verifier.Verify(chain(t, cert)); err != nil {
		t.Error(err)
	}
}

func chain(t *testing.T, c tls.Certificate) []*x509.Certificate {
	t.Helper()
	var certs []*x509.Certificate
	for _, der := range c.Certificate {
		p, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, p)
	}
	return certs
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A ca is an operator's own authority.
type ca struct {
	path string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T, dir, name string) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name+".ca")
	write(t, path, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return &ca{path, cert, key}
}

func (c *ca) issue(t *testing.T, dir, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, name+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	path := filepath.Join(dir, name+".pem")
	write(t, path, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return path
}
