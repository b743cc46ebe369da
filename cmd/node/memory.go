package main

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// gcPercent is GOGC unless the environment says otherwise. A node makes much garbage per
// request over little that lives: with Go's 100 the collector takes a third of its CPU time.
const gcPercent = 400

// tuneMemory lets garbage pile up as long as there is room for it, and no longer: near the
// limit, three quarters of what the machine or the container has, the collector runs as often as it
// must. GOGC and GOMEMLIMIT in the environment win.
func tuneMemory(getenv func(string) string) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if getenv("GOMEMLIMIT") == "" {
		if total := memory(os.ReadFile); total > 0 {
			debug.SetMemoryLimit(total / 4 * 3)
		}
	}
}

// memory returns how many bytes of memory there are for this process, as Linux tells it; 0 if
// it is not known.
func memory(readFile func(string) ([]byte, error)) (total int64) {
	if info, err := readFile("/proc/meminfo"); err == nil {
		if fields := strings.Fields(string(info)); len(fields) > 1 && fields[0] == "MemTotal:" {
			kib, _ := strconv.ParseInt(fields[1], 10, 64)
			total = kib << 10
		}
	}
	if limit, err := readFile("/sys/fs/cgroup/memory.max"); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(limit)), 10, 64); err == nil && (total == 0 || n < total) {
			total = n // of a container
		}
	}
	return total
}
