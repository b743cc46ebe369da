package secret

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/holdfast-run/holdfast/placement"
)

// Files is a certificate that the operator made, in place of those a [Ring] mints. Whoever
// has one of the same authority is believed to be the node that it says it is, unless its
// certificate names a node by the URIs holdfast://node/ID and holdfast://cluster/ID.
// Methods may be called from any goroutine.
type Files struct {
	certificate, key, authorities string

	mu    sync.RWMutex // guards what follows
	own   tls.Certificate
	roots *x509.CertPool
}

// OpenFiles reads a certificate, its key, and the authorities of the others, all PEM.
func OpenFiles(certificate, key, authorities string) (*Files, error) {
	f := &Files{certificate: certificate, key: key, authorities: authorities}
	if err := f.Reload(); err != nil {
		return nil, err
	}
	return f, nil
}

// Reload reads the files again, for connections made from now on. After an error
// everything is as before.
func (f *Files) Reload() error {
	own, err := tls.LoadX509KeyPair(f.certificate, f.key)
	if err != nil {
		return fmt.Errorf("read the node's certificate %s: %w", f.certificate, err)
	}
	pem, err := os.ReadFile(f.authorities)
	if err != nil {
		return fmt.Errorf("read the authorities: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("read the authorities: %s holds no certificate", f.authorities)
	}
	if err := verify(parsed(own), roots); err != nil {
		return fmt.Errorf("the node's own certificate %s would be refused: %w", f.certificate, errors.Unwrap(err))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.own, f.roots = own, roots
	return nil
}

// Certificate returns the operator's certificate.
func (f *Files) Certificate(string, placement.NodeID) (tls.Certificate, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.own, nil
}

// Verify checks a peer's certificate and returns the names in it, if there are any.
func (f *Files) Verify(chain []*x509.Certificate) (cluster string, node placement.NodeID, err error) {
	f.mu.RLock()
	roots := f.roots
	f.mu.RUnlock()
	if err := verify(chain, roots); err != nil {
		return "", "", err
	}
	cluster, node, _ = names(chain[0])
	return cluster, node, nil
}

func parsed(c tls.Certificate) []*x509.Certificate {
	var chain []*x509.Certificate
	for _, der := range c.Certificate {
		if p, err := x509.ParseCertificate(der); err == nil {
			chain = append(chain, p)
		}
	}
	return chain
}
