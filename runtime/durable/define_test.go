package durable

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

type plain struct{}

func (*plain) do(context.Context, *Tx, int64) (string, error) { return "", nil }
func (*plain) tick(context.Context, *Tx, None) error          { return nil }

type full struct{}

func (*full) Load(context.Context, *Tx) error                                      { return nil }
func (*full) Fetch(context.Context, *Tx, http.ResponseWriter, *http.Request) error { return nil }
func (*full) Alarm(context.Context, *Tx) error                                     { return nil }
func (*full) AlarmFailed(context.Context, *Tx, AlarmFailure) error                 { return nil }
func (*full) WebSocketMessage(context.Context, *Tx, *Socket, Message) error        { return nil }
func (*full) WebSocketClose(context.Context, *Tx, *Socket, CloseEvent) error       { return nil }
func (*full) WebSocketError(context.Context, *Tx, *Socket, error) error            { return nil }
func (*full) Stopping(context.Context, *Tx, StopReason) error                      { return nil }

type mistaken struct{}

func (*mistaken) Fetch(http.ResponseWriter, *http.Request) {}

type valued struct{}

func (valued) Alarm(context.Context, *Tx) error { return nil }

const (
	doIt Method[plain, int64, string] = "do"
	tick Schedule[plain, None]        = "tick"
)

func TestDefine(t *testing.T) {
	t.Parallel()
	d := Define(Class[plain]("plain"), doIt.Handle((*plain).do).Public(), tick.Handle((*plain).tick))
	e := d.IdleAfter(time.Minute)
	want := host.ClassInfo{
		Methods: map[string]bool{"do": true}, Schedules: map[string]bool{"tick": true},
		IdleAfter: time.Minute,
	}
	if diff := cmp.Diff(want, e.Info()); diff != "" {
		t.Errorf("info (-want +got):\n%s", diff)
	}
	if d.Info().IdleAfter != 0 {
		t.Errorf("IdleAfter has changed the definition it was called on: %+v", d.Info())
	}
	var _ host.Class = d
	if d.Name() != "plain" {
		t.Errorf("the name is %q", d.Name())
	}
}

func TestHooksAreFound(t *testing.T) {
	t.Parallel()
	want := host.ClassInfo{
		Fetch: true, Alarm: true, AlarmFailed: true, Stopping: true, SocketMessage: true, SocketClose: true, SocketError: true,
		Methods: map[string]bool{}, Schedules: map[string]bool{},
	}
	if diff := cmp.Diff(want, Define(Class[full]("full")).Info()); diff != "" {
		t.Errorf("info (-want +got):\n%s", diff)
	}
	if !Define(Class[valued]("valued")).Info().Alarm {
		t.Error("a hook of the value was not found")
	}
}

func TestDefineRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		define func()
		want   string
	}{
		{func() { Define(Class[plain]("")) }, `"" cannot be the name of a class`},
		{func() { Define(Class[plain]("a/b")) }, `"a/b" cannot be the name of a class`},
		{func() { Define(Class[plain]("9lives")) }, `"9lives" cannot be the name of a class`},
		{func() { Define(Class[plain](strings.Repeat("a", 65))) }, `cannot be the name of a class`},
		{func() { Define(Class[*plain]("p")) }, `*durable.plain cannot be the type of an object`},
		{func() { Define(Class[error]("p")) }, `error cannot be the type of an object`},
		{func() { Define(Class[mistaken]("m")) }, `(*durable.mistaken).Fetch is a func(http.ResponseWriter, *http.Request), but`},
		{func() { Define(Class[plain]("p"), doIt.Handle((*plain).do), doIt.Handle((*plain).do)) }, `method "do" has two handlers`},
		{func() { Define(Class[plain]("p"), tick.Handle((*plain).tick), tick.Handle((*plain).tick)) }, `schedule "tick" has two handlers`},
		{func() { Define(Class[plain]("p"), doIt.Handle(nil)) }, `the handler of method "do" is nil`},
		{func() { Define(Class[plain]("p"), Schedule[plain, None]("a/b").Handle((*plain).tick)) }, `"a/b" cannot be the name of a schedule`},
	} {
		func() {
			defer func() {
				if r := fmt.Sprint(recover()); !strings.HasPrefix(r, "durable: ") || !strings.Contains(r, c.want) {
					t.Errorf("panic is %s, want one with %q", r, c.want)
				}
			}()
			c.define()
		}()
	}
}

func TestRetryPolicyOfSchedules(t *testing.T) {
	t.Parallel()
	for attempts, want := range map[int]int{0: 0, 1: -1, 2: 1, 7: 6} {
		if got := tick.Handle((*plain).tick).Retry(RetryPolicy{Attempts: attempts, Base: time.Second}); got.retry != (host.Retry{Max: want, Base: time.Second}) {
			t.Errorf("%d attempts are %+v", attempts, got.retry)
		}
	}
}

func TestCloseCodes(t *testing.T) {
	t.Parallel()
	for code, want := range map[int]bool{
		0: false, 999: false, 1000: true, 1001: true, 1003: true, 1004: false, 1005: false, 1006: false, 1007: true,
		1008: true, 1012: true, 1014: true, 1015: false, 1016: false, 2999: false, 3000: true, 4999: true, 5000: false,
	} {
		if got := validCloseCode(code); got != want {
			t.Errorf("close code %d: valid is %v", code, got)
		}
	}
}
