// Package clustertest runs whole clusters in one process, in virtual time: real nodes with
// real directories and real fsyncs, on a network in memory that can be cut, delayed and
// refused. It is for tests in testing/synctest bubbles:
//
//	synctest.Test(t, func(t *testing.T) {
//		c := clustertest.New(t, clustertest.Config{Classes: classes})
//		c.Partition(c.Owner("counter", "visits"))
//		...
//		c.Heal()
//		c.Crash(c.Member(1))
//		c.Restart(c.Member(1))
//	})
//
// It promises:
//
//   - a crash is a kill -9: the member goes on from what its files were at one moment, nothing
//     that the old process does afterwards reaches anybody, and its connections are refused;
//   - a member that is cut off is cut off from the other members, not from its clients:
//     these are the ones who could be told something wrong;
//   - a member that cannot go on, and an error of Stop, fail the test, unless it crashed.
//
// What it cannot do: lose what was written and not synced, slow or hung disks, stopped
// processes and steps of a clock. A bubble has one clock, and the disk is the machine's.
package clustertest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/runtime"
	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/internal/transport/memnet"
)

// Config says how a [Cluster] is built. Zero values mean the defaults given.
type Config struct {
	Nodes   int // with which it begins; 3
	Shards  int // 2
	Classes []durable.Definition

	// Delay and Jitter are how long everything on the network takes; 200 µs and as much again.
	// Without them a bubble in which clients are at work is never quiescent.
	Delay, Jitter time.Duration

	// LogLevel of what is shown of a test that fails; info.
	LogLevel slog.Level
}

func (c Config) withDefaults() Config {
	if c.Nodes == 0 {
		c.Nodes = 3
	}
	if c.Shards == 0 {
		c.Shards = 2
	}
	if c.Delay == 0 && c.Jitter == 0 {
		c.Delay, c.Jitter = 200*time.Microsecond, 200*time.Microsecond
	}
	return c
}

// A Cluster is the members of one test and the network between them. Its methods are for
// one goroutine, except where it says otherwise.
type Cluster struct {
	t      *testing.T
	cfg    Config
	net    *memnet.Network
	dir    string
	secret string
	logs   logs

	mu      sync.Mutex // guards what follows
	members []*Member
	numbers int // given to members so far

	dying sync.WaitGroup // crashed lives, which stop for themselves
}

// New starts a cluster, and returns when every member has its share of it.
func New(t *testing.T, cfg Config) *Cluster {
	t.Helper()
	c := &Cluster{t: t, cfg: cfg.withDefaults(), net: memnet.New(), dir: t.TempDir()}
	c.secret = filepath.Join(c.dir, "secret")
	if err := os.WriteFile(c.secret, []byte(runtime.NewSecret()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.logs.level = c.cfg.LogLevel
	t.Cleanup(c.stop)
	c.Calm()
	for range c.cfg.Nodes {
		c.Add()
	}
	c.Settle()
	return c
}

func (c *Cluster) stop() {
	c.Heal()
	for _, m := range c.Members() {
		if m.Up() {
			c.Stop(m)
		}
	}
	c.dying.Wait()
	time.Sleep(probesEnd)
	if c.t.Failed() {
		c.t.Logf("what the nodes logged in the end (all of it is in %s):\n%s", c.keepLogs(), c.logs.tail(shownLines))
	}
}

// probesEnd is how long memberlist, which nobody can wait for, may go on to ask after a member.
const probesEnd = 30 * time.Second

// keepLogs writes what was logged into a file, which stays if the test is run with -artifacts.
func (c *Cluster) keepLogs() string {
	path := filepath.Join(c.t.ArtifactDir(), "nodes.log")
	if err := os.WriteFile(path, c.logs.tail(math.MaxInt), 0o600); err != nil {
		c.t.Error(err)
	}
	return path
}

// Members returns all members that were not removed. It may be called from any goroutine.
func (c *Cluster) Members() []*Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.members)
}

// Live returns the members that run. It may be called from any goroutine.
func (c *Cluster) Live() []*Member {
	return slices.DeleteFunc(c.Members(), func(m *Member) bool { return !m.Up() })
}

// Member returns the i-th member.
func (c *Cluster) Member(i int) *Member { return c.Members()[i] }

