package chatroom

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// The frames that a room sends, besides a Message.
type (
	welcome struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Members []string `json:"members"`
	}
	history struct {
		Type     string    `json:"type"`
		Messages []Message `json:"messages"`
		More     bool      `json:"more"` // there are older ones
	}
	presence struct {
		Type string `json:"type"` // "join" or "leave"
		Name string `json:"name"`
	}
	failure struct {
		Type       string  `json:"type"` // "error"
		Code       string  `json:"code"`
		Message    string  `json:"message"`
		ID         string  `json:"id,omitempty"`
		RetryAfter float64 `json:"retryAfter,omitempty"` // seconds
	}
)

func refusal(code, message string) failure {
	return failure{Type: "error", Code: code, Message: message}
}

// check returns what is wrong with a message, with the empty code if nothing is.
func check(text, id string) failure {
	switch {
	case !validID(id):
		return refusal("bad_id", "An id has at most 64 letters, digits, - and _.")
	case strings.TrimSpace(text) == "":
		return failure{"error", "empty_text", "A message needs a text.", id, 0}
	case len(text) > maxText && utf8.RuneCountInString(text) > maxText:
		return failure{"error", "text_too_long", "A message has at most 4,000 characters.", id, 0}
	}
	return failure{}
}

// validName accepts 1 to 32 characters that can be seen, and spaces between them.
func validName(name string) bool {
	if name == "" || !utf8.ValidString(name) || utf8.RuneCountInString(name) > maxName || strings.TrimSpace(name) != name {
		return false
	}
	return strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

func validID(id string) bool {
	return len(id) <= maxID && strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_") == ""
}
