package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

type method = func(i *instance, ctx context.Context, t host.Turn, arg string) (string, error)

func TestOneEventAtATime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, &script{})
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 50 {
				w.must("a", "incr", "")
			}
		})
	}
	wg.Wait()
	if got := w.must("a", "get", "n"); got != "3200" {
		t.Errorf("after 3200 increments the counter is %s", got)
	}
}

// The next event starts on the state the last one left, while the replies of both wait
// for their commits.
func TestOutputGate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}, &script{})
		w.must("a", "incr", "")
		w.store.hold()
		replies := make(chan string, 3)
		for range 2 {
			go func() { replies <- w.must("a", "incr", "") }()
			synctest.Wait()
		}
		go func() { replies <- "read " + w.must("a", "get", "n") }()
		synctest.Wait()
		if len(replies) != 0 {
			t.Fatalf("%d replies left before their writes were durable", len(replies))
		}
		w.store.release()
		var got []string
		for range 3 {
			got = append(got, <-replies)
		}
		slices.Sort(got)
		if want := []string{"2", "3", "read 3"}; !reflect.DeepEqual(got, want) {
			t.Errorf("replies are %q, want %q", got, want)
		}
	})
}

func TestUnconfirmedWritesAreNotWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}, &script{methods: map[string]method{
			"lazy": func(_ *instance, ctx context.Context, tx host.Turn, arg string) (string, error) {
				tx.Put("k", []byte(arg), true)
				if arg == "sync" {
					return "", tx.Sync(ctx)
				}
				return "", nil
			},
		}})
		w.store.hold()
		w.must("a", "lazy", "1") // would hang if it waited
		if got := w.must("a", "get", "k"); got != "1" {
			t.Errorf("an unconfirmed write reads %q, want 1", got)
		}
		done := make(chan string, 1)
		go func() { done <- w.must("a", "lazy", "sync") }()
		synctest.Wait()
		if len(done) != 0 {
			t.Fatal("Sync returned before the write was durable")
		}
		w.store.release()
		<-done
	})
}

func TestFailedEventsAreUndone(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	fail := func(how func()) method {
		return func(i *instance, _ context.Context, tx host.Turn, _ string) (string, error) {
			i.memory++
			tx.Put("a", []byte("changed"), false)
			tx.Delete("b", false)
			tx.DeleteAll()
			tx.Put("c", []byte("new"), false)
			tx.SetSchedule(host.Schedule{At: time.Now().Add(time.Hour)})
			how()
			return "", boom
		}
	}
	s := &script{
		alarm: func(host.Turn, *host.Alarm) error { return nil },
		methods: map[string]method{
			"error":  fail(func() {}),
			"panic":  fail(func() { panic("at the disco") }),
			"refuse": fail(func() { panic(host.Errorf(host.CodeTooLarge, "too large")) }),
			"commit": func(_ *instance, _ context.Context, tx host.Turn, _ string) (string, error) {
				tx.Put("a", []byte("kept"), false)
				tx.Commit()
				tx.Put("b", []byte("lost"), false)
				return "", boom
			},
			"memory": func(i *instance, _ context.Context, tx host.Turn, _ string) (string, error) {
				return fmt.Sprint(i.memory, len(tx.Schedules())), nil
			},
		},
	}
	w := newWorld(t, Config{}, s)
	w.must("x", "put", "a=1")
	w.must("x", "put", "b=2")
	for _, tt := range []struct{ method, code, message string }{
		{"error", "internal", "boom"},
		{"panic", "internal", "the object failed with an internal error"},
		{"refuse", "too_large", "too large"},
	} {
		_, err := w.call("x", tt.method, "")
		var e *host.Error
		if !errors.As(err, &e) || string(e.Code) != tt.code || e.Message != tt.message {
			t.Errorf("%s answers %v, want %s: %s", tt.method, err, tt.code, tt.message)
		}
		for key, want := range map[string]string{"a": "1", "b": "2", "c": "none"} {
			if got := w.must("x", "get", key); got != want {
				t.Errorf("after %s key %s is %q, want %q", tt.method, key, got, want)
			}
		}
		if got := w.must("x", "memory", ""); got != "0 0" {
			t.Errorf("after %s memory and schedules are %q: the instance was not built anew", tt.method, got)
		}
	}
	if _, err := w.call("x", "commit", ""); err == nil {
		t.Error("commit did not fail")
	}
	if got := w.must("x", "get", "a") + w.must("x", "get", "b"); got != "kept2" {
		t.Errorf("after an error behind a commit point the keys are %q, want kept2", got)
	}
	w.crash(Config{}, s)
	if got := w.must("x", "get", "a") + w.must("x", "get", "b"); got != "kept2" {
		t.Errorf("after a crash the keys are %q, want kept2", got)
	}
}

