package durable_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	labs   durable.Class[lab]                              = "lab"
	run    durable.Method[lab, durable.None, durable.None] = "run"
	greet  durable.Method[lab, string, string]             = "greet"
	absent durable.Method[lab, durable.None, durable.None] = "absent"
	retry  durable.Schedule[lab, string]                   = "retry"
	ghost  durable.Schedule[lab, string]                   = "ghost"
	number durable.Key[int64]                              = "number"
	words2 durable.Key[string]                             = "number" // the same key, with another type
	scores durable.Map[string, int64]                      = "scores"
	odd    durable.Map[float64, int64]                     = "odd"
	tag    durable.Attachment[string]                      = "tag"
)

// A lab is an object whose events do what a test asks for.
type lab struct{ loads int }

// A bench is a world with one lab in it.
type bench struct {
	*durabletest.World
	t   *testing.T
	lab durable.Stub[lab]
	do  func(o *lab, ctx context.Context, tx *durable.Tx) error
	due func(tx *durable.Tx) error // what its schedules do
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t}
	b.World = durabletest.New(t, durable.Define(labs,
		run.Handle(func(o *lab, ctx context.Context, tx *durable.Tx, _ durable.None) (durable.None, error) {
			return durable.None{}, b.do(o, ctx, tx)
		}),
		greet.Handle(func(_ *lab, _ context.Context, _ *durable.Tx, name string) (string, error) {
			return "hello " + name, nil
		}),
		retry.Handle(func(_ *lab, _ context.Context, tx *durable.Tx, _ string) error { return b.due(tx) }).
			Retry(durable.RetryPolicy{Attempts: 2, Base: time.Hour}),
	))
	b.lab = labs.Named(b, "it")
	return b
}

// event runs do as an event of the lab.
func (b *bench) event(do func(tx *durable.Tx) error) error {
	return b.run(func(_ *lab, _ context.Context, tx *durable.Tx) error { return do(tx) })
}

func (b *bench) run(do func(o *lab, ctx context.Context, tx *durable.Tx) error) error {
	b.do = do
	_, err := run.Call(b.t.Context(), b.lab, durable.None{})
	return err
}

func (b *bench) mustEvent(do func(tx *durable.Tx)) {
	b.t.Helper()
	if err := b.event(func(tx *durable.Tx) error { do(tx); return nil }); err != nil {
		b.t.Fatal(err)
	}
}

func TestRawStorage(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mustEvent(func(tx *durable.Tx) {
		value := []byte("1")
		tx.Put("a", value)
		value[0] = 'x' // the event has its own
		tx.PutMany(map[string][]byte{"b": []byte("2"), "c": []byte("3"), "d": nil})
		if got := tx.GetMany("a", "b", "z"); !maps.EqualFunc(got, map[string][]byte{"a": []byte("1"), "b": []byte("2")}, slices.Equal) {
			t.Errorf("GetMany: %q", got)
		}
		if got, ok := tx.Get("d"); !ok || len(got) != 0 {
			t.Errorf("an empty value: %q, %v", got, ok)
		}
	})
	b.mustEvent(func(tx *durable.Tx) {
		value, _ := tx.Get("a")
		value[0] = 'x' // the caller's own
		if got, _ := tx.Get("a"); string(got) != "1" {
			t.Errorf("a is %q", got)
		}
		if n := tx.DeleteMany("a", "b", "z"); n != 2 || tx.Delete("a") {
			t.Errorf("%d keys were deleted", n)
		}
		var keys []string
		for k, v := range tx.List(durable.Range{}) {
			keys = append(keys, k+string(v))
			tx.Delete(k) // does not disturb the loop
		}
		if !slices.Equal(keys, []string{"c3", "d"}) {
			t.Errorf("List: %q", keys)
		}
	})
	b.mustEvent(func(tx *durable.Tx) {
		for k := range tx.List(durable.Range{}) {
			t.Errorf("%q is left", k)
		}
		if id, name := tx.ID(), tx.Class(); id != b.lab.ID() || name != "lab" {
			t.Errorf("the object is %s of class %q", id, name)
		}
		if name, ok := tx.Name(); name != "it" || !ok {
			t.Errorf("the object's name is %q, %v", name, ok)
		}
	})
}

