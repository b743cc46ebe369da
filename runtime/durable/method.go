package durable

import (
	"context"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// A Method is the name of a method of class T that takes a Req and answers with a
// Resp. Both travel by value, as JSON: two objects never share memory. A method with
// nothing to take or to answer uses [None].
type Method[T, Req, Resp any] string

// None is nothing to say.
type None struct{}

// Handle says which function of the object handles the method; it is an option of
// [Define].
func (m Method[T, Req, Resp]) Handle(f func(obj *T, ctx context.Context, tx *Tx, req Req) (Resp, error)) MethodHandler[T] {
	return MethodHandler[T]{name: string(m), missing: f == nil, call: func(obj *T, ctx context.Context, tx *Tx, args []byte) ([]byte, error) {
		req, err := decodeJSON[Req](args)
		if err != nil {
			return nil, host.Errorf(host.CodeBadRequest, "the arguments do not fit method %q: %v", string(m), err)
		}
		resp, err := f(obj, ctx, tx, req)
		if err != nil {
			return nil, err
		}
		reply, err := encodeJSON(resp)
		if err != nil {
			return nil, host.Errorf(host.CodeInternal, "encode the reply of method %q: %v", string(m), err).Because(err)
		}
		if len(reply) > host.MaxCallBytes {
			return nil, host.Errorf(host.CodeTooLarge, "the reply of method %q has %d bytes, and a reply at most %d", string(m), len(reply), host.MaxCallBytes)
		}
		return reply, nil
	}}
}

// Call runs the method on an object and returns its answer, once that and everything
// it rests on is durable. Inside an event it is a commit point: what the event wrote
// before the call is durable before the call leaves, and is not undone by a later
// error. The turn is kept meanwhile. If ctx ends, so does the callee's context.
//
// A call to an object that waits for the caller, directly or through others, fails
// at once with [ErrDeadlock].
func (m Method[T, Req, Resp]) Call(ctx context.Context, stub Stub[T], req Req) (Resp, error) {
	var none Resp
	caller, err := stub.caller()
	if err != nil {
		return none, err
	}
	args, err := encodeJSON(req)
	if err != nil {
		return none, host.Errorf(host.CodeBadRequest, "encode the arguments of method %q: %v", string(m), err).Because(err)
	}
	reply, err := caller.Call(ctx, stub.ref, string(m), args)
	if err != nil {
		return none, err
	}
	resp, err := decodeJSON[Resp](reply)
	if err != nil {
		return none, host.Errorf(host.CodeInternal, "the reply of method %q does not fit its type: %v", string(m), err).Because(err)
	}
	return resp, nil
}

// A MethodHandler is an option of [Define]; [Method.Handle] makes it.
type MethodHandler[T any] struct {
	name    string
	missing bool
	public  bool
	call    methodFunc[T]
}

type methodFunc[T any] func(obj *T, ctx context.Context, tx *Tx, args []byte) ([]byte, error)

// Public lets anybody who reaches the node call the method over HTTP, as
// POST /objects/{class}/{name}/{method} with JSON in both bodies. Other methods can be
// called by objects, nodes and tests only.
func (h MethodHandler[T]) Public() MethodHandler[T] {
	h.public = true
	return h
}
