package clustertest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing/synctest"
	"time"

	"github.com/holdfast-run/holdfast/runtime"
	"github.com/holdfast-run/holdfast/runtime/internal/transport/memnet"
)

// A Member is a place in the cluster: an address and a disk, with one node after another.
// Its methods may be called from any goroutine.
type Member struct {
	cluster *Cluster
	number  int

	mu    sync.Mutex // guards what follows
	id    string     // of the last life
	dir   string     // what is on its disk
	lives int
	life  *Life // nil while it is down
}

// A Life is one process of a member, from its start to its stop or crash.
type Life struct {
	*runtime.Node
	wire *wire
}

// Dead reports whether the process was killed: what a call to it returns afterwards was
// never heard by anybody.
func (l *Life) Dead() bool { return l.wire.dead.Load() }

const (
	portFront   = "8787"
	portCluster = "8788"
	portGossip  = "8789"

	startTimeout = time.Minute
)

// String returns a name for logs.
func (m *Member) String() string { return fmt.Sprintf("n%d", m.number) }

// Host is the member's name in the network.
func (m *Member) Host() string { return fmt.Sprintf("10.0.0.%d", m.number) }

// FrontDoor is the address for clients.
func (m *Member) FrontDoor() string { return net.JoinHostPort(m.Host(), portFront) }

func (m *Member) clusterAddr() string { return net.JoinHostPort(m.Host(), portCluster) }

// Life returns the running process, nil if there is none.
func (m *Member) Life() *Life {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.life
}

// Up reports whether the member runs.
func (m *Member) Up() bool { return m.Life() != nil }

// ID returns the ID of the member's node, also while it is down.
func (m *Member) ID() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.id
}

// end takes the life away.
func (m *Member) end() *Life {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.life
	m.life = nil
	return l
}

// Add starts one more member, on an empty disk.
func (c *Cluster) Add() *Member {
	c.t.Helper()
	c.mu.Lock()
	c.numbers++
	m := &Member{cluster: c, number: c.numbers, dir: filepath.Join(c.dir, fmt.Sprintf("n%d", c.numbers))}
	c.mu.Unlock()
	c.Start(m)
	c.mu.Lock()
	c.members = append(c.members, m)
	c.mu.Unlock()
	return m
}

// Start starts a member that is down, with what is on its disk.
func (c *Cluster) Start(m *Member) {
	c.t.Helper()
	c.Note("start %s", m)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	w := &wire{host: c.net.Host(m.Host())}
	node, err := runtime.Start(ctx, c.config(m, w), c.cfg.Classes...)
	if err != nil {
		c.t.Fatalf("start %s: %v", m, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lives++
	m.id, m.life = node.ID(), &Life{node, w}
}

// Restart is Start for a member that crashed.
func (c *Cluster) Restart(m *Member) { c.t.Helper(); c.Start(m) }

func (c *Cluster) config(m *Member, w *wire) runtime.Config {
	front, err := w.host.Listen(m.FrontDoor())
	if err != nil {
		c.t.Fatal(err)
	}
	cfg := runtime.Config{
		Data:     m.dir,
		Listener: front,
		Cluster: &runtime.Cluster{
			SecretFile: c.secret,
			Listen:     m.clusterAddr(),
			Gossip:     net.JoinHostPort(m.Host(), portGossip),
			Network:    w,
		},
		Logger: c.logs.logger(m.String()),
		OnFatal: func(err error) {
			if !w.dead.Load() {
				c.Note("%s cannot go on: %v", m, err)
				c.t.Errorf("%s cannot go on: %v", m, err)
			}
		},
	}
	for _, other := range c.Members() {
		if other != m {
			cfg.Cluster.Join = append(cfg.Cluster.Join, other.clusterAddr())
		}
	}
	cfg.Cluster.Bootstrap = len(cfg.Cluster.Join) == 0
	if cfg.Shards = c.cfg.Shards; !cfg.Cluster.Bootstrap {
		cfg.Shards = 0
	}
	return cfg
}

// Stop stops a member in good order.
func (c *Cluster) Stop(m *Member) {
	c.t.Helper()
	c.Note("stop %s", m)
	if err := m.end().Stop(context.Background()); err != nil {
		c.t.Errorf("stop %s: %v", m, err)
	}
}

// Crash kills a member's process. Its disk stays as it is at this moment.
func (c *Cluster) Crash(members ...*Member) {
	c.t.Helper()
	synctest.Wait() // from here to the last Refuse nothing else runs
	for _, m := range members {
		c.crash(m)
	}
}

func (c *Cluster) crash(m *Member) {
	c.t.Helper()
	c.Note("crash %s", m)
	life := m.end()
	m.mu.Lock()
	image := fmt.Sprintf("%s-%d", filepath.Join(c.dir, m.String()), m.lives)
	if err := copyDir(image, m.dir); err != nil {
		c.t.Fatal(err)
	}
	m.dir = image
	m.mu.Unlock()
	life.wire.dead.Store(true)
	c.net.Refuse(m.Host())
	c.dying.Go(func() { _ = life.Stop(context.Background()) })
}

// copyDir copies a directory. Only what is kept open differs: the copy is nobody's.
func copyDir(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Mkdir(filepath.Join(to, rel), 0o700)
		}
		return copyFile(filepath.Join(to, rel), path)
	})
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = out.ReadFrom(in)
	return errors.Join(err, out.Close())
}

