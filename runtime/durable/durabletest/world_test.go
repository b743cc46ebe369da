package durabletest_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	class durable.Class[thing]                          = "thing"
	add   durable.Method[thing, int64, int64]           = "add"
	guess durable.Method[thing, int64, int64]           = "guess"
	wake  durable.Method[thing, time.Duration, bool]    = "wake"
	log   durable.Method[thing, durable.None, []string] = "log"

	hourly durable.Schedule[thing, int] = "hourly"

	total durable.Key[int64]         = "total"
	lines durable.Map[int64, string] = "lines"
	fails durable.Key[int64]         = "fails"
	mood  durable.Attachment[string] = "mood"
)

// A thing writes down what happens to it.
type thing struct{ calls int64 }

var definition = durable.Define(class,
	add.Handle((*thing).add), guess.Handle((*thing).guess), wake.Handle((*thing).wake), log.Handle((*thing).log),
	hourly.Handle((*thing).hourly))

func (o *thing) add(_ context.Context, tx *durable.Tx, by int64) (int64, error) {
	o.calls++
	total.Put(tx, total.Get(tx)+by)
	return total.Get(tx), nil
}

func (o *thing) guess(_ context.Context, tx *durable.Tx, by int64) (int64, error) {
	total.Put(tx.Unconfirmed(), total.Get(tx)+by)
	return total.Get(tx), nil
}

// wake sets the alarm, and hourly schedules for a wait of 0.
func (o *thing) wake(_ context.Context, tx *durable.Tx, wait time.Duration) (bool, error) {
	if wait == 0 {
		hourly.Every(tx, "a", time.Hour, 7)
		return true, nil
	}
	tx.SetAlarm(time.Now().Add(wait))
	return true, nil
}

func (o *thing) log(_ context.Context, tx *durable.Tx, _ durable.None) ([]string, error) {
	var all []string
	for _, line := range lines.All(tx) {
		all = append(all, line)
	}
	return all, nil
}

func (o *thing) say(tx *durable.Tx, line string) {
	lines.Put(tx, time.Now().UnixNano(), line)
}

func (o *thing) hourly(_ context.Context, tx *durable.Tx, args int) error {
	o.say(tx, time.Now().UTC().Format(time.TimeOnly)+" hourly "+string(rune('0'+args)))
	return nil
}

// Alarm fails as long as it is told to.
func (o *thing) Alarm(_ context.Context, tx *durable.Tx) error {
	if total.Get(tx) < 0 {
		return errors.New("in a bad mood")
	}
	o.say(tx, "alarm "+string(rune('0'+tx.AlarmInfo().Attempt)))
	return nil
}

func (o *thing) AlarmFailed(_ context.Context, tx *durable.Tx, f durable.AlarmFailure) error {
	o.say(tx, "gave up after "+string(rune('0'+f.Attempt))+": "+f.Err.Error())
	return nil
}

func (o *thing) Fetch(_ context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	if r.URL.Path != "/socket" {
		w.WriteHeader(http.StatusTeapot)
		return nil
	}
	ws, err := tx.Accept(durable.AcceptOptions{Tags: r.URL.Query()["tag"]})
	if err != nil {
		return err
	}
	mood.Put(ws, "fine")
	return tx.SetAutoResponses(durable.AutoResponse{Request: "ping", Response: "pong"})
}

func (o *thing) WebSocketMessage(_ context.Context, tx *durable.Tx, ws *durable.Socket, m durable.Message) error {
	switch string(m.Data) {
	case "close":
		return ws.Close(4000, "as you wish")
	case "fail":
		total.Put(tx, 99)
		if err := ws.Send(durable.Text("never sent")); err != nil {
			return err
		}
		return errors.New("told to")
	case "awake?":
		o.calls++
		return ws.Send(durable.JSON(o.calls))
	case "tell":
		tx.Broadcast(durable.Text("told"), "b", ws)
		return nil
	}
	reply := durable.Message{Data: append([]byte(mood.Get(ws)+" "), m.Data...), Binary: m.Binary}
	return ws.Send(reply)
}

func (o *thing) WebSocketClose(_ context.Context, tx *durable.Tx, ws *durable.Socket, c durable.CloseEvent) error {
	left := 0
	for range tx.Sockets("") {
		left++
	}
	o.say(tx, c.Reason+" "+time.Duration(c.Code).String()+" of "+string(rune('0'+left)))
	return nil
}

func (o *thing) Stopping(_ context.Context, tx *durable.Tx, reason durable.StopReason) error {
	total.Put(tx, total.Get(tx)+1000)
	return nil
}

// bubble runs a test with a world in virtual time.
func bubble(t *testing.T, f func(t *testing.T, w *durabletest.World, o durable.Stub[thing])) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := durabletest.New(t, definition)
		f(t, w, class.Named(w, "it"))
	})
}

