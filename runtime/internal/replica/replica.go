// Package replica is one member of one Raft group, and the only place that knows Raft:
// above it there are batches, reigns and a state machine. It promises:
//
//   - a batch whose done was called with nil is on the disks of a quorum and applied here;
//     it is applied whole, once, and in the order of the calls of its reign;
//   - a batch whose done was called with [host.ErrUnavailable] was not and will not be
//     applied; with [host.ErrUnknownOutcome] either may be true;
//   - a reign is one leadership in one term; when it begins, everything that was
//     committed before is applied here, and nothing of another reign is applied
//     between its batches.
//
// A replica leans on the node's log (raftlog), a transport, and a [StateMachine] that
// keeps itself on disk: the state machine's file is the snapshot, and the log is only
// needed behind the index up to which the file is durable.
//
//	Commit > queue > entry > raft.Apply > log fsync (quorum) > ApplyBatch > StateMachine.Apply > done
//
// Its life as a leader, all of it on the goroutine of [Replica.run]:
//
//	          leadership won              begin entry applied
//	no reign ---------------> beginning --------------------> Config.Lead runs
//	   ^                          |                               |
//	   +--------------------------+-------------------------------+
//	      leadership lost, committer failed, or Stop; Lead has returned
//
// Fencing: raft.Apply may reject one entry and accept the next, and a node may lose
// and regain leadership between computing a batch and proposing it. So a committer
// belongs to one term and dies with it, every entry bears the term of its committer,
// and an entry that got into the log under another term is dropped when it is applied.
//
// DESIGN.md beside this file says what bit us.
package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
)

// A StateMachine is what the group replicates. Apply and Restore are called from one
// goroutine at a time, everything else from any.
type StateMachine interface {
	// Apply applies one entry. It must do the same on all replicas. An error ends the node.
	Apply(index, term uint64, batches []byte) error
	// SetConfiguration keeps the group's members as of an index, with the rest.
	SetConfiguration(index uint64, data []byte)
	// Configuration returns what was last kept; index 0 means nothing.
	Configuration() (index uint64, data []byte)
	// Applied returns index and term of the last entry applied.
	Applied() (index, term uint64)
	// Durable returns index and term of the last entry that a crash cannot undo.
	Durable() (index, term uint64)
	// Flush makes durable what is applied.
	Flush(ctx context.Context) error
	// Unflushed says how much is not durable, and since when.
	Unflushed() (bytes int, since time.Time)
	// Snapshot flushes and returns the whole state for reading.
	Snapshot(ctx context.Context) (*Snapshot, error)
	// Restore replaces the state by a snapshot's.
	Restore(r io.Reader) error
}

// A Snapshot is the state at one index.
type Snapshot struct {
	Index, Term        uint64
	ConfigurationIndex uint64
	Configuration      []byte
	Size               int64 // what is written
	io.WriterTo
	io.Closer
}

// A Transport carries the group's messages.
type Transport interface {
	raft.Transport
	raft.WithPreVote
	// Stand makes this member stand for election now.
	Stand(ctx context.Context) error
}

// A Confirmer is a [Transport] that reaches other members. Confirm calls done(nil)
// once a majority of the voters has answered, in the given term, to a message sent after
// the call. (Raft's own VerifyLeader accepts answers to messages sent before.) It does not
// block.
type Confirmer interface {
	Confirm(term uint64, voters []raft.Server, done func(error))
}

// Config says what a [Replica] is part of. Zero limits mean the defaults given.
type Config struct {
	Name      string // of the group, for logs and errors
	NodeID    raft.ServerID
	Log       *raftlog.Group
	Transport Transport
	Machine   StateMachine
	Flusher   *Flusher

	// Join makes a replica without any state wait for the leader of an existing group. Otherwise
	// it founds a new group, of itself alone.
	Join bool

	// Lead is called for each reign, and must return soon after ctx has ended. While it
	// runs the reign may be used; the next reign begins after it has returned. The default
	// waits for ctx.
	Lead func(ctx context.Context, reign *Reign)

	// OnHandOver is called in the middle of a hand-over: everything proposed has been committed,
	// and the other member is told next. What it waits for is added to the gap. Default: nothing.
	OnHandOver func(ctx context.Context)

	// OnFatal is called when the replica cannot go on: the state machine failed or hangs, or
	// the log is damaged. The default ends the process with status 1.
	OnFatal func(error)

	Logger  *slog.Logger // default: discard
	Metrics *Metrics     // default: not registered anywhere

	EntryBatches int    // batches in one entry; 512
	EntryBytes   int    // their size together; 256 KiB
	InFlight     int    // entries proposed and not applied yet; 1
	QueueBytes   int    // batches waiting or in flight, above which Reign.Pressure refuses; 64 MiB
	LogBytes     uint64 // log kept behind the durable index, for members that lag; 256 MiB
	SnapshotDir  string // where a snapshot from another member is received; the system's temporary one

	Snapshots    *Limiter      // the node's; nil: any number is sent at a time
	DiskDeadline time.Duration // for one write of the state, and more for large ones; 10 s
}

