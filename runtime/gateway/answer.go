package gateway

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// Codes of the gateway's own, beyond those of objects.
const (
	codeMethodNotAllowed host.Code = "method_not_allowed"
	codeForbidden        host.Code = "forbidden"
	codeMisdirected      host.Code = "misdirected"
	codeTimeout          host.Code = "timeout"
	codeUpgradeRequired  host.Code = "upgrade_required"
)

// statusClientClosed is what nginx calls a request whose client left before the
// answer. It is only ever counted.
const statusClientClosed = 499

// statusOf maps a code to a status. A refusal is 409: the request is well formed and
// the object's state, or its rules, say no. Overload is 503 and not 429, since it is the
// object or the node that has too much to do, not this client. An unknown outcome is
// 500, so that nothing on the way repeats the request by itself, as 502 to 504 invite.
func statusOf(code host.Code) int {
	switch code {
	case host.CodeBadRequest, host.CodeBadID:
		return http.StatusBadRequest
	case codeForbidden:
		return http.StatusForbidden
	case codeMisdirected:
		return http.StatusMisdirectedRequest
	case host.CodeUnknownClass, host.CodeUnknownMethod, host.CodeNotFound:
		return http.StatusNotFound
	case codeMethodNotAllowed:
		return http.StatusMethodNotAllowed
	case codeTimeout:
		return http.StatusRequestTimeout
	case host.CodeRefused:
		return http.StatusConflict
	case host.CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case codeUpgradeRequired:
		return http.StatusUpgradeRequired
	case host.CodeCanceled:
		return statusClientClosed
	case host.CodeNotOwner, host.CodeUnavailable, host.CodeOverloaded, host.CodeReset:
		return http.StatusServiceUnavailable
	case host.CodeDeadline:
		return http.StatusGatewayTimeout
	case host.CodeStorageFull:
		return http.StatusInsufficientStorage
	case host.CodeDeadlock:
		return http.StatusLoopDetected
	case host.CodeInternal, host.CodeUnknownOutcome:
		return http.StatusInternalServerError
	}
	return http.StatusInternalServerError
}

// writeError answers with an error. An internal one shows nothing of its text: that
// is for the log.
func writeError(w http.ResponseWriter, e *host.Error) {
	status := statusOf(e.Code)
	message := e.Message
	if e.Code == host.CodeInternal {
		message = "the object failed while it handled the request"
	}
	body, err := json.Marshal(map[string]any{"error": map[string]string{"code": string(e.Code), "message": message}})
	if err != nil {
		panic(fmt.Sprintf("gateway: encode an error: %v", err)) // strings only: cannot happen
	}
	h := w.Header()
	if status == http.StatusServiceUnavailable || e.RetryAfter > 0 {
		seconds := max(1, int64((e.RetryAfter+time.Second-1)/time.Second))
		h.Set("Retry-After", strconv.FormatInt(seconds, 10))
	}
	if status == http.StatusRequestEntityTooLarge || status == http.StatusRequestTimeout {
		h.Set("Connection", "close") // the rest of the body is not wanted
	}
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

// An answer is the response on its way out; it counts.
type answer struct {
	http.ResponseWriter
	class  string // once it is known to exist, so that labels are bounded
	status int
	bytes  int64
	held   int64 // bytes of memory that the request's body has
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := a.ResponseWriter.Write(p)
	a.bytes += int64(n)
	return n, err
}

// WriteString is Write for a string.
func (a *answer) WriteString(s string) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := io.WriteString(a.ResponseWriter, s)
	a.bytes += int64(n)
	return n, err
}

// Flush implements [http.Flusher].
func (a *answer) Flush() { _ = a.FlushError() }

// FlushError is Flush with its error, as [http.ResponseController] likes it.
func (a *answer) FlushError() error {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return http.NewResponseController(a.ResponseWriter).Flush()
}

// Unwrap is for [http.ResponseController].
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) fail(e *host.Error) { writeError(a, e) }

func (a *answer) json(status int, body []byte) {
	h := a.Header()
	h["Content-Type"] = contentJSON
	a.WriteHeader(status)
	_, _ = a.Write(body)
}

func (a *answer) text(status int, body string) {
	h := a.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	a.WriteHeader(status)
	_, _ = a.WriteString(body)
}

// contentJSON is shared by all answers; net/http only reads it.
var contentJSON = []string{"application/json"}
