package gateway

import (
	"hash/maphash"
	"net/url"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

const objectsPrefix = "/objects/"

// A route is where a path under /objects/ leads to.
type route struct {
	class string
	// object is the path's segment that names the object, still encoded; rest is what
	// follows, still encoded, beginning with a slash. Both are empty for the class itself.
	object, rest string
	whole        bool // the path ends with the class: there is no segment for an object
}

// parseRoute splits an encoded path. Nothing is cleaned: "a//b", "." and ".." are
// what they are.
func parseRoute(escaped string) (route, bool) {
	path, ok := strings.CutPrefix(escaped, objectsPrefix)
	if !ok {
		return route{}, false
	}
	class, path, more := strings.Cut(path, "/")
	if class == "" {
		return route{}, false
	}
	if strings.Contains(class, "%") {
		var err error
		if class, err = url.PathUnescape(class); err != nil {
			return route{}, false
		}
	}
	if !more {
		return route{class: class, whole: true}, true
	}
	end := strings.IndexByte(path, '/')
	if end < 0 {
		return route{class: class, object: path, rest: "/"}, true
	}
	return route{class: class, object: path[:end], rest: path[end:]}, true
}

// ref resolves the object's segment of a path.
func (c *refCache) ref(class, segment string) (host.Ref, error) {
	if hex, ok := strings.CutPrefix(segment, "id:"); ok {
		id, err := placement.ParseID(class, hex)
		if err != nil {
			return host.Ref{}, host.Errorf(host.CodeBadID, "%v", err)
		}
		return host.Ref{Class: class, ID: id}, nil
	}
	name := segment
	if strings.Contains(segment, "%") {
		var err error
		if name, err = url.PathUnescape(segment); err != nil {
			return host.Ref{}, host.Errorf(host.CodeBadID, "the object's name is not percent-encoded properly")
		}
	}
	switch {
	case name == "":
		return host.Ref{}, host.Errorf(host.CodeBadID, "the object's name is empty")
	case len(name) > host.MaxNameBytes:
		return host.Ref{}, host.Errorf(host.CodeBadID, "the object's name has %d bytes, the limit is %d", len(name), host.MaxNameBytes)
	case !utf8.ValidString(name):
		return host.Ref{}, host.Errorf(host.CodeBadID, "the object's name is not valid UTF-8")
	}
	return c.named(class, name), nil
}

// A refCache remembers the refs of names used lately: an ID costs two HMACs, more
// than all the rest of the way through the gateway. It is direct-mapped, so that it
// is bounded and a hit takes no lock.
type refCache struct {
	seed  maphash.Seed
	slots [refSlots]atomic.Pointer[host.Ref]
}

const refSlots = 1 << 14

func newRefCache() *refCache { return &refCache{seed: maphash.MakeSeed()} }

// named returns the ref of the object of a class with a name.
func (c *refCache) named(class, name string) host.Ref {
	h := maphash.String(c.seed, name)*31 + maphash.String(c.seed, class)
	slot := &c.slots[h%refSlots]
	if r := slot.Load(); r != nil && r.Name == name && r.Class == class {
		return *r
	}
	// Cloned, because the strings are parts of a request that would stay in memory.
	r := &host.Ref{Class: strings.Clone(class), Name: strings.Clone(name), Named: true}
	r.ID = placement.NamedID(class, name)
	slot.Store(r)
	return *r
}