func TestRefusalKeepsItsIdentity(t *testing.T) {
	t.Parallel()
	const tooMuch host.Refusal = "script: too much"
	w := newWorld(t, Config{}, &script{methods: map[string]method{
		"refuse": func(*instance, context.Context, host.Turn, string) (string, error) {
			return "", fmt.Errorf("check: %w", tooMuch)
		},
	}})
	_, err := w.call("x", "refuse", "")
	var e *host.Error
	if !errors.Is(err, tooMuch) || !errors.As(err, &e) || !e.Remote {
		t.Errorf("the refusal arrived as %#v", err)
	}
}

func TestNested(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, &script{methods: map[string]method{
		"nest": func(_ *instance, _ context.Context, tx host.Turn, _ string) (string, error) {
			tx.Put("a", []byte("outer"), false)
			err := tx.Nested(func() error {
				tx.Put("a", []byte("inner"), false)
				tx.Put("b", []byte("inner"), false)
				return errors.New("no")
			})
			if err == nil {
				return "", errors.New("Nested swallowed the error")
			}
			return "", tx.Nested(func() error {
				tx.Put("c", []byte("inner"), false)
				return nil
			})
		},
		"first": func(_ *instance, _ context.Context, tx host.Turn, _ string) (string, error) {
			_ = tx.Nested(func() error { tx.Put("z", nil, false); return errors.New("no") })
			_, ok := tx.Get("z")
			return fmt.Sprint(ok), nil
		},
	}})
	if got := w.must("new", "first", ""); got != "false" {
		t.Errorf("a write of a failed transaction is there: %s", got)
	}
	if _, err := w.engine.Lookup(t.Context(), ref("new")); !errors.Is(err, host.ErrNotFound) {
		t.Errorf("an object whose only write was undone exists: %v", err)
	}
	w.must("x", "nest", "")
	if got := w.must("x", "keys", "") + " " + w.must("x", "get", "a"); got != "a c outer" {
		t.Errorf("after a failed and a good transaction there is %q, want a c outer", got)
	}
}

