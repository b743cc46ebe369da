package transport

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-run/holdfast/placement"
)

// The protocol between nodes. Nodes of different versions refuse each other.
const protocolVersion = 1

// Why a connection is refused. Both sides get such an error.
var (
	ErrOtherSecret  = errors.New("the other side has another secret")
	ErrOtherCluster = errors.New("the other side belongs to another cluster")
	ErrOtherVersion = errors.New("the other side speaks another version of the protocol")
	ErrOtherNode    = errors.New("another node answers there")
	ErrRefused      = errors.New("the other side refused")

	errNotTLS = errors.New("what came is not the protocol of nodes")
)

// Services of the package itself.
const (
	serviceControl  = 'c'
	serviceBulk     = 'b'
	serviceSnapshot = 's'
	serviceWeb      = 'h'
)

// A hello is what the node that connects says first; the other answers with a hello of its
// own, or says why not. In every version of the protocol the beginning is the same:
//
//	service u8 | version u16 | length u16 | cluster, node, addressee: u8 length and bytes
//	             version u16 | length u16 | verdict u8 | cluster, node; or the text of a refusal
type hello struct {
	service   byte
	version   uint16
	cluster   string
	node      placement.NodeID
	addressee placement.NodeID // empty: whoever it is
}

const (
	maxName  = 128  // bytes of the name of a cluster or node
	maxHello = 1024 // bytes of its body
)

const (
	verdictWelcome = 0
	verdictRefused = 1
)

// A conn is a connection with a node that has proved who it is. net/http must not see that it
// is TLS: what it carries was agreed on already.
type conn struct {
	net.Conn
	raw     net.Conn
	net     *Network
	peer    placement.NodeID
	guest   bool // has the secret, and belongs to no cluster
	inbound bool
}

// Close says good-bye and closes.
func (c *conn) Close() error {
	c.net.forget(c)
	return c.Conn.Close()
}

// kill closes at once.
func (c *conn) kill() {
	c.net.forget(c)
	_ = c.raw.Close()
}

// remember counts a connection and keeps it for Stop.
func (n *Network) remember(c *conn) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.stopped:
		return ErrClosed
	case c.inbound && n.inbound >= n.cfg.MaxConns:
		return fmt.Errorf("%w: it has %d connections", ErrRefused, n.inbound)
	}
	n.conns[c] = struct{}{}
	n.metrics.conns.WithLabelValues(direction(c)).Inc()
	if c.inbound {
		n.inbound++
	}
	return nil
}

func (n *Network) forget(c *conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.conns[c]; !ok {
		return
	}
	delete(n.conns, c)
	n.metrics.conns.WithLabelValues(direction(c)).Dec()
	if c.inbound {
		n.inbound--
	}
}

func direction(c *conn) string {
	if c.inbound {
		return "in"
	}
	return "out"
}

// An identity is what a certificate says. Names that it leaves open are empty.
type identity struct {
	cluster string
	node    placement.NodeID
}

// dial connects to an address, where a certain node is expected, or any if want is empty.
func (n *Network) dial(ctx context.Context, addr string, want placement.NodeID, service byte) (*conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.DialTimeout, ErrTimeout)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)() //nolint:contextcheck // the end of the Network ends it, too
	raw, err := n.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })()
	c, err := n.introduce(ctx, raw, want, service)
	if err != nil {
		_ = raw.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		n.refusedOut(addr, err)
		return nil, err
	}
	return c, nil
}

// introduce is the handshake of the side that connects.
func (n *Network) introduce(ctx context.Context, raw net.Conn, want placement.NodeID, service byte) (*conn, error) {
	var id identity
	t := tls.Client(counted{raw, n.metrics.bytesIn, n.metrics.bytesOut}, n.clientTLS(&id))
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, explain(err)
	}
	said, err := n.ask(t, hello{service: service, version: protocolVersion, cluster: n.cfg.Cluster, node: n.cfg.Self, addressee: want})
	if err != nil {
		return nil, explain(err)
	}
	_, node, err := n.admit(id, said)
	switch {
	case err != nil:
		return nil, err
	case want != "" && node != want:
		return nil, fmt.Errorf("%w: %s", ErrOtherNode, node)
	}
	c := &conn{Conn: t, raw: raw, net: n, peer: node}
	return c, n.remember(c)
}

