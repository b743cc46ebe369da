package replica

import (
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
	"github.com/holdfast-run/holdfast/runtime/internal/transport"
)

// A nullMachine keeps nothing but the index.
type nullMachine struct {
	mu          sync.Mutex
	index, term uint64
}

func (m *nullMachine) Apply(index, term uint64, _ []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.index, m.term = index, term
	return nil
}

func (m *nullMachine) Applied() (index, term uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.index, m.term
}

func (*nullMachine) SetConfiguration(uint64, []byte)             {}
func (*nullMachine) Configuration() (uint64, []byte)             { return 0, nil }
func (*nullMachine) Durable() (index, term uint64)               { return 0, 0 }
func (*nullMachine) Flush(context.Context) error                 { return nil }
func (*nullMachine) Unflushed() (int, time.Time)                 { return 0, time.Time{} }
func (*nullMachine) Snapshot(context.Context) (*Snapshot, error) { return nil, io.EOF }
func (*nullMachine) Restore(io.Reader) error                     { return nil }

// BenchmarkCommit is how Config.InFlight was chosen.
func BenchmarkCommit(b *testing.B) {
	for _, callers := range []int{1, 16, 256} {
		for _, depth := range []int{1, 2, 4, 8, 16} {
			b.Run(fmt.Sprintf("callers=%d/depth=%d", callers, depth), func(b *testing.B) {
				log, err := raftlog.Open(b.TempDir(), raftlog.Options{})
				if err != nil {
					b.Fatal(err)
				}
				reigns := make(chan *Reign, 1)
				r, err := Open(b.Context(), Config{
					NodeID:    "node-1",
					Log:       log.Group(1),
					Transport: transport.NewLocal("node-1"),
					Machine:   &nullMachine{},
					InFlight:  depth,
					Lead:      func(ctx context.Context, r *Reign) { reigns <- r; <-ctx.Done() },
				})
				if err != nil {
					b.Fatal(err)
				}
				reign := <-reigns
				var wg sync.WaitGroup
				b.ResetTimer()
				for range callers {
					wg.Go(func() {
						batch, done := make([]byte, 100), make(chan error, 1)
						for range b.N / callers {
							reign.Commit(batch, func(err error) { done <- err })
							if err := <-done; err != nil {
								b.Error(err)
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				if err := r.Stop(context.Background()); err != nil {
					b.Error(err)
				}
				if err := log.Close(); err != nil {
					b.Error(err)
				}
			})
		}
	}
}

// BenchmarkConfirm is what a read of the only voter pays.
func BenchmarkConfirm(b *testing.B) {
	log, err := raftlog.Open(b.TempDir(), raftlog.Options{})
	if err != nil {
		b.Fatal(err)
	}
	reigns := make(chan *Reign, 1)
	r, err := Open(b.Context(), Config{
		NodeID:    "node-1",
		Log:       log.Group(1),
		Transport: transport.NewLocal("node-1"),
		Machine:   &nullMachine{},
		Lead:      func(ctx context.Context, r *Reign) { reigns <- r; <-ctx.Done() },
	})
	if err != nil {
		b.Fatal(err)
	}
	reign := <-reigns
	b.ReportAllocs()
	for b.Loop() {
		reign.Confirm(func(err error) {
			if err != nil {
				b.Fatal(err)
			}
		})
	}
	if err := r.Stop(context.Background()); err != nil {
		b.Error(err)
	}
	if err := log.Close(); err != nil {
		b.Error(err)
	}
}
