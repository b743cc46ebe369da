package chatroom

import (
	"context"
	"slices"
	"time"

	"github.com/holdfast-run/holdfast/runtime/durable"
)

const (
	keepMessages = 10_000
	keepFor      = 30 * 24 * time.Hour
	sweepEvery   = time.Hour
	sweepAtOnce  = 5_000 // messages removed in one event
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

// pageBefore returns the messages before a seq, at most limit, in order.
func pageBefore(tx *durable.Tx, before int64, limit int) history {
	h := history{Type: "history", Messages: []Message{}}
	for _, m := range messages.Before(before).Reverse().Limit(limit + 1).All(tx) {
		h.Messages = append(h.Messages, m)
	}
	if len(h.Messages) > limit {
		h.Messages, h.More = h.Messages[:limit], true
	}
	slices.Reverse(h.Messages)
	return h
}

// sweep removes messages that are too old or too many, and comes again while there are any.
func (*Room) sweep(_ context.Context, tx *durable.Tx, _ durable.None) error {
	newest, oldest := last.Get(tx), time.Now().Add(-keepFor)
	n := 0
	for seq, m := range messages.Limit(sweepAtOnce).All(tx) {
		if seq > newest-keepMessages && m.At.After(oldest) {
			retention.After(tx, "", sweepEvery, durable.None{})
			return nil
		}
		messages.Delete(tx, seq)
		if m.ID != "" {
			posted.Delete(tx, m.ID+"/"+m.From)
		}
		n++
	}
	if n == sweepAtOnce {
		retention.After(tx, "", time.Second, durable.None{})
	}
	return nil
}