// ask says hello and waits for the answer.
func (n *Network) ask(t io.ReadWriter, h hello) (hello, error) {
	_, written := t.Write(h.encode())
	var start [4]byte
	if _, err := io.ReadFull(t, start[:]); err != nil {
		return hello{}, errors.Join(err, written) // the reason, if there is one, has come before the end
	}
	body, err := readBody(t, start[2:])
	if err != nil {
		return hello{}, err
	}
	if version := binary.BigEndian.Uint16(start[:]); version != protocolVersion {
		return hello{}, otherVersion(version)
	}
	if len(body) == 0 || body[0] != verdictWelcome {
		return hello{}, fmt.Errorf("%w: %s", ErrRefused, body[min(1, len(body)):])
	}
	return decodeHello(body[1:], false)
}

// welcome is the handshake of the side that accepts.
func (n *Network) welcome(raw net.Conn) (*conn, byte, error) {
	if err := raw.SetDeadline(time.Now().Add(n.cfg.HandshakeTimeout)); err != nil {
		return nil, 0, err
	}
	defer context.AfterFunc(n.ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })()
	var id identity
	t := tls.Server(counted{raw, n.metrics.bytesIn, n.metrics.bytesOut}, n.serverTLS(&id))
	if err := t.HandshakeContext(n.ctx); err != nil {
		return nil, 0, explain(err)
	}
	h, err := readHello(t)
	if err != nil && !errors.Is(err, ErrOtherVersion) {
		return nil, 0, explain(err)
	}
	var c *conn
	if err == nil {
		c, err = n.host(t, raw, id, h)
	}
	if _, werr := t.Write(n.answer(err)); werr != nil && err == nil {
		err = werr
	}
	if err != nil {
		if c != nil {
			n.forget(c)
		}
		_ = t.CloseWrite() // so that the other side need not wait for the end
		return nil, 0, err
	}
	return c, h.service, raw.SetDeadline(time.Time{})
}

// host decides whether somebody may use a service.
func (n *Network) host(t *tls.Conn, raw net.Conn, id identity, h hello) (*conn, error) {
	cluster, node, err := n.admit(id, h)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: t, raw: raw, net: n, peer: node, inbound: true}
	c.guest = cluster == "" || cluster != n.cfg.Cluster
	switch {
	case h.addressee != "" && h.addressee != n.cfg.Self:
		return nil, fmt.Errorf("%w: node %s is wanted, this is %s", ErrOtherNode, h.addressee, n.cfg.Self)
	case h.service != serviceWeb && n.services[h.service] == nil:
		return nil, fmt.Errorf("%w: there is no service %q", ErrRefused, h.service)
	case h.service != serviceWeb && c.guest:
		return nil, fmt.Errorf("%w: service %q is for nodes of cluster %s only", ErrRefused, h.service, n.cfg.Cluster)
	}
	return c, n.remember(c)
}

// admit compares what a peer says with its certificate and with us, and returns its names.
// A certificate that names nobody was made by an operator who trusts his nodes' words.
func (n *Network) admit(id identity, said hello) (cluster string, node placement.NodeID, err error) {
	switch {
	case id.node != "" && id.node != said.node:
		err = fmt.Errorf("%w: it says it is node %q, and its certificate %q", ErrRefused, said.node, id.node)
	case id.cluster != "" && id.cluster != said.cluster:
		err = fmt.Errorf("%w: it says it is of cluster %q, and its certificate %q", ErrRefused, said.cluster, id.cluster)
	case said.node == "":
		err = fmt.Errorf("%w: it names no node", ErrRefused)
	case said.cluster != "" && n.cfg.Cluster != "" && said.cluster != n.cfg.Cluster:
		err = fmt.Errorf("%w: node %s is of cluster %s, node %s of %s", ErrOtherCluster, said.node, said.cluster, n.cfg.Self, n.cfg.Cluster)
	}
	return said.cluster, said.node, err
}

