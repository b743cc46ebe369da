package transport

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func entries(n, size int) []*raft.Log {
	list := make([]*raft.Log, n)
	for i := range list {
		list[i] = &raft.Log{Index: uint64(i + 1), Term: 1, Data: bytes.Repeat([]byte{byte(i)}, size)}
	}
	return list
}

func appendRequest(n, size int) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("a"), Addr: []byte("a")},
		Term:      1, Entries: entries(n, size),
	}
}

// accept answers every request of a group with success, until it is closed.
func accept(g *Group) {
	for {
		select {
		case rpc := <-g.rpcs:
			m := rpc.Command.(*raft.AppendEntriesRequest)
			rpc.Respond(&raft.AppendEntriesResponse{Term: m.Term, Success: true, LastLog: uint64(len(m.Entries))}, nil)
		case <-g.closed:
			return
		}
	}
}

// TestPipeline sends without waiting, and gets its answers in order.
func TestPipeline(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.start("a", nil, nil), w.start("b", nil, nil)
		go accept(b.Raft(1))
		w.net.Delay(10*time.Millisecond, 0)
		g := a.Raft(1)
		p, err := g.AppendEntriesPipeline("b", "b")
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		const n = 80
		go func() {
			for i := range n {
				if _, err := p.AppendEntries(appendRequest(i%7, 10), new(raft.AppendEntriesResponse)); err != nil {
					t.Error(err)
				}
			}
		}()
		for i := range n {
			f := <-p.Consumer()
			if err := f.Error(); err != nil || f.Response().LastLog != uint64(i%7) || len(f.Request().Entries) != i%7 {
				t.Fatalf("number %d: %v, %+v", i, err, f.Response())
			}
		}
		if took := time.Since(start); took > n/maxInFlight*25*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if _, err := p.AppendEntries(appendRequest(1, 1), new(raft.AppendEntriesResponse)); err == nil {
			t.Error("a closed pipeline sends")
		}
	})
}

// TestSlowReader has a Raft that does not read its answers for a while: nothing is lost, and no more
// than a few requests are sent meanwhile.
func TestSlowReader(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.start("a", nil, nil), w.start("b", nil, nil)
		go accept(b.Raft(1))
		p, err := a.Raft(1).AppendEntriesPipeline("b", "b")
		if err != nil {
			t.Fatal(err)
		}
		const n = 100
		var sent atomic.Int32
		go func() {
			for i := range n {
				if _, err := p.AppendEntries(appendRequest(i%7, 10), new(raft.AppendEntriesResponse)); err != nil {
					t.Error(err)
				}
				sent.Add(1)
			}
		}()
		time.Sleep(time.Minute)
		if k := sent.Load(); k > 2*maxInFlight {
			t.Errorf("%d requests were sent", k)
		}
		for i := range n {
			f := <-p.Consumer()
			if err := f.Error(); err != nil || f.Response().LastLog != uint64(i%7) {
				t.Fatalf("number %d: %v, %+v", i, err, f.Response())
			}
			if i == 30 {
				time.Sleep(time.Second)
			}
		}
		p.Close()
	})
}

// TestHungFollower has a follower whose disk hangs: it accepts, and never answers. (hashicorp/raft
// issue 612.) Another group on the same connections must not notice.
func TestHungFollower(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.start("a", nil, nil), w.start("b", nil, nil)
		hung, good := a.Raft(1), a.Raft(2)
		b.Raft(1) // nobody reads its messages
		go accept(b.Raft(2))
		p, err := hung.AppendEntriesPipeline("b", "b")
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		sent := 0
		for err == nil {
			if _, err = p.AppendEntries(appendRequest(1, 100<<10), new(raft.AppendEntriesResponse)); err == nil {
				sent++
			}
		}
		if took := time.Since(start); sent != maxInFlight || took > 6*time.Second {
			t.Errorf("the pipeline took %d requests, and ended after %v", sent, took)
		}
		for range sent {
			if f := <-p.Consumer(); f.Error() == nil {
				t.Error("a request succeeded")
			}
		}
		for range 100 {
			start := time.Now()
			if err := good.AppendEntries("b", "b", appendRequest(1, 10), new(raft.AppendEntriesResponse)); err != nil || time.Since(start) > 0 {
				t.Errorf("the other group: %v after %v", err, time.Since(start))
			}
		}
		// What a follower does not take is refused at once when too much waits.
		failed := make(chan error, 3*queueLength)
		for range cap(failed) {
			go func() {
				failed <- hung.AppendEntries("b", "b", appendRequest(1, 10), new(raft.AppendEntriesResponse))
			}()
		}
		busy := 0
		for range cap(failed) {
			if err := <-failed; errors.Is(err, remoteError(errGroupBusy.Error())) {
				busy++
			} else if !errors.Is(err, ErrTimeout) {
				t.Errorf("got %v", err)
			}
		}
		if busy < queueLength {
			t.Errorf("%d of %d were refused", busy, cap(failed))
		}
	})
}

