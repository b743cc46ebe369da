package replica

import (
	"context"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// fsm is what Raft sees of the state machine. Raft calls its methods from one goroutine.
type fsm struct {
	replica *Replica
	machine StateMachine
	partial partial

	receivedSize int64 // of the snapshot that is restored; set when it is opened, on the same goroutine
}

// partial is a large batch of which not all chunks have come. While there is one, the
// state machine is told of no entry, so that its durable index stays before the first chunk and
// a restart sees all of them again.
type partial struct {
	term uint64
	data []byte
	size int // when it is complete; 0 if there is none
}

var _ raft.BatchingFSM = (*fsm)(nil)

// Apply applies one entry.
func (f *fsm) Apply(log *raft.Log) any {
	if f.replica.failed.Load() {
		return nil // the state is not known any more
	}
	if err := f.apply(log); err != nil {
		f.replica.fail(fmt.Errorf("apply index %d of %s: %w", log.Index, f.replica.cfg.Name, err))
	}
	return nil
}

// ApplyBatch applies entries.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	for _, log := range logs {
		f.Apply(log)
	}
	return make([]any, len(logs))
}

func (f *fsm) apply(log *raft.Log) error {
	if log.Type == raft.LogConfiguration {
		f.machine.SetConfiguration(log.Index, log.Data)
		return nil
	}
	if applied, _ := f.machine.Applied(); log.Index <= applied {
		return nil
	}
	e, err := parseEntry(log.Data)
	if err != nil {
		return err
	}
	if e.term != log.Term {
		f.replica.cfg.Metrics.fenced.Inc()
		return f.skip(log)
	}
	batches, ok := f.complete(e)
	switch {
	case !ok && f.partial.size > 0: // more of it will come
	case !ok: // a chunk of a batch whose beginning is missing
		f.replica.cfg.Metrics.fenced.Inc()
		return f.skip(log)
	default:
		if err := f.machine.Apply(log.Index, log.Term, batches); err != nil {
			return err
		}
	}
	if c := f.replica.committer.Load(); c != nil && c.term == e.term {
		c.applied(e.seq)
	}
	return nil
}

// skip notes that an entry did nothing.
func (f *fsm) skip(log *raft.Log) error {
	if f.partial.size > 0 {
		return nil
	}
	return f.machine.Apply(log.Index, log.Term, nil)
}

// complete returns the batches of an entry, and false if they are not complete. What is
// there of a batch whose reign ended in its middle is forgotten.
func (f *fsm) complete(e entry) ([]byte, bool) {
	if e.kind != kindChunk {
		f.partial = partial{}
		return e.payload, true
	}
	if e.offset == 0 && e.total > 0 {
		f.partial = partial{term: e.term, size: e.total, data: make([]byte, 0, e.total)}
	}
	p := &f.partial
	if p.term != e.term || p.size != e.total || len(p.data) != e.offset || e.offset+len(e.payload) > e.total {
		f.partial = partial{}
		return nil, false
	}
	p.data = append(p.data, e.payload...)
	if len(p.data) < p.size {
		return nil, false
	}
	data := p.data
	f.partial = partial{}
	return data, true
}

// Snapshot returns a snapshot whose Persist flushes, and writes nothing: the state
// machine's own file is the snapshot.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.partial.size > 0 {
		return nil, fmt.Errorf("the state is in the middle of a batch")
	}
	return flushed{f.replica}, nil
}

// Restore replaces the state by a received snapshot.
func (f *fsm) Restore(r io.ReadCloser) error {
	f.partial = partial{}
	f.replica.flushing.Lock()
	defer f.replica.flushing.Unlock()
	return f.replica.within("restore a snapshot", f.receivedSize, func() error { return f.machine.Restore(r) })
}

type flushed struct{ replica *Replica }

func (s flushed) Persist(sink raft.SnapshotSink) error {
	if err := s.replica.flush(func() error { return s.replica.cfg.Machine.Flush(context.Background()) }); err != nil {
		return err
	}
	return sink.Close()
}

func (flushed) Release() {}