// answer encodes the answer to a hello.
func (n *Network) answer(refusal error) []byte {
	body := []byte{verdictWelcome}
	if refusal == nil {
		body = appendName(appendName(body, n.cfg.Cluster), string(n.cfg.Self))
	} else {
		body[0] = verdictRefused
		text := refusal.Error()
		body = append(body, text[:min(len(text), maxHello-1)]...)
	}
	b := binary.BigEndian.AppendUint16(nil, protocolVersion)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(body))), body...)
}

func (h hello) encode() []byte {
	body := appendName(nil, h.cluster)
	body = appendName(body, string(h.node))
	body = appendName(body, string(h.addressee))
	b := binary.BigEndian.AppendUint16([]byte{h.service}, h.version)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(body))), body...)
}

func appendName(b []byte, name string) []byte { return append(append(b, byte(len(name))), name...) }

func readHello(r io.Reader) (hello, error) {
	var start [5]byte
	if _, err := io.ReadFull(r, start[:]); err != nil {
		return hello{}, err
	}
	body, err := readBody(r, start[3:])
	if err != nil {
		return hello{}, err
	}
	version := binary.BigEndian.Uint16(start[1:])
	if version != protocolVersion {
		return hello{}, otherVersion(version)
	}
	h, err := decodeHello(body, true)
	h.service, h.version = start[0], version
	return h, err
}

// otherVersion names both versions; theirs tells what it was in the same words.
func otherVersion(theirs uint16) error {
	return fmt.Errorf("%w: %d, this node speaks %d", ErrOtherVersion, theirs, protocolVersion)
}

func readBody(r io.Reader, length []byte) ([]byte, error) {
	n := binary.BigEndian.Uint16(length)
	if n > maxHello {
		return nil, fmt.Errorf("%w: a hello of %d bytes", errNotTLS, n)
	}
	body := make([]byte, n)
	_, err := io.ReadFull(r, body)
	return body, err
}

func decodeHello(body []byte, addressed bool) (hello, error) {
	var h hello
	ok := true
	next := func() string {
		if !ok || len(body) == 0 || len(body) <= int(body[0]) || body[0] > maxName {
			ok = false
			return ""
		}
		name := string(body[1 : 1+body[0]])
		body = body[1+body[0]:]
		return name
	}
	h.cluster, h.node = next(), placement.NodeID(next())
	if addressed {
		h.addressee = placement.NodeID(next())
	}
	if !ok || len(body) > 0 {
		return hello{}, fmt.Errorf("%w: malformed hello", errNotTLS)
	}
	return h, nil
}

// clientTLS and serverTLS are made for each connection: so its certificate is of the secret
// that is current, and what it says of the peer has a place.
func (n *Network) clientTLS(peer *identity) *tls.Config {
	c := n.baseTLS(peer)
	c.InsecureSkipVerify = true // names and authorities are checked by VerifyConnection
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return n.certificate() }
	return c
}

func (n *Network) serverTLS(peer *identity) *tls.Config {
	c := n.baseTLS(peer)
	c.ClientAuth = tls.RequireAnyClientCert
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return n.certificate() }
	return c
}

func (n *Network) baseTLS(peer *identity) *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		SessionTicketsDisabled:      true, // each connection is verified anew
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) (err error) {
			peer.cluster, peer.node, err = n.cfg.Credentials.Verify(s.PeerCertificates)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrOtherSecret, err)
			}
			return nil
		},
	}
}

func (n *Network) certificate() (*tls.Certificate, error) {
	c, err := n.cfg.Credentials.Certificate(n.cfg.Cluster, n.cfg.Self)
	if err != nil {
		return nil, err
	}
	return &c, nil
}

// explain says what an error of TLS means between nodes.
func explain(err error) error {
	var op *net.OpError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &op) && op.Op == "remote error":
		return fmt.Errorf("%w: it refuses this node's certificate (%w)", ErrOtherSecret, err)
	case errors.As(err, &record):
		return fmt.Errorf("%w: %w", errNotTLS, err)
	}
	return err
}

// counted counts the bytes of a connection.
type counted struct {
	net.Conn
	in, out prometheus.Counter
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.in.Add(float64(n))
	return n, err
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.out.Add(float64(n))
	return n, err
}