// Reads are compared with a map while commits are held and released at random.
func TestReadsAgreeWithModel(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	model := map[string]string{}
	key := func() string { return fmt.Sprintf("%c%d", 'a'+rnd.IntN(3), rnd.IntN(30)) }
	check := func(tx host.Turn) error {
		r := host.Range{Reverse: rnd.IntN(2) == 0, Limit: rnd.IntN(20)}
		switch rnd.IntN(4) {
		case 0:
			r.Prefix = string(rune('a' + rnd.IntN(4)))
		case 1:
			r.Start, r.End = key(), key()
		case 2:
			r.StartAfter = key()
		}
		var want []string
		for k, v := range model {
			if strings.HasPrefix(k, r.Prefix) && k >= r.Start && (r.End == "" || k < r.End) && (r.StartAfter == "" || k > r.StartAfter) {
				want = append(want, k+"="+v)
			}
		}
		byKey := func(a, b string) int { return strings.Compare(a[:strings.Index(a, "=")], b[:strings.Index(b, "=")]) }
		slices.SortFunc(want, byKey)
		if r.Reverse {
			slices.Reverse(want)
		}
		if r.Limit > 0 && len(want) > r.Limit {
			want = want[:r.Limit]
		}
		var got []string
		for k, v := range tx.List(r) {
			got = append(got, k+"="+string(v))
			if rnd.IntN(50) == 0 { // a write or a commit in the middle changes nothing
				tx.Put("zz", []byte("x"), false)
				tx.Commit()
				tx.Delete("zz", false)
				tx.Commit()
			}
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("list %+v gives %q, want %q", r, got, want)
		}
		k := key()
		v, ok := tx.Get(k)
		if want, there := model[k]; ok != there || string(v) != want {
			return fmt.Errorf("key %s is %q %v, want %q %v", k, v, ok, want, there)
		}
		return nil
	}
	step := func(tx host.Turn) {
		for range rnd.IntN(5) {
			switch k := key(); rnd.IntN(40) {
			case 0:
				tx.DeleteAll()
				clear(model)
			case 1, 2, 3, 4, 5, 6, 7, 8:
				ok := tx.Delete(k, rnd.IntN(2) == 0)
				if _, there := model[k]; ok != there {
					panic(fmt.Sprintf("delete of %s says %v", k, ok))
				}
				delete(model, k)
			default:
				v := fmt.Sprint(rnd.IntN(1000))
				tx.Put(k, []byte(v), rnd.IntN(2) == 0)
				model[k] = v
			}
		}
	}
	s := &script{methods: map[string]method{
		"step": func(_ *instance, _ context.Context, tx host.Turn, _ string) (string, error) {
			for range 3 {
				if err := check(tx); err != nil {
					return "", err
				}
				before := make(map[string]string)
				for k, v := range model {
					before[k] = v
				}
				if rnd.IntN(5) == 0 {
					_ = tx.Nested(func() error { step(tx); return errors.New("undo") })
					model = before
				} else {
					step(tx)
				}
			}
			return "", check(tx)
		},
	}}
	w := newWorld(t, Config{}, s)
	var waiting sync.WaitGroup
	for i := range 400 {
		switch rnd.IntN(6) {
		case 0:
			w.store.hold()
		case 1:
			w.store.release()
			waiting.Wait()
		}
		if i%50 == 49 {
			w.store.release()
			waiting.Wait()
			if err := w.engine.Evict(t.Context(), ref("x")); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan error, 1)
		ended := make(chan struct{})
		waiting.Go(func() {
			ev := &host.Call{Method: "step"}
			e := &event{kind: kindCall, ctx: context.Background(), to: ref("x"), what: ev, ended: func(err error) { done <- err; close(ended) }}
			if err := w.engine.do(context.Background(), ref("x"), e); err != nil {
				t.Error(err)
			}
		})
		<-ended // handlers run one after another; their replies may still wait
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	w.store.release()
	waiting.Wait()
}

func TestMailboxLimits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		s := &script{methods: map[string]method{
			"block": func(*instance, context.Context, host.Turn, string) (string, error) { <-gate; return "", nil },
		}}
		w := newWorld(t, Config{MailboxEvents: 2, MailboxBytes: 2000, MailboxAge: time.Minute}, s)
		go w.call("x", "block", "")
		synctest.Wait()
		errs := make(chan error, 2)
		for range 2 {
			go func() { _, err := w.call("x", "get", "k"); errs <- err }()
		}
		synctest.Wait()
		if _, err := w.call("x", "get", "k"); !errors.Is(err, host.ErrOverloaded) || !strings.Contains(err.Error(), "too many events") {
			t.Errorf("the third waiting event got %v, want overloaded", err)
		}
		waiting := func() float64 {
			var d dto.Metric
			if err := w.engine.classes["script"].metrics.waiting.Write(&d); err != nil {
				t.Fatal(err)
			}
			return d.GetGauge().GetValue()
		}
		if n := waiting(); n != 2 {
			t.Errorf("%v events are said to wait, want 2", n)
		}
		pass(2 * time.Minute)
		close(gate)
		for range 2 {
			if err := <-errs; !errors.Is(err, host.ErrOverloaded) || !strings.Contains(err.Error(), "too long") {
				t.Errorf("an event that waited too long got %v, want overloaded", err)
			}
		}
		if _, err := w.call("x", "get", strings.Repeat("k", 1800)); err != nil {
			t.Errorf("the object does not work on: %v", err)
		}
		if n := waiting(); n != 0 {
			t.Errorf("%v events are said to wait when none does", n)
		}
	})
}

func TestCallersContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var seen error
		w := newWorld(t, Config{}, &script{methods: map[string]method{
			"wait": func(_ *instance, ctx context.Context, _ host.Turn, _ string) (string, error) {
				<-ctx.Done()
				seen = ctx.Err()
				return "", ctx.Err()
			},
		}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go w.callCtx(ctx, "x", "wait", "")
		synctest.Wait()
		short, cancelShort := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancelShort()
		_, err := w.callCtx(short, "x", "get", "k") // waits behind the first
		var e *host.Error
		if !errors.As(err, &e) || e.Code != host.CodeDeadline || !e.Retryable {
			t.Errorf("an event that never started got %v, want a retryable deadline", err)
		}
		pass(2 * time.Second)
		if !errors.Is(seen, context.DeadlineExceeded) {
			t.Errorf("the handler saw %v, want its caller's deadline", seen)
		}
	})
}

