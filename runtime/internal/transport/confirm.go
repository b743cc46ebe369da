package transport

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
)

// ErrDeposed means that a member has seen a later term than the one to be confirmed.
var ErrDeposed = errors.New("there is a later term")

var (
	errNoQuorum = errors.New("no quorum of the voters answers")
	errManyWait = errors.New("too many reads wait for a confirmation")
)

// Confirm calls done(nil) once a majority of the voters, this member among them, has said
// after the call that its current term is not later than the given one. Then nobody had been
// elected in a later term when Confirm was called: an election needs the votes of a
// majority, each voter's current term is the new one before its vote leaves it, and two
// majorities have a member in common. done is called once, from any goroutine, perhaps before
// Confirm returns; it must not block.
//
// Calls that come while a round is on its way share the next one.
func (g *Group) Confirm(term uint64, voters []raft.Server, done func(error)) {
	g.confirmer.confirm(term, voters, done)
}

const (
	maxRounds   = 8                    // on their way at the same time
	nextRound   = 5 * time.Millisecond // after this a round does not wait for the one before
	maxConfirms = 1 << 16              // waiting for a round
)

// A confirmer makes rounds for one group.
type confirmer struct {
	group *Group

	mu      sync.Mutex // guards what follows
	waiting []func(error)
	term    uint64 // of those waiting
	voters  []raft.Server
	rounds  int // on their way
	begun   time.Time
	timer   *time.Timer // begins the next round if the one before takes long
}

func (c *confirmer) confirm(term uint64, voters []raft.Server, done func(error)) {
	c.mu.Lock()
	if len(c.waiting) >= maxConfirms {
		c.mu.Unlock()
		done(errManyWait)
		return
	}
	var late []func(error)
	if len(c.waiting) > 0 && c.term != term {
		late, c.waiting = c.waiting, nil
	}
	c.waiting = append(c.waiting, done)
	c.term, c.voters = term, voters
	r := c.next()
	c.mu.Unlock()
	for _, done := range late {
		done(ErrDeposed)
	}
	if r != nil {
		r.begin()
	}
}

// next takes those who wait into a round, or returns nil if that must wait.
func (c *confirmer) next() *round {
	if len(c.waiting) == 0 || c.rounds >= maxRounds {
		return nil
	}
	if since := time.Since(c.begun); c.rounds > 0 && since < nextRound {
		if c.timer == nil {
			c.timer = time.AfterFunc(nextRound-since, c.tick)
		}
		return nil
	}
	r := &round{confirmer: c, term: c.term, voters: c.voters, done: c.waiting}
	c.waiting = nil
	c.rounds++
	c.begun = time.Now()
	return r
}

// tick begins a round although the one before is still on its way.
func (c *confirmer) tick() {
	c.mu.Lock()
	c.timer = nil
	r := c.next()
	c.mu.Unlock()
	if r != nil {
		r.begin()
	}
}

// over is called when a round has ended.
func (c *confirmer) over() {
	c.mu.Lock()
	c.rounds--
	r := c.next()
	c.mu.Unlock()
	if r != nil {
		r.begin()
	}
}

// A round asks each voter for its current term.
type round struct {
	confirmer *confirmer
	term      uint64
	voters    []raft.Server
	done      []func(error)

	mu      sync.Mutex // guards what follows
	need    int        // answers that are missing for a majority
	left    int        // voters that may still answer
	ended   bool
	timer   *time.Timer
	ballots []*ballot
}

// begin sends the questions. Those who wait have called before.
func (r *round) begin() {
	g := r.confirmer.group
	g.net.metrics.rounds.Inc()
	g.net.metrics.reads.Add(float64(len(r.done)))
	term, ok := g.term()
	switch {
	case g.isClosed():
		r.end(ErrClosed)
		return
	case !ok:
		r.end(errors.New("nobody says what this member's term is"))
		return
	case term > r.term:
		r.end(ErrDeposed)
		return
	}
	asked := r.count(g.net.cfg.Self)
	if r.need <= 0 {
		r.end(nil)
		return
	}
	r.limit(g.net.cfg.ConfirmTimeout)
	for _, s := range asked {
		if !r.ask(s) {
			r.refused()
		}
	}
}

// ask sends the question to one voter, unless there is no connection to it.
func (r *round) ask(s raft.Server) bool {
	g := r.confirmer.group
	l := g.net.peer(placement.NodeID(s.ID)).control.want()
	if l == nil {
		return false
	}
	b := &ballot{round: r, link: l, sent: time.Now()}
	id, err := l.send(g.id, kindConfirm, nil, b, time.Time{})
	if err != nil {
		return false
	}
	b.id = id
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ballots = append(r.ballots, b)
	return true
}

// count sets what is needed, and returns the voters to ask. Nobody has been asked yet.
func (r *round) count(self placement.NodeID) []raft.Server {
	var others []raft.Server
	all := 0
	for _, s := range r.voters {
		if s.Suffrage != raft.Voter {
			continue
		}
		all++
		if placement.NodeID(s.ID) != self {
			others = append(others, s)
		}
	}
	r.need = all/2 + 1 - (all - len(others))
	r.left = len(others)
	return others
}

// limit ends the round after a time.
func (r *round) limit(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.timer = time.AfterFunc(d, r.expire)
}

// expire ends the round, and forgets what was not answered.
func (r *round) expire() {
	r.mu.Lock()
	ballots := r.ballots
	r.mu.Unlock()
	for _, b := range ballots {
		if b.link.take(b.id) != nil {
			b.link.expired(b.sent)
		}
	}
	r.end(ErrTimeout)
}

// granted counts a voter whose term is not later.
func (r *round) granted() {
	r.mu.Lock()
	r.need--
	r.left--
	enough := r.need <= 0
	r.mu.Unlock()
	if enough {
		r.end(nil)
	}
}

// refused counts a voter that does not answer.
func (r *round) refused() {
	r.mu.Lock()
	r.left--
	hopeless := r.left < r.need
	r.mu.Unlock()
	if hopeless {
		r.end(errNoQuorum)
	}
}

// end tells everybody, once.
func (r *round) end(err error) {
	r.mu.Lock()
	if r.ended {
		r.mu.Unlock()
		return
	}
	r.ended = true
	if r.timer != nil {
		r.timer.Stop()
	}
	r.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("confirm term %d: %w", r.term, err)
	}
	for _, done := range r.done {
		done(err)
	}
	r.confirmer.over()
}

// A ballot is the question to one voter.
type ballot struct {
	round *round
	link  *link
	sent  time.Time
	id    uint64 // at the link; guarded by round.mu
}

func (b *ballot) answered(k kind, payload []byte) {
	var term confirmAnswer
	switch err := b.link.decode(k, payload, &term); {
	case err != nil:
		b.round.refused()
	case uint64(term) > b.round.term:
		b.round.end(ErrDeposed)
	default:
		b.round.granted()
	}
}

func (b *ballot) failed(error) { b.round.refused() }
