package host_test

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

func TestIntervalsDoNotDrift(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := host.Schedule{At: at, Every: time.Minute}
	for _, c := range []struct{ after, want time.Duration }{
		{-time.Hour, 0},
		{-time.Nanosecond, 0},
		{0, time.Minute},
		{time.Second, time.Minute},
		{time.Minute - 1, time.Minute},
		{time.Minute, 2 * time.Minute},
		{100*time.Minute + 30*time.Second, 101 * time.Minute}, // those in between are skipped
		{240 * 365 * 24 * time.Hour, 240*365*24*time.Hour + time.Minute},
	} {
		next, err := s.Next(at.Add(c.after))
		if err != nil || !next.Equal(at.Add(c.want)) {
			t.Errorf("after %v: next is %v later, %v; want %v", c.after, next.Sub(at), err, c.want)
		}
	}
}

func TestOnceDoesNotRecur(t *testing.T) {
	t.Parallel()
	next, err := host.Schedule{At: time.Now()}.Next(time.Now())
	if err != nil || !next.IsZero() {
		t.Errorf("next is %v, %v; want the zero time", next, err)
	}
}

func TestCron(t *testing.T) {
	t.Parallel()
	const berlin, newYork, lordHowe = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
	for _, c := range []struct {
		name, expr, zone, after string
		want                    []string
	}{
		{"utc", "30 6 * * *", "", "2026-01-10T06:29:59Z", []string{"2026-01-10T06:30:00Z", "2026-01-11T06:30:00Z"}},
		{"strictly after", "30 6 * * *", "", "2026-01-10T06:30:00Z", []string{"2026-01-11T06:30:00Z"}},
		{"weekdays", "0 9 * * 1-5", "", "2026-01-09T10:00:00Z", []string{"2026-01-12T09:00:00Z"}},
		{"leap day", "0 0 29 2 *", "", "2026-01-01T00:00:00Z", []string{"2028-02-29T00:00:00Z"}},
		{"zone", "0 8 * * *", berlin, "2026-01-10T00:00:00Z", []string{"2026-01-10T07:00:00Z"}},
		{"zone in summer", "0 8 * * *", berlin, "2026-07-10T00:00:00Z", []string{"2026-07-10T06:00:00Z"}},

		// Berlin jumps from 02:00 to 03:00 on 29 March 2026, which is 01:00 UTC.
		{"skipped hour", "30 2 * * *", berlin, "2026-03-28T12:00:00Z", []string{"2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"}},
		{"many in the skipped hour", "*/10 2 * * *", berlin, "2026-03-29T00:00:00Z", []string{"2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"}},
		{"end of the jump", "0 3 * * *", berlin, "2026-03-28T12:00:00Z", []string{"2026-03-29T01:00:00Z", "2026-03-30T01:00:00Z"}},
		{"every hour over the jump", "0 * * * *", berlin, "2026-03-29T00:00:00Z", []string{"2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"}},
		{"noon over the jump", "0 12 * * *", berlin, "2026-03-28T10:59:00Z", []string{"2026-03-28T11:00:00Z", "2026-03-29T10:00:00Z"}},

		// Berlin goes back from 03:00 to 02:00 on 25 October 2026, which is 01:00 UTC.
		{"hour that comes twice", "30 2 * * *", berlin, "2026-10-24T12:00:00Z", []string{"2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"}},
		{"asked in between", "30 2 * * *", berlin, "2026-10-25T01:10:00Z", []string{"2026-10-26T01:30:00Z"}},
		{"the change itself", "0 3 * * *", berlin, "2026-10-24T12:00:00Z", []string{"2026-10-25T02:00:00Z"}},
		{"every half hour comes twice", "*/30 * * * *", berlin, "2026-10-25T00:00:00Z", []string{
			"2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:00:00Z",
		}},

		// New York: 8 March 07:00 UTC, 1 November 06:00 UTC.
		{"skipped, west", "15 2 * * *", newYork, "2026-03-08T00:00:00Z", []string{"2026-03-08T07:00:00Z", "2026-03-09T06:15:00Z"}},
		{"twice, west", "30 1 * * *", newYork, "2026-11-01T00:00:00Z", []string{"2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"}},

		// Lord Howe Island changes by half an hour: 4 October 02:00 becomes 02:30 (15:30 UTC the
		// day before).
		{"half an hour", "15 2 * * *", lordHowe, "2026-10-03T12:00:00Z", []string{"2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			at := parse(t, c.after)
			for _, want := range c.want {
				next, err := host.Schedule{Cron: c.expr, Zone: c.zone}.Next(at)
				if err != nil || !next.Equal(parse(t, want)) {
					t.Fatalf("%q in %q after %v: %v, %v; want %s", c.expr, c.zone, at.UTC(), next.UTC(), err, want)
				}
				at = next
			}
		})
	}
}

// A day of a fixed-time schedule has one run, whatever the clocks do.
func TestCronRunsOnceADay(t *testing.T) {
	t.Parallel()
	for _, zone := range []string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Pacific/Apia", "UTC"} {
		for _, expr := range []string{"30 2 * * *", "0 0 * * *", "30 1 * * *", "59 23 * * *"} {
			s := host.Schedule{Cron: expr, Zone: zone}
			at := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
			end := at.AddDate(1, 0, 0)
			runs := 0
			for at.Before(end) {
				next, err := s.Next(at)
				if err != nil || !next.After(at) {
					t.Fatalf("%q in %s after %v: %v, %v", expr, zone, at, next, err)
				}
				at = next
				runs++
			}
			if runs < 365 || runs > 366 {
				t.Errorf("%q in %s ran %d times in a year", expr, zone, runs)
			}
		}
	}
}

func TestCronErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ expr, zone, want string }{
		{"* * * *", "", "cron expression"},
		{"* * * * * *", "", "cron expression"},
		{"61 * * * *", "", "cron expression"},
		{"@daily", "", "cron expression"},
		{"TZ=UTC 0 0 * * *", "", "the zone is given apart"},
		{"0 0 30 2 *", "", "never comes true"},
		{"0 0 * * *", "Mars/Olympus", `zone "Mars/Olympus"`},
	} {
		_, err := host.Schedule{Cron: c.expr, Zone: c.zone}.Next(time.Now())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q in %q: %v, want one that says %q", c.expr, c.zone, err, c.want)
		}
	}
}

func parse(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}
