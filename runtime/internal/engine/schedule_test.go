package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A tape notes when alarms ran, and makes them fail as often as told.
type tape struct {
	mu   sync.Mutex
	fail int
	runs []string
}

func (tp *tape) set(fail int) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.fail = fail
}

func (tp *tape) rewind() {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.runs = nil
}

func (tp *tape) ran() []string {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return slices.Clone(tp.runs)
}

// alarms is a script whose alarms run a tape.
func alarms(tp *tape) *script {
	start := time.Now()
	return &script{
		alarm: func(tx host.Turn, a *host.Alarm) error {
			tp.mu.Lock()
			defer tp.mu.Unlock()
			tp.runs = append(tp.runs, fmt.Sprintf("%s#%d+%.0f", a.Schedule.Name, a.Attempt, time.Since(start).Seconds()))
			if _, ok := tx.Schedule(a.Schedule.Name); ok {
				return errors.New("the running alarm is visible")
			}
			tx.Put("ran", fmt.Append(nil, len(tp.runs)), false)
			if tp.fail > 0 {
				tp.fail--
				return errors.New("not now")
			}
			return nil
		},
		methods: map[string]method{
			"set": func(_ *instance, _ context.Context, tx host.Turn, arg string) (string, error) {
				d, err := time.ParseDuration(arg)
				tx.SetSchedule(host.Schedule{At: time.Now().Add(d)})
				return "", err
			},
			"every": func(_ *instance, _ context.Context, tx host.Turn, arg string) (string, error) {
				d, err := time.ParseDuration(arg)
				tx.SetSchedule(host.Schedule{Name: "tick/1", Every: d})
				return "", err
			},
			"cancel": func(_ *instance, _ context.Context, tx host.Turn, arg string) (string, error) {
				return fmt.Sprint(tx.DeleteSchedule(arg)), nil
			},
			"all": func(_ *instance, _ context.Context, tx host.Turn, _ string) (string, error) {
				return fmt.Sprint(len(tx.Schedules())), nil
			},
		},
	}
}

func TestAlarm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var tp tape
		w := newWorld(t, Config{}, alarms(&tp))
		w.must("x", "set", "1h")
		w.must("x", "set", "1m") // replaces
		w.must("y", "set", "-5s")
		pass(59 * time.Second)
		if want := []string{"#0+0"}; !slices.Equal(tp.ran(), want) {
			t.Fatalf("before its time ran %q, want %q", tp.ran(), want)
		}
		pass(2 * time.Second)
		if want := []string{"#0+0", "#0+60"}; !slices.Equal(tp.ran(), want) {
			t.Fatalf("ran %q, want %q", tp.ran(), want)
		}
		pass(2 * time.Hour)
		if len(tp.ran()) != 2 || w.must("x", "all", "") != "0" {
			t.Errorf("a replaced alarm ran: %q", tp.ran())
		}
		w.must("x", "set", "1m")
		if got := w.must("x", "cancel", "") + w.must("x", "cancel", ""); got != "truefalse" {
			t.Errorf("cancelling twice says %s", got)
		}
		pass(time.Hour)
		if len(tp.ran()) != 2 {
			t.Errorf("a cancelled alarm ran: %q", tp.ran())
		}
	})
}

func TestAlarmRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tp := tape{fail: 100}
		s := alarms(&tp)
		w := newWorld(t, Config{}, s)
		w.must("x", "set", "1s")
		pass(time.Hour)
		if len(tp.ran()) != 7 {
			t.Fatalf("an alarm that always fails ran %q, want 7 times", tp.ran())
		}
		if got := w.must("x", "all", "") + w.must("x", "get", "ran"); got != "0none" {
			t.Errorf("after it was given up there is %q: want no alarm, and no write of the failures", got)
		}
		// With a handler for it, the object is told.
		var told atomic.Value
		s.failed = func(tx host.Turn, a *host.AlarmFailed) error {
			text := fmt.Sprint(a.Attempts, " ", a.Err)
			told.Store(text)
			tx.Put("told", []byte(text), false)
			return nil
		}
		w.crash(Config{}, s)
		tp.rewind()
		w.must("x", "set", "1s")
		start := time.Now()
		pass(10 * time.Second) // runs at 1, then 3 to 3.5, then 7 to 8.5
		if len(tp.ran()) != 3 {
			t.Errorf("after 10 s it ran %q, want 3 times", tp.ran())
		}
		w.crash(Config{}, s) // retries survive the owner
		pass(10*time.Minute - time.Since(start))
		if len(tp.ran()) != 7 || told.Load() != "7 not now" || w.must("x", "get", "told") != told.Load() {
			t.Errorf("it ran %q and the object was told %q", tp.ran(), told.Load())
		}
		// Success ends the retries.
		tp.rewind()
		tp.set(2)
		w.must("x", "set", "1s")
		pass(time.Hour)
		if len(tp.ran()) != 3 {
			t.Errorf("an alarm that fails twice ran %q", tp.ran())
		}
	})
}

func TestOverdueAlarmFiresAtStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var tp tape
		s := alarms(&tp)
		w := newWorld(t, Config{}, s)
		w.must("x", "set", "1m")
		w.stop()
		pass(time.Hour)
		w.crash(Config{}, s)
		synctest.Wait()
		if want := []string{"#0+3600"}; !slices.Equal(tp.ran(), want) {
			t.Errorf("at the start ran %q, want %q", tp.ran(), want)
		}
	})
}

func TestRecurring(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var tp tape
		w := newWorld(t, Config{}, alarms(&tp))
		w.must("x", "every", "1m")
		pass(3*time.Minute + time.Second)
		tp.set(1)
		pass(time.Minute + 10*time.Second)
		want := []string{"tick/1#0+60", "tick/1#0+120", "tick/1#0+180", "tick/1#0+240"}
		if len(tp.ran()) != 5 || !slices.Equal(tp.ran()[:4], want) {
			t.Errorf("ran %q, want %q and a retry", tp.ran(), want)
		}
		pass(50 * time.Second)
		if tp.ran()[len(tp.ran())-1] != "tick/1#0+300" {
			t.Errorf("after a retry the interval drifts: %q", tp.ran())
		}
		w.must("x", "cancel", "tick/1")
		n := len(tp.ran())
		pass(time.Hour)
		if len(tp.ran()) != n {
			t.Errorf("a cancelled schedule ran: %q", tp.ran()[n:])
		}
	})
}

func TestAlarmSetAgainReplacesRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		s := &script{methods: map[string]method{
			"set": func(_ *instance, _ context.Context, tx host.Turn, _ string) (string, error) {
				tx.SetSchedule(host.Schedule{At: time.Now().Add(time.Second)})
				return "", nil
			},
		}}
		s.alarm = func(tx host.Turn, a *host.Alarm) error {
			if runs.Add(1) == 1 {
				tx.SetSchedule(host.Schedule{At: time.Now().Add(time.Minute)})
				tx.Commit()
				return errors.New("no")
			}
			if a.Attempt != 0 {
				return errors.New("the new alarm has the old one's attempts")
			}
			return nil
		}
		w := newWorld(t, Config{}, s)
		w.must("x", "set", "")
		pass(30 * time.Second)
		if runs.Load() != 1 {
			t.Errorf("the old alarm was retried: %d runs", runs.Load())
		}
		pass(time.Minute)
		if runs.Load() != 2 {
			t.Errorf("the new alarm ran %d times, want once", runs.Load()-1)
		}
	})
}

func TestFireAlarm(t *testing.T) {
	t.Parallel()
	var tp tape
	w := newWorld(t, Config{}, alarms(&tp))
	if ok, err := w.engine.FireAlarm(t.Context(), ref("x"), ""); ok || err != nil {
		t.Errorf("firing no alarm says %v %v", ok, err)
	}
	w.must("x", "set", "1h")
	if ok, err := w.engine.FireAlarm(t.Context(), ref("x"), ""); !ok || err != nil {
		t.Errorf("firing an alarm says %v %v", ok, err)
	}
	if got := w.must("x", "all", ""); got != "0" {
		t.Errorf("after it was fired %s alarms are left", got)
	}
}
