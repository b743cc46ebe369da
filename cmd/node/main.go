// Node is a whole Holdfast node: durable objects with their storage and their
// WebSockets in one process. It runs the three classes that come with it; a program of
// your own that calls runtime.Start runs yours.
//
//	node [--listen 127.0.0.1:8787] [--data DIR] ...
//
// It exits with status 0 after a stop in good order (SIGTERM or SIGINT), with 2 if it
// was told something that makes no sense, and with 1 for everything else. A second
// signal ends it at once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/holdfast-run/holdfast/objects/chatroom"
	"github.com/holdfast-run/holdfast/objects/counter"
	"github.com/holdfast-run/holdfast/objects/ratelimit"
	"github.com/holdfast-run/holdfast/runtime"
)

func main() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr, signals))
}

// run is the program; it returns the exit status.
func run(args []string, getenv func(string) string, stdout, stderr io.Writer, signals <-chan os.Signal) int {
	s, err := load(args, getenv)
	switch {
	case errors.Is(err, flag.ErrHelp):
		usage(stdout)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "holdfast: %v (--help lists the flags)\n", err)
		return 2
	case s.version:
		fmt.Fprintln(stdout, version())
		return 0
	}
	tuneMemory(getenv)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go obey(signals, cancel) // until the process ends

	logger := s.logger(stderr)
	if err := serve(ctx, s, logger, stdout); err != nil {
		fmt.Fprintf(stderr, "holdfast: %v\n", err)
		if errors.Is(err, runtime.ErrConfiguration) {
			return 2
		}
		return 1
	}
	return 0
}

// obey ends the context at the first signal, and the process at the second.
func obey(signals <-chan os.Signal, cancel context.CancelCauseFunc) {
	sig := <-signals
	cancel(fmt.Errorf("received %v", sig))
	<-signals
	os.Exit(1)
}

// serve runs a node until ctx ends.
func serve(ctx context.Context, s settings, logger *slog.Logger, stdout io.Writer) error {
	profiles, err := startDebug(s.DebugListen)
	if err != nil {
		return err
	}
	defer profiles.stop()
	begin := time.Now()
	node, err := runtime.Start(ctx, s.node(logger), counter.Definition, chatroom.Definition, ratelimit.Definition)
	if err != nil {
		return err
	}
	if err := node.Ready(ctx); err == nil {
		logger.Info("ready", slog.String("node", node.ID()), slog.String("address", node.Addr()), slog.Duration("after", time.Since(begin)))
	}
	if s.LogFormat == "text" {
		welcome(stdout, node)
	}
	<-ctx.Done()
	logger.Info("stopping", slog.String("why", context.Cause(ctx).Error()))
	if err := node.Stop(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	logger.Info("stopped; everything acknowledged is on disk")
	return nil
}

func (s settings) node(logger *slog.Logger) runtime.Config {
	return runtime.Config{
		Listen:       s.Listen,
		Data:         s.Data,
		Log:          s.LogDir,
		Shards:       s.Shards,
		Hosts:        s.Hosts,
		Origins:      s.Origins,
		MaxBodyBytes: s.MaxBodyBytes,
		IdleAfter:    time.Duration(s.IdleAfter),
		StopTimeout:  time.Duration(s.StopTimeout),
		Logger:       logger,
	}
}

func (s settings) logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: s.LogLevel}
	if s.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