// TestSlowPeer tells a peer whose groups do not answer from one that cannot be reached.
func TestSlowPeer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.start("a", nil, nil), w.start("b", nil, nil)
		g := a.Raft(1)
		b.Raft(1) // nobody reads its messages
		for range 5 {
			if err := g.AppendEntries("b", "b", appendRequest(0, 0), new(raft.AppendEntriesResponse)); !errors.Is(err, ErrTimeout) {
				t.Errorf("got %v", err)
			}
		}
		link := a.peer("b").control.current()
		time.Sleep(5 * time.Second)
		if link == nil || link != a.peer("b").control.current() {
			t.Error("the connection was broken although the peer is there")
		}
		w.net.Partition("b")
		if err := g.AppendEntries("b", "b", appendRequest(0, 0), new(raft.AppendEntriesResponse)); !errors.Is(err, ErrTimeout) {
			t.Errorf("got %v", err)
		}
		time.Sleep(1100 * time.Millisecond)
		if a.peer("b").control.current() != nil {
			t.Error("a connection that leads nowhere is kept")
		}
	})
}

// TestSlowWire fills the connection of entries. Heartbeats, which have another, must not wait.
func TestSlowWire(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.start("a", nil, nil), w.start("b", nil, nil)
		go accept(b.Raft(1))
		g := a.Raft(1)
		if err := g.AppendEntries("b", "b", appendRequest(1, 1), new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
		if err := g.AppendEntries("b", "b", appendRequest(0, 0), new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
		w.net.Rate(1 << 20)
		const n = 20
		done := make(chan error, n)
		for range n {
			go func() { done <- g.AppendEntries("b", "b", appendRequest(1, 900<<10), new(raft.AppendEntriesResponse)) }()
		}
		time.Sleep(100 * time.Millisecond)
		out := a.peer("b").bulk.current().out
		out.mu.Lock()
		if out.bytes > bulkOutbox+maxFrame {
			t.Errorf("%d bytes wait to be sent", out.bytes)
		}
		out.mu.Unlock()
		for range 10 {
			start := time.Now()
			if err := g.AppendEntries("b", "b", appendRequest(0, 0), new(raft.AppendEntriesResponse)); err != nil || time.Since(start) > 10*time.Millisecond {
				t.Errorf("heartbeat: %v after %v", err, time.Since(start))
			}
		}
		good := 0
		for range n {
			switch err := <-done; {
			case err == nil:
				good++
			case !errors.Is(err, ErrTimeout) && !errors.Is(err, errBusy):
				t.Errorf("got %v", err)
			}
		}
		if good < 4 {
			t.Errorf("%d of %d arrived in time", good, n)
		}
	})
}

// TestShorten sends more entries than go at once.
func TestShorten(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.start("a", nil, nil), w.start("b", nil, nil)
		go accept(b.Raft(1))
		g := a.Raft(1)
		for _, test := range []struct{ n, size, want int }{{64, 100, 64}, {64, 100 << 10, 10}, {3, 2 << 20, 1}} {
			req, resp := appendRequest(test.n, test.size), new(raft.AppendEntriesResponse)
			if err := g.AppendEntries("b", "b", req, resp); err != nil {
				t.Fatal(err)
			}
			if len(req.Entries) != test.want || resp.LastLog != uint64(test.want) {
				t.Errorf("%d entries of %d bytes: %d went, %d arrived, want %d", test.n, test.size, len(req.Entries), resp.LastLog, test.want)
			}
		}
		if err := g.AppendEntries("b", "b", appendRequest(1, maxFrame), new(raft.AppendEntriesResponse)); err == nil {
			t.Error("an entry that fits nowhere was sent")
		}
	})
}

// TestBrokenConnection breaks the connection under calls that wait.
func TestBrokenConnection(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.start("a", nil, nil), w.start("b", nil, nil)
		b.Raft(1)
		g := a.Raft(1)
		failed := make(chan error, 10)
		for i := range cap(failed) {
			go func() {
				failed <- g.AppendEntries("b", "b", appendRequest(i%2, 10), new(raft.AppendEntriesResponse))
			}()
		}
		time.Sleep(500 * time.Millisecond)
		start := time.Now()
		w.net.Refuse("b")
		for range cap(failed) {
			if err := <-failed; !errors.Is(err, errBroken) || time.Since(start) > 0 {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		}
	})
}

