package replica

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
	"github.com/holdfast-run/holdfast/runtime/internal/transport"
)

// A fakeMachine remembers the batches that it applied, and its file is a byte slice.
type fakeMachine struct {
	mu    sync.Mutex
	state fakeState
	file  []byte                        // the durable state
	err   error                         // of Apply
	gate  atomic.Pointer[chan struct{}] // Apply waits until it is closed
	disk  atomic.Pointer[chan struct{}] // Flush and Restore wait until it is closed
}

// hang makes the machine's disk hang until the function returned is called.
func (m *fakeMachine) hang() (release func()) {
	disk := make(chan struct{})
	m.disk.Store(&disk)
	return func() { m.disk.Store(nil); close(disk) }
}

func (m *fakeMachine) awaitDisk() {
	if disk := m.disk.Load(); disk != nil {
		<-*disk
	}
}

// hold makes Apply wait until the function returned is called.
func (m *fakeMachine) hold() (release func()) {
	gate := make(chan struct{})
	m.gate.Store(&gate)
	return func() { close(gate) }
}

type fakeState struct {
	Index, Term uint64
	ConfIndex   uint64
	Conf        []byte
	Batches     []string
	since       time.Time
	bytes       int
}

func (m *fakeMachine) Apply(index, term uint64, batches []byte) error {
	if gate := m.gate.Load(); gate != nil {
		<-*gate
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	if index <= m.state.Index {
		panic(fmt.Sprintf("index %d applied after %d", index, m.state.Index))
	}
	m.state.Index, m.state.Term = index, term
	if m.state.since.IsZero() {
		m.state.since = time.Now()
	}
	m.state.bytes += len(batches)
	for len(batches) > 0 {
		n := binary.BigEndian.Uint32(batches)
		m.state.Batches = append(m.state.Batches, string(batches[4:4+n]))
		batches = batches[4+n:]
	}
	return nil
}

// batch is what the tests commit.
func batch(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

func (m *fakeMachine) SetConfiguration(index uint64, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.ConfIndex, m.state.Conf = index, data
}

func (m *fakeMachine) Configuration() (uint64, []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.ConfIndex, m.state.Conf
}

func (m *fakeMachine) Applied() (index, term uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Index, m.state.Term
}

func (m *fakeMachine) durable() (s fakeState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file != nil {
		if err := json.Unmarshal(m.file, &s); err != nil {
			panic(err)
		}
	}
	return s
}

func (m *fakeMachine) Durable() (index, term uint64) {
	s := m.durable()
	return s.Index, s.Term
}

func (m *fakeMachine) Flush(context.Context) error {
	m.awaitDisk()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.since, m.state.bytes = time.Time{}, 0
	file, err := json.Marshal(m.state)
	m.file = file
	return err
}

func (m *fakeMachine) Unflushed() (int, time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.bytes, m.state.since
}

func (m *fakeMachine) Snapshot(ctx context.Context) (*Snapshot, error) {
	if err := m.Flush(ctx); err != nil {
		return nil, err
	}
	s := m.durable()
	m.mu.Lock()
	r := strings.NewReader(string(m.file))
	m.mu.Unlock()
	return &Snapshot{
		Index: s.Index, Term: s.Term, ConfigurationIndex: s.ConfIndex, Configuration: s.Conf,
		Size: r.Size(), WriterTo: r, Closer: io.NopCloser(r),
	}, nil
}

func (m *fakeMachine) Restore(r io.Reader) error {
	m.awaitDisk()
	file, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.file, m.state = file, fakeState{}
	return json.Unmarshal(file, &m.state)
}

// restarted is the machine as a crash leaves it.
func (m *fakeMachine) restarted() *fakeMachine {
	s := m.durable()
	return &fakeMachine{state: s, file: m.file}
}

func (m *fakeMachine) batches() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.state.Batches)
}

// digest is of all that was applied.
func (m *fakeMachine) digest() uint64 {
	h := fnv.New64()
	for _, b := range m.batches() {
		fmt.Fprintf(h, "%d %s,", len(b), b)
	}
	return h.Sum64()
}

