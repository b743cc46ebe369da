package shard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
)

// Steering says where a shard should be, and what is known of the nodes. Only Want is
// required; zero values mean the defaults given. The functions must not block.
type Steering struct {
	// Want returns the shard's record. A record without replicas wants nothing to change.
	Want func() placement.Shard

	// Changed returns a channel that is closed when Want or Fit may answer something else than
	// before the call. Without it they are asked once a second.
	Changed func() <-chan struct{}

	// Fit reports whether a node may be given something: it is not suspected to be down, it
	// does not leave, its disk is not slow. If this node is not fit, it hands over to any that is.
	// Default: all are.
	Fit func(placement.NodeID) bool

	// Slow reports whether this node's disk is so slow that another should lead; see
	// [github.com/holdfast-run/holdfast/runtime/internal/raftlog.Log.Slow]. Default: never.
	Slow func() bool

	Stable   time.Duration // how long a member has to keep up before it gets a vote; 2 s
	Patience time.Duration // how long it then waits for the others that are to come; 30 s
	Settle   time.Duration // how long a reign lasts before it is given to the wanted owner; 5 s
	Timeout  time.Duration // of one change; 10 s
}

func (c Steering) withDefaults() Steering {
	def := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	def(&c.Stable, 2*time.Second)
	def(&c.Patience, 30*time.Second)
	def(&c.Settle, 5*time.Second)
	def(&c.Timeout, 10*time.Second)
	if c.Changed == nil {
		c.Changed = func() <-chan struct{} { return nil }
	}
	if c.Fit == nil {
		c.Fit = func(placement.NodeID) bool { return true }
	}
	if c.Slow == nil {
		c.Slow = func() bool { return false }
	}
	return c
}

// How long Steer waits before it looks again.
const (
	restPause = time.Second
	waitPause = 200 * time.Millisecond
)

// Steer brings the shard's group to its wanted members and its wanted owner, one step at a
// time, whenever this node leads it. It returns when ctx has ended, and is called once.
func (s *Shard) Steer(ctx context.Context, cfg Steering) {
	h := &helm{shard: s, cfg: cfg.withDefaults(), since: make(map[placement.NodeID]time.Time), lag: make(map[placement.NodeID]time.Time)}
	timer := time.NewTimer(restPause)
	defer timer.Stop()
	for ctx.Err() == nil {
		changed := h.cfg.Changed()
		timer.Reset(h.turn(ctx))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
	}
}

// Yield hands the shard over to another voter that has caught up and is fit, whatever its record
// says; the one whose log is longest. It is for a node that stops. It returns nil if this
// node does not lead, and an error if there is nobody to hand over to. fit may be nil.
func (s *Shard) Yield(ctx context.Context, fit func(placement.NodeID) bool) error {
	if _, leads := s.Reign(); !leads {
		return nil
	}
	group := s.replica.Members()
	best := replica.Member{}
	for _, m := range group.Members {
		if m.ID == s.node || !m.Voter || !group.CaughtUp(m.ID) || fit != nil && !fit(m.ID) {
			continue
		}
		if best.ID == "" || m.Last > best.Last {
			best = m
		}
	}
	if best.ID == "" {
		return fmt.Errorf("hand over shard %d: %w", s.id, errNobody)
	}
	return s.replica.HandOver(ctx, best.ID)
}

var errNobody = errors.New("no other voter has caught up")

// A helm is what Steer remembers of a reign.
type helm struct {
	shard *Shard
	cfg   Steering

	epoch placement.Epoch
	began time.Time                      // when the reign was seen first
	since map[placement.NodeID]time.Time // when a member had caught up, and has been since
	lag   map[placement.NodeID]time.Time // since when it has not, which for a moment is not held against it
}

// blink is how long a member may lag and still have kept up: every change of the members makes
// all of them lag for a moment, and those that come together are to get their votes together.
const blink = time.Second

// turn takes the next step, and returns how long to wait before the one after it.
func (h *helm) turn(ctx context.Context) (pause time.Duration) {
	epoch, leads := h.shard.Reign()
	if !leads {
		h.epoch = 0
		return restPause
	}
	if epoch != h.epoch {
		h.epoch, h.began = epoch, time.Now()
		clear(h.since)
		clear(h.lag)
	}
	scene, at := h.look()
	st := scene.next()
	if st.kind == rest {
		return restPause
	}
	if st.kind == wait {
		return waitPause
	}
	log := h.shard.log.With(slog.Uint64("epoch", uint64(epoch)), slog.String("step", string(st.kind)), slog.String("member", string(st.node)))
	began := time.Now()
	if err := h.take(ctx, st, at); err != nil {
		if ctx.Err() == nil {
			log.Warn("the shard's members could not be changed", slog.Any("error", err))
		}
		return restPause
	}
	log.Info("the shard's members have changed", slog.Duration("took", time.Since(began)))
	return 0
}

// look returns what the leader sees, and the index of the members it is about.
func (h *helm) look() (s scene, at uint64) {
	group, now := h.shard.replica.Members(), time.Now()
	s = scene{
		self:    h.shard.node,
		want:    h.cfg.Want(),
		fit:     h.cfg.Fit,
		settled: now.Sub(h.began) >= h.cfg.Settle,
		slow:    h.cfg.Slow(),
	}
	for _, m := range group.Members {
		caught := group.CaughtUp(m.ID)
		since := now.Sub(h.note(m.ID, caught, now))
		s.members = append(s.members, seen{
			id:      m.ID,
			voter:   m.Voter,
			caught:  caught,
			stable:  caught && since >= h.cfg.Stable,
			overdue: caught && since >= h.cfg.Stable+h.cfg.Patience,
		})
	}
	return s, group.Index
}

// note notes whether a member has caught up, and returns since when it has.
func (h *helm) note(id placement.NodeID, caught bool, now time.Time) time.Time {
	switch {
	case caught:
		delete(h.lag, id)
		if h.since[id].IsZero() {
			h.since[id] = now
		}
	case h.lag[id].IsZero():
		h.lag[id] = now
	case now.Sub(h.lag[id]) > blink:
		delete(h.since, id)
	}
	return h.since[id]
}

// take takes a step, unless the members are no longer those of an index.
func (h *helm) take(ctx context.Context, st step, at uint64) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timeout)
	defer cancel()
	r := h.shard.replica
	switch st.kind {
	case add:
		delete(h.since, st.node) // what it had before does not count
		return r.AddNonvoter(ctx, st.node, at)
	case promote:
		return r.AddVoter(ctx, st.node, at)
	case demote:
		return r.Demote(ctx, st.node, at)
	case remove:
		return r.Remove(ctx, st.node, at)
	case handOver:
		return r.HandOver(ctx, st.node)
	default:
		return nil
	}
}