func (c Config) withDefaults() Config {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&c.EntryBatches, 512)
	def(&c.EntryBytes, 256<<10)
	def(&c.InFlight, 1)
	def(&c.QueueBytes, 64<<20)
	if c.LogBytes == 0 {
		c.LogBytes = 256 << 20
	}
	if c.DiskDeadline == 0 {
		c.DiskDeadline = 10 * time.Second
	}
	if c.SnapshotDir == "" {
		c.SnapshotDir = os.TempDir()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
	if c.Lead == nil {
		c.Lead = func(ctx context.Context, _ *Reign) { <-ctx.Done() }
	}
	if c.OnFatal == nil {
		c.OnFatal = func(error) { os.Exit(1) }
	}
	return c
}

// Timing of the group. A member is suspected after electionTimeout without a word, which
// must exceed the slowest fsync we accept, since heartbeats wait for it.
const (
	electionTimeout = time.Second
	leaseTimeout    = 500 * time.Millisecond
	commitTimeout   = 250 * time.Millisecond // an empty AppendEntries per follower this often
	maxAppend       = 64                     // entries in one AppendEntries, or one append of the leader
	never           = 1000 * time.Hour
)

// A Replica is a running member of a group. Its methods may be called from any goroutine.
type Replica struct {
	cfg  Config
	log  *slog.Logger
	raft *raft.Raft
	fsm  *fsm

	guard *guardedLog
	floor floor // of a replica that was dropped once

	committer atomic.Pointer[committer] // of the reign, or of the last one
	seq       uint64                    // of the last entry proposed; used by one committer at a time
	ready     atomic.Bool               // Lead runs
	alone     solitude
	standing  atomic.Bool // LeaderGone is about to stand for election

	flushing sync.Mutex // held while the state's file is written or replaced

	fatal  sync.Once
	failed atomic.Bool

	stopping chan struct{}
	stop     sync.Once
	stopErr  error
	running  sync.WaitGroup // the goroutines of run and of a gate, stopped by halt
}

// Open starts a replica. Everything that is in the log behind the state machine's
// durable index is applied again before the first reign. The error says what does not fit
// if state and log are not of one piece.
func Open(ctx context.Context, cfg Config) (*Replica, error) {
	cfg = cfg.withDefaults()
	r := &Replica{
		cfg:      cfg,
		log:      cfg.Logger.With(slog.String("group", cfg.Name)),
		stopping: make(chan struct{}),
	}
	r.fsm = &fsm{replica: r, machine: cfg.Machine}
	if err := r.open(ctx); err != nil {
		return nil, fmt.Errorf("open %s: %w", cfg.Name, err)
	}
	return r, nil
}

func (r *Replica) open(ctx context.Context) error {
	if err := r.inspect(); err != nil {
		return err
	}
	r.guard = &guardedLog{Group: r.cfg.Log, replica: r}
	logs, err := raft.NewLogCache(maxAppend, r.guard)
	if err != nil {
		return err
	}
	trans, gate, err := r.aboveFloor()
	if err != nil {
		return err
	}
	r.raft, err = raft.NewRaft(r.raftConfig(), r.fsm, logs, r.cfg.Log, &snapshots{replica: r}, trans)
	if err != nil {
		return err
	}
	if t, ok := r.cfg.Transport.(termed); ok {
		t.SetTerm(r.raft.CurrentTerm)
	}
	r.running.Go(r.run)
	if gate != nil {
		r.running.Go(gate.run)
	}
	if r.cfg.Flusher != nil {
		r.cfg.Flusher.add(r)
	}
	if sole, _ := r.voters(); sole {
		if err := r.cfg.Transport.Stand(ctx); err != nil {
			return errors.Join(fmt.Errorf("stand for election: %w", err), r.Stop(ctx))
		}
	}
	return nil
}

