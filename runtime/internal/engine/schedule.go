package engine

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
	"github.com/holdfast-run/holdfast/runtime/internal/storage"
)

func (t *turn) Schedule(name string) (host.Schedule, bool) {
	t.schedules()
	s, ok := t.o.state.schedules[name]
	return s, ok
}

func (t *turn) Schedules() []host.Schedule {
	t.schedules()
	list := make([]host.Schedule, 0, len(t.o.state.schedules))
	for _, s := range t.o.state.schedules {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b host.Schedule) int {
		if c := a.At.Compare(b.At); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return list
}

func (t *turn) SetSchedule(s host.Schedule) {
	t.schedules()
	info, all := t.o.class.info, t.o.state.schedules
	kind, _, _ := strings.Cut(s.Name, "/")
	switch _, exists := all[s.Name]; {
	case s.Name == "" && !info.Alarm:
		panic(host.Errorf(host.CodeBadRequest, "class %q has no Alarm handler", t.o.class.name))
	case s.Name != "" && !info.Schedules[kind]:
		panic(host.Errorf(host.CodeBadRequest, "class %q has no handler for schedules of the kind %q", t.o.class.name, kind))
	case len(s.Name) > host.MaxScheduleName:
		panic(host.Errorf(host.CodeTooLarge, "the name of the schedule is %d bytes long, more than %d", len(s.Name), host.MaxScheduleName))
	case len(s.Args) > host.MaxScheduleArgs:
		panic(host.Errorf(host.CodeTooLarge, "the arguments of schedule %q are %d bytes long, more than %d", s.Name, len(s.Args), host.MaxScheduleArgs))
	case !exists && len(all) >= host.MaxSchedules:
		panic(host.Errorf(host.CodeTooLarge, "the object has %d schedules, its limit", host.MaxSchedules))
	}
	now := time.Now()
	if s.At.IsZero() && (s.Every > 0 || s.Cron != "") {
		s.At = now // an interval begins now
		next, err := s.Next(now)
		if err != nil {
			panic(host.Errorf(host.CodeBadRequest, "schedule %q: %v", s.Name, err))
		}
		s.At = next
	}
	if s.At.Before(now) {
		s.At = now
	}
	s.Due, s.Attempts, s.Failure = time.Time{}, 0, ""
	t.begin(true, false)
	t.setSchedule(s)
}

// setSchedule writes a schedule as it is; the batch has begun.
func (t *turn) setSchedule(s host.Schedule) {
	if at := s.At.Truncate(time.Millisecond); at.Before(s.At) {
		s.At = at.Add(time.Millisecond) // never early
	}
	s.At = s.At.UTC()
	value, err := json.Marshal(s)
	if err != nil {
		panic(host.Errorf(host.CodeInternal, "the schedule %q cannot be stored", s.Name).Because(err))
	}
	due := s.At.UnixMilli()
	t.room(len(s.Name) + len(value) + 32)
	t.batch.SetAlarm(s.Name, due, value)
	if t.due == 0 || due < t.due {
		t.due = due
	}
	t.remember(s.Name)
	t.o.state.schedules[s.Name] = s
}

func (t *turn) DeleteSchedule(name string) bool {
	t.schedules()
	if _, ok := t.o.state.schedules[name]; !ok {
		return false
	}
	t.begin(false, false)
	t.dropSchedule(name)
	return true
}

// dropSchedule writes the end of a schedule; the batch has begun.
func (t *turn) dropSchedule(name string) {
	t.batch.DeleteAlarm(name)
	t.remember(name)
	delete(t.o.state.schedules, name)
	t.o.state.shrunk = true
}

// remember makes the change of a schedule that follows undoable.
func (t *turn) remember(name string) {
	all := t.o.state.schedules
	old, had := all[name]
	t.undos = append(t.undos, undo{fn: func() {
		if had {
			all[name] = old
		} else {
			delete(all, name)
		}
	}})
}

func (t *turn) schedules() {
	t.check()
	if err := t.o.readSchedules(); err != nil {
		panic(t.o.storeFailed(err))
	}
}

// A clock fires the schedules of one reign. It asks the store what is due, hands each
// to its object as an event, and sleeps until the next one or until an earlier one has
// been committed. What is under way is not fired again.
type clock struct {
	reign *reign
	wake  chan struct{}

	mu     sync.Mutex
	next   int64 // when the clock wakes by itself, Unix milliseconds
	firing map[alarmKey]time.Time
}

type alarmKey struct {
	object placement.ObjectID
	name   string
}

const (
	maxFiring  = 1024             // schedules of one shard under way at once
	alarmAgain = 2 * time.Second  // when a schedule is tried again that did not fail by its own fault
	clockNever = time.Hour * 1000 // how long to sleep when nothing is due
)

func (c *clock) init(r *reign) {
	c.reign, c.wake, c.firing = r, make(chan struct{}, 1), make(map[alarmKey]time.Time)
}

// set tells the clock of a committed alarm.
func (c *clock) set(due int64) {
	c.mu.Lock()
	earlier := due < c.next
	c.mu.Unlock()
	if earlier {
		c.poke()
	}
}

func (c *clock) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *clock) run() {
	r := c.reign
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-timer.C:
		case <-c.wake:
		}
		timer.Reset(c.fire(time.Now()))
	}
}