func TestMaps(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mustEvent(func(tx *durable.Tx) {
		tx.Put("scores", []byte("not in the map"))
		tx.Put("scores0", []byte("nor is this"))
		for i, k := range []string{"dan", "ada", "cyd", "bob", ""} {
			scores.Put(tx, k, int64(i))
		}
	})
	b.mustEvent(func(tx *durable.Tx) {
		for name, c := range map[string]struct {
			span durable.Span[string, int64]
			want []string
		}{
			"from":    {scores.From("bob"), []string{"bob", "cyd", "dan"}},
			"after":   {scores.After("bob"), []string{"cyd", "dan"}},
			"before":  {scores.Before("cyd"), []string{"", "ada", "bob"}},
			"between": {scores.From("ada").Before("dan"), []string{"ada", "bob", "cyd"}},
			"reverse": {scores.Reverse(), []string{"dan", "cyd", "bob", "ada", ""}},
			"last":    {scores.Before("dan").Reverse().Limit(2), []string{"cyd", "bob"}},
			"prefix":  {scores.Prefix("c"), []string{"cyd"}},
			"limit":   {scores.Limit(1), []string{""}},
			"none":    {scores.After("dan"), nil},
		} {
			if got := slices.Collect(c.span.Keys(tx)); !slices.Equal(got, c.want) {
				t.Errorf("%s: %q, want %q", name, got, c.want)
			}
		}
		if got := maps.Collect(scores.All(tx)); !maps.Equal(got, map[string]int64{"dan": 0, "ada": 1, "cyd": 2, "bob": 3, "": 4}) {
			t.Errorf("All: %v", got)
		}
		if v, ok := scores.Lookup(tx, "eve"); ok || v != 0 || scores.Get(tx, "bob") != 3 {
			t.Errorf("eve is %d, %v; bob is %d", v, ok, scores.Get(tx, "bob"))
		}
		if !scores.Delete(tx, "bob") || scores.Delete(tx, "bob") {
			t.Error("bob was not deleted once")
		}
		scores.From("cyd").Clear(tx)
		if got := slices.Collect(scores.Limit(10).Keys(tx)); !slices.Equal(got, []string{"", "ada"}) {
			t.Errorf("after Clear from cyd: %q", got)
		}
		scores.Clear(tx)
		if _, ok := tx.Get("scores0"); !ok {
			t.Error("Clear has removed a key that is not in the map")
		}
	})
}

