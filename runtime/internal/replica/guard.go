package replica

import (
	"errors"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
)

// A guardedLog ends the node when an entry cannot be read, before Raft panics or, worse,
// goes on without.
//
// And it helps Raft out of a trap (hashicorp/raft issue 697). A member whose log has a tail that
// was never committed may be sent a snapshot whose index is lower than the tail's end. Raft empties
// the log then, but goes on to believe in its end, and refuses everything behind the
// snapshot since it cannot read what would be there: for ever. So what it believes in is
// shown to it, as entries of no term: it takes them for a tail in conflict with the leader's, and
// overwrites them.
type guardedLog struct {
	*raftlog.Group
	replica *Replica

	mu    sync.Mutex // guards what follows
	snap  raft.Log   // index and term of the last snapshot received
	ghost uint64     // the end that Raft believes in; 0 if it is right
}

// received notes the snapshot that is about to replace everything.
func (g *guardedLog) received(index, term uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.snap = raft.Log{Index: index, Term: term, Type: raft.LogNoop}
}

func (g *guardedLog) GetLog(index uint64, log *raft.Log) error {
	err := g.Group.GetLog(index, log)
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, raft.ErrLogNotFound):
		g.replica.fail(err)
	case g.believed(index, log):
		return nil
	}
	return err
}

func (g *guardedLog) believed(index uint64, log *raft.Log) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.ghost == 0 || index < g.snap.Index || index > g.ghost:
		return false
	case index == g.snap.Index:
		*log = g.snap
	default:
		*log = raft.Log{Index: index, Type: raft.LogNoop}
	}
	return true
}

// DeleteRange deletes, and notices when Raft empties the log for a snapshot that does not
// reach its end.
func (g *guardedLog) DeleteRange(lo, hi uint64) error {
	if err := g.Group.DeleteRange(lo, hi); err != nil {
		return err
	}
	last, err := g.LastIndex()
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil && last == 0 && g.snap.Index > 0 && g.snap.Index < hi && lo <= g.snap.Index {
		g.ghost = hi
	}
	return err
}

func (g *guardedLog) StoreLog(log *raft.Log) error { return g.StoreLogs([]*raft.Log{log}) }

// StoreLogs stores; from then on Raft knows the log's end.
func (g *guardedLog) StoreLogs(logs []*raft.Log) error {
	err := g.Group.StoreLogs(logs)
	if err == nil && len(logs) > 0 {
		g.mu.Lock()
		g.ghost, g.snap = 0, raft.Log{}
		g.mu.Unlock()
	}
	return err
}