// fire fires what is due and returns for how long the clock may sleep.
func (c *clock) fire(now time.Time) time.Duration {
	r := c.reign
	c.mu.Lock()
	c.next = 0 // whatever is set from here on wakes the clock again
	again := now.Add(clockNever)
	busy := 0
	for key, until := range c.firing {
		switch {
		case until.IsZero():
			busy++
		case until.After(now):
			if until.Before(again) {
				again = until
			}
		default:
			delete(c.firing, key)
		}
	}
	limit := len(c.firing) + maxFiring - busy
	c.mu.Unlock()
	if r.engine.stopping.Load() || busy >= maxFiring {
		return c.sleep(now, again) // the end of one of them wakes the clock
	}
	due, next, err := r.store.DueAlarms(now.UnixMilli(), limit)
	if err != nil {
		r.engine.cfg.Logger.Error("read due alarms", slog.Any("shard", r.shard), slog.Any("err", err))
		return c.sleep(now, now.Add(alarmAgain))
	}
	for _, a := range due {
		key := alarmKey{a.Object, a.Name}
		c.mu.Lock()
		_, underWay := c.firing[key]
		if !underWay {
			c.firing[key] = time.Time{}
		}
		c.mu.Unlock()
		if !underWay && !r.fire(key, a) {
			c.done(key, errNoOwner())
		}
	}
	if at := time.UnixMilli(next); next != 0 && at.Before(again) {
		again = at
	}
	return c.sleep(now, again)
}

func (c *clock) sleep(now, until time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = until.UnixMilli()
	return max(until.Sub(now), 0)
}

// done ends a firing. If it ended for a reason that is not the object's, it is tried
// again a little later, uncounted.
func (c *clock) done(key alarmKey, err error) {
	c.mu.Lock()
	if err == nil {
		delete(c.firing, key)
	} else {
		c.firing[key] = time.Now().Add(alarmAgain)
	}
	c.mu.Unlock()
	c.poke()
}

// fire hands a stored alarm to its object and reports whether it was taken.
func (r *reign) fire(key alarmKey, a storage.Alarm) bool {
	e := r.engine
	meta, ok, err := r.store.Lookup(a.Object)
	if err != nil || !ok {
		e.cfg.Logger.Error("an alarm belongs to no object", slog.Any("object", a.Object), slog.String("alarm", a.Name), slog.Any("err", err))
		return false
	}
	c, ok := e.classes[meta.Class]
	if !ok {
		return false // the class is not in this program now; its alarms wait
	}
	o, err := r.object(c, host.Ref{Class: meta.Class, ID: a.Object, Name: meta.Name, Named: meta.Named})
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(r.ctx, e.cfg.AlarmTimeout)
	run := &alarmRun{o: o, name: a.Name, done: func(err error) { cancel(); r.clock.done(key, err) }}
	if !o.push(run.event(ctx)) {
		cancel()
		return false
	}
	return true
}

// An alarmRun is one run of one schedule.
type alarmRun struct {
	o      *object
	name   string
	done   func(error)
	forced bool // run it now, due or not, and let its caller have the error

	s      host.Schedule
	ran    bool // the handler was entered
	failed bool // it failed, or the object did not load, and that is being written down
}

func (a *alarmRun) event(ctx context.Context) *event {
	ev := &event{kind: kindAlarm, ctx: ctx, to: a.o.self(), internal: true, direct: a.run}
	if !a.forced {
		ev.ended = func(err error) { a.ended(err, ev.unloaded) }
	}
	ev.left = func(err error) {
		if !a.failed {
			a.done(err)
		}
	}
	return ev
}

// run runs the handler. The schedule is not visible to it; if it is not set again
// meanwhile, it is gone when the event commits, or at its next time if it recurs.
func (a *alarmRun) run(t *turn) error {
	o, info := a.o, &a.o.class.info
	t.schedules()
	all := o.state.schedules
	s, ok := all[a.name]
	if !ok || (!a.forced && s.At.After(time.Now())) {
		return nil // it was changed before its turn came
	}
	a.s, a.ran = s, true
	scheduled := s.At
	if !s.Due.IsZero() {
		scheduled = s.Due
	}
	t.remember(a.name)
	delete(all, a.name)

	var err error
	if s.Attempts > retries(s.Retry) {
		err = o.guard(func() error {
			return o.inst.Handle(&t.ctx, t, &host.AlarmFailed{Schedule: s, Scheduled: scheduled, Attempts: s.Attempts, Err: errors.New(s.Failure)})
		})
		if err != nil { // there is nobody left to tell
			o.reign.engine.cfg.Logger.Error("the handler of a failed alarm failed", slog.String("class", o.class.name), slog.Any("object", o.ref.ID), slog.String("alarm", a.name), slog.Any("err", err))
			t.revert(segment{})
			delete(all, a.name)
		}
	} else {
		handles := info.Alarm || a.name != ""
		if handles {
			err = o.inst.Handle(&t.ctx, t, &host.Alarm{Schedule: s, Scheduled: scheduled, Attempt: s.Attempts})
		}
		if err != nil {
			return err
		}
	}
	if t.destroyed {
		return nil
	}
	if _, again := all[a.name]; !again {
		t.conclude(s, scheduled)
	}
	return nil
}

