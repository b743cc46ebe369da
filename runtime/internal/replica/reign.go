package replica

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// Causes with which the context of a reign ends.
var (
	ErrLeadershipLost = errors.New("leadership lost")
	ErrStopped        = errors.New("replica stopped")
)

// A Reign is one leadership of the group by this node, in one term. Its methods may be
// called from any goroutine.
type Reign struct {
	replica *Replica
	ctx     context.Context // the reign's lifetime, ended by Replica.run
	c       *committer
}

// Epoch is the term of the reign. A later reign over the group, on any node, has a
// higher one, or the same one if this one ended by itself.
func (r *Reign) Epoch() uint64 { return r.c.term }

// Commit proposes a batch, which must not be changed afterwards. Batches are applied in
// the order of the calls. done is called once, in that order, from a goroutine of the
// replica; it must not block. After the first error every later batch of the reign fails.
func (r *Reign) Commit(batch []byte, done func(error)) { r.c.commit(batch, done) }

// Confirm calls done(nil) once it is certain that the reign was not over when Confirm was
// called: at once, on the caller's goroutine, if this node is the only voter, since then
// nobody else can have been elected.
func (r *Reign) Confirm(done func(error)) {
	if r.ctx.Err() != nil {
		done(unavailable(context.Cause(r.ctx)))
		return
	}
	// Voters can be added within a reign, and may elect somebody before this node's state
	// machine learns of it: only Raft knows them.
	if r.replica.alone.certain.Load() {
		done(nil)
		return
	}
	sole, voters := r.replica.voters()
	if sole {
		done(nil)
		return
	}
	confirmer, ok := r.replica.cfg.Transport.(Confirmer)
	if !ok {
		done(unavailable(errors.New("the transport cannot confirm reads")))
		return
	}
	confirmer.Confirm(r.c.term, voters, func(err error) {
		if err == nil && r.ctx.Err() != nil {
			err = context.Cause(r.ctx)
		}
		if err != nil {
			err = unavailable(err)
		}
		done(err)
	})
}

// Pressure returns nil, or an Overloaded error if more bytes wait for their commit than
// Config.QueueBytes. Commit refuses nothing, since a refusal in the middle would end the reign:
// ask before doing the work.
func (r *Reign) Pressure() error {
	if r.c.queued() < r.replica.cfg.QueueBytes {
		return nil
	}
	return &host.Error{
		Code:       host.CodeOverloaded,
		Message:    "too many writes wait for the shard's disk; try again later",
		Retryable:  true,
		Overloaded: true,
		RetryAfter: time.Second,
	}
}

// run follows the leadership of this node: one reign at a time.
func (r *Replica) run() {
	var current *rule
	for {
		select {
		case leads := <-r.raft.LeaderCh():
			// The channel keeps only the last signal. Two wins in a row mean a loss between them,
			// unless the second tells of the term that is ruled already.
			if leads && current != nil && current.reign.c.term == r.raft.CurrentTerm() {
				continue
			}
			current.end(ErrLeadershipLost)
			current = nil
			if leads {
				current = r.begin()
			}
		case <-r.stopping:
			current.end(ErrStopped)
			return
		}
	}
}

// A rule is a reign and what runs for it.
type rule struct {
	reign   *Reign
	cancel  context.CancelCauseFunc
	replies sync.WaitGroup // the committer's reply, which outlives Lead
	works   sync.WaitGroup // the committer's propose, and Lead; both stopped by end
}

// begin starts a reign in the current term. If that has ended already, the begin entry is
// fenced, Lead is never called, and the next signal ends the reign.
func (r *Replica) begin() *rule {
	ctx, cancel := context.WithCancelCause(context.Background())
	c := newCommitter(r, r.raft.CurrentTerm())
	u := &rule{reign: &Reign{r, ctx, c}, cancel: cancel}
	r.committer.Store(c)
	u.replies.Go(c.reply)
	u.works.Go(c.propose)
	u.works.Go(func() {
		select {
		case <-c.begun:
		case <-ctx.Done():
			return
		}
		if r.raft.State() != raft.Leader {
			return
		}
		r.alone.renew(func() bool {
			sole, _ := r.voters()
			return sole
		})
		r.log.Debug("leading", slog.Uint64("epoch", c.term))
		r.cfg.Metrics.reigns.Inc()
		r.ready.Store(true)
		defer r.ready.Store(false)
		r.cfg.Lead(ctx, u.reign)
	})
	return u
}

// end ends a reign, and waits for everything that runs for it.
func (u *rule) end(cause error) {
	if u == nil {
		return
	}
	u.cancel(cause)
	u.reign.c.die(cause)
	u.works.Wait()
	u.reign.c.close()
	u.replies.Wait()
}
