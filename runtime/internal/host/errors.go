package host

import (
	"errors"
	"fmt"
	"time"
)

// A Code says what kind of error an [Error] is. Codes are stable: they are what
// clients see in {"error":{"code":...}}.
type Code string

// The caller's mistakes.
const (
	CodeBadRequest    Code = "bad_request"    // arguments that do not fit the method
	CodeBadID         Code = "bad_id"         // malformed, or of another class
	CodeUnknownClass  Code = "unknown_class"  // no such class on this node
	CodeUnknownMethod Code = "unknown_method" // the class has no such method, or no such handler
	CodeNotFound      Code = "not_found"      // no such object
	CodeTooLarge      Code = "too_large"      // a body, key, value or batch is over its limit
	CodeDeadlock      Code = "deadlock"       // the callee is waiting for the caller
	CodeCanceled      Code = "canceled"       // the caller went away
	CodeDeadline      Code = "deadline"       // the caller's deadline passed
)

// The object's own.
const (
	CodeRefused  Code = "refused"  // the object returned a [Refusal]
	CodeInternal Code = "internal" // the object failed: another error, or a panic
)

// Not here, or not now: it certainly did not happen.
const (
	CodeNotOwner    Code = "not_owner"
	CodeUnavailable Code = "unavailable"
	CodeOverloaded  Code = "overloaded"
	CodeStorageFull Code = "storage_full"
)

// CodeUnknownOutcome means that it may have happened.
const CodeUnknownOutcome Code = "unknown_outcome"

// CodeReset means that the object was reset while the event ran: its writes since the last
// commit point certainly did not happen, unless the code is CodeUnknownOutcome.
const CodeReset Code = "reset"

// An Error is a failure as its caller sees it, the same on every node. Errors with
// the same code match in errors.Is against the Err values below; an error of the
// object's own matches its [Refusal].
type Error struct {
	Code    Code
	Message string // a sentence for the user; never a stack
	// Refusal is the object's own error constant, if Code is CodeRefused.
	Refusal Refusal

	Remote     bool          // thrown by the object's code
	Retryable  bool          // certainly did not happen: calling again is safe
	Overloaded bool          // do not retry soon
	Reset      bool          // the object was reset
	RetryAfter time.Duration // a hint, if not 0

	cause error
}

// Errors to compare with errors.Is.
var (
	ErrBadRequest     = &Error{Code: CodeBadRequest}
	ErrUnknownClass   = &Error{Code: CodeUnknownClass}
	ErrUnknownMethod  = &Error{Code: CodeUnknownMethod}
	ErrNotFound       = &Error{Code: CodeNotFound}
	ErrTooLarge       = &Error{Code: CodeTooLarge}
	ErrDeadlock       = &Error{Code: CodeDeadlock}
	ErrInternal       = &Error{Code: CodeInternal}
	ErrUnavailable    = &Error{Code: CodeUnavailable}
	ErrOverloaded     = &Error{Code: CodeOverloaded}
	ErrStorageFull    = &Error{Code: CodeStorageFull}
	ErrUnknownOutcome = &Error{Code: CodeUnknownOutcome}
	ErrReset          = &Error{Code: CodeReset}
)

// Errorf makes an Error with a message.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Because returns e with a cause, which the log sees and callers on this node may unwrap.
func (e *Error) Because(cause error) *Error {
	c := *e
	c.cause = cause
	return &c
}

func (e *Error) Error() string {
	if e.Message == "" {
		return string(e.Code)
	}
	return e.Message
}

// Unwrap returns the refusal and the cause.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.Refusal != "" {
		errs = append(errs, e.Refusal)
	}
	if e.cause != nil {
		errs = append(errs, e.cause)
	}
	return errs
}

// Is reports whether target is an Error of the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// A Refusal is an object's own error: a constant that is the same value on every
// node and in every process.
type Refusal string

func (r Refusal) Error() string { return string(r) }

// AsError returns err as an *Error: itself if it is one, otherwise what a caller
// may see of it. A refusal keeps its identity; any other error of an object's code
// becomes CodeInternal with the error's own text.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var r Refusal
	if errors.As(err, &r) {
		return &Error{Code: CodeRefused, Message: err.Error(), Refusal: r, Remote: true, cause: err}
	}
	return &Error{Code: CodeInternal, Message: err.Error(), Remote: true, cause: err}
}
