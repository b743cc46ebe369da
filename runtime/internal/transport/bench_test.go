//go:build unix

package transport

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// cpu returns the time that all processors have worked for this process.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure reports CPU for each operation, of both sides together: an operation is two frames.
func measure(b *testing.B, f func()) {
	b.ReportAllocs()
	b.ResetTimer()
	before := cpu(b)
	f()
	b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
}

// BenchmarkHeartbeat is one round trip after another, in several groups at once.
func BenchmarkHeartbeat(b *testing.B) {
	for _, groups := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("groups=%d", groups), func(b *testing.B) {
			all := loopback(b, nil, "a", "b")
			var list []*Group
			for i := range groups {
				list = append(list, all["a"].Raft(uint64(i)))
				go accept(all["b"].Raft(uint64(i)))
			}
			measure(b, func() {
				var wg sync.WaitGroup
				for _, g := range list {
					wg.Go(func() {
						req, resp := appendRequest(0, 0), new(raft.AppendEntriesResponse)
						for range (b.N + groups - 1) / groups {
							if err := g.AppendEntries("b", "b", req, resp); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// BenchmarkAppend is pipelined entries, as Raft sends them.
func BenchmarkAppend(b *testing.B) {
	for _, groups := range []int{1, 8, 32} {
		for _, size := range []int{100, 4 << 10, 64 << 10} {
			b.Run(fmt.Sprintf("groups=%d/bytes=%d", groups, size), func(b *testing.B) {
				all := loopback(b, nil, "a", "b")
				b.SetBytes(int64(size))
				var list []raft.AppendPipeline
				for i := range groups {
					go accept(all["b"].Raft(uint64(i)))
					p, err := all["a"].Raft(uint64(i)).AppendEntriesPipeline("b", "b")
					if err != nil {
						b.Fatal(err)
					}
					list = append(list, p)
				}
				req := appendRequest(1, size)
				measure(b, func() {
					var wg sync.WaitGroup
					n := (b.N + groups - 1) / groups
					for _, p := range list {
						wg.Go(func() {
							for range n {
								if _, err := p.AppendEntries(req, new(raft.AppendEntriesResponse)); err != nil {
									b.Error(err)
									return
								}
							}
						})
						wg.Go(func() {
							for range n {
								<-p.Consumer()
							}
						})
					}
					wg.Wait()
				})
			})
		}
	}
}

// BenchmarkConfirm is what reads of a group of three pay.
func BenchmarkConfirm(b *testing.B) {
	for _, readers := range []int{1, 64} {
		b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) {
			all := loopback(b, nil, nodes...)
			for _, n := range all {
				n.Raft(1).SetTerm(func() uint64 { return 1 })
			}
			g := all["a"].group(1)
			_ = confirm(g, 1)
			time.Sleep(100 * time.Millisecond)
			servers := configuration().Servers
			measure(b, func() {
				var wg sync.WaitGroup
				for range readers {
					wg.Go(func() {
						done := make(chan error, 1)
						for range (b.N + readers - 1) / readers {
							g.Confirm(1, servers, func(err error) { done <- err })
							if err := <-done; err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		})
	}
}
