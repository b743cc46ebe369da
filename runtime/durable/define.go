package durable

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A Definition is a class that a node can run.
type Definition struct {
	name  string
	info  host.ClassInfo
	build func() host.Instance
}

// An Option is a part of a definition: a [MethodHandler] or a [ScheduleHandler].
type Option[T any] interface {
	addTo(*class[T])
}

// Define makes a class out of its name and its handlers. The hooks of *T are found
// here. What is wrong with a class is wrong whenever the program runs, so Define
// panics: a name that is malformed or used twice, a handler that is nil, a hook with
// another signature than its interface.
func Define[T any](name Class[T], options ...Option[T]) Definition {
	c := &class[T]{
		facts:     facts{name: string(name), retries: map[string]host.Retry{}},
		methods:   map[string]methodFunc[T]{},
		schedules: map[string]scheduleFunc[T]{},
	}
	if !validName(string(name)) {
		panic(fmt.Sprintf("durable: %q cannot be the name of a class: want %s", string(name), nameRule))
	}
	c.info = hooksOf[T](string(name))
	c.info.Methods = map[string]bool{}
	c.info.Schedules = map[string]bool{}
	for _, o := range options {
		o.addTo(c)
	}
	return Definition{name: c.name, info: c.info, build: func() host.Instance { return &instance[T]{class: c} }}
}

// IdleAfter says how long an object stays in memory unused. The default is the node's,
// usually 10 s.
func (d Definition) IdleAfter(idle time.Duration) Definition {
	d.info.IdleAfter = idle
	return d
}

// Name returns the class's name.
func (d Definition) Name() string { return d.name }

// Info describes the class to the engine.
func (d Definition) Info() host.ClassInfo { return d.info }

// New makes an instance for the engine.
func (d Definition) New() host.Instance { return d.build() }

// A class is what Define knows of a class, in the form that running events need.
type class[T any] struct {
	facts
	methods   map[string]methodFunc[T]
	schedules map[string]scheduleFunc[T]
}

// facts are those about a class that a Tx needs, whatever its T.
type facts struct {
	name    string
	info    host.ClassInfo
	retries map[string]host.Retry // by kind of schedule
}

func (h MethodHandler[T]) addTo(c *class[T]) {
	c.claim("method", h.name, h.missing, c.info.Methods)
	c.info.Methods[h.name] = h.public
	c.methods[h.name] = h.call
}

func (h ScheduleHandler[T]) addTo(c *class[T]) {
	c.claim("schedule", h.kind, h.missing, c.info.Schedules)
	c.info.Schedules[h.kind] = true
	c.schedules[h.kind] = h.run
	c.retries[h.kind] = h.retry
}

// claim checks a handler's name, and that it is the only one of that name.
func (c *class[T]) claim(what, name string, missing bool, taken map[string]bool) {
	switch _, twice := taken[name]; {
	case !validName(name):
		panic(fmt.Sprintf("durable: class %q: %q cannot be the name of a %s: want %s", c.name, name, what, nameRule))
	case missing:
		panic(fmt.Sprintf("durable: class %q: the handler of %s %q is nil", c.name, what, name))
	case twice:
		panic(fmt.Sprintf("durable: class %q: %s %q has two handlers", c.name, what, name))
	}
}

const nameRule = "1 to 64 letters, digits, '-', '_' and '.', beginning with a letter"

// validName reports whether a name can stand in a URL, in storage and in metrics as it is.
func validName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i, r := range s {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
		if !letter && (i == 0 || !('0' <= r && r <= '9' || r == '-' || r == '_' || r == '.')) {
			return false
		}
	}
	return true
}

// hooksOf looks at the methods of *T, once and for all.
func hooksOf[T any](class string) host.ClassInfo {
	t := reflect.TypeFor[T]()
	if k := t.Kind(); k == reflect.Pointer || k == reflect.Interface {
		panic(fmt.Sprintf("durable: class %q: %s cannot be the type of an object: want a struct, not a %s", class, t, k))
	}
	hook[T, Loader](class) // every instance gets a Load event; only the signature matters here
	return host.ClassInfo{
		Fetch:         hook[T, Fetcher](class),
		Alarm:         hook[T, Alarmer](class),
		AlarmFailed:   hook[T, AlarmFailer](class),
		Stopping:      hook[T, Stopper](class),
		SocketMessage: hook[T, WebSocketMessageHandler](class),
		SocketClose:   hook[T, WebSocketCloseHandler](class),
		SocketError:   hook[T, WebSocketErrorHandler](class),
	}
}