// snapshotRequest is for n bytes.
func snapshotRequest(n int) *raft.InstallSnapshotRequest {
	return &raft.InstallSnapshotRequest{SnapshotVersion: 1, Term: 3, Leader: []byte("a"), LastLogIndex: 9, Configuration: []byte("members"), Size: int64(n)}
}

// TestSnapshot sends one that takes ten times as long as the time-out, and whose restoration takes as long again.
func TestSnapshot(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		data := make([]byte, 5<<20)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		short := func(c *Config) { c.SnapshotTimeout = 500 * time.Millisecond }
		a, b := w.start("a", short, nil), w.start("b", short, nil)
		g := b.Raft(4)
		go func() {
			rpc := <-g.Consumer()
			req := rpc.Command.(*raft.InstallSnapshotRequest)
			got, err := io.ReadAll(rpc.Reader)
			time.Sleep(5 * time.Second)
			rpc.Respond(&raft.InstallSnapshotResponse{Term: req.Term, Success: bytes.Equal(got, data)}, err)
		}()
		w.net.Rate(1 << 20)
		start := time.Now()
		var resp raft.InstallSnapshotResponse
		if err := a.Raft(4).InstallSnapshot("b", "b", snapshotRequest(len(data)), &resp, bytes.NewReader(data)); err != nil || !resp.Success || resp.Term != 3 {
			t.Errorf("%v, %+v", err, resp)
		}
		if time.Since(start) < 10*time.Second {
			t.Errorf("it took only %v", time.Since(start))
		}
	})
}

// TestBadSnapshots lets snapshots fail in every way.
func TestBadSnapshots(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.start("a", nil, nil), w.start("b", nil, nil)
		to, from := b.Raft(4), a.Raft(4)
		received := make(chan int, 10)
		go func() {
			for {
				select {
				case rpc := <-to.Consumer():
					got, err := io.ReadAll(rpc.Reader)
					received <- len(got)
					rpc.Respond(nil, err)
				case <-to.closed:
					return
				}
			}
		}()
		send := func(g *Group, n int, data io.Reader) error {
			return g.InstallSnapshot("b", "b", snapshotRequest(n), new(raft.InstallSnapshotResponse), data)
		}
		if err := send(a.Raft(5), 3, bytes.NewReader(make([]byte, 3))); !errors.Is(err, remoteError(errNoGroup.Error())) {
			t.Errorf("no such group: %v", err)
		}
		if err := send(from, 3, bytes.NewReader(make([]byte, 2))); err == nil {
			t.Error("a byte is missing")
		}
		if n := <-received; n != 2 {
			t.Errorf("%d bytes of 2 arrived", n)
		}
		broken := io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), errReader{io.ErrNoProgress})
		if err := send(from, 2<<20, broken); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("the source broke: %v", err)
		}
		<-received
		w.net.Rate(1 << 20)
		stopped := make(chan error, 1)
		go func() { stopped <- send(from, 20<<20, zeros{}) }()
		time.Sleep(time.Second)
		w.net.Partition("b")
		start := time.Now()
		if err := <-stopped; err == nil || time.Since(start) > 11*time.Second {
			t.Errorf("cut off: %v after %v", err, time.Since(start))
		}
		w.net.Heal()
		<-received
		go func() { stopped <- send(from, 20<<20, zeros{}) }()
		time.Sleep(time.Second)
		from.Close()
		if err := <-stopped; err == nil {
			t.Error("the group was closed")
		}
		<-received
	})
}

// TestSnapshotsAtOnce receives no more than it may.
func TestSnapshotsAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.start("a", nil, nil), w.start("b", func(c *Config) { c.MaxSnapshots = 2 }, nil)
		results := make(chan error, 3)
		for i := range uint64(3) {
			to, from := b.Raft(i), a.Raft(i)
			go func() {
				select {
				case rpc := <-to.Consumer():
					time.Sleep(time.Second)
					rpc.Respond(&raft.InstallSnapshotResponse{}, nil)
				case <-to.closed:
				}
			}()
			go func() {
				results <- from.InstallSnapshot("b", "b", snapshotRequest(0), new(raft.InstallSnapshotResponse), nil)
			}()
		}
		var errs []error
		for range cap(results) {
			errs = append(errs, <-results)
		}
		if n := len(slices.DeleteFunc(errs, func(err error) bool { return err == nil })); n != 1 {
			t.Errorf("%d of 3 were refused", n)
		}
	})
}

type errReader struct{ error }

func (r errReader) Read([]byte) (int, error) { return 0, r.error }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