func TestEventsThatGoTooFar(t *testing.T) {
	t.Parallel()
	many := make([]string, 129)
	for name, c := range map[string]struct {
		do   func(tx *durable.Tx)
		want error
		text string
	}{
		"value":       {func(tx *durable.Tx) { tx.Put("k", make([]byte, 2<<20+1)) }, durable.ErrTooLarge, "2097152"},
		"key":         {func(tx *durable.Tx) { tx.Put(strings.Repeat("k", 2049), nil) }, durable.ErrTooLarge, "2048"},
		"empty key":   {func(tx *durable.Tx) { tx.Put("", nil) }, durable.ErrBadRequest, "empty"},
		"get many":    {func(tx *durable.Tx) { tx.GetMany(many...) }, durable.ErrTooLarge, "128"},
		"delete many": {func(tx *durable.Tx) { tx.DeleteMany(many...) }, durable.ErrTooLarge, "128"},
		"other type":  {func(tx *durable.Tx) { words2.Put(tx, "five"); number.Get(tx) }, durable.ErrInternal, `"number"`},
		"map key":     {func(tx *durable.Tx) { odd.Put(tx, 1.5, 1) }, durable.ErrInternal, "float64"},
		"alarm":       {func(tx *durable.Tx) { tx.SetAlarm(time.Now()) }, durable.ErrBadRequest, "Alarm"},
		"no handler":  {func(tx *durable.Tx) { ghost.After(tx, "", time.Hour, "") }, durable.ErrBadRequest, `"ghost"`},
		"zero time":   {func(tx *durable.Tx) { retry.At(tx, "", time.Time{}, "") }, durable.ErrBadRequest, "zero time"},
		"too often":   {func(tx *durable.Tx) { retry.Every(tx, "", time.Millisecond, "") }, durable.ErrBadRequest, "1s"},
		"args":        {func(tx *durable.Tx) { retry.After(tx, "", 1, strings.Repeat("a", 64<<10)) }, durable.ErrTooLarge, "arguments"},
		"long key":    {func(tx *durable.Tx) { retry.After(tx, strings.Repeat("a", 512), 1, "") }, durable.ErrTooLarge, "512"},
		"abort":       {func(tx *durable.Tx) { tx.Abort(durable.ErrUnavailable) }, durable.ErrUnavailable, ""},
		"nested call": {func(tx *durable.Tx) {
			_ = tx.Nested(func() error { _, err := greet.Call(t.Context(), labs.Unique(tx), ""); return err })
		}, durable.ErrBadRequest, "nested"},
		"panic": {func(*durable.Tx) { panic("secret") }, durable.ErrInternal, "internal error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			err := b.run(func(o *lab, _ context.Context, tx *durable.Tx) error {
				o.loads = 7
				tx.Put("trace", nil)
				c.do(tx)
				t.Error("the event went on")
				return nil
			})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "secret") {
				t.Errorf("the caller learnt %v, want %v with %q", err, c.want, c.text)
			}
			err = b.run(func(o *lab, _ context.Context, tx *durable.Tx) error {
				if _, ok := tx.Get("trace"); ok || o.loads != 0 {
					t.Errorf("the event has left traces: stored %v, in memory %d", ok, o.loads)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNested(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	no := errors.New("no")
	b.mustEvent(func(tx *durable.Tx) {
		number.Put(tx, 1)
		err := tx.Nested(func() error {
			number.Put(tx, 2)
			retry.After(tx, "a", time.Hour, "")
			_ = tx.Nested(func() error { number.Put(tx, 3); return nil })
			return no
		})
		if !errors.Is(err, no) || number.Get(tx) != 1 || retry.Cancel(tx, "a") {
			t.Errorf("after a nested error %v: %d", err, number.Get(tx))
		}
	})
}

// What was written before a commit point is not undone by a later error.
func TestCommitPoints(t *testing.T) {
	t.Parallel()
	no := errors.New("no")
	for name, point := range map[string]func(ctx context.Context, tx *durable.Tx) error{
		"commit": func(_ context.Context, tx *durable.Tx) error { tx.Commit(); return nil },
		"sync":   func(ctx context.Context, tx *durable.Tx) error { return tx.Sync(ctx) },
		"outside": func(ctx context.Context, tx *durable.Tx) error {
			return tx.Outside(ctx, func(context.Context) error { return nil })
		},
		"call": func(ctx context.Context, tx *durable.Tx) error {
			_, err := greet.Call(ctx, labs.Unique(tx), "")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			err := b.run(func(_ *lab, ctx context.Context, tx *durable.Tx) error {
				number.Put(tx, 1)
				if err := point(ctx, tx); err != nil {
					t.Error(err)
				}
				number.Put(tx, 2)
				return no
			})
			if err == nil || err.Error() != "no" {
				t.Errorf("the error is %v", err)
			}
			b.mustEvent(func(tx *durable.Tx) {
				if n := number.Get(tx); n != 1 {
					t.Errorf("the number is %d, want 1", n)
				}
			})
		})
	}
}

func TestTxDiesWithItsEvent(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var kept *durable.Tx
	b.mustEvent(func(tx *durable.Tx) { kept = tx })
	defer func() {
		if r := fmt.Sprint(recover()); !strings.Contains(r, "after its event") {
			t.Errorf("panic is %s", r)
		}
	}()
	number.Get(kept)
}

func TestStubs(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()

	byID := labs.ByID(b, b.lab.ID())
	if _, named := byID.Name(); named || byID.ID() != b.lab.ID() {
		t.Errorf("a stub by ID: %+v", byID)
	}
	if s, err := greet.Call(ctx, byID, "ada"); s != "hello ada" || err != nil {
		t.Errorf("a call by ID: %q, %v", s, err)
	}
	if a, b := labs.Unique(b).ID(), labs.Unique(b).ID(); a == b {
		t.Error("two unique IDs are the same")
	}

	id, err := labs.ParseID(b.lab.ID().String())
	if err != nil || id != b.lab.ID() {
		t.Errorf("ParseID: %s, %v", id, err)
	}
	foreign := durable.Class[lab]("other").Named(b, "it").ID()
	for _, s := range []string{"", "xyz", foreign.String()} {
		if _, err := labs.ParseID(s); !errors.Is(err, durable.ErrBadID) {
			t.Errorf("ParseID(%q): %v", s, err)
		}
	}

	for name, c := range map[string]struct {
		stub durable.Stub[lab]
		want error
	}{
		"of another class": {labs.ByID(b, foreign), durable.ErrBadID},
		"long name":        {labs.Named(b, strings.Repeat("n", 1025)), durable.ErrTooLarge},
		"unknown class":    {durable.Class[lab]("other").Named(b, "it"), durable.ErrUnknownClass},
	} {
		if _, err := greet.Call(ctx, c.stub, ""); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := absent.Call(ctx, b.lab, durable.None{}); !errors.Is(err, durable.ErrUnknownMethod) {
		t.Errorf("a method without a handler: %v", err)
	}
	if _, err := greet.Call(ctx, durable.Stub[lab]{}, ""); err == nil {
		t.Error("the zero stub reached something")
	}
	wrong := durable.Method[lab, int, string](greet)
	if _, err := wrong.Call(ctx, b.lab, 5); !errors.Is(err, durable.ErrBadRequest) {
		t.Errorf("arguments of another type: %v", err)
	}
	odd := durable.Method[lab, string, int](greet)
	if _, err := odd.Call(ctx, b.lab, ""); !errors.Is(err, durable.ErrInternal) {
		t.Errorf("a reply of another type: %v", err)
	}
}

func TestObjectsComeAndGo(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	if _, err := labs.Existing(ctx, b, "it"); !errors.Is(err, durable.ErrNotFound) {
		t.Errorf("before its first write: %v", err)
	}
	before := time.Now().Truncate(time.Millisecond)
	b.mustEvent(func(tx *durable.Tx) { number.Put(tx, 1) })
	stub, err := labs.Existing(ctx, b, "it")
	if err != nil || stub.ID() != b.lab.ID() {
		t.Errorf("Existing: %v, %v", stub, err)
	}
	info, err := b.lab.Info(ctx)
	want := durable.ObjectInfo{ID: b.lab.ID(), Name: "it", Named: true, Created: info.Created}
	if diff := cmp.Diff(want, info); diff != "" || err != nil || info.Created.Before(before) {
		t.Errorf("Info (-want +got): %v\n%s", err, diff)
	}

	b.mustEvent(func(tx *durable.Tx) { tx.Destroy() })
	if _, err := b.lab.Info(ctx); !errors.Is(err, durable.ErrNotFound) {
		t.Errorf("after Tx.Destroy: %v", err)
	}
	b.mustEvent(func(tx *durable.Tx) { number.Put(tx, 1) })
	for range 2 {
		if err := b.lab.Destroy(ctx); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	}
	b.mustEvent(func(tx *durable.Tx) {
		if _, ok := number.Lookup(tx); ok {
			t.Error("a destroyed object has kept its number")
		}
	})
}

func TestListPages(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const n = 2100 // more than two pages
	b.do = func(_ *lab, _ context.Context, tx *durable.Tx) error { number.Put(tx, 1); return nil }
	var want []string
	for i := range n {
		name := fmt.Sprintf("n%04d", i)
		want = append(want, name)
		if _, err := run.Call(t.Context(), labs.Named(b, name), durable.None{}); err != nil {
			t.Fatal(err)
		}
	}
	for limit, want := range map[int][]string{0: want, 1: want[:1], 1000: want[:1000], 1500: want[:1500]} {
		var got []string
		for o, err := range labs.List(t.Context(), b, durable.ListOptions{Prefix: "n", Limit: limit}) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, o.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: %d objects, want %d", limit, len(got), len(want))
		}
	}
	for range labs.List(t.Context(), b, durable.ListOptions{}) {
		break // ends the listing
	}
	for _, err := range durable.Class[lab]("other").List(t.Context(), b, durable.ListOptions{}) {
		if !errors.Is(err, durable.ErrUnknownClass) {
			t.Errorf("list an unknown class: %v", err)
		}
	}
}

func TestDeadlock(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	err := b.run(func(_ *lab, ctx context.Context, tx *durable.Tx) error {
		_, err := greet.Call(ctx, labs.Named(tx, "it"), "")
		return err
	})
	if !errors.Is(err, durable.ErrDeadlock) || !strings.Contains(err.Error(), "lab/it") {
		t.Errorf("a call to itself: %v", err)
	}
}

func TestGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		broken := errors.New("broken")
		ended := make(chan error, 3)
		then := func(_ *lab, _ context.Context, tx *durable.Tx, n int64, err error) error {
			number.Put(tx, number.Get(tx)+n)
			ended <- err
			return nil
		}
		b.mustEvent(func(tx *durable.Tx) {
			for _, work := range []func(context.Context) (int64, error){
				func(context.Context) (int64, error) { time.Sleep(time.Minute); return 5, nil },
				func(context.Context) (int64, error) { return 0, broken },
				func(context.Context) (int64, error) { panic("oops") },
			} {
				if err := durable.Go(tx, work, then); err != nil {
					t.Error(err)
				}
			}
			if err := durable.Go[lab](tx, func(context.Context) (int64, error) { return 1, nil }, nil); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		failed := 0
		for range 3 {
			if err := <-ended; err != nil {
				failed++
			}
		}
		if failed != 2 {
			t.Errorf("%d tasks failed, want 2", failed)
		}
		b.mustEvent(func(tx *durable.Tx) {
			if n := number.Get(tx); n != 5 {
				t.Errorf("the number is %d, want 5", n)
			}
		})

		// Work that an event started does not begin if the event fails.
		_ = b.event(func(tx *durable.Tx) error {
			err := durable.Go(tx, func(context.Context) (int64, error) { t.Error("the work began"); return 0, nil }, then)
			return errors.Join(broken, err)
		})
		synctest.Wait()
	})
}

func TestGoOfAnotherClass(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	err := b.event(func(tx *durable.Tx) error {
		return durable.Go(tx, func(context.Context) (int, error) { return 0, nil }, func(*Counter, context.Context, *durable.Tx, int, error) error { return nil })
	})
	if !errors.Is(err, durable.ErrInternal) {
		t.Errorf("work that ends in another class: %v", err)
	}
}

func TestSchedules(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var attempts []durable.AlarmInfo
		b.due = func(tx *durable.Tx) error {
			if tx.AlarmInfo().Key != "a" {
				return nil
			}
			attempts = append(attempts, tx.AlarmInfo())
			return errors.New("no")
		}
		now := time.Now()
		b.mustEvent(func(tx *durable.Tx) {
			retry.At(tx, "b", now.Add(2*time.Hour), "two")
			retry.After(tx, "a", time.Hour, "one")
			retry.Every(tx, "", 3*time.Hour, "")
			if err := retry.Cron(tx, "c/d", "0 12 * * *", "Asia/Tokyo", ""); err != nil {
				t.Error(err)
			}
			if err := retry.Cron(tx, "e", "nonsense", "", ""); !errors.Is(err, durable.ErrBadRequest) {
				t.Errorf("a cron expression of nonsense: %v", err)
			}
		})
		b.mustEvent(func(tx *durable.Tx) {
			want := []durable.Scheduled[string]{
				{Key: "a", At: now.Add(time.Hour).UTC(), Args: "one"},
				{Key: "b", At: now.Add(2 * time.Hour).UTC(), Args: "two"},
				{At: now.Add(3 * time.Hour).UTC(), Every: 3 * time.Hour},
				{Key: "c/d", At: now.Add(3 * time.Hour).UTC(), Cron: "0 12 * * *", Zone: "Asia/Tokyo"}, // a bubble begins at midnight
			}
			if diff := cmp.Diff(want, slices.Collect(retry.List(tx))); diff != "" {
				t.Errorf("List (-want +got):\n%s", diff)
			}
			if s, ok := retry.Lookup(tx, "b"); !ok || s.Args != "two" {
				t.Errorf("Lookup: %+v, %v", s, ok)
			}
			if _, ok := retry.Lookup(tx, "z"); ok || retry.Cancel(tx, "z") || !retry.Cancel(tx, "b") {
				t.Error("Cancel and Lookup do not agree")
			}
			if _, ok := tx.Alarm(); ok || tx.DeleteAlarm() {
				t.Error("a schedule is taken for the alarm")
			}
		})

		// Two attempts an hour apart, then it is given up.
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		scheduled := now.Add(time.Hour).UTC()
		want := []durable.AlarmInfo{
			{Kind: "retry", Key: "a", Scheduled: scheduled},
			{Kind: "retry", Key: "a", Scheduled: scheduled, Attempt: 1},
		}
		if diff := cmp.Diff(want, attempts); diff != "" {
			t.Errorf("attempts (-want +got):\n%s", diff)
		}
	})
}
