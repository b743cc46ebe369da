package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// A debugServer serves Go's profiles on an address of its own, so that no setting of
// the front door can expose them.
type debugServer struct {
	server *http.Server
	done   chan struct{}
}

// startDebug serves on an address; with none it does nothing.
func startDebug(addr string) (*debugServer, error) {
	if addr == "" {
		return &debugServer{}, nil
	}
	l, err := net.Listen("tcp", addr) //nolint:noctx // returns at once
	if err != nil {
		return nil, fmt.Errorf("serve profiles on %s: %w", addr, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	d := &debugServer{server: &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, done: make(chan struct{})}
	go func() { // until stop
		defer close(d.done)
		_ = d.server.Serve(l) // ends by being closed
	}()
	return d, nil
}

func (d *debugServer) stop() {
	if d.server != nil {
		_ = d.server.Close() // profiles under way are cut off
		<-d.done
	}
}