// A member is a replica with what it stands on.
type member struct {
	*Replica
	machine *fakeMachine
	log     *raftlog.Log
	fs      *vfs.MemFS
	reigns  chan *Reign
	fatal   chan error
}

// start starts a group of one on a file system in memory.
func start(t *testing.T, fs *vfs.MemFS, machine *fakeMachine, change func(*Config)) *member {
	t.Helper()
	m, err := tryStart(t, fs, machine, change)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func tryStart(t *testing.T, fs *vfs.MemFS, machine *fakeMachine, change func(*Config)) (*member, error) {
	t.Helper()
	log, err := raftlog.Open("log", raftlog.Options{FS: fs, MemTableBytes: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	m := &member{machine: machine, log: log, fs: fs, reigns: make(chan *Reign, 100), fatal: make(chan error, 1)}
	cfg := Config{
		Name:      "shard 1",
		NodeID:    "node-1",
		Log:       log.Group(1),
		Transport: transport.NewLocal("node-1"),
		Machine:   machine,
		OnFatal:   func(err error) { m.fatal <- err },
		Lead:      func(ctx context.Context, r *Reign) { m.reigns <- r; <-ctx.Done() },
	}
	if change != nil {
		change(&cfg)
	}
	m.Replica, err = Open(t.Context(), cfg)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return m, nil
}

func (m *member) shutdown(t *testing.T) {
	t.Helper()
	if err := errors.Join(m.Stop(t.Context()), m.log.Close()); err != nil {
		t.Error(err)
	}
}

// commit commits a batch and returns its outcome.
func commit(r *Reign, s string) error {
	done := make(chan error, 1)
	r.Commit(batch(s), func(err error) { done <- err })
	return <-done
}

// bubble runs a test in virtual time.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, f)
}

func TestFirstReign(t *testing.T) {
	bubble(t, func(t *testing.T) {
		began := time.Now()
		m := start(t, vfs.NewCrashableMem(), &fakeMachine{}, nil)
		r := <-m.reigns
		if took := time.Since(began); took != 0 {
			t.Errorf("the first reign began after %v", took)
		}
		if epoch, leads := m.Reign(); !leads || epoch != r.Epoch() || epoch < 2 {
			t.Errorf("reign %d, %v", epoch, leads)
		}
		for i := range 10 {
			if err := commit(r, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		confirmed := false
		r.Confirm(func(err error) { confirmed = err == nil })
		if !confirmed {
			t.Error("the only voter was not confirmed at once")
		}
		if got := strings.Join(m.machine.batches(), " "); got != "0 1 2 3 4 5 6 7 8 9" {
			t.Errorf("applied %s", got)
		}
		m.shutdown(t)
		if cause := context.Cause(r.ctx); !errors.Is(cause, ErrStopped) {
			t.Errorf("the reign ended with %v", cause)
		}
		if _, leads := m.Reign(); leads {
			t.Error("a stopped replica leads")
		}
		r.Confirm(func(err error) {
			if !errors.Is(err, host.ErrUnavailable) {
				t.Errorf("confirmed after the reign: %v", err)
			}
		})
		if err := commit(r, "late"); !errors.Is(err, host.ErrUnavailable) {
			t.Errorf("commit after the reign: %v", err)
		}
	})
}

// TestAcknowledgedBatchesSurvive cuts the power under load, again and again, and counts.
func TestAcknowledgedBatchesSurvive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		fs, machine := vfs.NewCrashableMem(), &fakeMachine{}
		acked := map[string]bool{}
		for round := range 8 {
			m := start(t, fs, machine, nil)
			r := <-m.reigns
			if round%3 == 1 {
				if err := m.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			applied := map[string]int{}
			for _, b := range machine.batches() {
				applied[b]++
			}
			for b := range acked {
				if applied[b] != 1 {
					t.Fatalf("round %d: %q was acknowledged and is applied %d times", round, b, applied[b])
				}
			}
			var mu sync.Mutex
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					for j := range 10 {
						s := fmt.Sprintf("%d-%d-%d", round, i, j)
						err := commit(r, s)
						mu.Lock()
						acked[s] = err == nil
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			crashed, file := fs.CrashClone(vfs.CrashCloneCfg{}), machine.restarted()
			m.shutdown(t)
			fs, machine = crashed, file
		}
	})
}

func TestCleanStopLeavesNothingToApply(t *testing.T) {
	bubble(t, func(t *testing.T) {
		fs, machine := vfs.NewCrashableMem(), &fakeMachine{}
		m := start(t, fs, machine, nil)
		r := <-m.reigns
		if err := commit(r, "x"); err != nil {
			t.Fatal(err)
		}
		m.shutdown(t)
		if durable, _ := machine.Durable(); durable != machine.state.Index {
			t.Errorf("durable up to %d of %d", durable, machine.state.Index)
		}
		m = start(t, fs, machine.restarted(), nil)
		again := <-m.reigns
		if again.Epoch() <= r.Epoch() {
			t.Errorf("epoch %d after %d", again.Epoch(), r.Epoch())
		}
		m.shutdown(t)
	})
}

func TestOrderUnderLoad(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := start(t, vfs.NewCrashableMem(), &fakeMachine{}, func(c *Config) { c.EntryBatches = 7; c.InFlight = 3 })
		r := <-m.reigns
		const n = 2000
		var order []int
		var wg sync.WaitGroup
		wg.Add(n)
		for i := range n {
			r.Commit(batch(fmt.Sprint(i)), func(err error) {
				if err != nil {
					t.Error(err)
				}
				if got := m.machine.batches(); len(got) <= i {
					t.Errorf("batch %d was answered before it was applied", i)
				}
				order = append(order, i)
				wg.Done()
			})
		}
		wg.Wait()
		if len(order) != n || !slices.IsSorted(order) {
			t.Error("answers are out of order")
		}
		for i, b := range m.machine.batches() {
			if b != fmt.Sprint(i) {
				t.Fatalf("batch %s was applied as number %d", b, i)
			}
		}
		m.shutdown(t)
	})
}

// TestLargeBatch commits batches that do not fit into one entry, and crashes in the
// middle of one.
func TestLargeBatch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		fs, machine := vfs.NewCrashableMem(), &fakeMachine{}
		m := start(t, fs, machine, func(c *Config) { c.InFlight = 2 })
		r := <-m.reigns
		large := strings.Repeat("large", 1<<20) // 5 MiB, 11 entries
		var wg sync.WaitGroup
		for _, s := range []string{"before", large, "after"} {
			wg.Add(1)
			r.Commit(batch(s), func(err error) {
				if err != nil {
					t.Error(err)
				}
				wg.Done()
			})
		}
		wg.Wait()
		if got := machine.batches(); !slices.Equal(got, []string{"before", large, "after"}) {
			t.Errorf("applied %d batches", len(got))
		}

		// The log gets the first two chunks of another one, and then the term ends.
		for i := range 2 {
			e := entry{kind: kindChunk, term: r.Epoch(), seq: 1 << 40, offset: i * 1000, total: 3000, payload: make([]byte, 1000)}
			if err := m.raft.ApplyLog(raft.Log{Data: e.encode(nil)}, 0).Error(); err != nil {
				t.Fatal(err)
			}
			if err := m.Flush(t.Context()); err != nil { // must not make the first chunk durable
				t.Fatal(err)
			}
		}
		last := m.raft.LastIndex()
		if durable, _ := machine.Durable(); durable > last-2 {
			t.Errorf("durable up to %d, in the middle of a batch that began at %d", durable, last-1)
		}
		crashed, file := fs.CrashClone(vfs.CrashCloneCfg{}), machine.restarted()
		m.shutdown(t)

		m = start(t, crashed, file, nil)
		if err := commit(<-m.reigns, "next reign"); err != nil {
			t.Fatal(err)
		}
		if got := file.batches(); len(got) != 4 || got[3] != "next reign" {
			t.Errorf("%d batches after the crash", len(got))
		}
		m.shutdown(t)
	})
}

