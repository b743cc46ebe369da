package shard

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
	"github.com/holdfast-run/holdfast/runtime/internal/transport"
)

// A node is some shards over one log in one directory.
type node struct {
	log     *raftlog.Log
	flusher *replica.Flusher
	shards  []*Shard
	stores  []*Store
}

func startNode(t testing.TB, dir string, shards int) *node {
	t.Helper()
	n, err := tryNode(t, dir, shards)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func tryNode(t testing.TB, dir string, shards int) (*node, error) {
	t.Helper()
	log, err := raftlog.Open(filepath.Join(dir, "log"), raftlog.Options{OnFatal: func(err error) { t.Error(err) }})
	if err != nil {
		return nil, err
	}
	n := &node{log: log, flusher: replica.NewFlusher(replica.FlusherConfig{}), stores: make([]*Store, shards), shards: make([]*Shard, shards)}
	var leading, opening sync.WaitGroup
	errs := make([]error, shards)
	for i := range shards {
		leading.Add(1)
		opening.Go(func() {
			n.shards[i], errs[i] = Open(t.Context(), Config{
				ID:        placement.ShardID(i),
				NodeID:    "node-1",
				Path:      filepath.Join(dir, fmt.Sprintf("shard-%d.db", i)),
				Log:       log,
				Transport: transport.NewLocal("node-1"),
				Flusher:   n.flusher,
				OnFatal:   func(err error) { t.Error(err) },
				Lead: func(ctx context.Context, id placement.ShardID, store *Store) {
					n.stores[id] = store
					leading.Done()
					<-ctx.Done()
				},
			})
		})
	}
	opening.Wait()
	if err := errors.Join(errs...); err != nil {
		n.flusher.Stop()
		for _, s := range n.shards {
			if s != nil {
				err = errors.Join(err, s.Stop(t.Context()))
			}
		}
		return nil, errors.Join(err, log.Close())
	}
	leading.Wait()
	return n, nil
}

func (n *node) stop(t testing.TB) {
	t.Helper()
	n.flusher.Stop()
	for _, s := range n.shards {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}
	if err := n.log.Close(); err != nil {
		t.Error(err)
	}
}

func makeDir(t testing.TB, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func put(store *Store, id placement.ObjectID, key, value string) error {
	var b storage.Batch
	b.Reset(id)
	b.Create("test", "", false, 1)
	b.Put(storage.SpaceKey, key, []byte(value))
	done := make(chan error, 1)
	store.Commit(b.Bytes(), func(err error) { done <- err })
	return <-done
}

// TestEverythingAcknowledgedIsThere copies the directories of a busy node at random
// moments, as kill -9 would leave them, and counts what a new node finds in them.
func TestEverythingAcknowledgedIsThere(t *testing.T) {
	t.Parallel()
	const shards = 3
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 2))
	var ids [shards]placement.ObjectID
	for i := range ids {
		ids[i] = placement.NamedID("test", fmt.Sprint(i))
	}
	count := 0
	for round := range 4 {
		n := startNode(t, dir, shards)
		for i, store := range n.stores {
			for k := range count {
				v, ok, err := store.Get(ids[i], storage.SpaceKey, fmt.Sprint(k))
				if err != nil || !ok || string(v) != fmt.Sprint(k, i) {
					t.Fatalf("round %d: key %d of shard %d is %q, %v, %v", round, k, i, v, ok, err)
				}
			}
		}
		if round%2 == 1 {
			for _, s := range n.shards[:2] {
				if err := s.replica.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		more := 50 + rng.IntN(100)
		var wg sync.WaitGroup
		for i, store := range n.stores {
			wg.Go(func() {
				for k := count; k < count+more; k++ {
					if err := put(store, ids[i], fmt.Sprint(k), fmt.Sprint(k, i)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		count += more
		if round == 2 { // a clean stop
			n.stop(t)
			for _, s := range n.shards {
				if applied, durable := s.Applied(); applied != durable {
					t.Errorf("shard %d is durable up to %d of %d", s.ID(), durable, applied)
				}
			}
			continue
		}
		killed := t.TempDir()
		if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		n.stop(t)
		dir = killed
	}
}

func TestMissingStateIsMadeAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	id := placement.NamedID("test", "x")
	n := startNode(t, dir, 1)
	if err := put(n.stores[0], id, "k", "v"); err != nil {
		t.Fatal(err)
	}
	n.stop(t)
	path := filepath.Join(dir, "shard-0.db")
	if err := os.Truncate(path, 5000); err != nil {
		t.Fatal(err)
	}
	if _, err := tryNode(t, dir, 1); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "move the file away") {
		t.Errorf("truncated state: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	n = startNode(t, dir, 1)
	if v, ok, err := n.stores[0].Get(id, storage.SpaceKey, "k"); string(v) != "v" || !ok || err != nil {
		t.Errorf("got %q, %v, %v", v, ok, err)
	}
	n.stop(t)
}

func TestStartIsQuick(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, what := range []string{"a new node", "an old node"} {
		start := time.Now()
		n := startNode(t, dir, 33)
		t.Logf("%s leads 33 shards after %v", what, time.Since(start))
		n.stop(t)
	}
}

func TestDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const gib = 1 << 30
		var free, total atomic.Uint64
		free.Store(20 * gib)
		total.Store(100 * gib)
		d, err := WatchDisk(DiskConfig{
			Dirs:  []string{"data", "log", "data"},
			Usage: func(string) (uint64, uint64, error) { return free.Load(), total.Load(), nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Stop()
		for _, c := range []struct {
			free, total uint64
			full        bool
		}{
			{9 * gib, 100 * gib, false}, // under 10 %, but plenty
			{7 * gib, 100 * gib, true},
			{9 * gib, 100 * gib, true}, // hysteresis
			{10 * gib, 100 * gib, false},
			{2 * gib, 10 * gib, false},
			{gib - 1000, 10 * gib, true},
			{2 * gib, 10 * gib, false},
			{50 << 20, 100 << 20, true}, // half is free, but that is too little for anything
		} {
			free.Store(c.free)
			total.Store(c.total)
			time.Sleep(diskTick + 1)
			if err := d.Writable(); (err != nil) != c.full || c.full && !errors.Is(err, host.ErrStorageFull) {
				t.Errorf("%d of %d free: %v", c.free, c.total, err)
			}
		}
		if got := len(d.Collectors()); got != 2 {
			t.Errorf("%d directories are watched", got)
		}
		if (*Disk)(nil).Writable() != nil {
			t.Error("no disk is full")
		}
	})
}

func BenchmarkCommit(b *testing.B) {
	for _, shards := range []int{1, 32} {
		b.Run(fmt.Sprintf("shards=%d", shards), func(b *testing.B) {
			n := startNode(b, b.TempDir(), shards)
			var batches [256][]byte
			for i := range batches {
				var s storage.Batch
				s.Reset(placement.NamedID("test", fmt.Sprint(i)))
				s.Put(storage.SpaceKey, "key", make([]byte, 50))
				batches[i] = s.Bytes()
			}
			var wg sync.WaitGroup
			b.ResetTimer()
			start := time.Now()
			for i := range batches {
				wg.Go(func() {
					store := n.stores[i%shards]
					done := make(chan error, 1)
					for range b.N / len(batches) {
						store.Commit(batches[i], func(err error) { done <- err })
						if err := <-done; err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "commits/s")
			b.StopTimer()
			n.stop(b)
		})
	}
}
