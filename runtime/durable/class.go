package durable

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A Class is the name of a class of objects whose instances are Ts.
type Class[T any] string

// An ID is the identity of an object: 32 bytes that also prove which class it is of.
// It prints as 64 hexadecimal digits.
type ID = placement.ObjectID

// A Scope is whatever can reach objects: a [*Tx] inside an event, a runtime.Node, a
// durabletest.World. Calls through a Tx are part of its event.
type Scope interface {
	// Caller is for this package; authors have no use for it.
	Caller() host.Caller
}

// Named returns a stub of the object with the given name. Nothing is sent and nothing
// is created: an object exists from its first write on.
func (c Class[T]) Named(scope Scope, name string) Stub[T] {
	s := Stub[T]{scope: scope, ref: host.Ref{Class: string(c), ID: placement.NamedID(string(c), name), Name: name, Named: true}}
	if len(name) > host.MaxNameBytes {
		s.err = host.Errorf(host.CodeTooLarge, "the name has %d bytes, and an object's name at most %d", len(name), host.MaxNameBytes)
	}
	return s
}

// ByID returns a stub of the object with the given ID. With an ID of another class,
// whatever is done with the stub fails with [ErrBadID].
func (c Class[T]) ByID(scope Scope, id ID) Stub[T] {
	s := Stub[T]{scope: scope, ref: host.Ref{Class: string(c), ID: id}}
	if !id.Of(string(c)) {
		s.err = host.Errorf(host.CodeBadID, "%s is not an ID of class %q", id, string(c))
	}
	return s
}

// Unique returns a stub of a new object that has an ID and no name.
func (c Class[T]) Unique(scope Scope) Stub[T] {
	return Stub[T]{scope: scope, ref: host.Ref{Class: string(c), ID: placement.UniqueID(string(c))}}
}

// Existing returns a stub of the named object if it is stored, and [ErrNotFound]
// otherwise.
func (c Class[T]) Existing(ctx context.Context, scope Scope, name string) (Stub[T], error) {
	s := c.Named(scope, name)
	_, err := s.Info(ctx)
	return s, err
}

// ParseID reads an ID from its 64 hexadecimal digits. The error is [ErrBadID] for
// anything else, and for an ID of another class.
func (c Class[T]) ParseID(s string) (ID, error) {
	id, err := placement.ParseID(string(c), s)
	if err != nil {
		return ID{}, host.Errorf(host.CodeBadID, "parse ID of class %q: %v", string(c), err).Because(err)
	}
	return id, nil
}

// ListOptions select the objects that [Class.List] yields. The zero value selects all.
type ListOptions struct {
	Prefix string // of their names
	Limit  int    // how many at most; 0 means no limit
}

// ObjectInfo is what is known of a stored object.
type ObjectInfo struct {
	ID      ID
	Name    string
	Named   bool
	Created time.Time // when its first write was made
}

// List yields the stored objects of the class, by name, then by ID. It reads page by
// page, so objects that come or go meanwhile may be missed. An error ends it.
func (c Class[T]) List(ctx context.Context, scope Scope, o ListOptions) iter.Seq2[ObjectInfo, error] {
	return func(yield func(ObjectInfo, error) bool) {
		page := host.ListOptions{Prefix: o.Prefix}
		for left := o.Limit; ; {
			if o.Limit > 0 {
				page.Limit = min(left, host.MaxListLimit)
			}
			p, err := scope.Caller().ListObjects(ctx, string(c), page)
			if err != nil {
				yield(ObjectInfo{}, err)
				return
			}
			for _, info := range p.Objects {
				if !yield(infoOf(info), nil) {
					return
				}
			}
			left -= len(p.Objects)
			if p.Cursor == "" || (o.Limit > 0 && left <= 0) {
				return
			}
			page.Cursor = p.Cursor
		}
	}
}

func infoOf(i host.ObjectInfo) ObjectInfo {
	return ObjectInfo{ID: i.ID, Name: i.Name, Named: i.Named, Created: i.Created}
}

// A Stub is how a scope reaches one object. It is a value: make one when it is needed,
// copy it freely, compare IDs rather than stubs. Calls made one after another with
// one stub arrive in that order. A stub dies with its scope: one that was made with a
// Tx is of no use after the event.
type Stub[T any] struct {
	scope Scope
	ref   host.Ref
	err   error // why it cannot reach anything
}

// ID returns the object's ID.
func (s Stub[T]) ID() ID { return s.ref.ID }

// Name returns the object's name, if the stub was made with one.
func (s Stub[T]) Name() (string, bool) { return s.ref.Name, s.ref.Named }

// Ref names the object for the runtime and for tests; authors have no use for it.
func (s Stub[T]) Ref() host.Ref { return s.ref }

// Fetch hands an HTTP request to the object's Fetch hook, which sees the request as it
// is. If it returns an error, nothing was written to w unless the object had already
// streamed a part of its response. WebSockets cannot be opened this way.
func (s Stub[T]) Fetch(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	caller, err := s.caller()
	if err != nil {
		return err
	}
	return caller.Fetch(ctx, s.ref, w, r)
}

// Info returns what is stored about the object, or [ErrNotFound]. It does not wake
// the object.
func (s Stub[T]) Info(ctx context.Context) (ObjectInfo, error) {
	caller, err := s.caller()
	if err != nil {
		return ObjectInfo{}, err
	}
	info, err := caller.Lookup(ctx, s.ref)
	if err != nil {
		return ObjectInfo{}, err
	}
	return infoOf(info), nil
}

// Destroy removes the object: its storage, its schedules and its name; its sockets are
// closed and its instance goes. Destroying what does not exist is no error.
func (s Stub[T]) Destroy(ctx context.Context) error {
	caller, err := s.caller()
	if err != nil {
		return err
	}
	return caller.Destroy(ctx, s.ref)
}

func (s Stub[T]) caller() (host.Caller, error) {
	if s.err != nil {
		return nil, s.err
	}
	if s.scope == nil {
		return nil, errors.New("durable: the zero Stub reaches no object")
	}
	return s.scope.Caller(), nil
}
