package host

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// wireError is an [Error] between nodes. The cause stays where it happened.
type wireError struct {
	Code       Code          `json:"code"`
	Message    string        `json:"message,omitempty"`
	Refusal    Refusal       `json:"refusal,omitempty"`
	Remote     bool          `json:"remote,omitempty"`
	Retryable  bool          `json:"retryable,omitempty"`
	Overloaded bool          `json:"overloaded,omitempty"`
	Reset      bool          `json:"reset,omitempty"`
	RetryAfter time.Duration `json:"retryAfter,omitempty"`
}

// MarshalError encodes an error for another node, in one line of ASCII.
func MarshalError(e *Error) ([]byte, error) {
	w := wireError{e.Code, e.Message, e.Refusal, e.Remote, e.Retryable, e.Overloaded, e.Reset, e.RetryAfter}
	text, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode an error: %w", err)
	}
	return base64.StdEncoding.AppendEncode(nil, text), nil
}

// UnmarshalError decodes what MarshalError encoded.
func UnmarshalError(text []byte) (*Error, error) {
	plain, err := base64.StdEncoding.AppendDecode(nil, text)
	var w wireError
	if err == nil {
		err = json.Unmarshal(plain, &w)
	}
	if err == nil && w.Code == "" {
		err = fmt.Errorf("it has no code")
	}
	if err != nil {
		return nil, fmt.Errorf("decode an error: %w", err)
	}
	return &Error{
		Code: w.Code, Message: w.Message, Refusal: w.Refusal, Remote: w.Remote, Retryable: w.Retryable,
		Overloaded: w.Overloaded, Reset: w.Reset, RetryAfter: w.RetryAfter,
	}, nil
}

// EncodeCursor returns the cursor of a list that goes on after an object.
func EncodeCursor(last ObjectInfo) string {
	return base64.RawURLEncoding.EncodeToString(append(last.ID[:], last.Name...))
}

// DecodeCursor returns the name and the ID of the object that a cursor stands for.
func DecodeCursor(s string) (name string, id placement.ObjectID, err error) {
	if s == "" {
		return "", id, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) < len(id) || len(b) > len(id)+MaxNameBytes {
		return "", id, Errorf(CodeBadRequest, "the cursor is not one that a list returned")
	}
	return string(b[len(id):]), placement.ObjectID(b[:len(id)]), nil
}

// MergePages makes one page of several over different objects.
func MergePages(limit int, pages ...ListPage) ListPage {
	var all ListPage
	more := false
	for _, p := range pages {
		all.Objects = append(all.Objects, p.Objects...)
		more = more || p.Cursor != ""
	}
	slices.SortFunc(all.Objects, func(a, b ObjectInfo) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return bytes.Compare(a.ID[:], b.ID[:])
	})
	if len(all.Objects) > limit {
		all.Objects, more = all.Objects[:limit], true
	}
	if more && len(all.Objects) > 0 {
		all.Cursor = EncodeCursor(all.Objects[len(all.Objects)-1])
	}
	return all
}
