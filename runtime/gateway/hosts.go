package gateway

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"strings"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// hosts says under which names clients may address this node; any if there is none. It
// stops DNS rebinding: a page of evil.test, whose name suddenly means 127.0.0.1, is of the
// same origin as what it asks for, and only the request's Host still tells who it is.
type hosts []string

func parseHosts(patterns []string) (hosts, error) {
	h := make(hosts, len(patterns))
	for i, p := range patterns {
		if _, err := path.Match(p, ""); err != nil || p == "" || strings.ContainsAny(p, "/: ") {
			return nil, fmt.Errorf("host pattern %q is malformed: want a name such as app.example.com or *.example.com", p)
		}
		h[i] = strings.ToLower(p)
	}
	return h, nil
}

// allow reports whether a request may be addressed to a host. Addresses are no names, so
// nobody can make them mean something else; localhost is the browser's own.
func (h hosts) allow(authority string) bool {
	if len(h) == 0 || authority == "" { // no browser leaves it out
		return true
	}
	name := strings.ToLower(hostname(authority))
	if _, err := netip.ParseAddr(name); err == nil || name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	for _, pattern := range h {
		if ok, _ := path.Match(pattern, name); ok {
			return true
		}
	}
	return false
}

// hostname returns an authority without its port, brackets and final dot.
func hostname(authority string) string {
	if name, _, err := net.SplitHostPort(authority); err == nil {
		return strings.TrimSuffix(name, ".")
	}
	return strings.TrimSuffix(strings.Trim(authority, "[]"), ".")
}

func errForeignHost(authority string) *host.Error {
	return host.Errorf(codeMisdirected, "this node is not known as %.200q; its setting \"hosts\" lists the names that it answers to", hostname(authority))
}