// hook reports whether *T has the one method of interface H. A method of that name
// with another signature would never be called, and never be missed: it is refused.
func hook[T, H any](class string) bool {
	if _, ok := any((*T)(nil)).(H); ok {
		return true
	}
	t, want := reflect.TypeFor[*T](), reflect.TypeFor[H]().Method(0)
	if m, ok := t.MethodByName(want.Name); ok {
		bound := reflect.New(t.Elem()).Method(m.Index).Type()
		panic(fmt.Sprintf("durable: class %q: (%s).%s is a %s, but the hook of this name is a %s", class, t, want.Name, bound, want.Type))
	}
	return false
}

// An instance is one object in memory.
type instance[T any] struct {
	class *class[T]
	obj   T
}

// Handle runs one event.
func (i *instance[T]) Handle(ctx context.Context, turn host.Turn, ev host.Event) error {
	obj := any(&i.obj)
	tx := &Tx{turn: turn, class: &i.class.facts, obj: obj}
	switch ev := ev.(type) {
	case *host.Call:
		method, ok := i.class.methods[ev.Method]
		if !ok {
			return host.Errorf(host.CodeUnknownMethod, "class %q has no method %q", i.class.name, ev.Method)
		}
		reply, err := method(&i.obj, ctx, tx, ev.Args)
		ev.Reply = reply
		return err
	case *host.Fetch:
		if o, ok := obj.(Fetcher); ok {
			return o.Fetch(ctx, tx, ev.W, ev.R)
		}
		return host.Errorf(host.CodeUnknownMethod, "class %q does not answer HTTP requests", i.class.name)
	case *host.SocketMessage:
		if o, ok := obj.(WebSocketMessageHandler); ok {
			return o.WebSocketMessage(ctx, tx, tx.socket(ev.Socket), Message{Data: ev.Data, Binary: ev.Binary})
		}
	case *host.SocketClose:
		if o, ok := obj.(WebSocketCloseHandler); ok {
			return o.WebSocketClose(ctx, tx, tx.socket(ev.Socket), CloseEvent{Code: ev.Code, Reason: ev.Reason, Clean: ev.Clean})
		}
	case *host.SocketError:
		if o, ok := obj.(WebSocketErrorHandler); ok {
			return o.WebSocketError(ctx, tx, tx.socket(ev.Socket), ev.Err)
		}
	case *host.Alarm:
		return i.alarm(ctx, tx, ev)
	case *host.AlarmFailed:
		if o, ok := obj.(AlarmFailer); ok {
			info := alarmInfo(ev.Schedule, ev.Scheduled, ev.Attempts)
			return o.AlarmFailed(ctx, tx, AlarmFailure{AlarmInfo: info, Err: ev.Err})
		}
	case *host.Work:
		return ev.Then(ctx, resumed{turn, tx}, ev.Err)
	case *host.Load:
		if o, ok := obj.(Loader); ok {
			return o.Load(ctx, tx)
		}
	case *host.Stopping:
		if o, ok := obj.(Stopper); ok {
			return o.Stopping(ctx, tx, StopReason(ev.Reason))
		}
	default:
		return fmt.Errorf("durable: class %q cannot handle a %T", i.class.name, ev)
	}
	return nil
}

func (i *instance[T]) alarm(ctx context.Context, tx *Tx, ev *host.Alarm) error {
	info := alarmInfo(ev.Schedule, ev.Scheduled, ev.Attempt)
	tx.alarm = info
	if info.Kind == "" {
		if o, ok := any(&i.obj).(Alarmer); ok {
			return o.Alarm(ctx, tx)
		}
		return host.Errorf(host.CodeUnknownMethod, "class %q has no Alarm hook", i.class.name)
	}
	run, ok := i.class.schedules[info.Kind]
	if !ok {
		return host.Errorf(host.CodeUnknownMethod, "class %q has no handler for schedule %q", i.class.name, info.Kind)
	}
	return run(&i.obj, ctx, tx, ev.Schedule.Args)
}
