//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// command runs a command of the binary, which must do well.
func command(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, stderr.String())
	}
	return stdout.String()
}

// TestSnapshotUnderLoad saves a cluster of three nodes while counters are incremented and restores
// it into a new one: what was acknowledged before the save is there, and nothing that nobody
// asked for. Then a second node joins the
// restored one, and is given its share of the objects.
func TestSnapshotUnderLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secret, file := filepath.Join(dir, "secret"), filepath.Join(dir, "snapshot")
	command(t, "secret", "--file", secret)
	member := func(name string, args ...string) (*node, string) {
		addr := freeAddr(t)
		all := append([]string{"--cluster-secret-file", secret, "--cluster-listen", addr, "--gossip-listen", freeAddr(t)}, args...)
		return start(t, filepath.Join(dir, name), all...), addr
	}
	first, at := member("a", "--bootstrap")
	_, _ = member("b", "--join", at)
	third, _ := member("c", "--join", at)
	spread := func(nodes, holds int) {
		t.Helper()
		eventually(t, "owners on all nodes", func() bool {
			list := command(t, "members", "--json", "--cluster-secret-file", secret, "--at", at)
			return strings.Count(list, fmt.Sprintf(`"holds": %d,`, holds)) == nodes && !strings.Contains(list, `"owns": 0`)
		})
	}
	spread(3, 32)

	load := newLoad(first, 16)
	eventually(t, "increments", func() bool { return load.acked() > 500 })
	before := make([]int64, len(load.counters))
	for i, c := range load.counters {
		before[i] = c.acked.Load()
	}
	said := command(t, "snapshot", "save", file, "--cluster-secret-file", secret, "--at", at)
	if !strings.Contains(said, "saved 32 shards") {
		t.Errorf("it said %q", said)
	}
	during := load.acked()
	eventually(t, "further increments", func() bool { return load.acked() > during+100 })
	load.stop()
	command(t, "snapshot", "check", file)
	refuse(t, 1, "exists already", "snapshot", "save", file, "--cluster-secret-file", secret, "--at", at)
	third.stop(syscall.SIGTERM)
	refuse(t, 1, "not alone in its cluster", "snapshot", "save", file+"2", "--data", filepath.Join(dir, "c"))

	restored := filepath.Join(dir, "restored")
	command(t, "snapshot", "restore", file, "--data", restored)
	refuse(t, 1, "is not empty", "snapshot", "restore", file, "--data", restored)
	alone := start(t, restored)
	values := make([]int64, len(before))
	for i, c := range load.counters {
		values[i] = alone.value(i)
		if values[i] < before[i] || values[i] > c.asked.Load() {
			t.Errorf("counter %d is %d: %d increments were acknowledged before the save, %d were asked for", i, values[i], before[i], c.asked.Load())
		}
	}
	if status := alone.stop(syscall.SIGTERM); status != 0 {
		t.Errorf("ended with status %d", status)
	}

	grown, at := member("restored") // the old cluster, which still runs, is another one
	fourth, _ := member("e", "--join", at)
	spread(2, 16) // two nodes keep one replica of each shard: half of them have moved
	for i, want := range values {
		if got := fourth.value(i); got != want {
			t.Errorf("counter %d is %d through the new node, want %d", i, got, want)
		}
		fourth.do(http.MethodPost, fmt.Sprintf("/objects/counter/c%d/increment", i), "", http.StatusOK)
		if got := grown.value(i); got != want+1 {
			t.Errorf("counter %d is %d after an increment, want %d", i, got, want+1)
		}
	}
}

func TestSnapshotMistakes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "none")
	refuse(t, 2, "usage: node snapshot", "snapshot", "save")
	refuse(t, 2, "usage: node snapshot", "snapshot", "restore", file)
	refuse(t, 1, "the cluster's secret is missing", "snapshot", "save", file)
	refuse(t, 1, "no such file", "snapshot", "restore", file, "--data", filepath.Join(dir, "data"))
	refuse(t, 1, "is not the data directory of a node", "snapshot", "save", file, "--data", filepath.Join(dir, "data"))
}
