package runtime

import (
	"context"
	"net/http"
	"regexp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/holdfast-run/holdfast/runtime/console"
)

// newRegistry returns a registry with the metrics of the process.
func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	live := collectors.GoRuntimeMetricsRule{Matcher: regexp.MustCompile(`^/gc/heap/live:bytes$`)}
	r.MustRegister( // a new registry has nothing that these could collide with
		collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(live)),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return r
}

func metricsHandler(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// console returns the handler of the node's pages.
func (n *Node) console() http.Handler { return console.Handler(source{n}) }

// A source is what the console may know of a node.
type source struct{ node *Node }

// Status implements [console.Source].
func (s source) Status(context.Context) console.Status {
	const counted, listed = 10_000, 100
	n := s.node
	st := console.Status{
		Version: Version,
		Node:    n.ID(),
		DataDir: n.DataDir(),
		Started: n.started,
		Now:     time.Now(),
	}
	for _, c := range n.classes {
		info := c.Info()
		class := console.Class{Name: c.Name(), Fetch: info.Fetch, WebSocket: info.SocketMessage}
		for m := range info.Methods {
			class.Methods = append(class.Methods, m)
		}
		slices.Sort(class.Methods)
		st.Classes = append(st.Classes, class)
	}
	awake := n.engine.Awake(counted)
	st.Awake = len(awake)
	for _, o := range awake[:min(len(awake), listed)] {
		st.Objects = append(st.Objects, console.Object{
			Class:   o.Class,
			ID:      o.ID.String(),
			Name:    o.Name,
			Mailbox: o.Mailbox,
			Sockets: len(n.gateway.Sockets(o.ID)),
			Held:    o.Held,
			Idle:    o.Used,
		})
	}
	st.Shards = n.shards.status()
	return st
}