func TestCalls(t *testing.T) {
	t.Parallel()
	var meet sync.WaitGroup
	s := &script{}
	s.methods = map[string]method{
		// "ask" calls incr of the objects named, each through the next.
		"ask": func(_ *instance, ctx context.Context, tx host.Turn, arg string) (string, error) {
			next, rest, _ := strings.Cut(arg, " ")
			tx.Put("asked", []byte(next), false)
			to, m, args := ref(next), "ask", rest
			if rest == "" {
				m, args = "incr", ""
			}
			reply, err := tx.Call(ctx, to, m, []byte(args))
			return string(reply), err
		},
		"meet": func(_ *instance, ctx context.Context, tx host.Turn, arg string) (string, error) {
			meet.Done()
			meet.Wait()
			reply, err := tx.Call(ctx, ref(arg), "incr", nil)
			return string(reply), err
		},
	}
	w := newWorld(t, Config{}, s)
	if got := w.must("a", "ask", "b c"); got != "1" {
		t.Errorf("a call through a call replied %q, want 1", got)
	}
	for _, path := range []string{"a", "b a", "b c b"} {
		_, err := w.call("a", "ask", path)
		if !errors.Is(err, host.ErrDeadlock) || !strings.Contains(err.Error(), "script/a calls script/"+path[:1]) && path != "b c b" {
			t.Errorf("a calling %s got %v, want a deadlock that names the cycle", path, err)
		}
	}
	meet.Add(2)
	errs := make(chan error, 2)
	go func() { _, err := w.call("p", "meet", "q"); errs <- err }()
	go func() { _, err := w.call("q", "meet", "p"); errs <- err }()
	first, second := <-errs, <-errs
	if errors.Is(first, host.ErrDeadlock) == errors.Is(second, host.ErrDeadlock) {
		t.Errorf("two objects that call each other got %v and %v, want one deadlock", first, second)
	}
	if _, err := w.call("a", "nothing", ""); !errors.Is(err, host.ErrUnknownMethod) {
		t.Errorf("an unknown method got %v", err)
	}
}

// A call leaves an object only when what it wrote before is durable.
func TestCallWaitsAtTheGate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		called := false
		s := &script{methods: map[string]method{
			"out": func(_ *instance, ctx context.Context, tx host.Turn, _ string) (string, error) {
				tx.Put("k", []byte("v"), false)
				_, err := tx.Call(ctx, ref("y"), "in", nil)
				return "", err
			},
			"in": func(*instance, context.Context, host.Turn, string) (string, error) { called = true; return "", nil },
		}}
		w := newWorld(t, Config{}, s)
		w.store.hold()
		go w.call("x", "out", "")
		synctest.Wait()
		if called {
			t.Error("the call left before the write was durable")
		}
		w.store.release()
		synctest.Wait()
		if !called {
			t.Error("the call did not leave")
		}
	})
}

func TestSleepAndWake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var reasons []string
		s := &script{
			methods: map[string]method{
				"memory": func(i *instance, _ context.Context, tx host.Turn, _ string) (string, error) {
					i.memory++
					r := tx.Ref()
					return fmt.Sprint(i.memory, " ", r.Name, r.Named), nil
				},
				"empty": func(_ *instance, _ context.Context, tx host.Turn, _ string) (string, error) {
					tx.DeleteAll()
					return "", nil
				},
			},
			stop: func(tx host.Turn, reason string) error {
				reasons = append(reasons, reason)
				tx.Put("stopped", []byte(reason), false)
				return nil
			},
		}
		w := newWorld(t, Config{}, s)
		w.must("x", "put", "a=1")
		w.must("x", "memory", "")
		pass(9 * time.Second)
		if got := w.must("x", "memory", ""); got != "2 xtrue" {
			t.Errorf("after 9 s memory is %q, want it kept", got)
		}
		pass(20 * time.Second)
		if n := len(w.engine.Awake(10)); n != 0 {
			t.Errorf("after 20 idle seconds %d objects are in memory", n)
		}
		byID := ref("x")
		byID.Name, byID.Named = "", false
		reply, err := w.engine.Call(t.Context(), byID, "memory", nil)
		if string(reply) != "1 xtrue" || err != nil {
			t.Errorf("woken by its ID the object says %q %v, want fresh memory and its name", reply, err)
		}
		if got := w.must("x", "get", "stopped"); got != "idle" {
			t.Errorf("Stopping was not committed: %q", got)
		}
		s.stop = func(host.Turn, string) error { return nil }
		w.must("x", "empty", "")
		if err := w.engine.Evict(t.Context(), ref("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := w.engine.Lookup(t.Context(), ref("x")); !errors.Is(err, host.ErrNotFound) {
			t.Errorf("an object with nothing left exists after it slept: %v", err)
		}
	})
}

func TestResetOnFailedCommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		w := newWorld(t, Config{}, s)
		w.must("x", "put", "a=1")
		w.store.hold()
		errs := make(chan error, 2)
		go func() { _, err := w.call("x", "put", "a=2"); errs <- err }()
		synctest.Wait()
		go func() { _, err := w.call("x", "get", "a"); errs <- err }()
		synctest.Wait()
		w.store.fail(host.Errorf(host.CodeUnknownOutcome, "lost the quorum"))
		for range 2 {
			err := <-errs
			var e *host.Error
			if !errors.As(err, &e) || !errors.Is(err, host.ErrUnknownOutcome) || !e.Reset {
				t.Errorf("an output that rested on a failed commit became %v", err)
			}
		}
		if log := w.gateway.take(); !slices.Contains(log, "close all 1012") {
			t.Errorf("the sockets were told %q", log)
		}
		if _, err := w.call("x", "get", "a"); !errors.Is(err, host.ErrUnavailable) {
			t.Errorf("an event during the reset got %v", err)
		}
		w.stop()
		w.engine.SocketClosed(ref("x"), &host.SocketClose{Socket: 1, Code: 1006})
		w.crash(Config{}, s)
		if got := w.must("x", "get", "a"); got != "1" {
			t.Errorf("the next reign reads %q, want the durable 1", got)
		}
	})
}

func TestResetOnStuckCommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}, &script{closed: func(tx host.Turn, c *host.SocketClose) error {
			tx.Put("left", fmt.Append(nil, c.Code), false)
			return nil
		}})
		w.must("x", "put", "a=1")
		w.store.hold()
		start := time.Now()
		_, err := w.call("x", "put", "a=2")
		var e *host.Error
		if !errors.Is(err, host.ErrUnknownOutcome) || !errors.As(err, &e) || !e.Reset {
			t.Fatalf("a commit that hangs ended in %v", err)
		}
		if d := time.Since(start); d < 30*time.Second || d > 35*time.Second {
			t.Errorf("it took %v, want about 30 s", d)
		}
		if _, err := w.call("x", "get", "a"); !errors.Is(err, host.ErrUnavailable) {
			t.Errorf("while the outcome is unknown an event got %v", err)
		}
		w.engine.SocketClosed(ref("x"), &host.SocketClose{Socket: 1, Code: 1012})
		w.store.release()
		pass(5 * time.Second)
		if got := w.must("x", "get", "a"); got != "2" {
			t.Errorf("when the outcome is known the object reads %q, want 2", got)
		}
		if got := w.must("x", "get", "left"); got != "1012" {
			t.Errorf("a socket that ended during the reset left %q: its close event was lost", got)
		}
	})
}

func TestOutside(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		s := &script{methods: map[string]method{
			"out": func(i *instance, ctx context.Context, tx host.Turn, _ string) (string, error) {
				tx.Put("before", []byte("1"), false)
				i.inside-- // others may run now
				err := tx.Outside(ctx, func(context.Context) error { <-gate; return nil })
				i.inside++
				v, _ := tx.Get("n")
				tx.Put("after", v, false)
				return string(v), err
			},
			"fail": func(*instance, context.Context, host.Turn, string) (string, error) { return "", errors.New("no") },
		}}
		w := newWorld(t, Config{}, s)
		replies := make(chan string, 1)
		go func() { r, err := w.call("x", "out", ""); replies <- fmt.Sprint(r, err) }()
		synctest.Wait()
		w.must("x", "incr", "")
		if got := w.must("x", "get", "before"); got != "1" {
			t.Errorf("what was written before Outside reads %q", got)
		}
		pass(time.Minute) // an event outside its turn keeps the object awake
		close(gate)
		if got := <-replies; got != "1<nil>" {
			t.Errorf("the event that was outside answered %q, want 1", got)
		}
		gate = make(chan struct{})
		go func() { r, err := w.call("x", "out", ""); replies <- fmt.Sprint(r, err) }()
		synctest.Wait()
		w.call("x", "fail", "")
		close(gate)
		if got := <-replies; !strings.Contains(got, "reset") {
			t.Errorf("an event that was outside while the instance was thrown away answered %q", got)
		}
	})
}