func must[V any](t *testing.T) func(V, error) V {
	t.Helper()
	return func(v V, err error) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantLog(t *testing.T, o durable.Stub[thing], want ...string) {
	t.Helper()
	got := must[[]string](t)(log.Call(t.Context(), o, durable.None{}))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestOutOfABubble(t *testing.T) {
	t.Parallel()
	w := durabletest.New(t, definition)
	o := class.Named(w, "it")
	for want := range int64(3) {
		if n, err := add.Call(t.Context(), o, 1); n != want+1 || err != nil {
			t.Fatalf("add: %d, %v; want %d", n, err, want+1)
		}
	}
	w.Crash()
	if n, err := add.Call(t.Context(), o, 1); n != 4 || err != nil {
		t.Fatalf("after a crash: %d, %v; want 4", n, err)
	}
	w.Restart()
	if n, err := add.Call(t.Context(), o, 1); n != 1005 || err != nil {
		t.Fatalf("after a restart: %d, %v; want 1005", n, err)
	}
	conn := w.Connect(o, "/socket")
	conn.Send("hi")
	if got := conn.Receive(); got != "fine hi" {
		t.Errorf("received %q", got)
	}
	conn.Close(1000, "bye")
	w.Close() // is closed again at the end of the test
}

func TestHoldAndRelease(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		w.Hold()
		answers := make(chan int64, 2)
		for range 2 {
			go func() {
				n, err := add.Call(t.Context(), o, 1)
				if err != nil {
					t.Error(err)
				}
				answers <- n
			}()
		}
		synctest.Wait()
		if len(answers) > 0 {
			t.Fatalf("%d was answered before it was durable", <-answers)
		}
		w.Release()
		if sum := <-answers + <-answers; sum != 3 {
			t.Errorf("the answers add up to %d, want 1 + 2", sum)
		}
	})
}

func TestUnconfirmedWritesAreNotWaitedFor(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		w.Hold()
		if n, err := guess.Call(t.Context(), o, 5); n != 5 || err != nil {
			t.Fatalf("guess: %d, %v; want 5 at once", n, err)
		}
		w.Crash()
		if n, err := guess.Call(t.Context(), o, 1); n != 1 || err != nil {
			t.Errorf("guess: %d, %v; want 1, since the 5 was lost", n, err)
		}
		w.Restart()
		if n, err := guess.Call(t.Context(), o, 1); n != 1002 || err != nil {
			t.Errorf("guess: %d, %v; want 1002", n, err)
		}
	})
}

func TestCrashLosesWhatIsNotDurable(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		must[int64](t)(add.Call(t.Context(), o, 1))
		w.Hold()
		lost := make(chan error, 1)
		go func() {
			_, err := add.Call(t.Context(), o, 10)
			lost <- err
		}()
		synctest.Wait()
		w.Crash()
		if err := <-lost; !errors.Is(err, durable.ErrUnknownOutcome) {
			t.Errorf("the caller learnt %v, want ErrUnknownOutcome", err)
		}
		if n := must[int64](t)(add.Call(t.Context(), o, 1)); n != 2 {
			t.Errorf("after the crash: %d, want 2", n)
		}
	})
}

func TestFailCommits(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		must[int64](t)(add.Call(t.Context(), o, 1))
		conn := w.Connect(o, "/socket")
		w.FailCommits(durable.ErrUnknownOutcome)
		_, err := add.Call(t.Context(), o, 10)
		var e *durable.CallError
		if !errors.Is(err, durable.ErrUnknownOutcome) || !errors.As(err, &e) || !e.Reset {
			t.Errorf("add: %v, want an unknown outcome by reset", err)
		}
		if end := conn.Closed(); end.Code != 1012 {
			t.Errorf("the socket was closed with %d, want 1012", end.Code)
		}
		w.FailCommits(nil)
		if n := must[int64](t)(add.Call(t.Context(), o, 1)); n != 2 {
			t.Errorf("afterwards: %d, want 2", n)
		}
	})
}

// A test may leave its world in whatever state: closing it takes no time and no part in
// the outcome.
func TestBrokenWorldsClose(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		w.Connect(o, "/socket")
		w.Hold()
		w.FailCommits(durable.ErrUnknownOutcome)
		if _, err := add.Call(t.Context(), o, 1); err == nil {
			t.Error("a commit succeeded")
		}
		start := time.Now()
		w.Close()
		if took := time.Since(start); took > 0 {
			t.Errorf("Close took %v", took)
		}
	})
}

func TestAlarmInVirtualTime(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		must[bool](t)(wake.Call(t.Context(), o, time.Hour))
		time.Sleep(time.Hour - time.Millisecond)
		synctest.Wait()
		wantLog(t, o)
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		wantLog(t, o, "alarm 0")
		if w.FireAlarm(o) {
			t.Error("the alarm is still there")
		}
	})
}

func TestAlarmSurvivesACrash(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		must[bool](t)(wake.Call(t.Context(), o, time.Hour))
		w.Crash()
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		wantLog(t, o, "alarm 0")
	})
}

