package clustertest

import (
	"context"
	"net"
	"net/http"
	"time"
)

// Partition cuts members off from all others. Among themselves they stay connected.
func (c *Cluster) Partition(members ...*Member) {
	in := make(map[*Member]bool)
	for _, m := range members {
		in[m] = true
	}
	c.Note("partition %v", members)
	for _, a := range members {
		for _, b := range c.Members() {
			if !in[b] {
				c.net.Cut(a.Host(), b.Host())
			}
		}
	}
}

// Cut cuts the connection between two members, in both directions.
func (c *Cluster) Cut(a, b *Member) {
	c.Note("cut %s - %s", a, b)
	c.net.Cut(a.Host(), b.Host())
}

// CutOneWay lets nothing from one member arrive at another.
func (c *Cluster) CutOneWay(from, to *Member) {
	c.Note("cut %s > %s", from, to)
	c.net.CutOneWay(from.Host(), to.Host())
}

// Heal undoes every cut. What was sent meanwhile arrives now.
func (c *Cluster) Heal() {
	c.Note("heal")
	c.net.Heal()
}

// Delay makes everything in the network take so long, and up to jitter longer.
func (c *Cluster) Delay(d, jitter time.Duration) {
	c.Note("delay %v %v", d, jitter)
	c.net.Delay(d, jitter)
}

// Calm makes the network as fast as it was in the beginning.
func (c *Cluster) Calm() { c.net.Delay(c.cfg.Delay, c.cfg.Jitter) }

// Client returns an HTTP client in the network, on a host of its own. Its idle connections
// are to be closed in the end.
func (c *Cluster) Client(name string) *http.Client {
	host := c.net.Host(name)
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return host.Dial(ctx, addr) },
	}}
}
