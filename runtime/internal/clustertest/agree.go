package clustertest

import (
	"fmt"
	"time"

	"github.com/holdfast-run/holdfast/runtime"
)

const agreeTimeout = 20 * time.Second

// Agree fails the test if replicas of a shard differ. It waits until all have applied as
// much; nobody must write meanwhile.
func (c *Cluster) Agree() {
	c.t.Helper()
	var why error
	for deadline := time.Now().Add(agreeTimeout); time.Now().Before(deadline); time.Sleep(pollEvery) {
		var level bool
		if level, why = c.agreed(); level {
			break
		}
	}
	if why != nil {
		c.t.Error(why)
	}
}

// agreed reports whether all replicas have applied as much, and how they differ.
func (c *Cluster) agreed() (level bool, err error) {
	type at struct {
		runtime.ReplicaInfo
		m *Member
	}
	first := make(map[uint32]at)
	level = true
	for _, m := range c.Live() {
		for _, r := range m.Life().Replicas() {
			f, ok := first[r.Shard]
			switch {
			case !ok:
				first[r.Shard] = at{r, m}
			case r.Applied != f.Applied:
				level, err = false, fmt.Errorf("shard %d: %s has applied %d, and %s %d", r.Shard, f.m, f.Applied, m, r.Applied)
			case r.Digest != f.Digest:
				return true, fmt.Errorf("shard %d at %d: the digest is %x at %s, and %x at %s", r.Shard, r.Applied, f.Digest, f.m, r.Digest, m)
			}
		}
	}
	return level, err
}
