//go:build linux

// Bench measures a node from outside, next to yardsticks that do the same work
// with nothing around it, and prints one line per figure.
//
//	go run ./bench                    every scenario but the slow ones
//	go run ./bench counter-hot room   the ones named
//	go run ./bench -list              what there is
//
// The node and every yardstick are processes of their own, so that the CPU time of
// each can be read from /proc. Whatever is compared runs in alternation within one
// run: a figure from another hour or another machine compares nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// A scenario is one question and the code that measures the answer.
type scenario struct {
	name, about string
	slow        bool // runs only if named
	run         func(ctx context.Context, b *bench) error
}

func scenarios() []scenario {
	return []scenario{
		{"counter-hot", "durable increments of one counter over 64 and 256 connections", false, counterHot},
		{"counter-many", "durable increments spread over 10 000 counters", false, counterMany},
		{"ratelimit-hot", "checks of one rate-limit key", false, ratelimitHot},
		{"ratelimit-many", "checks spread over 10 000 rate-limit keys", false, ratelimitMany},
		{"room", "fan-out to 500 sockets: a chat room with durable history, and a watched counter", false, room},
		{"cold", "new objects per second, and the first answer of an object that is asleep", false, cold},
		{"idle-sockets", "memory of an open socket whose object is asleep", true, idleSockets},
		{"start-1m", "start-up time with many stored objects", true, startMany},
	}
}

// A bench is one run of the program: its flags, and what is started for it.
type bench struct {
	out      io.Writer
	url      string        // of a node that runs already; "" starts one
	pid      int           // of that node, for its CPU time
	turn     time.Duration // how long each target is measured at a time
	rounds   int           // how many turns each target gets
	sockets  int           // of idle-sockets
	objects  int           // of start-1m
	profile  string        // directory for CPU profiles of the node; "" takes none
	scratch  string        // temporary directory of this run
	nodePath string        // the built cmd/node
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 && args[0] == "yardstick" {
		return serveYardstick(ctx, args[1:])
	}
	b := &bench{out: out}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&b.url, "url", "", "measure the node at this `address` (host:port) instead of starting one")
	flags.IntVar(&b.pid, "pid", 0, "with -url: the node's process `id`, to read its CPU time")
	flags.DurationVar(&b.turn, "turn", 5*time.Second, "how long each target is measured at a time")
	flags.IntVar(&b.rounds, "rounds", 3, "how many turns each target gets, in alternation")
	flags.IntVar(&b.sockets, "sockets", 10_000, "idle-sockets: how many")
	flags.IntVar(&b.objects, "objects", 1_000_000, "start-1m: how many objects are stored")
	flags.StringVar(&b.profile, "profile", "", "write a CPU profile of the node for each comparison into this `directory`")
	list := flags.Bool("list", false, "list the scenarios and exit")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	all := scenarios()
	if *list {
		for _, s := range all {
			fmt.Fprintf(out, "%-16s %s\n", s.name, s.about)
		}
		return nil
	}
	chosen, err := choose(all, flags.Args())
	if err != nil {
		return err
	}
	if b.scratch, err = os.MkdirTemp("", "holdfast-bench-"); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(b.scratch) }()
	for _, s := range chosen {
		fmt.Fprintf(out, "# %s: %s\n", s.name, s.about)
		if err := s.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func choose(all []scenario, names []string) ([]scenario, error) {
	if len(names) == 0 {
		return slices.DeleteFunc(all, func(s scenario) bool { return s.slow }), nil
	}
	var chosen []scenario
	for _, name := range names {
		i := slices.IndexFunc(all, func(s scenario) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no scenario %q; -list names them", name)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}