// conclude writes what follows a run that is not to be retried.
func (t *turn) conclude(s host.Schedule, scheduled time.Time) {
	t.begin(false, false)
	if s.Every > 0 || s.Cron != "" {
		base := s
		base.At = scheduled
		if next, err := base.Next(time.Now()); err == nil {
			s.At, s.Due, s.Attempts, s.Failure = next, time.Time{}, 0, ""
			t.setSchedule(s)
			return
		}
	}
	t.dropSchedule(s.Name)
}

// ended is called when the event is over, by whoever has the turn: a failure is
// written down as an event of its own, which sets the next try.
func (a *alarmRun) ended(err error, unloaded bool) {
	o := a.o
	if err == nil || (!a.ran && !unloaded) || o.gate.failure() != nil {
		return
	}
	a.failed = true
	cfg := &o.reign.engine.cfg
	t := &turn{o: o, ev: &event{kind: kindSystem, ctx: o.reign.ctx, to: o.ref, left: a.done}, incarnation: o.incarnation}
	t.end(t.play(func() error {
		t.schedules()
		s, ok := o.state.schedules[a.name]
		switch {
		case !a.ran && (!ok || s.At.After(time.Now())):
			return nil // it was changed before its turn came
		case a.ran && ok && !same(s, a.s):
			return nil // set again at a commit point: that replaces the retries
		case a.ran:
			s = a.s // a commit point may have hidden it
		}
		scheduled := s.At
		if !s.Due.IsZero() {
			scheduled = s.Due
		}
		s.Attempts++
		s.Failure = err.Error()
		most := retries(s.Retry)
		if s.Attempts > most && !o.class.info.AlarmFailed {
			cfg.Logger.Error("an alarm was given up after its last retry", slog.String("class", o.class.name), slog.Any("object", o.ref.ID), slog.String("alarm", a.name), slog.Int("attempts", s.Attempts), slog.Any("err", err))
			t.conclude(s, scheduled)
			return nil
		}
		cfg.Logger.Warn("an alarm failed", slog.String("class", o.class.name), slog.Any("object", o.ref.ID), slog.String("alarm", a.name), slog.Int("attempt", s.Attempts), slog.Any("err", err))
		s.Due, s.At = scheduled, time.Now()
		if s.Attempts <= most {
			s.At = s.At.Add(backoff(s.Retry, s.Attempts))
		}
		t.begin(false, false)
		t.setSchedule(s)
		return nil
	}))
}

func same(a, b host.Schedule) bool {
	return a.At.Equal(b.At) && a.Attempts == b.Attempts && a.Due.Equal(b.Due)
}

// retries returns how many counted retries a policy has.
func retries(r host.Retry) int {
	switch {
	case r.Max == 0:
		return 6
	case r.Max < 0:
		return 0
	default:
		return r.Max
	}
}

// backoff returns the wait before the given retry, from 1: doubling, with up to a
// quarter more so that failures spread.
func backoff(r host.Retry, attempt int) time.Duration {
	base, limit := r.Base, r.Cap
	if base <= 0 {
		base = 2 * time.Second
	}
	if limit <= 0 {
		limit = 1024 * time.Second
	}
	wait := limit
	if shift := attempt - 1; shift < 30 && base<<shift < limit && base<<shift > 0 {
		wait = base << shift
	}
	return wait + time.Duration(rand.Int64N(int64(wait/4)+1))
}

// FireAlarm runs an object's schedule now, due or not, and returns its handler's
// error. It reports whether there was such a schedule.
func (e *Engine) FireAlarm(ctx context.Context, to host.Ref, name string) (bool, error) {
	o, err := e.object(to)
	if err != nil {
		return false, err
	}
	run := &alarmRun{o: o, name: name, forced: true, done: func(error) {}}
	ev := run.event(ctx)
	if !o.push(ev) {
		return false, errNoOwner()
	}
	if !ev.latch.wait(ctx.Done()) {
		return false, errCanceled(ctx, ev.abandon())
	}
	return run.ran, ev.latch.err
}

func millis(ms int64) time.Time { return time.UnixMilli(ms) }
