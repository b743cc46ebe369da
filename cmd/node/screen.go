package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"strings"

	"github.com/holdfast-run/holdfast/runtime"
)

// welcome prints the one screen that a person sees who starts a node.
func welcome(w io.Writer, node *runtime.Node) {
	bold, plain := "", ""
	if isTerminal(w) {
		bold, plain = "\x1b[1m", "\x1b[0m"
	}
	base := "http://" + reachable(node.Addr())
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s%s%s is running.\n\n", bold, version(), plain)
	for _, line := range [][2]string{
		{"Console", base + "/"},
		{"Chat room", base + "/objects/chatroom/lobby/"},
		{"Counter", "curl -X POST " + base + "/objects/counter/visits/increment"},
		{"Data", node.DataDir()},
		{"Raft log", node.LogDir()},
		{"Stop", "Ctrl-C: running events finish, nothing acknowledged is lost"},
	} {
		fmt.Fprintf(&b, "  %-10s %s\n", line[0], line[1])
	}
	b.WriteByte('\n')
	_, _ = io.WriteString(w, b.String()) // without a reader there is nobody to welcome
}

// reachable returns an address to click for an address to listen on.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return "localhost:" + port
	}
	return addr
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// version names the program, and the commit that it was built from if that is known.
func version() string {
	v := "Holdfast " + runtime.Version
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				v += " (" + s.Value[:12] + ")"
			}
		}
	}
	return v
}
