//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A target is one of the servers that a figure compares, with the load that asks
// the same of it.
type target struct {
	server *server
	load   load
}

// compare measures targets in alternation and prints a line for each: the median
// rate of its turns, the latencies of all of them, and the rate as a part of the
// last target's, which is the yardstick.
func (b *bench) compare(ctx context.Context, label string, targets ...target) error {
	const warmUp = time.Second
	for _, t := range targets {
		// Every object is made once before anything is measured.
		_, err := t.load.once(ctx, t.server)
		if err == nil {
			_, err = t.load.run(ctx, t.server, warmUp)
		}
		if err != nil {
			return fmt.Errorf("warm up %s: %w", t.server.name, err)
		}
	}
	turns := make([][]*sample, len(targets))
	for round := range b.rounds {
		for i, t := range targets {
			profiled := b.profileOf(ctx, t.server, fmt.Sprintf("%s-%d", label, round))
			s, err := t.load.run(ctx, t.server, b.turn)
			profiled()
			if err != nil {
				return fmt.Errorf("%s: %w", t.server.name, err)
			}
			turns[i] = append(turns[i], s)
		}
	}
	yardstick := turns[len(turns)-1]
	for i, t := range targets {
		ratios := make([]float64, b.rounds)
		for round := range ratios {
			ratios[round] = turns[i][round].rate() / yardstick[round].rate()
		}
		b.report(label, t.server.name, turns[i], median(ratios))
	}
	return nil
}

// report prints the line of one target. A ratio of 0 is left out.
func (b *bench) report(label, name string, turns []*sample, ratio float64) {
	var (
		latency  histogram
		rates    = make([]float64, len(turns))
		cpuPerOp = make([]time.Duration, len(turns))
	)
	for i, s := range turns {
		latency.merge(&s.latency)
		rates[i] = s.rate()
		cpuPerOp[i] = s.cpuPerOp()
	}
	line := fmt.Sprintf("%-20s %-16s %9.0f/s", label, name, median(rates))
	if latency.total > 0 {
		line += fmt.Sprintf("  p50 %8.3f ms  p99 %8.3f ms", millis(latency.quantile(0.5)), millis(latency.quantile(0.99)))
	}
	line += fmt.Sprintf("  cpu %6.2f us/op", micros(median(cpuPerOp)))
	if ratio != 0 {
		line += fmt.Sprintf("  %4.0f %%", 100*ratio)
	}
	fmt.Fprintln(b.out, line)
}

// profileOf takes a CPU profile of a server that serves them; wait returns when it is
// written.
func (b *bench) profileOf(ctx context.Context, s *server, label string) (wait func()) {
	if s.debug == "" {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		seconds := max(1, int(b.turn.Seconds())-1)
		url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", s.debug, seconds)
		if err := save(ctx, url, filepath.Join(b.profile, strings.ReplaceAll(label, "/", "-")+".pprof")); err != nil {
			fmt.Fprintln(b.out, "no profile:", err)
		}
	}()
	return func() { <-done }
}

func save(ctx context.Context, url, path string) error {
	body, err := get(ctx, url)
	if err != nil {
		return err
	}
	return os.WriteFile(path, body, 0o644)
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s was answered with %s", url, resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// with starts servers, hands them to fn and stops them.
func (b *bench) with(ctx context.Context, yardsticks []string, fn func(node *server, yardsticks []*server) error) error {
	node, err := b.node(ctx)
	if err != nil {
		return err
	}
	defer node.stop(syscall.SIGTERM)
	started := make([]*server, len(yardsticks))
	for i, kind := range yardsticks {
		if started[i], err = b.yardstick(ctx, kind); err != nil {
			return err
		}
		defer started[i].stop(syscall.SIGKILL)
	}
	return fn(node, started)
}

func median[T float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
