package durable_test

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-run/holdfast/runtime/durable"
	"github.com/holdfast-run/holdfast/runtime/durable/durabletest"
)

const (
	Calendars durable.Class[Calendar]                          = "calendar"
	Plan      durable.Method[Calendar, durable.None, []string] = "plan"
	Remind    durable.Schedule[Calendar, Reminder]             = "remind"
	Report    durable.Schedule[Calendar, durable.None]         = "report"
)

type Reminder struct {
	Text string `json:"text"`
}

type Calendar struct{}

// plan sets schedules of two kinds; those of one kind differ by their keys.
func (*Calendar) plan(_ context.Context, tx *durable.Tx, _ durable.None) ([]string, error) {
	Remind.After(tx, "tea", 4*time.Minute, Reminder{Text: "the tea is ready"})
	Remind.At(tx, "party", time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), Reminder{Text: "a new century"})
	Remind.After(tx, "mistake", time.Second, Reminder{})
	Remind.Cancel(tx, "mistake")
	if err := Report.Cron(tx, "", "0 8 * * 1-5", "Europe/Berlin", durable.None{}); err != nil {
		return nil, err
	}
	var keys []string
	for s := range Remind.List(tx) {
		keys = append(keys, s.Key)
	}
	return keys, nil
}

func (*Calendar) remind(_ context.Context, tx *durable.Tx, r Reminder) error {
	fmt.Printf("%s: %s\n", tx.AlarmInfo().Key, r.Text)
	return nil
}

func (*Calendar) report(context.Context, *durable.Tx, durable.None) error {
	fmt.Println("report")
	return nil
}

// AlarmFailed is called when the retries of a schedule are used up.
func (*Calendar) AlarmFailed(_ context.Context, _ *durable.Tx, f durable.AlarmFailure) error {
	fmt.Printf("gave up %s/%s: %v\n", f.Kind, f.Key, f.Err)
	return nil
}

// An object has many schedules beside its alarm: once, every so often, by a cron
// expression, each with its arguments.
func ExampleSchedule() {
	world := durabletest.Open(durable.Define(Calendars,
		Plan.Handle((*Calendar).plan),
		Remind.Handle((*Calendar).remind).Retry(durable.RetryPolicy{Attempts: 3, Base: time.Minute}),
		Report.Handle((*Calendar).report),
	))
	defer world.Close()

	calendar := Calendars.Named(world, "ada")
	fmt.Println(Plan.Call(context.Background(), calendar, durable.None{}))
	fmt.Println(world.FireSchedule(calendar, "remind/tea"))
	fmt.Println(world.FireSchedule(calendar, "report"), world.FireSchedule(calendar, "report")) // it recurs

	// Output:
	// [tea party] <nil>
	// tea: the tea is ready
	// true
	// report
	// report
	// true true
}
