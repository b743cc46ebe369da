package memnet

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// connect returns two ends of a connection from host b to host a.
func connect(t *testing.T, n *Network) (a, b net.Conn) {
	t.Helper()
	l, err := n.Host("a").Listen(":1")
	if err != nil {
		t.Fatal(err)
	}
	if b, err = n.Host("b").Dial(t.Context(), "a:1"); err != nil {
		t.Fatal(err)
	}
	if a, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := connect(t, New())
		sent := make([]byte, 3*bufferBytes)
		rand.Read(sent)
		go func() {
			b.Write(sent)
			b.Close()
		}()
		got, err := io.ReadAll(a)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d bytes arrived, %v", len(got), err)
		}
		if _, err := a.Write(sent); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write to a closed connection: %v", err)
		}
		if _, err := b.Read(sent); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read from a closed connection: %v", err)
		}
	})
}

func TestFullQueueBlocks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := connect(t, New())
		b.SetWriteDeadline(time.Now().Add(time.Minute))
		start := time.Now()
		n, err := b.Write(make([]byte, bufferBytes+1))
		if n != bufferBytes || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("wrote %d bytes in %v: %v", n, time.Since(start), err)
		}
		a.SetReadDeadline(time.Now().Add(-time.Second))
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read after the deadline: %v", err)
		}
	})
}

func TestPartitionHoldsBackUntilHealed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, b := connect(t, n)
		n.Partition("a")
		b.Write([]byte("hello"))
		a.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := a.Read(make([]byte, 5)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("through the partition: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Host("b").Dial(ctx, "a:1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial through the partition: %v", err)
		}
		time.AfterFunc(time.Second, n.Heal)
		a.SetReadDeadline(time.Time{})
		got := make([]byte, 5)
		if _, err := io.ReadFull(a, got); err != nil || string(got) != "hello" {
			t.Errorf("after healing: %q, %v", got, err)
		}
	})
}

func TestCutOneWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, b := connect(t, n)
		n.CutOneWay("b", "a")
		a.Write([]byte("x"))
		if k, err := b.Read(make([]byte, 1)); k != 1 || err != nil {
			t.Errorf("the open direction: %d, %v", k, err)
		}
		b.Write([]byte("x"))
		a.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the cut direction: %v", err)
		}
	})
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, b := connect(t, n)
		n.Refuse("a")
		for name, c := range map[string]net.Conn{"own": a, "other": b} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s end: %v", name, err)
			}
		}
		if _, err := n.Host("b").Dial(t.Context(), "a:1"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v", err)
		}
		if _, err := n.Host("b").Listen(":1"); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Host("a").Dial(t.Context(), "b:1"); err == nil {
			t.Error("a process that has gone dialled")
		}
		connect(t, n) // somebody listens again
		var dns *net.DNSError
		if _, err := n.Host("b").Dial(t.Context(), "nobody:1"); !errors.As(err, &dns) {
			t.Errorf("unknown host: %v", err)
		}
	})
}

func TestDelayAndRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := New()
		n.Delay(50*time.Millisecond, 0)
		start := time.Now()
		a, b := connect(t, n)
		if d := time.Since(start); d != 100*time.Millisecond {
			t.Errorf("a connection takes %v", d)
		}
		start = time.Now()
		b.Write([]byte("x"))
		a.Read(make([]byte, 1))
		if d := time.Since(start); d != 50*time.Millisecond {
			t.Errorf("a byte takes %v", d)
		}
		n.Delay(0, 0)
		n.Rate(1000)
		start = time.Now()
		b.Write(make([]byte, 1000))
		b.Write(make([]byte, 1000))
		io.ReadFull(a, make([]byte, 2000))
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("two seconds' worth of bytes took %v", d)
		}
	})
}

func TestPackets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, err := n.Host("a").ListenPacket(":2")
		if err != nil {
			t.Fatal(err)
		}
		b, err := n.Host("b").ListenPacket(":2")
		if err != nil {
			t.Fatal(err)
		}
		n.Partition("a")
		b.WriteTo([]byte("lost"), a.LocalAddr())
		n.Heal()
		n.Delay(time.Second, 0)
		b.WriteTo([]byte("hello"), a.LocalAddr())
		got := make([]byte, 10)
		k, from, err := a.ReadFrom(got)
		if err != nil || string(got[:k]) != "hello" || from.String() != "b:2" {
			t.Errorf("got %q from %v, %v", got[:k], from, err)
		}
		a.SetReadDeadline(time.Now().Add(time.Second))
		if _, _, err := a.ReadFrom(got); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		n.Refuse("a")
		if _, _, err := a.ReadFrom(got); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}
