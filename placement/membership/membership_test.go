package membership

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/holdfast-run/holdfast/placement"
)

func key(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

// A node gossips in the network of a test.
type node struct {
	*Membership
	t    *testing.T
	host string

	mu     sync.Mutex // guards events
	events []string
}

const port = 7946

func start(t *testing.T, network *testNet, i int, change func(*Config)) *node {
	t.Helper()
	n := &node{t: t, host: fmt.Sprintf("10.0.0.%d", i)}
	addr := fmt.Sprintf("%s:%d", n.host, port)
	cfg := Config{
		Self:      Member{ID: placement.NodeID(fmt.Sprint("n", i)), Addr: n.host + ":7000", Zone: "z", Version: "0.1.0"},
		Cluster:   "cluster-1",
		Advertise: netip.MustParseAddrPort(addr),
		Transport: network.listen(addr).transport(),
		Keys:      [][]byte{key(1)},
		OnEvent: func(e Event) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.events = append(n.events, fmt.Sprint(e.Kind, " ", e.ID))
		},
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if n.Membership, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, n) })
	return n
}

func (n *node) addr() string { return fmt.Sprintf("%s:%d", n.host, port) }

func (n *node) join(others ...*node) error {
	var addrs []string
	for _, o := range others {
		addrs = append(addrs, o.addr())
	}
	return n.Join(addrs)
}

// sees waits until the node has these members.
func (n *node) sees(within time.Duration, ids ...placement.NodeID) time.Duration {
	n.t.Helper()
	began := time.Now()
	for {
		var got []placement.NodeID
		for _, m := range n.Members() {
			got = append(got, m.ID)
		}
		if slices.Equal(got, ids) {
			return time.Since(began)
		}
		if time.Since(began) > within {
			n.t.Fatalf("%s sees %v, want %v", n.cfg.Self.ID, got, ids)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (n *node) log() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.events, ", ")
}

func stop(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(time.Minute) // memberlist's goroutines end with what they wait for
}

func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, f)
}

func TestMembers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		network := newNet()
		a, b, c := start(t, network, 1, nil), start(t, network, 2, nil), start(t, network, 3, nil)
		if err := b.join(a); err != nil {
			t.Fatal(err)
		}
		if err := c.join(b); err != nil {
			t.Fatal(err)
		}
		a.sees(5*time.Second, "n2", "n3")
		want := Member{ID: "n3", Addr: "10.0.0.3:7000", Zone: "z", Version: "0.1.0", Gossip: "10.0.0.3:7946"}
		if got := a.Members()[1]; got != want {
			t.Errorf("the member is %+v", got)
		}
		if err := c.Leave(); err != nil {
			t.Fatal(err)
		}
		a.sees(5*time.Second, "n2")
		stop(t, c)
		network.crash(b.addr())
		took := a.sees(30 * time.Second)
		if took > 15*time.Second {
			t.Errorf("a crash was noticed after %v", took)
		}
		if got := a.log(); got != "joined n2, joined n3, gone n3, gone n2" {
			t.Errorf("the events are %s", got)
		}
		stop(t, a, b)
	})
}

// A node that starts again is alive at once in the eyes of those that took it for dead, though
// it had denied its death several times in its former life.
func TestRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		network := newNet()
		file := filepath.Join(t.TempDir(), "incarnation")
		keep := func(c *Config) { c.Incarnation = file }
		a, b, c := start(t, network, 1, nil), start(t, network, 2, keep), start(t, network, 3, nil)
		for _, n := range []*node{b, c} {
			if err := n.join(a); err != nil {
				t.Fatal(err)
			}
		}
		a.sees(5*time.Second, "n2", "n3")
		for range 5 { // as many as it would deny
			if err := b.list.UpdateNode(time.Second); err != nil {
				t.Fatal(err)
			}
		}
		network.crash(b.addr())
		a.sees(30*time.Second, "n3")
		stop(t, b)
		b = start(t, network, 2, keep)
		if err := b.join(c); err != nil {
			t.Fatal(err)
		}
		if took := a.sees(10*time.Second, "n2", "n3"); took > 2*time.Second {
			t.Errorf("it was believed after %v", took)
		}
		stop(t, a, b, c)
	})
}

func TestIncarnation(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "incarnation")
	for want := 1; want <= 3; want++ {
		if n, err := nextIncarnation(file); n != want*incarnationStep || err != nil {
			t.Errorf("start %d is incarnation %d, %v", want, n, err)
		}
	}
	for _, text := range []string{"nonsense", "-7", fmt.Sprint(maxIncarnation)} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := nextIncarnation(file); n != incarnationStep || err != nil {
			t.Errorf("after %q comes %d, %v", text, n, err)
		}
	}
	if _, err := nextIncarnation(filepath.Join(file, "x")); err == nil {
		t.Error("a file in a file")
	}
}

// The halves of a partition forget each other, and find each other again.
func TestPartition(t *testing.T) {
	bubble(t, func(t *testing.T) {
		network := newNet()
		known := func(c *Config) {
			c.Known = func() map[placement.NodeID]string {
				return map[placement.NodeID]string{"n1": "10.0.0.1:7946", "n2": "10.0.0.2:7946", "n3": "10.0.0.3:7946"}
			}
		}
		a, b, c := start(t, network, 1, known), start(t, network, 2, known), start(t, network, 3, known)
		for _, n := range []*node{a, b, c} { // without a call of Join
			n.sees(30*time.Second, slices.DeleteFunc([]placement.NodeID{"n1", "n2", "n3"}, func(id placement.NodeID) bool { return id == n.cfg.Self.ID })...)
		}
		network.partition(a.addr())
		a.sees(time.Minute)
		b.sees(time.Minute, "n3")
		time.Sleep(10 * time.Minute)
		network.partition()
		a.sees(time.Minute, "n2", "n3")
		b.sees(time.Minute, "n1", "n3")
		stop(t, a, b, c)
	})
}

