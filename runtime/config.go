package runtime

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/gateway"
)

// ErrConfiguration is what an error of [Start] matches if a setting makes no sense.
var ErrConfiguration = errors.New("configuration")

// Config says how a [Node] is built. Every zero value means the default given.
type Config struct {
	// Data is the directory that the node lives in; "holdfast-data" in the working
	// directory. It is made if it is missing. It belongs to one node for ever.
	Data string
	// Log is the directory of the Raft log, which may be on a disk of its own; "log"
	// in Data. A node never starts with one of its two directories and without the other.
	Log string
	// Shards is the number of shards that a new data directory is made with: a power of
	// two; 32. It cannot be changed later.
	Shards int

	// Listen is the address of the front door; "127.0.0.1:8787". Port 0 takes a free one.
	Listen string
	// Listener is used instead of Listen if it is not nil. The node closes it.
	Listener net.Listener
	// Hosts lists the names under which clients may address the node, without ports
	// ("app.example.com", "*.example.com", or "*" for any). IP addresses and localhost are always
	// fine. By default a node that listens on loopback has no further name, so that no web page can
	// pass itself off as the node's own by DNS rebinding; any other node answers to every name.
	Hosts []string
	// Origins lists the foreign origins whose pages may open WebSockets, call methods and
	// create objects: hosts ("app.example.com", "*.example.com") or origins with their
	// scheme. The node's own pages always may.
	Origins []string
	// MaxBodyBytes is the longest body of a request; 100 MiB.
	MaxBodyBytes int64

	// IdleAfter is how long an object stays in memory unused, if its class does not
	// say; 10 s.
	IdleAfter time.Duration
	// StopTimeout bounds how long Stop waits for requests and events under way; 10 s.
	StopTimeout time.Duration

	// Cluster makes the node one of several. Nil: it runs alone, and nothing but its front door
	// listens. A node that ran alone can be given a Cluster later.
	Cluster *Cluster

	// Logger gets what an operator should know. Default: nobody does.
	Logger *slog.Logger
	// OnFatal is called when the node cannot go on, because a disk failed: after a failed
	// write or fsync nobody knows what is on disk. Default: log it and exit with status 1.
	// The process must not live on; whatever was acknowledged is there after a restart.
	OnFatal func(error)
}

func (c Config) withDefaults() Config {
	if c.Data == "" {
		c.Data = "holdfast-data"
	}
	if c.Listen == "" {
		c.Listen = "127.0.0.1:8787"
	}
	if c.StopTimeout == 0 {
		c.StopTimeout = 10 * time.Second
	}
	if c.Cluster != nil {
		cluster := c.Cluster.withDefaults()
		c.Cluster = &cluster
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnFatal == nil {
		logger := c.Logger
		c.OnFatal = func(err error) {
			logger.Error("the node cannot go on", slog.String("error", err.Error()))
			os.Exit(1)
		}
	}
	return c
}

func (c Config) check() error {
	if c.Shards != 0 {
		if _, err := placement.Even(c.Shards); err != nil {
			return err
		}
	}
	if c.MaxBodyBytes < 0 || c.IdleAfter < 0 || c.StopTimeout < 0 {
		return errors.New("a limit or a time is negative")
	}
	if c.Cluster != nil {
		if err := c.Cluster.check(); err != nil {
			return err
		}
	}
	return c.door().Check()
}

// door is the gateway's part of the configuration.
func (c Config) door() gateway.Config {
	return gateway.Config{Logger: c.Logger, MaxBodyBytes: c.MaxBodyBytes, Hosts: c.Hosts, OriginPatterns: c.Origins}
}
