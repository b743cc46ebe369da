package clustertest

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/holdfast-run/holdfast/runtime"
)

// A Fault is something that befalls a cluster for a while. Begin brings it about and returns
// what ends it, except for cuts and delays, which Heal and Calm end.
type Fault struct {
	Name  string
	Begin func(c *Cluster, r *rand.Rand) (end func())
	Alone bool // it must not meet another fault
}

// Faults returns everything that a cluster must survive.
func Faults() []Fault {
	return []Fault{
		{Name: "partition", Begin: partition},
		{Name: "isolate the owner", Begin: isolateOwner},
		{Name: "one-way cuts", Begin: oneWay},
		{Name: "deaf", Begin: deaf},
		{Name: "mute", Begin: mute},
		{Name: "bridge", Begin: bridge},
		{Name: "flapping", Begin: flapping},
		{Name: "delays", Begin: delays},
		{Name: "crash", Begin: crash},
		{Name: "crash of an owner", Begin: crashOwner},
		{Name: "crash of all", Begin: crashAll, Alone: true},
		{Name: "restart", Begin: restart},
		{Name: "rolling restart", Begin: rolling, Alone: true},
		{Name: "drain", Begin: drain},
		{Name: "replacement", Begin: replacement, Alone: true},
	}
}

const (
	faultLasts = 4 * time.Second // at most; and as long between two faults
	bothOutOf  = 3               // one of so many faults meets another
)

// Befall has rounds of faults befall the cluster, as the random numbers say. When it
// returns the network is whole, and every member runs.
func (c *Cluster) Befall(r *rand.Rand, rounds int, faults []Fault) {
	c.t.Helper()
	for range rounds {
		chosen := []Fault{faults[r.IntN(len(faults))]}
		if other := faults[r.IntN(len(faults))]; !other.Alone && !chosen[0].Alone && r.IntN(bothOutOf) == 0 {
			chosen = append(chosen, other)
		}
		var ends []func()
		for _, f := range chosen {
			c.Note("fault: %s", f.Name)
			ends = append(ends, f.Begin(c, r))
			time.Sleep(upTo(r, faultLasts))
		}
		c.Heal()
		c.Calm()
		for _, end := range ends {
			if end != nil {
				end()
			}
		}
		time.Sleep(upTo(r, faultLasts))
	}
	c.startAll()
}

func upTo(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }

func (c *Cluster) startAll() {
	c.t.Helper()
	for _, m := range c.Members() {
		if !m.Up() {
			c.Start(m)
		}
	}
}

// any returns one of those members that run. Members that are down stay that way until the
// fault that stopped them ends.
func (c *Cluster) any(r *rand.Rand) *Member {
	live := c.Live()
	return live[r.IntN(len(live))]
}

// owner returns a member that owns something, as it believes itself.
func (c *Cluster) owner(r *rand.Rand) *Member {
	var owners []*Member
	for _, m := range c.Live() {
		for _, s := range m.Life().Replicas() {
			if s.Leads {
				owners = append(owners, m)
			}
		}
	}
	if len(owners) == 0 {
		return c.any(r)
	}
	return owners[r.IntN(len(owners))]
}

func (c *Cluster) shuffled(r *rand.Rand) []*Member {
	all := c.Members()
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

func partition(c *Cluster, r *rand.Rand) func() {
	all := c.shuffled(r)
	c.Partition(all[:1+r.IntN(len(all)-1)]...)
	return nil
}

func isolateOwner(c *Cluster, r *rand.Rand) func() {
	c.Partition(c.owner(r))
	return nil
}

func oneWay(c *Cluster, r *rand.Rand) func() {
	all := c.Members()
	for range 1 + r.IntN(len(all)) {
		if a, b := all[r.IntN(len(all))], all[r.IntN(len(all))]; a != b {
			c.CutOneWay(a, b)
		}
	}
	return nil
}

func deaf(c *Cluster, r *rand.Rand) func() {
	victim := c.owner(r)
	for _, m := range c.Members() {
		if m != victim {
			c.CutOneWay(m, victim)
		}
	}
	return nil
}

func mute(c *Cluster, r *rand.Rand) func() {
	victim := c.owner(r)
	for _, m := range c.Members() {
		if m != victim {
			c.CutOneWay(victim, m)
		}
	}
	return nil
}

// bridge leaves two halves that only one member can talk to.
func bridge(c *Cluster, r *rand.Rand) func() {
	all := c.shuffled(r)[1:] // the first one is the bridge
	for _, a := range all[:len(all)/2] {
		for _, b := range all[len(all)/2:] {
			c.Cut(a, b)
		}
	}
	return nil
}

// flapping cuts a member off for moments.
func flapping(c *Cluster, r *rand.Rand) func() {
	m := c.any(r)
	for range 3 + r.IntN(5) {
		c.Partition(m)
		time.Sleep(upTo(r, time.Second))
		c.Heal()
		time.Sleep(upTo(r, time.Second/2))
	}
	return nil
}

func delays(c *Cluster, r *rand.Rand) func() {
	c.Delay(upTo(r, 200*time.Millisecond), 1+upTo(r, 300*time.Millisecond))
	return nil
}

func crash(c *Cluster, r *rand.Rand) func() { return crashOf(c, c.any(r)) }

func crashOwner(c *Cluster, r *rand.Rand) func() { return crashOf(c, c.owner(r)) }

func crashOf(c *Cluster, m *Member) func() {
	if len(c.Live()) == 1 {
		return nil
	}
	c.Crash(m)
	return func() { c.Restart(m) }
}

func crashAll(c *Cluster, _ *rand.Rand) func() {
	c.Crash(c.Live()...)
	return c.startAll
}

func restart(c *Cluster, r *rand.Rand) func() {
	if len(c.Live()) == 1 {
		return nil
	}
	m := c.any(r)
	c.Stop(m)
	return func() { c.Start(m) }
}

func rolling(c *Cluster, r *rand.Rand) func() {
	for _, m := range c.shuffled(r) {
		c.Stop(m)
		time.Sleep(upTo(r, time.Second))
		c.Start(m)
		time.Sleep(upTo(r, 2*time.Second))
	}
	return nil
}

func drain(c *Cluster, r *rand.Rand) func() {
	id := c.owner(r).ID()
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	for _, m := range c.Live() { // with another fault it may not be possible
		if _, err := ask(m, func(_ context.Context, a *runtime.Admin) (struct{}, error) { return struct{}{}, a.Drain(ctx, id) }); err == nil {
			break
		}
	}
	return func() {
		c.Admin("return a member", func(ctx context.Context, a *runtime.Admin) error { return a.Return(ctx, id) })
	}
}

// replacement crashes a member for good, and puts a new one into its place.
func replacement(c *Cluster, r *rand.Rand) func() {
	c.startAll()
	c.Settle() // who loses one disk must have the others
	m := c.any(r)
	c.Crash(m)
	time.Sleep(upTo(r, 2*time.Second))
	if r.IntN(2) == 0 {
		c.Remove(m)
		c.Add()
	} else {
		c.Add()
		c.Remove(m)
	}
	return c.Settle
}
