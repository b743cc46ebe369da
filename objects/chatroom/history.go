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
	sweepEvery   = time.Hour // at most, for reasons of age
	sweepCount   = 1_000     // posted messages, for reasons of number
	sweepAtOnce  = 5_000     // messages removed in one event
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

// sweepLater sets the schedule for a new message: when it will be too old, unless it is set
// for an older one, and soon if there may be too many.
func sweepLater(tx *durable.Tx, m Message) {
	if m.Seq%sweepCount == 0 {
		retention.After(tx, "", 0, durable.None{})
	} else if _, set := retention.Lookup(tx, ""); !set {
		retention.At(tx, "", m.At.Add(keepFor), durable.None{})
	}
}

// sweep removes messages that are too old or too many, and comes again when the next one
// will be. A room where nothing happens sleeps until then.
func (*Room) sweep(_ context.Context, tx *durable.Tx, _ durable.None) error {
	newest, now := last.Get(tx), time.Now()
	n := 0
	for seq, m := range messages.Limit(sweepAtOnce + 1).All(tx) {
		ends := m.At.Add(keepFor)
		switch {
		case n == sweepAtOnce:
			retention.After(tx, "", time.Second, durable.None{})
			return nil
		case seq > newest-keepMessages && ends.After(now):
			retention.After(tx, "", max(ends.Sub(now), sweepEvery), durable.None{})
			return nil
		}
		messages.Delete(tx, seq)
		if m.ID != "" {
			posted.Delete(tx, m.ID+"/"+m.From)
		}
		n++
	}
	return nil
}
