package secret

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// ErrStranger means that a certificate does not come from an authority of ours: the
// other side has another secret.
var ErrStranger = errors.New("the certificate comes from another authority")

// A certificate of a node names it by two URIs.
const (
	scheme      = "holdfast"
	clusterHost = "cluster"
	nodeHost    = "node"
)

// Certificates minted here are as good as the secret behind them, at any time: nodes
// whose clocks are wrong must still find each other.
var (
	always = time.Unix(0, 0).UTC()
	never  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) // RFC 5280: no expiry
)

// An authority signs the certificates of nodes. The same seed gives the same authority on
// every node, to the last bit.
type authority struct {
	certificate *x509.Certificate
	key         ed25519.PrivateKey
}

func newAuthority(seed []byte) (*authority, error) {
	key := ed25519.NewKeyFromSeed(seed)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "holdfast cluster"},
		NotBefore:             always,
		NotAfter:              never,
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{certificate, key}, nil
}

// mint makes a new key for a node, and a certificate for it.
func (a *authority) mint(cluster string, node placement.NodeID) (tls.Certificate, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "holdfast node"},
		NotBefore:    always,
		NotAfter:     never,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{
			{Scheme: scheme, Host: clusterHost, Path: "/" + cluster},
			{Scheme: scheme, Host: nodeHost, Path: "/" + string(node)},
		},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, public, a.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, nil
}

// Certificate mints a certificate of the current secret for a node. A node that belongs
// to no cluster yet gives the empty name.
func (r *Ring) Certificate(cluster string, node placement.NodeID) (tls.Certificate, error) {
	c, err := r.all()[0].authority.mint(cluster, node)
	if err != nil {
		return c, fmt.Errorf("mint a certificate: %w", err)
	}
	return c, nil
}

// Verify checks that a peer's certificate was minted from one of the secrets, and returns
// the names in it.
func (r *Ring) Verify(chain []*x509.Certificate) (cluster string, node placement.NodeID, err error) {
	roots := x509.NewCertPool()
	for _, d := range r.all() {
		roots.AddCert(d.authority.certificate)
	}
	if err := verify(chain, roots); err != nil {
		return "", "", err
	}
	cluster, node, ok := names(chain[0])
	if !ok {
		return "", "", fmt.Errorf("%w: it names no node", ErrStranger)
	}
	return cluster, node, nil
}

func verify(chain []*x509.Certificate, roots *x509.CertPool) error {
	if len(chain) == 0 {
		return fmt.Errorf("%w: there is none", ErrStranger)
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStranger, err)
	}
	return nil
}

// names reads the URIs of a certificate; ok is false if there is no node among them.
func names(c *x509.Certificate) (cluster string, node placement.NodeID, ok bool) {
	for _, u := range c.URIs {
		if u.Scheme != scheme || len(u.Path) == 0 {
			continue
		}
		switch u.Host {
		case clusterHost:
			cluster = u.Path[1:]
		case nodeHost:
			node = placement.NodeID(u.Path[1:])
		}
	}
	return cluster, node, node != ""
}