func (r *Replica) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = r.cfg.NodeID
	c.HeartbeatTimeout = electionTimeout
	c.ElectionTimeout = electionTimeout
	c.LeaderLeaseTimeout = leaseTimeout
	c.CommitTimeout = commitTimeout
	c.MaxAppendEntries = maxAppend
	c.BatchApplyCh = true
	c.ShutdownOnRemove = false
	c.NoSnapshotRestoreOnStart = true
	c.NoLegacyTelemetry = true
	c.Logger = newRaftLogger(r.log)
	// The state machine is its own snapshot and trim cuts the log by bytes: Raft's
	// counting of entries is switched off.
	c.SnapshotInterval = never
	c.SnapshotThreshold = math.MaxUint64
	c.TrailingLogs = math.MaxUint64
	return c
}

// Reign returns the current reign's epoch, and whether there is one.
func (r *Replica) Reign() (epoch uint64, leads bool) {
	if !r.ready.Load() {
		return 0, false
	}
	return r.committer.Load().term, true
}

// Leader returns the member that is known to lead, if one is.
func (r *Replica) Leader() (raft.ServerID, raft.ServerAddress) {
	addr, id := r.raft.LeaderWithID()
	return id, addr
}

// Unflushed says how much of the state a restart would have to apply again, and since when.
func (r *Replica) Unflushed() (bytes int, since time.Time) { return r.cfg.Machine.Unflushed() }

// Flush makes the applied state durable and cuts the log. If the state machine fails, so
// does the node.
func (r *Replica) Flush(ctx context.Context) error {
	start := time.Now()
	if err := r.flush(func() error { return r.cfg.Machine.Flush(ctx) }); err != nil {
		if ctx.Err() == nil {
			r.fail(fmt.Errorf("flush %s: %w", r.cfg.Name, err))
		}
		return fmt.Errorf("flush %s: %w", r.cfg.Name, err)
	}
	r.cfg.Metrics.flush.Observe(time.Since(start).Seconds())
	return r.trim()
}

// trim cuts the beginning of the log that is durable in the state machine, except for
// LogBytes, and always a few entries: a member that has just received a snapshot asks for
// the entry at its index.
func (r *Replica) trim() error {
	durable, _ := r.cfg.Machine.Durable()
	first, err := r.cfg.Log.FirstIndex()
	if err != nil || first == 0 || durable <= maxAppend {
		return err
	}
	upTo := min(r.cfg.Log.Tail(r.cfg.LogBytes)-1, durable-maxAppend)
	if upTo < first {
		return nil
	}
	return r.cfg.Log.DeleteRange(first, upTo)
}

// Stop ends the reign, waits for what was committed, and makes the state durable, so
// that the next start has nothing to apply again. It waits no longer than ctx lasts for
// commits that hang. It may be called twice.
func (r *Replica) Stop(ctx context.Context) error {
	r.stop.Do(func() {
		err := r.halt(ctx)
		if !r.failed.Load() {
			err = errors.Join(err, r.Flush(context.WithoutCancel(ctx)))
		}
		if err != nil {
			r.stopErr = fmt.Errorf("stop %s: %w", r.cfg.Name, err)
		}
	})
	return r.stopErr
}

// halt ends the reign and everything that runs.
func (r *Replica) halt(ctx context.Context) error {
	if r.cfg.Flusher != nil {
		r.cfg.Flusher.remove(r)
	}
	if c := r.committer.Load(); c != nil {
		c.drain(ctx)
	}
	close(r.stopping)
	r.running.Wait()
	return r.raft.Shutdown().Error()
}

// voters returns whether this member is the only voter, and all of them.
func (r *Replica) voters() (sole bool, voters []raft.Server) {
	f := r.raft.GetConfiguration()
	if f.Error() != nil {
		return false, nil
	}
	for _, s := range f.Configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, s)
		}
	}
	return len(voters) == 1 && voters[0].ID == r.cfg.NodeID, voters
}

// fail ends the life of the replica.
func (r *Replica) fail(err error) {
	r.fatal.Do(func() {
		r.failed.Store(true)
		r.log.Error("the replica cannot go on", slog.Any("error", err))
		r.cfg.OnFatal(err)
	})
}
