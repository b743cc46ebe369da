// Node is a whole Holdfast node: durable objects with their storage and their
// WebSockets in one process. It runs the three classes that come with it; a program of
// your own that calls runtime.Start runs yours.
//
//	node [--listen 127.0.0.1:8787] [--data DIR] ...
//
// It exits with status 0 after a stop in good order (SIGTERM or SIGINT), with 2 if it
// was told something that makes no sense, and with 1 for everything else. A second
// signal ends it at once. SIGHUP makes it read the cluster's secret again.
//
// With a command in place of flags it asks a cluster that runs, or tells it what to do:
// `node help` lists them.
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
	"strings"
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
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		return command(args, getenv, stdout, stderr)
	}
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
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case <-reload:
			reloadSecret(node, logger)
		}
	}
	logger.Info("stopping", slog.String("why", context.Cause(ctx).Error()))
	if err := node.Stop(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	logger.Info("stopped; everything acknowledged is on disk")
	return nil
}

// reloadSecret is what SIGHUP asks for.
func reloadSecret(node *runtime.Node, logger *slog.Logger) {
	if err := node.ReloadSecret(); err != nil {
		logger.Error("the cluster's secret is not read again", slog.String("reason", err.Error()))
		return
	}
	logger.Info("the cluster's secret and certificates are read again")
}

func (s settings) node(logger *slog.Logger) runtime.Config {
	return runtime.Config{
		Cluster:      s.cluster(),
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

// cluster returns nil for a node that runs alone.
func (s settings) cluster() *runtime.Cluster {
	if s.SecretFile == "" {
		return nil
	}
	return &runtime.Cluster{
		SecretFile:      s.SecretFile,
		CertificateFile: s.CertificateFile,
		KeyFile:         s.KeyFile,
		AuthoritiesFile: s.AuthoritiesFile,
		Listen:          s.ClusterListen,
		Gossip:          s.GossipListen,
		Advertise:       s.Advertise,
		Zone:            s.Labels.Zone,
		Bootstrap:       s.Bootstrap,
		Expect:          s.BootstrapExpect,
		Join:            s.Join,
	}
}

func (s settings) logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: s.LogLevel}
	if s.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
