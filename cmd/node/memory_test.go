package main

import (
	"io/fs"
	"testing"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	const info = "MemTotal:       24682756 kB\nMemFree:        20792000 kB\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"another system":        {nil, 0},
		"a machine":             {map[string]string{"/proc/meminfo": info}, 24682756 << 10},
		"a container":           {map[string]string{"/proc/meminfo": info, "/sys/fs/cgroup/memory.max": "536870912\n"}, 512 << 20},
		"one without a limit":   {map[string]string{"/proc/meminfo": info, "/sys/fs/cgroup/memory.max": "max\n"}, 24682756 << 10},
		"a limit beyond it":     {map[string]string{"/proc/meminfo": info, "/sys/fs/cgroup/memory.max": "9223372036854771712\n"}, 24682756 << 10},
		"something else inside": {map[string]string{"/proc/meminfo": "?"}, 0},
	} {
		got := memory(func(path string) ([]byte, error) {
			if text, ok := c.files[path]; ok {
				return []byte(text), nil
			}
			return nil, fs.ErrNotExist
		})
		if got != c.want {
			t.Errorf("%s has %d bytes, want %d", name, got, c.want)
		}
	}
}
