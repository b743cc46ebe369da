package host

import (
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // so that a zone means the same on a machine without a zone database

	"github.com/robfig/cron/v3"
)

// Next returns the first time after the given one at which a recurring schedule is due,
// and the zero time for one that does not recur. The error says what is wrong with
// the cron expression or the zone.
//
// Intervals do not drift: the times are At plus whole intervals, those that have passed
// are skipped. A cron expression names times of the wall clock in its zone. Where
// the clock jumps over such a time, the schedule is due at the jump; where the clock shows it
// twice, the first one counts. An expression whose hour begins with * means every
// hour that passes instead, also where clocks change.
func (s Schedule) Next(after time.Time) (time.Time, error) {
	switch {
	case s.Cron != "":
		return nextCron(s.Cron, s.Zone, after)
	case s.Every > 0:
		if s.At.After(after) {
			return s.At, nil
		}
		return s.At.Add((after.Sub(s.At)/s.Every + 1) * s.Every), nil
	default:
		return time.Time{}, nil
	}
}

func nextCron(expr, zone string, after time.Time) (time.Time, error) {
	if strings.Contains(expr, "TZ=") {
		return time.Time{}, fmt.Errorf("cron expression %q: the zone is given apart", expr)
	}
	spec, err := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow).Parse(expr)
	if err != nil {
		return time.Time{}, fmt.Errorf("cron expression %q: %w", expr, err)
	}
	loc, err := time.LoadLocation(zone)
	if err != nil {
		return time.Time{}, fmt.Errorf("cron expression %q: zone %q: %w", expr, zone, err)
	}
	local := after.In(loc)
	next := spec.Next(local)
	if !strings.HasPrefix(strings.Fields(expr)[1], "*") {
		next = nextWall(spec, local)
	}
	if next.IsZero() {
		return time.Time{}, fmt.Errorf("cron expression %q never comes true", expr)
	}
	return next, nil
}

// nextWall asks for the next time on a clock that never jumps, and finds it on the one of
// the zone.
func nextWall(spec cron.Schedule, after time.Time) time.Time {
	wall := onClock(after, time.UTC)
	for {
		if wall = spec.Next(wall); wall.IsZero() {
			return time.Time{}
		}
		// What the clock shows for the second time has been due at the first.
		if t := firstShown(wall, after.Location()); t.After(after) {
			return t
		}
	}
}

// firstShown returns when the clock of a zone first shows a wall time or a later one.
func firstShown(wall time.Time, loc *time.Location) time.Time {
	t := onClock(wall, loc)
	// Whatever side of a change t is on, the earliest candidate uses one of the two offsets
	// that the zone has around it.
	earliest := t
	for _, near := range []time.Time{t.Add(-24 * time.Hour), t.Add(24 * time.Hour)} {
		_, offset := near.Zone()
		c := time.Unix(wall.Unix()-int64(offset), 0).In(loc)
		if onClock(c, time.UTC).Equal(wall) && c.Before(earliest) {
			earliest = c
		}
	}
	if onClock(earliest, time.UTC).Equal(wall) {
		return earliest
	}
	// The clock jumps over it: due at the jump, which is where t's zone begins or ends.
	start, end := t.ZoneBounds()
	if onClock(t, time.UTC).After(wall) {
		return start
	}
	return end
}

// onClock returns the time at which the clock of loc shows what t's clock shows.
func onClock(t time.Time, loc *time.Location) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, loc)
}
