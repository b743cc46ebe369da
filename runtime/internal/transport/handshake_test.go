package transport

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/secret"
)

// TestRefusals lets nodes meet that do not belong together. Both sides must say so, in one line,
// however often it is tried.
func TestRefusals(t *testing.T) {
	t.Parallel()
	other, err := secret.Parse([]byte(secret.New()))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   error
		line   string // in the logs of both
	}{
		"another secret": {
			change: func(c *Config) { c.Credentials = other },
			want:   ErrOtherSecret, line: "another secret",
		},
		"another cluster": {
			change: func(c *Config) { c.Cluster = "red" },
			want:   ErrRefused, line: "node a is of cluster red, node b of blue",
		},
		"another node": {
			change: func(c *Config) {
				c.Resolve = func(placement.NodeID) (string, bool) { return address("b"), true }
			},
			want: ErrRefused, line: "node x is wanted, this is b",
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.start("b", nil, nil)
				a := w.start("a", test.change, nil)
				to := placement.NodeID("b")
				if name == "another node" {
					to = "x"
				}
				for range 3 {
					if _, err := a.Open(t.Context(), to, serviceWeb); !errors.Is(err, test.want) {
						t.Errorf("got %v", err)
					}
				}
				time.Sleep(time.Second)
				if n := w.logs.lines(test.line); n != 2 {
					t.Errorf("%d lines, want one from each side:\n%s", n, w.logs.buf.String())
				}
				if n := count(w.nodes["b"].metrics.refusedIn); n != 3 {
					t.Errorf("%d refused", n)
				}
			})
		})
	}
}

// dialTLS makes a TLS connection as node a, and speaks no further.
func dialTLS(t *testing.T, w *world) *tls.Conn {
	t.Helper()
	raw, err := w.net.Host("a").Dial(t.Context(), address("b"))
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := w.ring.Certificate("blue", "a")
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate}})
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestNewerClient says hello as a node of a later version would.
func TestNewerClient(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start("b", nil, nil)
		c := dialTLS(t, w)
		defer c.Close()
		c.Write([]byte{serviceWeb, 0, 9, 0, 5, 'o', 't', 'h', 'e', 'r'})
		answer, err := io.ReadAll(c)
		if err != nil || binary.BigEndian.Uint16(answer) != protocolVersion {
			t.Errorf("got %q, %v", answer, err)
		}
		synctest.Wait()
		for _, want := range []string{"protocol: 9, this node speaks 1"} {
			if !strings.Contains(string(answer), want) || w.logs.lines(want) != 1 {
				t.Errorf("the answer is %q, and the log\n%s", answer, w.logs.buf.String())
			}
		}
	})
}

// TestNewerServer dials a node of a later version.
func TestNewerServer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := w.config("b")
		b, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			raw, err := cfg.Listener.Accept()
			if err != nil {
				return
			}
			defer raw.Close()
			c := tls.Server(raw, b.serverTLS(new(identity)))
			io.ReadFull(c, make([]byte, 5+1+4+1+1+1+1))
			c.Write([]byte{0, 9, 0, 5, 'o', 't', 'h', 'e', 'r'})
		}()
		a := w.start("a", nil, nil)
		_, err = a.Open(t.Context(), "b", serviceWeb)
		if want := "protocol: 9, this node speaks 1"; !errors.Is(err, ErrOtherVersion) || w.logs.lines(want) != 1 {
			t.Errorf("got %v", err)
		}
		b.Stop(t.Context())
	})
}

// TestGarbage sends what is no TLS, no hello and no frame. Others must not notice.
func TestGarbage(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("a", nil, nil)
		w.start("b", nil, func(n *Network) {
			n.Accept('r', func(_ placement.NodeID, c net.Conn) { io.Copy(c, c); c.Close() })
		})
		good, err := a.Open(t.Context(), "b", 'r')
		if err != nil {
			t.Fatal(err)
		}
		ended := func(c net.Conn) {
			t.Helper()
			start := time.Now()
			if _, err := io.Copy(io.Discard, c); time.Since(start) > 6*time.Second {
				t.Errorf("the connection lives for %v, %v", time.Since(start), err)
			}
			c.Close()
		}
		for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff" + strings.Repeat("x", 1<<16), ""} {
			raw, err := w.net.Host("a").Dial(t.Context(), address("b"))
			if err != nil {
				t.Fatal(err)
			}
			raw.Write([]byte(text))
			ended(raw)
		}
		for _, text := range []string{"h", "h\x00\x01\xff\xff", "h\x00\x01\x00\x03abc", "h\x00\x01\x00\x02\x02\x00"} {
			c := dialTLS(t, w)
			c.Write([]byte(text))
			ended(c)
		}
		for _, frame := range [][]byte{
			binary.BigEndian.AppendUint32(nil, 1<<32-1),
			binary.BigEndian.AppendUint32(nil, maxFrame+1),
			binary.BigEndian.AppendUint32(nil, headBytes-1),
			append(binary.BigEndian.AppendUint32(nil, headBytes), 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 99),
			append(binary.BigEndian.AppendUint32(nil, headBytes+1), 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, byte(kindAppend), 0xff),
		} {
			for _, service := range []byte{serviceControl, serviceBulk, serviceSnapshot} {
				c, err := a.Open(t.Context(), "b", service)
				if err != nil {
					t.Fatal(err)
				}
				c.Write(append(frame, make([]byte, 64)...))
				ended(c)
			}
		}
		io.WriteString(good, "still here")
		if _, err := io.ReadFull(good, make([]byte, 10)); err != nil {
			t.Error(err)
		}
		good.Close()
		if w.logs.lines("not the protocol of nodes") == 0 {
			t.Error("nobody was told")
		}
	})
}