// TestFence puts entries into the log whose stamp is of another term.
func TestFence(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := start(t, vfs.NewCrashableMem(), &fakeMachine{}, nil)
		r := <-m.reigns
		for _, term := range []uint64{r.Epoch() - 1, r.Epoch() + 1, 0} {
			stale := entry{kind: kindBatches, term: term, seq: 1 << 40}
			data := append(stale.encode(nil), batch("stale")...)
			if err := m.raft.ApplyLog(raft.Log{Data: data}, 0).Error(); err != nil {
				t.Fatal(err)
			}
		}
		if err := commit(r, "good"); err != nil {
			t.Fatal(err)
		}
		if got := m.machine.batches(); !slices.Equal(got, []string{"good"}) {
			t.Errorf("applied %q", got)
		}
		if index, _ := m.machine.Applied(); index != m.raft.LastIndex() {
			t.Errorf("applied index is %d of %d", index, m.raft.LastIndex())
		}
		m.shutdown(t)
	})
}

// TestLostLeadership ends a reign with entries in flight: what was not proposed is
// refused, the rest unknown, in order, and the next reign sees what really happened.
func TestLostLeadership(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := start(t, vfs.NewCrashableMem(), &fakeMachine{}, func(c *Config) { c.EntryBatches = 1; c.InFlight = 2 })
		r := <-m.reigns
		if err := commit(r, "first"); err != nil {
			t.Fatal(err)
		}
		const n = 50
		outcomes := make(chan error, n)
		release := m.machine.hold() // nothing is applied now
		for i := range n {
			r.Commit(batch(fmt.Sprint(i)), func(err error) { outcomes <- err })
		}
		synctest.Wait()
		m.Replica.committer.Load().die(ErrLeadershipLost)
		var codes []host.Code
		for range n {
			codes = append(codes, host.AsError(<-outcomes).Code)
		}
		release()
		want := append([]host.Code{host.CodeUnknownOutcome, host.CodeUnknownOutcome}, slices.Repeat([]host.Code{host.CodeUnavailable}, n-2)...)
		if !slices.Equal(codes, want) {
			t.Errorf("outcomes are %v", codes)
		}
		if err := commit(r, "later"); !errors.Is(err, host.ErrUnavailable) {
			t.Errorf("a later batch of the reign: %v", err)
		}

		// Make Raft lose the leadership, too: the group elects this node again.
		if err := m.cfg.Transport.Stand(t.Context()); err != nil {
			t.Fatal(err)
		}
		next := <-m.reigns
		if next.Epoch() <= r.Epoch() || !errors.Is(context.Cause(r.ctx), ErrLeadershipLost) {
			t.Errorf("epoch %d after %d, which ended with %v", next.Epoch(), r.Epoch(), context.Cause(r.ctx))
		}
		if got := m.machine.batches(); !slices.Equal(got, []string{"first", "0", "1"}) {
			t.Errorf("applied %q", got)
		}
		if err := commit(next, "again"); err != nil {
			t.Error(err)
		}
		m.shutdown(t)
	})
}