func TestAlarmIsRetried(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		must[int64](t)(add.Call(t.Context(), o, -5000000))
		must[bool](t)(wake.Call(t.Context(), o, time.Second))
		time.Sleep(10 * time.Second)
		must[int64](t)(add.Call(t.Context(), o, 5000000))
		time.Sleep(time.Minute)
		synctest.Wait()
		got := must[[]string](t)(log.Call(t.Context(), o, durable.None{}))
		if len(got) != 1 || got[0] < "alarm 2" || got[0] > "alarm 4" {
			t.Errorf("log is %q, want one alarm after some attempts", got)
		}
	})
}

func TestAlarmIsGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		must[int64](t)(add.Call(t.Context(), o, -5000000))
		must[bool](t)(wake.Call(t.Context(), o, time.Second))
		time.Sleep(time.Hour)
		synctest.Wait()
		wantLog(t, o, "gave up after 7: in a bad mood")
	})
}

func TestEveryHourForADay(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		must[bool](t)(wake.Call(t.Context(), o, 0))
		time.Sleep(24*time.Hour + time.Minute)
		synctest.Wait()
		got := must[[]string](t)(log.Call(t.Context(), o, durable.None{}))
		if len(got) != 24 || got[0] != "01:00:00 hourly 7" || got[23] != "00:00:00 hourly 7" {
			t.Errorf("it ran %d times: %q", len(got), got)
		}
	})
}

func TestIdleObjectsSleep(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		conn := w.Connect(o, "/socket")
		conn.Send("awake?")
		conn.Send("awake?")
		if a, b := conn.Receive(), conn.Receive(); a != "1" || b != "2" {
			t.Errorf("received %s and %s", a, b)
		}
		time.Sleep(time.Minute)
		conn.Send("awake?")
		if got := conn.Receive(); got != "1" {
			t.Errorf("after a minute: %s, want 1 from a new instance", got)
		}
		w.Evict(o)
		conn.Send("awake?")
		if got := conn.Receive(); got != "1" {
			t.Errorf("after Evict: %s, want 1 from a new instance", got)
		}
	})
}

func TestSockets(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		a, b := w.Connect(o, "/socket?tag=a"), w.Connect(o, "/socket?tag=b")

		a.SendMessage(durable.Binary([]byte{1}))
		if m := a.ReceiveMessage(); !m.Binary || string(m.Data) != "fine \x01" {
			t.Errorf("received %v", m)
		}
		a.SendJSON(map[string]int{"n": 1})
		if got := a.Receive(); got != `fine {"n":1}` {
			t.Errorf("received %s", got)
		}

		a.Send("tell")
		b.Send("tell") // b is the only one with the tag, and is left out
		if got := b.Receive(); got != "told" {
			t.Errorf("received %s", got)
		}

		a.Send("fail") // the event is undone, the socket stays
		a.Send("awake?")
		if got := a.Receive(); got != "1" {
			t.Errorf("received %s, want 1 from a new instance and nothing else", got)
		}

		a.Send("ping")
		a.Send("awake?")
		if p, n := a.Receive(), a.Receive(); p != "pong" || n != "2" {
			t.Errorf("received %s and %s", p, n)
		}

		a.Send("close")
		if end := a.Closed(); end.Code != 4000 || end.Reason != "as you wish" || !end.Clean {
			t.Errorf("closed with %+v", end)
		}
		time.Sleep(time.Millisecond)
		b.Drop()
		synctest.Wait()
		if left := append(a.Pending(), b.Pending()...); len(left) > 0 {
			t.Errorf("also received %v", left)
		}
		wantLog(t, o, "as you wish 4µs of 2", " 1.006µs of 1")
	})
}

func TestConnectionsDropInACrash(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		a := w.Connect(o, "/socket")
		w.Crash()
		if end := a.Closed(); end.Code != 1006 {
			t.Errorf("closed with %+v", end)
		}
		b := w.Connect(o, "/socket")
		w.Restart()
		if end := b.Closed(); end.Code != 1001 {
			t.Errorf("closed with %+v", end)
		}
		wantLog(t, o, "the node stops 1.001µs of 1")
	})
}

func TestRequests(t *testing.T) {
	bubble(t, func(t *testing.T, w *durabletest.World, o durable.Stub[thing]) {
		resp, err := w.Do(o, httptest.NewRequest(http.MethodGet, "/tea", nil))
		if err != nil || resp.StatusCode != http.StatusTeapot {
			t.Errorf("GET /tea: %v, %v", resp, err)
		}
		if _, err := w.Dial(o, httptest.NewRequest(http.MethodGet, "/tea", nil)); err == nil {
			t.Error("a WebSocket to /tea was accepted")
		}
		rec := httptest.NewRecorder()
		if err := o.Fetch(t.Context(), rec, httptest.NewRequest(http.MethodGet, "/tea", nil)); err != nil || rec.Code != http.StatusTeapot {
			t.Errorf("Stub.Fetch: %d, %v", rec.Code, err)
		}
		if err := o.Fetch(t.Context(), rec, httptest.NewRequest(http.MethodGet, "/socket", nil)); err == nil {
			t.Error("a request without upgrade was accepted as a WebSocket")
		}
	})
}