// TestRotation changes the secret while nodes are connected.
func TestRotation(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		older, newer := secret.New(), secret.New()
		ring := func(lines ...string) *secret.Ring {
			r, err := secret.Parse([]byte(strings.Join(lines, "\n")))
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		a := w.start("a", func(c *Config) { c.Credentials = ring(newer, older) }, nil)
		w.start("b", func(c *Config) { c.Credentials = ring(older, newer) }, nil)
		w.start("c", func(c *Config) { c.Credentials = ring(older) }, nil)
		c, err := a.Open(t.Context(), "b", serviceWeb)
		if err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
		if _, err := a.Open(t.Context(), "c", serviceWeb); !errors.Is(err, ErrOtherSecret) {
			t.Errorf("got %v", err)
		}
	})
}

// TestTooMany accepts no more connections than it may.
func TestTooMany(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("a", nil, nil)
		w.start("b", func(c *Config) { c.MaxConns = 2 }, nil)
		var open []net.Conn
		for i := range 4 {
			c, err := a.Open(t.Context(), "b", serviceSnapshot)
			if (err == nil) != (i < 2) {
				t.Errorf("connection %d: %v", i, err)
			}
			if err == nil {
				open = append(open, c)
			}
		}
		for _, c := range open {
			c.Close()
		}
		time.Sleep(time.Second)
		c, err := a.Open(t.Context(), "b", serviceSnapshot)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
}

// A gone collects what OnRefused says.
func gone(c *Config, into chan<- placement.NodeID) {
	c.OnRefused = func(id placement.NodeID) { into <- id }
}

// TestOnRefused kills a process that only sends: nobody has a reason to dial it.
func TestOnRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		told := make(chan placement.NodeID, 10)
		w.start("a", func(c *Config) { gone(c, told) }, nil)
		connect := func() {
			t.Helper()
			b := w.start("b", nil, nil)
			b.peer("a").control.want()
			b.peer("a").bulk.want()
			time.Sleep(time.Second)
			if b.peer("a").control.current() == nil {
				t.Fatal("not connected")
			}
		}
		for range 2 { // once per loss
			connect()
			start := time.Now()
			w.net.Refuse("b")
			if id := <-told; id != "b" || time.Since(start) > 50*time.Millisecond {
				t.Errorf("%s is gone after %v", id, time.Since(start))
			}
			w.stop("b", w.nodes["b"])
			time.Sleep(time.Minute)
		}
		connect()
		w.net.Partition("b") // no process is gone
		time.Sleep(time.Minute)
		w.net.Heal()
		time.Sleep(time.Minute)
		select {
		case id := <-told:
			t.Errorf("%s is gone again", id)
		default:
		}
	})
}

// TestDownFailsFast asks a node that is down, and one that comes back.
func TestDownFailsFast(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("a", nil, nil)
		w.net.Host("b")
		peer := a.peer("b")
		for range 100 {
			start := time.Now()
			if _, err := peer.control.get(time.Second); err == nil || time.Since(start) > 0 {
				t.Fatalf("%v after %v", err, time.Since(start))
			}
			time.Sleep(10 * time.Millisecond)
		}
		w.start("b", nil, nil)
		time.Sleep(maxPause)
		if _, err := peer.control.get(time.Second); err != nil {
			t.Errorf("it is back: %v", err)
		}
		w.net.Partition("b")
		peer.silent(ErrTimeout)
		start := time.Now()
		if _, err := peer.control.get(time.Second); err == nil || time.Since(start) > time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		time.Sleep(2 * time.Second)
		start = time.Now()
		if _, err := peer.control.get(time.Second); err == nil || time.Since(start) > 0 {
			t.Errorf("known to be cut off, and %v after %v", err, time.Since(start))
		}
	})
}