func TestPressure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := start(t, vfs.NewCrashableMem(), &fakeMachine{}, func(c *Config) { c.QueueBytes = 1000 })
		r := <-m.reigns
		if err := r.Pressure(); err != nil {
			t.Error(err)
		}
		release := m.machine.hold()
		done := make(chan error, 1)
		r.Commit(batch(strings.Repeat("x", 1000)), func(err error) { done <- err })
		if err := r.Pressure(); !errors.Is(err, host.ErrOverloaded) {
			t.Errorf("got %v", err)
		}
		release()
		if err := <-done; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if err := r.Pressure(); err != nil {
			t.Error(err)
		}
		m.shutdown(t)
	})
}

func TestFailedApplyEndsTheReplica(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := start(t, vfs.NewCrashableMem(), &fakeMachine{}, nil)
		r := <-m.reigns
		m.machine.mu.Lock()
		m.machine.err = errors.New("checksum mismatch")
		m.machine.mu.Unlock()
		var acked atomic.Bool
		r.Commit(batch("x"), func(err error) { acked.Store(err == nil) })
		if err := <-m.fatal; !strings.Contains(err.Error(), "checksum mismatch") {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := errors.Join(m.Stop(ctx), m.log.Close()); err != nil {
			t.Error(err)
		}
		if acked.Load() {
			t.Error("the batch was acknowledged")
		}
	})
}