// Remove tells the cluster that a member, which is down, will not come back.
func (c *Cluster) Remove(m *Member) {
	c.t.Helper()
	c.Note("remove %s", m)
	c.Admin("remove a member", func(ctx context.Context, a *runtime.Admin) error { return a.Remove(ctx, m.ID()) })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = slices.DeleteFunc(c.members, func(other *Member) bool { return other == m })
}

// Admin does what an operator does, at any member, until it has worked.
func (c *Cluster) Admin(what string, do func(context.Context, *runtime.Admin) error) {
	c.t.Helper()
	var why error
	for deadline := time.Now().Add(settleTimeout); time.Now().Before(deadline); time.Sleep(pollEvery) {
		for _, m := range c.Live() {
			_, why = ask(m, func(ctx context.Context, a *runtime.Admin) (struct{}, error) { return struct{}{}, do(ctx, a) })
			if why == nil {
				return
			}
		}
	}
	c.t.Fatalf("%s: %v", what, why)
}

const askTimeout = 5 * time.Second

// ask asks one member as an operator does.
func ask[T any](m *Member, question func(context.Context, *runtime.Admin) (T, error)) (answer T, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	c := m.cluster
	a, err := runtime.Connect(runtime.Cluster{SecretFile: c.secret, Network: &wire{host: c.net.Host(operator)}}, m.clusterAddr())
	if err != nil {
		return answer, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	return question(ctx, a)
}

const operator = "10.0.1.1"

// A wire is what one life of a member reaches the network by. It ends with the life.
type wire struct {
	host *memnet.Host
	dead atomic.Bool
}

var errDead = &net.OpError{Op: "dial", Net: "memnet", Err: syscall.ENETDOWN}

func (w *wire) Listen(_ context.Context, addr string) (net.Listener, error) {
	if w.dead.Load() {
		return nil, errDead
	}
	return w.host.Listen(addr)
}

func (w *wire) ListenPacket(_ context.Context, addr string) (net.PacketConn, error) {
	if w.dead.Load() {
		return nil, errDead
	}
	return w.host.ListenPacket(addr)
}

func (w *wire) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if w.dead.Load() {
		return nil, errDead
	}
	conn, err := w.host.Dial(ctx, addr)
	if err == nil && w.dead.Load() { // it died meanwhile, and another life may have the host now
		return nil, errors.Join(errDead, conn.Close())
	}
	return conn, err
}