// Owner returns the member that owns an object, as most members see it. It waits until
// somebody does.
func (c *Cluster) Owner(class, name string) *Member {
	c.t.Helper()
	for deadline := time.Now().Add(settleTimeout); time.Now().Before(deadline); time.Sleep(pollEvery) {
		votes := make(map[string]int)
		for _, m := range c.Live() {
			where, err := ask(m, func(ctx context.Context, a *runtime.Admin) (runtime.Location, error) {
				return a.Where(ctx, class, name)
			})
			if err != nil {
				continue
			}
			if votes[where.Owner]++; 2*votes[where.Owner] <= len(c.Members()) {
				continue
			}
			if owner := c.byID(where.Owner); owner != nil {
				return owner
			}
		}
	}
	c.t.Fatalf("nobody owns %s %s", class, name)
	return nil
}

func (c *Cluster) byID(id string) *Member {
	for _, m := range c.Live() {
		if m.ID() == id {
			return m
		}
	}
	return nil
}

const (
	settleTimeout = 2 * time.Minute // far more than it takes
	pollEvery     = 250 * time.Millisecond
)

// Settle waits until every shard has the replicas and the owner that it should have, and
// fails the test if that takes too long.
func (c *Cluster) Settle() {
	c.t.Helper()
	var why error
	for deadline := time.Now().Add(settleTimeout); time.Now().Before(deadline); time.Sleep(pollEvery) {
		if why = c.unsettled(); why == nil {
			return
		}
	}
	c.t.Fatalf("the cluster did not come to rest within %v: %v", settleTimeout, why)
}

// unsettled says what is not yet as it should be.
func (c *Cluster) unsettled() error {
	live := c.Live()
	members, err := ask(live[0], func(ctx context.Context, a *runtime.Admin) ([]runtime.Member, error) { return a.Members(ctx) })
	if err != nil {
		return err
	}
	for _, m := range live {
		i := slices.IndexFunc(members, func(r runtime.Member) bool { return r.ID == m.ID() })
		if i < 0 || members[i].State != "up" || members[i].Down {
			return fmt.Errorf("%s is not up", m)
		}
	}
	shards, err := ask(live[0], func(ctx context.Context, a *runtime.Admin) ([]runtime.ShardInfo, error) { return a.Shards(ctx) })
	if err != nil {
		return err
	}
	for _, s := range shards {
		switch {
		case len(s.Replicas) < replicas(len(live)):
			return fmt.Errorf("shard %d is to have %d replicas only", s.ID, len(s.Replicas))
		case s.Moving || len(s.Voters) != len(s.Replicas): // nothing is known to move where nothing was looked at yet
			return fmt.Errorf("shard %d moves: it should be on %v, and is on %v", s.ID, s.Replicas, s.Voters)
		case s.Owner == "" || s.Owner != s.Wanted:
			return fmt.Errorf("shard %d is owned by %q, and should be by %q", s.ID, s.Owner, s.Wanted)
		}
	}
	return nil
}

// replicas is how many of each shard so many nodes have.
func replicas(nodes int) int { return max(1, min(5, nodes-1+nodes%2)) }

// Note writes a line between those of the nodes. It may be called from any goroutine.
func (c *Cluster) Note(format string, args ...any) {
	c.logs.logger("test").Info("the test", slog.String("says", fmt.Sprintf(format, args...)))
}

// logs is what the nodes have logged lately.
type logs struct {
	level slog.Level

	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

const (
	logBytes   = 8 << 20 // kept
	shownLines = 50      // of a test that fails
)

// Write implements io.Writer. When it is too much, the older half is forgotten.
func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf.Len() > logBytes {
		l.buf.Next(logBytes / 2)
	}
	return l.buf.Write(p)
}

// tail returns the last lines.
func (l *logs) tail(lines int) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.buf.Bytes()
	from := len(text)
	for ; lines >= 0 && from >= 0; lines-- {
		from = bytes.LastIndexByte(text[:from], '\n')
	}
	return text[from+1:]
}

func (l *logs) logger(member string) *slog.Logger {
	h := slog.NewTextHandler(l, &slog.HandlerOptions{Level: l.level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
			a.Value = slog.StringValue(a.Value.Time().Format("04:05.0000"))
		}
		return a
	}})
	return slog.New(h).With(slog.String("member", member))
}
