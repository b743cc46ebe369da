package durable

import (
	"context"
	"iter"
	"strings"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// SetAlarm wakes the object at a time, or at once if that has passed: the [Alarmer]
// hook runs then, never earlier. There is one alarm; setting it again replaces it.
//
// While the hook runs there is no alarm. Setting one in it replaces whatever retries
// would have followed. An object that needs more than one alarm uses a [Schedule].
func (tx *Tx) SetAlarm(at time.Time) {
	tx.turn.SetSchedule(host.Schedule{At: checkTime(at)})
}

// Alarm returns when the alarm is due, and whether there is one.
func (tx *Tx) Alarm() (time.Time, bool) {
	s, ok := tx.turn.Schedule("")
	return s.At, ok
}

// DeleteAlarm removes the alarm and reports whether there was one.
func (tx *Tx) DeleteAlarm() bool { return tx.turn.DeleteSchedule("") }

// AlarmInfo returns which alarm or schedule the event is. It is the zero AlarmInfo in
// other events.
func (tx *Tx) AlarmInfo() AlarmInfo { return tx.alarm }

// AlarmInfo tells one run of an alarm from another.
type AlarmInfo struct {
	Kind      string    // the name of the [Schedule]; "" for the alarm
	Key       string    // as given when it was set
	Scheduled time.Time // when it was due
	Attempt   int       // how many tries failed before; 0 for the first try
}

// An AlarmFailure is an alarm or a schedule that is given up; Attempt is the number of
// its failed tries, and Err the last error.
type AlarmFailure struct {
	AlarmInfo
	Err error
}

// A Schedule is the name of one kind of schedule of class T: something that happens at
// a time, every so often, or by a cron expression, as an event of its own with the Args
// that were given when it was set. An object has up to 10,000 schedules; they differ by
// kind and key. A key may be empty.
//
// A schedule is part of the event that sets or cancels it: it counts if the event
// commits. If its handler fails, it is tried again, by default 6 times, 2 s later and
// then with doubling waits; after that a recurring one waits for its next time, any other
// is gone, and the [AlarmFailer] hook learns of it. While a handler runs,
// its schedule is not there; setting it again replaces what would have followed.
type Schedule[T, Args any] string

// Handle says which function of the object handles the schedule; it is an option of
// [Define].
func (s Schedule[T, Args]) Handle(f func(obj *T, ctx context.Context, tx *Tx, args Args) error) ScheduleHandler[T] {
	return ScheduleHandler[T]{kind: string(s), missing: f == nil, run: func(obj *T, ctx context.Context, tx *Tx, args []byte) error {
		a, err := decodeJSON[Args](args)
		if err != nil {
			return host.Errorf(host.CodeInternal, "the arguments of schedule %q do not fit its type: %v", string(s), err).Because(err)
		}
		return f(obj, ctx, tx, a)
	}}
}

// A ScheduleHandler is an option of [Define]; [Schedule.Handle] makes it.
type ScheduleHandler[T any] struct {
	kind    string
	missing bool
	retry   host.Retry
	run     scheduleFunc[T]
}

type scheduleFunc[T any] func(obj *T, ctx context.Context, tx *Tx, args []byte) error

// Retry says how failures of the handler are retried. Zero fields of the policy mean 7
// attempts, 2 s and 1,024 s. The policy counts for schedules that are set from now on.
func (h ScheduleHandler[T]) Retry(p RetryPolicy) ScheduleHandler[T] {
	h.retry = host.Retry{Base: p.Base, Cap: p.Cap}
	switch {
	case p.Attempts == 1:
		h.retry.Max = -1
	case p.Attempts > 1:
		h.retry.Max = p.Attempts - 1
	}
	return h
}

// At runs the handler at a time, or at once if that has passed.
func (s Schedule[T, Args]) At(tx *Tx, key string, at time.Time, args Args) {
	s.set(tx, host.Schedule{At: checkTime(at)}, key, args)
}

// After runs the handler after a wait.
func (s Schedule[T, Args]) After(tx *Tx, key string, wait time.Duration, args Args) {
	s.set(tx, host.Schedule{At: time.Now().Add(wait)}, key, args)
}

// Every runs the handler again and again, the first time after one interval, which is at
// least a second. The times do not drift; those that passed while it could not run are skipped.
func (s Schedule[T, Args]) Every(tx *Tx, key string, interval time.Duration, args Args) {
	if interval < host.MinEvery {
		fail(host.CodeBadRequest, "schedule %q every %v: an interval is at least %v", string(s), interval, host.MinEvery)
	}
	s.set(tx, host.Schedule{At: time.Now().Add(interval), Every: interval}, key, args)
}

// Cron runs the handler by a cron expression of five fields (minute, hour, day of month, month,
// day of week) in a time zone such as "Europe/Berlin"; "" is UTC. The error says what
// is wrong with the expression or the zone. Where clocks change, a time that is skipped
// runs when the clock jumps, and a time that comes twice runs once, unless the hour is
// a *: then every hour that passes counts.
func (s Schedule[T, Args]) Cron(tx *Tx, key, expr, zone string, args Args) error {
	entry := host.Schedule{Cron: expr, Zone: zone}
	at, err := entry.Next(time.Now())
	if err != nil {
		return host.Errorf(host.CodeBadRequest, "schedule %q: %v", string(s), err).Because(err)
	}
	entry.At = at
	s.set(tx, entry, key, args)
	return nil
}

// Cancel removes the schedule with a key and reports whether there was one.
func (s Schedule[T, Args]) Cancel(tx *Tx, key string) bool {
	return tx.turn.DeleteSchedule(s.name(key))
}

// A Scheduled is one schedule as it stands.
type Scheduled[Args any] struct {
	Key      string
	At       time.Time // when it is due next
	Every    time.Duration
	Cron     string
	Zone     string
	Args     Args
	Attempts int // how many tries have failed, while it is being retried
}

// Lookup returns the schedule with a key, and whether there is one.
func (s Schedule[T, Args]) Lookup(tx *Tx, key string) (Scheduled[Args], bool) {
	entry, ok := tx.turn.Schedule(s.name(key))
	if !ok {
		return Scheduled[Args]{}, false
	}
	return s.scheduled(entry), true
}

// List yields the schedules of this kind, the one that is due first first.
func (s Schedule[T, Args]) List(tx *Tx) iter.Seq[Scheduled[Args]] {
	entries := tx.turn.Schedules()
	return func(yield func(Scheduled[Args]) bool) {
		for _, entry := range entries {
			if kind, _ := splitName(entry.Name); kind == string(s) && !yield(s.scheduled(entry)) {
				return
			}
		}
	}
}

func (s Schedule[T, Args]) set(tx *Tx, entry host.Schedule, key string, args Args) {
	var err error
	if entry.Args, err = encodeJSON(args); err != nil {
		panic(host.Errorf(host.CodeInternal, "encode the arguments of schedule %q: %v", string(s), err).Because(err))
	}
	entry.Name, entry.Retry = s.name(key), tx.class.retries[string(s)]
	tx.turn.SetSchedule(entry)
}

func (s Schedule[T, Args]) scheduled(entry host.Schedule) Scheduled[Args] {
	args, err := decodeJSON[Args](entry.Args)
	if err != nil {
		panic(host.Errorf(host.CodeInternal, "the arguments of schedule %q do not fit its type: %v", entry.Name, err).Because(err))
	}
	_, key := splitName(entry.Name)
	return Scheduled[Args]{
		Key: key, At: entry.At, Every: entry.Every, Cron: entry.Cron, Zone: entry.Zone, Args: args, Attempts: entry.Attempts,
	}
}

// name is how the engine knows a schedule: kind, or kind/key.
func (s Schedule[T, Args]) name(key string) string {
	if key == "" {
		return string(s)
	}
	return string(s) + "/" + key
}

func splitName(name string) (kind, key string) {
	kind, key, _ = strings.Cut(name, "/")
	return kind, key
}

func alarmInfo(s host.Schedule, scheduled time.Time, attempt int) AlarmInfo {
	kind, key := splitName(s.Name)
	return AlarmInfo{Kind: kind, Key: key, Scheduled: scheduled, Attempt: attempt}
}

func checkTime(at time.Time) time.Time {
	if at.IsZero() {
		fail(host.CodeBadRequest, "an alarm at the zero time")
	}
	return at
}