// TestTrim commits and flushes until the log is cut, restarts behind the cut, and
// refuses to start without the state.
func TestTrim(t *testing.T) {
	bubble(t, func(t *testing.T) {
		fs, machine := vfs.NewCrashableMem(), &fakeMachine{}
		change := func(c *Config) { c.LogBytes = 2 << 20; c.EntryBatches = 1 }
		m := start(t, fs, machine, change)
		r := <-m.reigns
		for range 500 {
			if err := commit(r, strings.Repeat("x", 10<<10)); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		group := m.log.Group(1)
		first, _ := group.FirstIndex()
		if size := group.Size(); first < 200 || size > 4<<20 {
			t.Errorf("the log begins at %d and has %d bytes", first, size)
		}
		if err := commit(r, "last"); err != nil {
			t.Fatal(err)
		}
		crashed, file := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0}), machine.restarted()
		m.shutdown(t)
		want := machine.digest()

		m = start(t, crashed, file, change)
		<-m.reigns
		if file.digest() != want {
			t.Error("the state differs after the restart")
		}
		again := m.fs
		m.shutdown(t)

		if _, err := tryStart(t, again, &fakeMachine{}, change); !errors.Is(err, ErrStateLost) {
			t.Errorf("without the state: %v", err)
		}
		if _, err := tryStart(t, vfs.NewCrashableMem(), file, change); !errors.Is(err, ErrLogLost) {
			t.Errorf("without the log: %v", err)
		}
	})
}

func TestFlusher(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := NewFlusher(FlusherConfig{Bytes: 1 << 20, Stall: 1 << 21})
		m := start(t, vfs.NewCrashableMem(), &fakeMachine{}, func(c *Config) { c.Flusher = f })
		r := <-m.reigns
		settled := func() bool { d, _ := m.machine.Durable(); return d == m.raft.LastIndex() }
		if err := commit(r, "small"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Second)
		if settled() {
			t.Error("flushed early")
		}
		time.Sleep(2 * time.Second)
		if !settled() {
			t.Error("not flushed after 10 s")
		}
		for range 40 {
			if err := commit(r, strings.Repeat("x", 100<<10)); err != nil { // 4 MiB, more than Stall
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if !settled() {
			t.Error("not flushed after 1 MiB")
		}
		m.shutdown(t)
		f.Stop()
		f.Stop()
	})
}

func TestEntryRoundTrip(t *testing.T) {
	t.Parallel()
	for _, e := range []entry{
		{kind: kindBegin, term: 1, seq: 2, payload: []byte{}},
		{kind: kindChunk, term: 3, seq: 4, offset: 5, total: 6, payload: []byte("x")},
	} {
		got, err := parseEntry(e.encode(nil))
		if err != nil || fmt.Sprint(got) != fmt.Sprint(e) {
			t.Errorf("%v came back as %v, %v", e, got, err)
		}
	}
	for _, bad := range [][]byte{nil, make([]byte, entryHeader-1), make([]byte, entryHeader), entry{kind: 9}.encode(nil), entry{kind: kindChunk}.encode(nil)[:entryHeader]} {
		if e, err := parseEntry(bad); err == nil {
			t.Errorf("%x was read as %v", bad, e)
		}
	}
}
