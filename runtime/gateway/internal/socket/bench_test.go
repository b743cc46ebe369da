//go:build unix

package socket

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	dto "github.com/prometheus/client_model/go"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// The clients of a benchmark run in a process of their own, so that the CPU time of
// this one is the server's alone: it is this binary again, told by the environment.
const clientsEnv = "HOLDFAST_SOCKET_CLIENTS"

func TestMain(m *testing.M) {
	if spec := os.Getenv(clientsEnv); spec != "" {
		runClients(spec)
		return
	}
	os.Exit(m.Run())
}

// runClients opens sockets, says so, and reads until its standard input ends.
func runClients(spec string) {
	addr, count, _ := strings.Cut(spec, " ")
	n, _ := strconv.Atoi(count)
	var wg sync.WaitGroup
	gate := make(chan struct{}, 64)
	for i := range n {
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			// Linux gives each address of 127/8 its own ports.
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+i/20_000))}}
			c, err := d.Dial("tcp", addr)
			if err != nil {
				fmt.Fprintln(os.Stdout, err)
				os.Exit(1)
			}
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
			r := bufio.NewReaderSize(c, 1024)
			if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 101 {
				fmt.Fprintln(os.Stdout, resp, err)
				os.Exit(1)
			}
			go func() { // ends with the process
				buf := make([]byte, 16<<10)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
				}
			}()
		})
	}
	wg.Wait()
	fmt.Fprintln(os.Stdout, "ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// clients starts a process with n sockets to addr and waits until they are open.
func clients(b *testing.B, addr string, n int) {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", clientsEnv, addr, n))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		b.Fatalf("the clients say %q %v", line, err)
	}
}

type nobody struct{}

func (nobody) Message(context.Context, host.Ref, *host.SocketMessage) error { return nil }
func (nobody) SocketClosed(host.Ref, *host.SocketClose)                     {}
func (nobody) SocketFailed(host.Ref, *host.SocketError)                     {}

// serve returns a hub whose sockets all belong to one object of the given name, or to
// one object each.
func serve(b *testing.B, one bool) (h *Hub, id placement.ObjectID, addr string) {
	b.Helper()
	h = New(Config{PingInterval: time.Hour}) // the clients do not answer
	h.Start(nobody{})
	id = placement.NamedID("room", "a")
	var last atomic.Uint64
	addr = listen(b, func(w http.ResponseWriter, r *http.Request) {
		s := host.SocketID(last.Add(1))
		ref := host.Ref{Class: "room", ID: id}
		if !one {
			ref.ID = placement.UniqueID("room")
		}
		h.Accept(ref, host.Socket{ID: s, Accepted: time.Now()})
		if err := h.Adopt(w, r, ref.ID, host.Upgrade{Socket: s}); err != nil {
			b.Error(err)
		}
	})
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		_ = h.Shutdown(ctx) // the clients never answer
	})
	return h, id, addr
}

func listen(b *testing.B, handler http.HandlerFunc) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go func() { _ = server.Serve(l) }() // ended by Close
	b.Cleanup(func() { server.Close() })
	return l.Addr().String()
}

// cpu returns the processor time that this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func value(m interface{ Write(*dto.Metric) error }) float64 {
	var d dto.Metric
	_ = m.Write(&d)
	return d.GetCounter().GetValue()
}

const (
	members      = 500
	messageBytes = 150
)

// BenchmarkBroadcast is one object with 500 sockets: what a delivered message costs
// the server, at a pace and as fast as it can.
func BenchmarkBroadcast(b *testing.B) {
	for _, rate := range []int{100, 200, 1000, 0} {
		name := fmt.Sprintf("%d-per-s", rate)
		if rate == 0 {
			name = "full-speed"
		}
		b.Run(name, func(b *testing.B) {
			h, id, addr := serve(b, true)
			clients(b, addr, members)
			delivered := func() float64 { return value(h.metrics.out) }
			run(b, rate, delivered, func(m host.Message) { h.Broadcast(id, m, "", nil) })
			b.ReportMetric(value(h.metrics.out)/value(h.metrics.writes), "frames/write")
			if value(h.metrics.overflows) > 0 {
				b.Error("queues overflowed")
			}
		})
	}
}

// run broadcasts b.N messages and reports the server's CPU time for each delivery.
func run(b *testing.B, rate int, delivered func() float64, broadcast func(host.Message)) {
	m := host.Message{Data: []byte(strings.Repeat("x", messageBytes))}
	before, start := cpu(), time.Now()
	b.ResetTimer()
	for i := range b.N {
		if rate > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		}
		for delivered() < float64((i-64)*members) { // at most 64 under way
			time.Sleep(100 * time.Microsecond)
		}
		broadcast(m)
	}
	for delivered() < float64(b.N*members) {
		time.Sleep(100 * time.Microsecond)
	}
	b.StopTimer()
	n := float64(b.N * members)
	b.ReportMetric(float64((cpu()-before).Nanoseconds())/1e3/n, "cpu-us/msg")
	b.ReportMetric(n/time.Since(start).Seconds(), "msg/s")
}

// BenchmarkBareFanOut is the yardstick: coder/websocket, one goroutine and one Write
// per message and socket.
func BenchmarkBareFanOut(b *testing.B) {
	for _, rate := range []int{100, 200, 0} {
		b.Run(fmt.Sprintf("%d-per-s", rate), func(b *testing.B) {
			var mu sync.Mutex
			var queues []chan []byte
			var count atomic.Int64
			addr := listen(b, func(w http.ResponseWriter, r *http.Request) {
				c, err := websocket.Accept(w, r, nil)
				if err != nil {
					return
				}
				queue := make(chan []byte, 256)
				mu.Lock()
				queues = append(queues, queue)
				mu.Unlock()
				ctx := c.CloseRead(context.Background())
				for data := range queue {
					wctx, cancel := context.WithTimeout(ctx, 5*time.Second)
					err := c.Write(wctx, websocket.MessageText, data)
					cancel()
					if err != nil {
						return
					}
					count.Add(1)
				}
			})
			clients(b, addr, members)
			for open := 0; open < members; time.Sleep(time.Millisecond) {
				mu.Lock()
				open = len(queues)
				mu.Unlock()
			}
			run(b, rate, func() float64 { return float64(count.Load()) }, func(m host.Message) {
				for _, q := range queues {
					q <- m.Data
				}
			})
			for _, q := range queues {
				close(q)
			}
		})
	}
}

// BenchmarkIdleSockets reports the memory of a socket whose object is asleep, all of
// it, as the operating system sees it.
func BenchmarkIdleSockets(b *testing.B) {
	const n = 10_000
	for _, one := range []bool{true, false} {
		b.Run(fmt.Sprintf("one-object-%t", one), func(b *testing.B) {
			h, _, addr := serve(b, one)
			runtime.GC()
			before := resident(b)
			clients(b, addr, n)
			if got := h.open.Load(); got != n {
				b.Fatalf("%d sockets", got)
			}
			for b.Loop() { // the work is to exist
				runtime.GC()
			}
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			b.ReportMetric(float64(resident(b)-before)/n, "resident-B/socket")
			b.ReportMetric(float64(m.StackInuse)/n, "stack-B/socket")
			b.ReportMetric(float64(m.HeapAlloc)/n, "heap-B/socket")
		})
	}
}

// resident returns this process's resident memory.
func resident(b *testing.B) int {
	b.Helper()
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0 // no /proc here: the other figures must do
	}
	fields := strings.Fields(string(data))
	pages, err := strconv.Atoi(fields[1])
	if err != nil {
		b.Fatal(err)
	}
	return pages * os.Getpagesize()
}