func TestBackgroundWork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{methods: map[string]method{
			"go": func(_ *instance, _ context.Context, tx host.Turn, arg string) (string, error) {
				err := tx.Go(func(ctx context.Context) error {
					select {
					case <-time.After(time.Minute):
					case <-ctx.Done():
					}
					return errors.New("late")
				}, func(_ context.Context, tx host.Turn, err error) error {
					tx.Put("result", []byte(err.Error()), false)
					return nil
				})
				if arg == "fail" {
					return "", errors.New("no")
				}
				return "", err
			},
		}}
		w := newWorld(t, Config{MaxWork: 1}, s)
		w.call("x", "go", "fail") // never starts
		w.must("x", "go", "")
		if _, err := w.call("x", "go", ""); !errors.Is(err, host.ErrOverloaded) {
			t.Errorf("work beyond the limit got %v", err)
		}
		pass(2 * time.Minute)
		if got := w.must("x", "get", "result"); got != "late" {
			t.Errorf("the work's end wrote %q, want late", got)
		}
		w.must("x", "go", "")
	})
}

func TestStopDrains(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{
			methods: map[string]method{
				"slow": func(_ *instance, _ context.Context, tx host.Turn, _ string) (string, error) {
					time.Sleep(time.Second)
					tx.Put("slow", []byte("done"), false)
					return "done", nil
				},
			},
			stop: func(tx host.Turn, reason string) error { tx.Put("stopped", []byte(reason), false); return nil },
		}
		w := newWorld(t, Config{}, s)
		replies := make(chan string, 1)
		go func() { replies <- w.must("x", "slow", "") }()
		synctest.Wait()
		if err := w.engine.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := <-replies; got != "done" {
			t.Errorf("the running event answered %q", got)
		}
		if _, err := w.call("x", "get", "slow"); !errors.Is(err, host.ErrUnavailable) {
			t.Errorf("an event after Stop got %v", err)
		}
		s.stop = nil
		w.crash(Config{}, s)
		if got := w.must("x", "get", "slow") + w.must("x", "get", "stopped"); got != "doneshutdown" {
			t.Errorf("after Stop there is %q", got)
		}
	})
}

func TestFetch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{ResponseBuffer: 64}, &script{fetch: func(ctx context.Context, tx host.Turn, w http.ResponseWriter, r *http.Request) error {
			switch r.URL.Path {
			case "/plain":
				tx.Put("k", []byte("v"), false)
				w.Header().Set("X-Test", "yes")
				w.WriteHeader(http.StatusCreated)
				fmt.Fprint(w, "hello")
			case "/fail":
				w.Header().Set("X-Test", "yes")
				fmt.Fprint(w, "hello")
				return errors.New("no")
			case "/stream":
				tx.Put("k", []byte("w"), false)
				fmt.Fprint(w, "one ")
				w.(http.Flusher).Flush()
				return tx.Outside(ctx, func(context.Context) error {
					fmt.Fprint(w, "two ", strings.Repeat("x", 100))
					return nil
				})
			case "/broken":
				fmt.Fprint(w, strings.Repeat("x", 100))
				return errors.New("no")
			}
			return nil
		}})
		get := func(path string) (*httptest.ResponseRecorder, error) {
			rec := httptest.NewRecorder()
			_, err := w.engine.Serve(t.Context(), ref("x"), rec, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
			return rec, err
		}
		w.store.hold()
		type answer struct {
			rec *httptest.ResponseRecorder
			err error
		}
		answers := make(chan answer, 1)
		go func() { rec, err := get("/plain"); answers <- answer{rec, err} }()
		synctest.Wait()
		if len(answers) > 0 {
			t.Fatal("the response left before the write was durable")
		}
		w.store.release()
		a := <-answers
		if a.err != nil || a.rec.Code != http.StatusCreated || a.rec.Body.String() != "hello" || a.rec.Header().Get("X-Test") != "yes" {
			t.Errorf("the response is %v %+v", a.err, a.rec)
		}
		if rec, err := get("/fail"); err == nil || rec.Body.Len() > 0 || len(rec.Header()) > 0 {
			t.Errorf("a failed fetch wrote %+v, error %v", rec, err)
		}
		if rec, err := get("/stream"); err != nil || rec.Body.String() != "one two "+strings.Repeat("x", 100) {
			t.Errorf("the stream is %q, error %v", rec.Body, err)
		}
		if _, err := get("/broken"); !errors.Is(err, http.ErrAbortHandler) {
			t.Errorf("a fetch that failed after its response had begun ended in %v", err)
		}
	})
}

