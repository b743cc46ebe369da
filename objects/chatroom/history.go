package chatroom

import (
	"context"
	"errors"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/holdfast-run/holdfast/runtime/durable"
)

const (
	keepMessages = 10_000
	keepFor      = 30 * 24 * time.Hour
	sweepEvery   = time.Hour // at most, for reasons of age
	sweepCount   = 1_000     // posted messages, for reasons of number

	pageLen    = 50 // messages, unless the client says
	maxPageLen = 200
)

// Message is one message, as it is stored and as it is sent.
type Message struct {
	Type string    `json:"type"` // "message"
	Seq  int64     `json:"seq"`
	From string    `json:"from"`
	Text string    `json:"text"`
	At   time.Time `json:"at"`
	ID   string    `json:"id,omitempty"` // the client's own
}

// messages answers GET /messages.
func (*Room) messages(_ context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	before, err := number(r, "before", math.MaxInt64, math.MaxInt64)
	limit, err2 := number(r, "limit", pageLen, maxPageLen)
	if errors.Join(err, err2) != nil {
		durable.WriteError(w, http.StatusBadRequest, "bad_request", "want before=SEQ, a number from 1 on, and limit=N from 1 to 200")
		return nil
	}
	durable.WriteJSON(w, http.StatusOK, history(tx, before, int(limit)))
	return nil
}

// number reads a query's parameter from 1 to most, which may be left out.
func number(r *http.Request, name string, otherwise, most int64) (int64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err == nil && (n < 1 || n > most) {
		err = strconv.ErrRange
	}
	return n, err
}

// history is a page of the messages before a seq, in order.
func history(tx *durable.Tx, before int64, limit int) frame {
	page := []Message{}
	for _, m := range messages.Before(before).Reverse().Limit(limit + 1).All(tx) {
		page = append(page, m)
	}
	more := len(page) > limit
	page = page[:min(len(page), limit)]
	slices.Reverse(page)
	return frame{"type": "history", "messages": page, "more": more}
}

// expire sets the schedule for a new message: when it will be too old, unless it is set
// for an older one, and now if there may be too many.
func expire(tx *durable.Tx, m Message) {
	if m.Seq%sweepCount == 0 {
		retention.After(tx, "", 0, durable.None{})
	} else if _, set := retention.Lookup(tx, ""); !set {
		retention.At(tx, "", m.At.Add(keepFor), durable.None{})
	}
}

// sweep removes messages that are too old or too many, and comes again when the next one
// will be. A room where nothing happens sleeps until then.
func (*Room) sweep(_ context.Context, tx *durable.Tx, _ durable.None) error {
	newest := last.Get(tx)
	for seq, m := range messages.All(tx) {
		left := time.Until(m.At.Add(keepFor))
		if seq > newest-keepMessages && left > 0 {
			retention.After(tx, "", max(left, sweepEvery), durable.None{})
			return nil
		}
		messages.Delete(tx, seq)
		posted.Delete(tx, postedKey(m.From, m.ID))
	}
	return nil
}
