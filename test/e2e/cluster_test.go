//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A trio is three nodes that have formed a cluster with three replicas of each shard.
type trio struct {
	t     *testing.T
	args  [3][]string
	data  [3]string
	nodes [3]*node
}

func newTrio(t *testing.T) *trio {
	t.Helper()
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	command(t, "secret", "--file", secret)
	c := &trio{t: t}
	addrs := []string{freeAddr(t), freeAddr(t), freeAddr(t)}
	for i, addr := range addrs {
		c.data[i] = filepath.Join(dir, fmt.Sprint(i))
		c.args[i] = []string{
			"--cluster-secret-file", secret, "--cluster-listen", addr, "--gossip-listen", freeAddr(t),
			"--bootstrap-expect", "3", "--join", strings.Join(addrs, ","),
		}
		c.nodes[i] = launch(t, c.data[i], c.args[i]...)
	}
	for _, n := range c.nodes {
		n.awaitReady()
	}
	eventually(t, "three replicas of every shard, owned by all nodes", func() bool {
		list := command(t, "members", "--json", "--cluster-secret-file", secret, "--at", addrs[0])
		return strings.Count(list, `"holds": 32,`) == 3 && !strings.Contains(list, `"owns": 0`) &&
			!strings.Contains(command(t, "shards", "--json", "--cluster-secret-file", secret, "--at", addrs[0]), `"moving": true`)
	})
	return c
}

// restart starts a node that has ended.
func (c *trio) restart(i int) { c.nodes[i] = start(c.t, c.data[i], c.args[i]...) }

// TestNodesAreLost kills, freezes and stops nodes of a cluster, one after another, while clients
// of another node increment counters of all shards. What was acknowledged is there in
// the end, through every node, and nothing that nobody asked for.
func TestNodesAreLost(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	const counters = 16
	var tallies [counters]tally
	var wg sync.WaitGroup
	var stopped atomic.Bool
	for i := range tallies {
		wg.Go(func() {
			for !stopped.Load() {
				tallies[i].asked.Add(1)
				status, _, err := c.nodes[0].try(http.MethodPost, fmt.Sprintf("/objects/counter/c%d/increment", i), "")
				if err == nil && status == http.StatusOK {
					tallies[i].acked.Add(1)
				}
			}
		})
	}
	// progress waits until every counter answers again.
	progress := func(what string) {
		t.Helper()
		begin := time.Now()
		var before [counters]int64
		for i := range tallies {
			before[i] = tallies[i].acked.Load()
		}
		eventually(t, "progress: "+what, func() bool {
			for i := range tallies {
				if tallies[i].acked.Load() < before[i]+3 {
					return false
				}
			}
			return true
		})
		t.Logf("%s: all counters answer after %v", what, time.Since(begin).Round(time.Millisecond))
	}
	progress("in peace")
	c.nodes[1].kill()
	progress("one is killed")
	c.restart(1)
	progress("it is back")
	must(t, c.nodes[2].cmd.Process.Signal(syscall.SIGSTOP))
	progress("one is frozen")
	must(t, c.nodes[2].cmd.Process.Signal(syscall.SIGCONT))
	progress("it goes on")
	if status := c.nodes[1].stop(syscall.SIGTERM); status != 0 {
		t.Errorf("ended with status %d", status)
	}
	refuse(t, 1, "--cluster-secret-file", "--listen", freeAddr(t), "--data", c.data[1])
	progress("one is stopped")
	c.restart(1)
	stopped.Store(true)
	wg.Wait()
	if status := c.nodes[2].stop(syscall.SIGTERM); status != 0 {
		t.Errorf("ended with status %d", status)
	}
	refuse(t, 1, "--cluster-secret-file", "--listen", freeAddr(t), "--data", c.data[2])
	c.restart(2)
	for _, n := range c.nodes {
		for i := range tallies {
			if v := n.value(i); v < tallies[i].acked.Load() || v > tallies[i].asked.Load() {
				t.Errorf("counter %d is %d: %d increments were acknowledged, %d were asked for", i, v, tallies[i].acked.Load(), tallies[i].asked.Load())
			}
		}
	}
}

// TestStrangersAreRefused starts nodes that do not belong to a cluster.
func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secret, other := filepath.Join(dir, "secret"), filepath.Join(dir, "other")
	command(t, "secret", "--file", secret)
	command(t, "secret", "--file", other)
	at := freeAddr(t)
	start(t, filepath.Join(dir, "a"), "--cluster-secret-file", secret, "--cluster-listen", at, "--gossip-listen", freeAddr(t), "--bootstrap")
	refuse(t, 1, "secret", "members", "--cluster-secret-file", other, "--at", at)
	refuse(t, 2, "needs --cluster-secret-file", "--listen", freeAddr(t), "--data", filepath.Join(dir, "b"), "--bootstrap")
	refuse(t, 1, "--bootstrap", "--listen", freeAddr(t), "--data", filepath.Join(dir, "c"), "--cluster-secret-file", secret, "--cluster-listen", freeAddr(t))
}