func TestSockets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{
			fetch: func(_ context.Context, tx host.Turn, _ http.ResponseWriter, r *http.Request) error {
				id, err := tx.Accept(host.AcceptOptions{Tags: []string{"t", "t"}, Attachment: []byte("a")})
				if err != nil {
					return err
				}
				tx.Put("k", []byte("v"), false)
				if r.URL.Path == "/fail" {
					return errors.New("no")
				}
				return tx.Send(id, host.Message{Data: []byte("welcome")})
			},
			message: func(tx host.Turn, m *host.SocketMessage) error {
				if string(m.Data) == "fail" {
					tx.Broadcast(host.Message{Data: []byte("never")}, "", nil)
					return errors.New("no")
				}
				tx.Put("said", m.Data, false)
				tx.Broadcast(host.Message{Data: m.Data}, "t", []host.SocketID{1})
				return tx.SetAttachment(m.Socket, m.Data)
			},
			closed: func(tx host.Turn, c *host.SocketClose) error {
				if _, ok := tx.Socket(c.Socket); !ok {
					return errors.New("the socket is not listed in its close event")
				}
				tx.Put("left", fmt.Append(nil, c.Code), false)
				return nil
			},
			methods: map[string]method{"count": func(_ *instance, _ context.Context, tx host.Turn, arg string) (string, error) {
				var out string
				for _, s := range tx.Sockets(arg) {
					out += fmt.Sprint(s.Tags, string(s.Attachment))
				}
				return out, nil
			}},
		}
		w := newWorld(t, Config{}, s)
		upgrade := func(path string) (host.Upgrade, error) {
			r := httptest.NewRequestWithContext(t.Context(), "GET", path, nil)
			r.Header.Set("Upgrade", "websocket")
			return w.engine.Serve(t.Context(), ref("x"), httptest.NewRecorder(), r)
		}
		if _, err := upgrade("/fail"); err == nil {
			t.Error("a failed upgrade succeeded")
		}
		up, err := upgrade("/")
		if err != nil || up.Socket == 0 {
			t.Fatal(up, err)
		}
		w.store.hold()
		// The handler has ended when Message returns; the broadcast still waits.
		if err := w.engine.Message(t.Context(), ref("x"), &host.SocketMessage{Socket: up.Socket, Data: []byte("hi")}); err != nil {
			t.Fatal(err)
		}
		if err := w.engine.Message(t.Context(), ref("x"), &host.SocketMessage{Socket: up.Socket, Data: []byte("fail")}); err == nil {
			t.Error("a failed message handler reported nothing")
		}
		if log := w.gateway.take(); !slices.Equal(log, []string{"accept", "send welcome"}) {
			t.Errorf("before the commit the gateway was told %q", log)
		}
		w.store.release()
		synctest.Wait()
		if log := w.gateway.take(); !slices.Equal(log, []string{`broadcast hi to "t" but 1`, "attach hi"}) {
			t.Errorf("after the commit the gateway was told %q", log)
		}
		pass(time.Minute)
		if n := len(w.engine.Awake(1)); n != 0 {
			t.Error("a socket keeps its object awake")
		}
		if got := w.must("x", "count", "t"); got != "[t]hi" {
			t.Errorf("after it slept the object sees %q", got)
		}
		w.engine.SocketClosed(ref("x"), &host.SocketClose{Socket: up.Socket, Code: 1006})
		synctest.Wait()
		if got := w.must("x", "get", "left") + w.must("x", "count", ""); got != "1006" {
			t.Errorf("after the close the object has %q", got)
		}
		if log := w.gateway.take(); !slices.Equal(log, []string{"forget"}) {
			t.Errorf("the gateway was told %q", log)
		}
	})
}

func TestListAndDestroy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, &script{})
	for i := range 25 {
		w.must(fmt.Sprintf("room-%02d", i), "put", "a=1")
	}
	w.must("other", "put", "a=1")
	w.must("looked at", "get", "a")
	var names []string
	o := host.ListOptions{Prefix: "room-", Limit: 10}
	for {
		page, err := w.engine.ListObjects(t.Context(), "script", o)
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range page.Objects {
			names = append(names, info.Name)
		}
		if o.Cursor = page.Cursor; o.Cursor == "" {
			break
		}
	}
	if len(names) != 25 || !slices.IsSorted(names) {
		t.Errorf("the list is %q", names)
	}
	if err := w.engine.Destroy(t.Context(), ref("other")); err != nil {
		t.Fatal(err)
	}
	if got := w.must("other", "get", "a"); got != "none" {
		t.Errorf("a destroyed object has %q", got)
	}
	if _, err := w.engine.Lookup(t.Context(), ref("other")); !errors.Is(err, host.ErrNotFound) {
		t.Errorf("a destroyed object exists: %v", err)
	}
	w.must("other", "put", "b=2")
	if got := w.must("other", "keys", ""); got != "b" {
		t.Errorf("an object made again has %q", got)
	}
	if _, err := w.engine.ListObjects(t.Context(), "script", host.ListOptions{Cursor: "garbage!"}); err == nil {
		t.Error("a forged cursor was taken")
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{}, &script{methods: map[string]method{
		"delete": func(_ *instance, _ context.Context, tx host.Turn, arg string) (string, error) {
			return fmt.Sprint(tx.Delete(arg, false)), nil
		},
	}})
	w.must("x", "put", "a=1")
	w.store.mu.Lock()
	w.store.full = host.Errorf(host.CodeStorageFull, "the disk is full")
	w.store.mu.Unlock()
	if _, err := w.call("x", "put", "a=2"); !errors.Is(err, host.ErrStorageFull) {
		t.Errorf("a write on a full disk got %v", err)
	}
	if got := w.must("x", "get", "a") + w.must("x", "delete", "a"); got != "1true" {
		t.Errorf("reading and deleting on a full disk gave %q", got)
	}
}

