package ratelimit

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
)

// fields are header values that change only with the rule.
type fields struct {
	rule        Rule
	contentType []string
	policy      []string
}

func (f *fields) follow(rule Rule) {
	if f.rule == rule {
		return
	}
	f.rule = rule
	f.contentType = []string{"application/json"}
	f.policy = []string{fmt.Sprintf(`"default";q=%d;w=%d`, rule.Limit, wholeSeconds(rule.Window.Seconds()))}
}

// answer writes a verdict, under status if it is no. Header keys are in the canonical form
// that the map wants. A client that has left was counted all the same, so what Write says
// does not matter here.
func (l *Limiter) answer(w http.ResponseWriter, rule Rule, v Verdict, status int) {
	l.head.follow(rule)
	b := append(l.body[:0], `"default";r=`...)
	b = strconv.AppendInt(b, v.Remaining, 10)
	b = append(b, ";t="...)
	b = strconv.AppendInt(b, wholeSeconds(v.ResetAfter), 10)
	h := w.Header()
	h["Content-Type"] = l.head.contentType
	h["Ratelimit-Policy"] = l.head.policy
	h["Ratelimit"] = []string{string(b)}
	if !v.Allowed && status != http.StatusOK {
		h["Retry-After"] = []string{strconv.FormatInt(wholeSeconds(v.RetryAfter), 10)}
		w.WriteHeader(status)
	}

	b = append(b[:0], `{"allowed":`...)
	b = strconv.AppendBool(b, v.Allowed)
	b = append(b, `,"limit":`...)
	b = strconv.AppendInt(b, v.Limit, 10)
	b = append(b, `,"remaining":`...)
	b = strconv.AppendInt(b, v.Remaining, 10)
	b = append(b, `,"resetAfter":`...)
	b = strconv.AppendFloat(b, v.ResetAfter, 'f', -1, 64)
	b = append(b, `,"retryAfter":`...)
	b = strconv.AppendFloat(b, v.RetryAfter, 'f', -1, 64)
	l.body = append(b, "}\n"...)
	_, _ = w.Write(l.body)
}

func wholeSeconds(s float64) int64 { return int64(math.Ceil(s)) }

func badRequest(w http.ResponseWriter, err error) {
	refuse(w, http.StatusBadRequest, "bad_request", err.Error())
}

func notFound(w http.ResponseWriter) {
	refuse(w, http.StatusNotFound, "not_found", "a limiter has / and /check")
}

func notAllowed(w http.ResponseWriter, allow string) {
	w.Header().Set("Allow", allow)
	refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "this path takes "+allow+" only")
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": code, "message": message}})
}
