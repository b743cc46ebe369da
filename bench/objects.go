//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const manyObjects = 10_000

func counterHot(ctx context.Context, b *bench) error {
	return b.counters(ctx, "counter-hot", names("hot", 1))
}

func counterMany(ctx context.Context, b *bench) error {
	return b.counters(ctx, "counter-many", names("many", manyObjects))
}

func (b *bench) counters(ctx context.Context, label string, names []string) error {
	requests := make([][]byte, len(names))
	for i, name := range names {
		requests[i] = increment(name)
	}
	return b.with(ctx, []string{fsyncHTTP, bareHTTP}, func(node *server, ys []*server) error {
		for _, conns := range []int{64, 256} {
			l := load{conns: conns, requests: requests}
			err := b.compare(ctx, fmt.Sprintf("%s/%d", label, conns), target{node, l}, target{ys[1], l}, target{ys[0], l})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func ratelimitHot(ctx context.Context, b *bench) error {
	return b.ratelimits(ctx, "ratelimit-hot", names("hot", 1))
}

func ratelimitMany(ctx context.Context, b *bench) error {
	return b.ratelimits(ctx, "ratelimit-many", names("many", manyObjects))
}

func (b *bench) ratelimits(ctx context.Context, label string, names []string) error {
	requests := make([][]byte, len(names))
	for i, name := range names {
		requests[i] = request("POST", "/objects/ratelimit/"+name+"/check?limit=1000000000&window=60s")
	}
	return b.with(ctx, []string{bareHTTP}, func(node *server, ys []*server) error {
		l := load{conns: 64, requests: requests}
		return b.compare(ctx, label+"/64", target{node, l}, target{ys[0], l})
	})
}

// cold measures objects that are not in memory: those that were never there, and
// those that went to sleep.
func cold(ctx context.Context, b *bench) error {
	const asleep = 15 * time.Second // a little more than the node's idle time
	return b.with(ctx, nil, func(node *server, _ []*server) error {
		var create, wake load
		create.conns, wake.conns = 64, 1
		for _, name := range names("cold", 2*manyObjects) {
			create.requests = append(create.requests, increment(name))
			wake.requests = append(wake.requests, request("GET", "/objects/counter/"+name))
		}
		// Awake objects of one burst are neighbours in memory; asleep ones are not.
		rand.Shuffle(len(wake.requests), func(i, j int) {
			wake.requests[i], wake.requests[j] = wake.requests[j], wake.requests[i]
		})
		wake.requests = wake.requests[:manyObjects/2]
		created, err := create.once(ctx, node)
		if err != nil {
			return err
		}
		b.report("cold/new-objects", node.name, []*sample{created}, 0)
		sleep(ctx, asleep)
		woken, err := wake.once(ctx, node)
		if err != nil {
			return err
		}
		b.report("cold/first-answer", node.name, []*sample{woken}, 0)
		again, err := wake.once(ctx, node)
		if err != nil {
			return err
		}
		b.report("cold/second-answer", node.name, []*sample{again}, 0)
		return nil
	})
}

// startMany stores many objects and measures how long a node needs until it is
// ready on top of them, stopped in good order and killed.
func startMany(ctx context.Context, b *bench) error {
	dir, err := os.MkdirTemp(b.scratch, "start-")
	if err != nil {
		return err
	}
	node, err := b.nodeOn(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { node.stop(syscall.SIGKILL) }()
	create := load{conns: 256}
	for _, name := range names("stored", b.objects) {
		create.requests = append(create.requests, increment(name))
	}
	created, err := create.once(ctx, node)
	if err != nil {
		return err
	}
	b.report("start/create", node.name, []*sample{created}, 0)
	fmt.Fprintf(b.out, "%-20s %-16s %d MB resident right after creating %d objects\n", "start/memory", node.name, node.resident()>>20, b.objects)
	for _, ending := range []struct {
		name string
		sig  syscall.Signal
	}{{"killed", syscall.SIGKILL}, {"stopped", syscall.SIGTERM}, {"stopped-again", syscall.SIGTERM}} {
		begin := time.Now()
		node.stop(ending.sig)
		stopped := time.Since(begin)
		begin = time.Now()
		if node, err = b.nodeOn(ctx, dir); err != nil {
			return err
		}
		fmt.Fprintf(b.out, "%-20s %-16s ready after %.3f s (stopping took %.3f s), %d MB on disk, %d MB resident\n", "start/"+ending.name, node.name,
			time.Since(begin).Seconds(), stopped.Seconds(), diskUse(filepath.Join(dir, "data"))>>20, node.resident()>>20)
	}
	return nil
}

func increment(name string) []byte {
	return request("POST", "/objects/counter/"+name+"/increment")
}

func names(prefix string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return names
}

// diskUse returns the bytes that the files below a directory occupy.
func diskUse(dir string) int64 {
	var total int64
	_ = filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				total += st.Blocks * 512
			}
		}
		return nil // files come and go while the node runs
	})
	return total
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