// The keys are rotated in three steps, as a secret file is, and nobody is lost meanwhile.
func TestRotate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		network := newNet()
		a, b := start(t, network, 1, nil), start(t, network, 2, nil)
		if err := b.join(a); err != nil {
			t.Fatal(err)
		}
		for _, keys := range [][][]byte{{key(1), key(2)}, {key(2), key(1)}, {key(2)}} {
			for _, n := range []*node{a, b} {
				if err := n.Rotate(keys); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Second)
			}
		}
		a.sees(0, "n2")
		b.sees(0, "n1")
		if got := a.log() + "; " + b.log(); got != "joined n2; joined n1" {
			t.Errorf("the events are %s", got)
		}
		late := start(t, network, 3, nil) // it has the old key only
		if err := late.join(a); err == nil {
			t.Error("joined with an old key")
		}
		if a.Rotate(nil) == nil || a.Rotate([][]byte{{1, 2}}) == nil {
			t.Error("rotated to no key")
		}
		stop(t, a, b, late)
	})
}

func TestStrangers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		network := newNet()
		a := start(t, network, 1, nil)
		for i, change := range []func(*Config){
			func(c *Config) { c.Keys = [][]byte{key(9)} },
			func(c *Config) { c.Cluster = "another" },
		} {
			b := start(t, network, 2+i, change)
			if err := b.join(a); err == nil {
				t.Error("a stranger joined")
			}
			time.Sleep(time.Minute)
			a.sees(0)
			b.sees(0)
			stop(t, b)
		}
		for _, n := range []memberlist.Node{
			{Name: "n7", Meta: []byte("{")},
			{Name: "n7", Meta: []byte(`{"cluster":"another","id":"n7"}`)},
			{Name: "n7", Meta: []byte(`{"cluster":"cluster-1","id":"n8"}`)},
		} {
			d := &delegate{a.Membership}
			if d.NotifyAlive(&n) == nil || d.NotifyMerge([]*memberlist.Node{&n}) == nil {
				t.Errorf("%s was accepted", n.Meta)
			}
			d.NotifyJoin(&n)
		}
		a.sees(0)
		stop(t, a)
	})
}

func TestOpenRefuses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for name, change := range map[string]func(*Config){
			"no key":      func(c *Config) { c.Keys = nil },
			"short key":   func(c *Config) { c.Keys = [][]byte{{1}} },
			"long meta":   func(c *Config) { c.Self.Zone = strings.Repeat("z", 500) },
			"incarnation": func(c *Config) { c.Incarnation = "/nowhere/at/all" },
			"advertise":   func(c *Config) { c.Advertise = netip.AddrPort{} },
		} {
			cfg := Config{
				Self: Member{ID: "n1"}, Cluster: "c", Keys: [][]byte{key(1)},
				Advertise: netip.MustParseAddrPort("10.0.0.1:1"),
				Transport: newNet().listen("10.0.0.1:1").transport(),
			}
			change(&cfg)
			if _, err := Open(cfg); err == nil {
				t.Errorf("%s: it opens", name)
			}
		}
	})
}

// On the loopback, with the real thing.
func TestListen(t *testing.T) {
	t.Parallel()
	var nodes []*Membership
	for i := range 2 {
		transport := onLoopback(t)
		m, err := Open(Config{
			Self:      Member{ID: placement.NodeID(fmt.Sprint("n", i))},
			Cluster:   "c",
			Advertise: transport.Addr().(*net.TCPAddr).AddrPort(),
			Transport: transport,
			Keys:      [][]byte{key(1)},
		})
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, m)
	}
	if err := nodes[1].Join([]string{nodes[0].cfg.Transport.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	if len(nodes[0].Members()) != 1 || len(nodes[1].Members()) != 1 {
		t.Errorf("the members are %v and %v", nodes[0].Members(), nodes[1].Members())
	}
	for _, m := range nodes {
		if err := m.Stop(); err != nil {
			t.Error(err)
		}
	}
}

// onLoopback returns a Transport over UDP and TCP on one free port.
func onLoopback(t *testing.T) *Transport {
	t.Helper()
	var lc net.ListenConfig
	var err error
	for range 100 { // another process may have the port that is free for TCP
		var listener net.Listener
		if listener, err = lc.Listen(t.Context(), "tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		var packets net.PacketConn
		if packets, err = lc.ListenPacket(t.Context(), "udp", listener.Addr().String()); err == nil {
			return NewTransport(packets, listener, nil)
		}
		_ = listener.Close()
	}
	t.Fatal(err)
	return nil
}

func FuzzMeta(f *testing.F) {
	text, err := encodeMeta(meta{"c", Member{ID: "n1", Addr: "a:1"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("n1", text)
	m := &Membership{cfg: Config{Cluster: "c"}}
	f.Fuzz(func(t *testing.T, name string, text []byte) {
		said, err := m.parse(&memberlist.Node{Name: name, Meta: text})
		if err == nil && string(said.ID) != name {
			t.Errorf("%q passes for %q", said.ID, name)
		}
	})
}