func BenchmarkHotCounter(b *testing.B) {
	for _, m := range []string{"get", "incr"} {
		b.Run(m, func(b *testing.B) {
			w := newWorld(b, Config{}, &script{})
			to, args := ref("x"), []byte("n")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.engine.Call(context.Background(), to, m, args); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A gateway of another node delivers a message again after its owner has died.
func TestMessagesAreHandledOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{
			methods: map[string]func(*instance, context.Context, host.Turn, string) (string, error){
				"clear": func(_ *instance, _ context.Context, tx host.Turn, _ string) (string, error) {
					tx.DeleteAll()
					return "", nil
				},
			},
			fetch: func(_ context.Context, tx host.Turn, _ http.ResponseWriter, _ *http.Request) error {
				_, err := tx.Accept(host.AcceptOptions{})
				return err
			},
			message: func(tx host.Turn, m *host.SocketMessage) error {
				if string(m.Data) == "clear" {
					tx.DeleteAll()
				}
				if string(m.Data) != "look" {
					tx.Put("n", fmt.Append(nil, number(tx, "n")+1), false)
					tx.Broadcast(host.Message{Data: m.Data}, "", nil)
				}
				return nil
			},
		}
		carrier := &carrier{}
		w := newWorld(t, Config{Carrier: carrier}, s)
		carrier.w = w
		r := httptest.NewRequestWithContext(host.WithGateway(t.Context(), "far"), "GET", "/", nil)
		r.Header.Set("Upgrade", "websocket")
		up, err := w.engine.Serve(r.Context(), ref("x"), httptest.NewRecorder(), r)
		if err != nil {
			t.Fatal(err)
		}
		settled := 0
		say := func(seq uint64, text string) {
			t.Helper()
			m := &host.SocketMessage{Socket: up.Socket, Seq: seq, Data: []byte(text)}
			if err := w.engine.Deliver(t.Context(), ref("x"), m, func(error) { settled++ }); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		say(1, "a")
		say(1, "a")
		say(2, "look")
		say(3, "clear")
		if got := w.must("x", "get", "n"); got != "1" || settled != 4 {
			t.Errorf("the object handled %s messages with effect, and %d settled", got, settled)
		}
		w.must("x", "clear", "") // not even this makes the object forget what it has handled
		if got := w.gateway.sockets[ref("x").ID][0]; got.Gateway != "far" {
			t.Errorf("the socket's gateway is %q", got.Gateway)
		}
		w.stop()
		w.gateway.sockets[ref("x").ID][0].Seen = carrier.mark
		sockets := w.gateway.sockets
		w.store = &store{m: w.store.m, epoch: 2}
		w.next = sockets
		w.start(Config{Carrier: carrier}, s)
		say(3, "clear")
		say(4, "b")
		if got := w.must("x", "get", "n"); got != "1" {
			t.Errorf("after the owner died %s messages have had effect, want 1", got)
		}
		if log := w.gateway.take(); slices.ContainsFunc(log, func(s string) bool { return strings.HasPrefix(s, "close") }) {
			t.Errorf("a socket that missed nothing was closed: %q", log)
		}
		w.stop()
		w.store = &store{m: w.store.m, epoch: 3}
		w.start(Config{Carrier: carrier}, s) // the gateway has not seen the last outputs
		if log := w.gateway.take(); !slices.Equal(log, []string{"close 1012 messages may have been lost with the object's owner"}) {
			t.Errorf("of a socket that missed something the gateway was told %q", log)
		}
	})
}

type carrier struct {
	w    *world
	mark uint64
}

func (c *carrier) Objects(placement.ShardID) []placement.ObjectID {
	return []placement.ObjectID{ref("x").ID}
}

func (c *carrier) Mark(_ placement.ObjectID, n uint64) { c.mark = n }
