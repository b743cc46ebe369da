// Package secret holds what makes a cluster a cluster: the secret its nodes share.
//
// The secret is a file of one to three lines, each a secret of its own. The first is
// used, all are accepted. So it is rotated without stopping anything: add the new one as
// the second line everywhere, then move it to the first, then remove the old one; after
// each step [Ring.Reload] on every node.
//
// From each secret everything else is derived (HKDF-SHA256): the key that encrypts
// gossip, and the key of a certificate authority. A node mints its own certificate from
// that authority for each connection, so nothing has to be handed out, stored or renewed:
//
//	secret --HKDF--> gossip key
//	       --HKDF--> Ed25519 authority --signs--> certificate of a node, naming it and its cluster
//
// [Files] is for those who bring certificates of their own. A [Ring] and a Files prove a
// node to others, and check the proofs of others; the caller compares the names.
package secret

import (
	"bufio"
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
)

const (
	// MinBytes is the least length of a secret, before it is written as text.
	MinBytes = 32
	// MaxSecrets is how many secrets a file may hold: the old, the new and one more.
	MaxSecrets = 3

	maxFile = 64 << 10
)

// Reasons for refusing a secret file.
var (
	ErrNone  = errors.New("holds no secret: `node secret` makes one")
	ErrShort = fmt.Errorf("holds fewer than %d bytes: `node secret` makes one that is long enough", MinBytes)
	ErrText  = errors.New("is not base64 text as `node secret` prints it")
	ErrMany  = fmt.Errorf("is one more than the %d that a file may hold", MaxSecrets)
	ErrTwice = errors.New("stands there a second time")
)

// New returns a new secret, as it stands in a file.
func New() string {
	b := make([]byte, MinBytes)
	rand.Read(b) // never fails: crypto/rand ends the process instead
	return base64.RawURLEncoding.EncodeToString(b)
}

// A Ring is the secrets of one file. Its methods may be called from any goroutine.
type Ring struct {
	path string

	mu      sync.RWMutex // guards secrets
	secrets []derived    // the current one first; never empty
}

// derived is all that is kept of one secret.
type derived struct {
	gossip    []byte
	authority *authority
}

// Open reads a secret file.
func Open(path string) (*Ring, error) {
	r := &Ring{path: path}
	if err := r.Reload(); err != nil {
		return nil, err
	}
	return r, nil
}

// Parse reads secrets from the text of a file. Such a Ring cannot be reloaded.
func Parse(text []byte) (*Ring, error) {
	secrets, err := parse(text)
	if err != nil {
		return nil, err
	}
	return &Ring{secrets: secrets}, nil
}

// Reload reads the file again. Connections made from now on use what it says; those that
// are open stay open. After an error the Ring is as before.
func (r *Ring) Reload() error {
	text, err := readFile(r.path)
	if err != nil {
		return fmt.Errorf("read the secret file: %w", err)
	}
	secrets, err := parse(text)
	if err != nil {
		return fmt.Errorf("secret file %s: %w", r.path, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets = secrets
	return nil
}

// GossipKeys returns the 32-byte keys for gossip: the first encrypts, all decrypt.
func (r *Ring) GossipKeys() [][]byte {
	all := r.all()
	keys := make([][]byte, len(all))
	for i, d := range all {
		keys[i] = bytes.Clone(d.gossip)
	}
	return keys
}

// String does not say what must not be said.
func (r *Ring) String() string { return fmt.Sprintf("%d secrets", len(r.all())) }

// LogValue is String for logs.
func (r *Ring) LogValue() slog.Value { return slog.StringValue(r.String()) }

func (r *Ring) all() []derived {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.secrets
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s has %d bytes, which is no secret file", path, info.Size())
	}
	return os.ReadFile(path)
}

// parse reads one secret a line. Empty lines and those that begin with # are passed over.
func parse(text []byte) ([]derived, error) {
	var secrets []derived
	seen := make(map[string]bool)
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		raw, err := decode(line)
		switch {
		case err != nil:
		case seen[string(raw)]:
			err = ErrTwice
		case len(secrets) == MaxSecrets:
			err = ErrMany
		}
		if err != nil {
			return nil, fmt.Errorf("line %d %w", n, err)
		}
		seen[string(raw)] = true
		d, err := derive(raw)
		if err != nil {
			return nil, err
		}
		secrets = append(secrets, d)
	}
	if err := lines.Err(); err != nil {
		return nil, ErrText
	}
	if len(secrets) == 0 {
		return nil, ErrNone
	}
	return secrets, nil
}

// decode accepts both alphabets of base64, padded or not: openssl makes secrets, too.
func decode(line string) ([]byte, error) {
	line = strings.TrimRight(line, "=")
	encoding := base64.RawURLEncoding
	if strings.ContainsAny(line, "+/") {
		encoding = base64.RawStdEncoding
	}
	raw, err := encoding.DecodeString(line)
	if err != nil {
		return nil, ErrText
	}
	if len(raw) < MinBytes {
		return nil, ErrShort
	}
	return raw, nil
}

// Each use of a secret has a key of its own. The names are part of the protocol.
const (
	gossipUse    = "holdfast gossip 1"
	authorityUse = "holdfast authority 1"
)

func derive(raw []byte) (derived, error) {
	gossip, err := hkdf.Key(sha256.New, raw, nil, gossipUse, 32)
	if err != nil {
		return derived{}, fmt.Errorf("derive the gossip key: %w", err)
	}
	seed, err := hkdf.Key(sha256.New, raw, nil, authorityUse, 32)
	if err != nil {
		return derived{}, fmt.Errorf("derive the authority: %w", err)
	}
	a, err := newAuthority(seed)
	if err != nil {
		return derived{}, fmt.Errorf("derive the authority: %w", err)
	}
	return derived{gossip, a}, nil
}
