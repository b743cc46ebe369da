package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/secret"
)

// Cluster says how a node is one of several. SecretFile is required; every other zero value
// means the default given.
type Cluster struct {
	// SecretFile holds the cluster's secret, or several during a rotation; see [NewSecret].
	// Everybody who has it may do everything in the cluster.
	SecretFile string
	// CertificateFile, KeyFile and AuthoritiesFile hold certificates of your own for the
	// connections between nodes, in place of those derived from the secret. All or none.
	CertificateFile, KeyFile, AuthoritiesFile string

	// Listen is the address that other nodes connect to; "127.0.0.1:8788".
	Listen string
	// Gossip is the address of the gossip, TCP and UDP; the host of Listen and the port after it.
	Gossip string
	// Advertise is the host, or host:port, at which other nodes reach this one: behind NAT, in a
	// container, or if Listen names no particular host. Default: Listen.
	Advertise string
	// Zone is where the node stands: replicas are spread over zones.
	Zone string

	// Bootstrap lets a node with an empty data directory found a new cluster.
	Bootstrap bool
	// Expect lets so many nodes with empty data directories, which all name each other in
	// Join, found a new cluster together.
	Expect int
	// Join are addresses of other nodes of the cluster, Listen of each.
	Join []string

	// Network is what the node reaches others by; the machine's. Tests give another one.
	Network Network
}

// A Network is where a node listens and dials.
type Network interface {
	Listen(ctx context.Context, addr string) (net.Listener, error)
	ListenPacket(ctx context.Context, addr string) (net.PacketConn, error)
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

const (
	defaultClusterListen = "127.0.0.1:8788"
	maxExpect            = 64
)

func (c Cluster) withDefaults() Cluster {
	if c.Listen == "" {
		c.Listen = defaultClusterListen
	}
	if c.Gossip == "" {
		if host, port, err := net.SplitHostPort(c.Listen); err == nil {
			if n, err := strconv.Atoi(port); err == nil {
				c.Gossip = net.JoinHostPort(host, strconv.Itoa(n+1))
			}
		}
	}
	if c.Network == nil {
		c.Network = machine{}
	}
	return c
}

func (c Cluster) check() error {
	if c.SecretFile == "" {
		return errors.New("a cluster needs a secret: make one with `node secret`, and give its file to every node")
	}
	own := 0
	for _, f := range []string{c.CertificateFile, c.KeyFile, c.AuthoritiesFile} {
		if f != "" {
			own++
		}
	}
	switch {
	case own != 0 && own != 3:
		return errors.New("certificates of your own are three files: certificate, key and authorities")
	case c.Bootstrap && (len(c.Join) > 0 || c.Expect > 0):
		return errors.New("a node either founds a cluster (bootstrap) or joins one, not both; several that start together expect each other")
	case c.Expect < 0 || c.Expect > maxExpect:
		return fmt.Errorf("%d nodes are expected, want 1 to %d", c.Expect, maxExpect)
	case c.Expect > 0 && c.Expect > len(c.Join)+1:
		return fmt.Errorf("%d nodes are expected, but the addresses to join name %d", c.Expect, len(c.Join))
	}
	for _, addr := range append([]string{c.Listen, c.Gossip}, c.Join...) {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("the address %q is not of the form host:port", addr)
		}
	}
	_, err := c.advertised(c.Listen)
	return err
}

// advertised returns the address at which others reach what listens on an address.
func (c Cluster) advertised(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", err
	}
	if c.Advertise != "" {
		host = c.Advertise
		if h, p, err := net.SplitHostPort(c.Advertise); err == nil {
			host = h
			if listen == c.Listen || p != "" && listen != c.Gossip {
				port = p
			}
		}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return "", fmt.Errorf("other nodes cannot connect to %q: say where they reach this one (advertise)", listen)
	}
	return net.JoinHostPort(host, port), nil
}

// credentials are what connections between nodes are proved with.
type credentials interface {
	transportCredentials
	Reload() error
}

// open reads the secret, and what else the node is proved with.
func (c Cluster) open() (*secret.Ring, credentials, error) {
	ring, err := secret.Open(c.SecretFile)
	if err != nil {
		return nil, nil, err
	}
	if c.CertificateFile == "" {
		return ring, ring, nil
	}
	files, err := secret.OpenFiles(c.CertificateFile, c.KeyFile, c.AuthoritiesFile)
	if err != nil {
		return nil, nil, err
	}
	return ring, files, nil
}

// NewSecret returns a new cluster secret, as its file has it.
func NewSecret() string { return secret.New() }

// machine is the machine's network.
type machine struct{}

func (machine) Listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", addr)
}

func (machine) ListenPacket(ctx context.Context, addr string) (net.PacketConn, error) {
	var lc net.ListenConfig
	return lc.ListenPacket(ctx, "udp", addr)
}

func (machine) Dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// self returns the node's record, as others are to know it.
func (n *Node) self() (placement.Node, error) {
	node := placement.Node{ID: n.dirs.id.Node, Addr: "alone", Version: Version, State: placement.NodeUp}
	c := n.cfg.Cluster
	if c == nil {
		return node, nil
	}
	var err error
	if node.Addr, err = c.advertised(n.clusterAddr); err != nil {
		return node, err
	}
	if node.Gossip, err = c.advertised(c.Gossip); err != nil {
		return node, err
	}
	node.Zone = c.Zone
	return node, nil
}
