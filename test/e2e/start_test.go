//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestStartScreen(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	n := start(t, data)
	eventually(t, "the start screen", func() bool { return strings.Contains(n.stdout.String(), "Ctrl-C") })
	for _, want := range []string{"Holdfast ", n.base + "/\n", n.base + "/objects/chatroom/lobby/\n", data + "\n"} {
		if !strings.Contains(n.stdout.String(), want) {
			t.Errorf("the start screen lacks %q:\n%s", want, n.stdout.String())
		}
	}
	if strings.Contains(n.stdout.String(), "\x1b") {
		t.Error("the start screen has colours, and no terminal to show them")
	}
	for path, want := range map[string]string{
		"/":        "<!doctype html>",
		"/healthz": "",
		"/metrics": "go_goroutines",
	} {
		if body := n.do(http.MethodGet, path, "", http.StatusOK); !strings.Contains(strings.ToLower(body), want) {
			t.Errorf("%s answers %.200q, want it with %q", path, body, want)
		}
	}
	if status := n.stop(syscall.SIGTERM); status != 0 {
		t.Errorf("ended with status %d", status)
	}
}

func TestVersionAndHelp(t *testing.T) {
	t.Parallel()
	for flag, want := range map[string]string{"--version": "Holdfast ", "--help": "HOLDFAST_LOG_DIR"} {
		n := launch(t, t.TempDir(), flag)
		if status := n.wait(); status != 0 || !strings.Contains(n.stdout.String(), want) || n.stderr.String() != "" {
			t.Errorf("%s: status %d, %q, %q", flag, status, n.stdout.String(), n.stderr.String())
		}
	}
}

func TestBadSettings(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "wrangler.jsonc")
	must(t, os.WriteFile(config, []byte("{\n  // a comment\n  \"holdfast\": {\"liste\": \"x\"},\n}"), 0o600))
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"unknown flag":  {[]string{"--datta", "x"}, "flag provided but not defined: -datta"},
		"an argument":   {[]string{"mydata"}, `there is no command "mydata"`},
		"bad level":     {[]string{"--log-level", "loud"}, `"loud"`},
		"bad format":    {[]string{"--log-format", "xml"}, `the log format is "xml"`},
		"bad address":   {[]string{"--listen", "8787"}, `the address "8787" is not of the form host:port`},
		"no such file":  {[]string{"--config", "nowhere.jsonc"}, "nowhere.jsonc: no such file"},
		"a typo in it":  {[]string{"--config", config}, `unknown field "liste"`},
		"bad host":      {[]string{"--hosts", "http://x", "--data", t.TempDir()}, `host pattern "http://x" is malformed`},
		"bad origin":    {[]string{"--origins", "[", "--data", t.TempDir()}, `origin pattern "[" is malformed`},
		"empty address": {[]string{"--listen", ""}, `the address "" is not of the form host:port`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refuse(t, 2, c.want, c.args...)
		})
	}
}

func TestConfigFileAndEnvironment(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config := filepath.Join(dir, "wrangler.jsonc")
	must(t, os.WriteFile(config, []byte(`{
		"name": "my-worker", "main": "src/index.ts", // wrangler's, and none of our business
		"holdfast": {"data": "/nowhere", "logFormat": "json", "shards": 4, "origins": ["app.example.com"], "maxBodyBytes": 1000},
	}`), 0o600))
	n := start(t, filepath.Join(dir, "data"), "--config", config) // the flags --data and --listen win
	eventually(t, "a log in JSON", func() bool { return strings.HasPrefix(n.stderr.String(), `{"time":`) })
	answer := n.do(http.MethodPost, "/objects/counter/c/increment", strings.Repeat(" ", 1001), http.StatusRequestEntityTooLarge)
	if code := errorCode(t, answer); code != "too_large" {
		t.Errorf("a body over the limit is refused with %q", code)
	}
}

func TestPlacesThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	n := start(t, data)
	t.Run("port in use", func(t *testing.T) {
		refuse(t, 1, "address already in use", "--listen", strings.TrimPrefix(n.base, "http://"), "--data", t.TempDir())
	})
	t.Run("data directory in use", func(t *testing.T) {
		refuse(t, 1, "the data directory "+data+" is in use by another node", "--listen", freeAddr(t), "--data", data)
	})
	t.Run("log directory in use", func(t *testing.T) {
		refuse(t, 1, "is in use by another node", "--listen", freeAddr(t), "--data", t.TempDir(), "--log-dir", filepath.Join(data, "log"))
	})
	t.Run("log directory of another", func(t *testing.T) {
		other := filepath.Join(t.TempDir(), "data")
		if status := start(t, other).stop(syscall.SIGTERM); status != 0 {
			t.Fatalf("status %d", status)
		}
		refuse(t, 1, "belongs to node", "--listen", freeAddr(t), "--data", t.TempDir(), "--log-dir", filepath.Join(other, "log"))
		refuse(t, 1, "belongs to node", "--listen", freeAddr(t), "--data", other, "--log-dir", t.TempDir())
	})
	t.Run("foreign directory", func(t *testing.T) {
		foreign := t.TempDir()
		must(t, os.WriteFile(filepath.Join(foreign, "thesis.doc"), nil, 0o600))
		refuse(t, 1, `is not empty and not a node's (it has "thesis.doc")`, "--listen", freeAddr(t), "--data", foreign)
	})
	t.Run("below a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		must(t, os.WriteFile(file, nil, 0o600))
		refuse(t, 1, "cannot be made", "--listen", freeAddr(t), "--data", filepath.Join(file, "data"))
	})
}

// TestReadOnlyDisk starts a node on a disk that became read-only, and again when that is
// repaired.
func TestReadOnlyDisk(t *testing.T) {
	t.Parallel()
	disk := mount(t, 512<<20)
	data := filepath.Join(disk, "data")
	n := start(t, data)
	n.do(http.MethodPost, "/objects/counter/c/increment", "", http.StatusOK)
	if status := n.stop(syscall.SIGTERM); status != 0 {
		t.Fatalf("status %d", status)
	}
	remount(t, disk, syscall.MS_RDONLY)
	refuse(t, 1, "is not writable: read-only file system", "--listen", freeAddr(t), "--data", data)
	remount(t, disk, 0)
	n = start(t, data)
	if got := n.do(http.MethodGet, "/objects/counter/c/", "", http.StatusOK); strings.TrimSpace(got) != `{"value":1}` {
		t.Errorf("the counter answers %s", got)
	}
}

// TestSecondSignal stops a node that waits for a request under way, twice.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	n := start(t, filepath.Join(t.TempDir(), "data"))
	c, err := net.Dial("tcp", strings.TrimPrefix(n.base, "http://"))
	must(t, err)
	defer c.Close()
	// A request whose body never comes is under way.
	_, err = c.Write([]byte("POST /objects/counter/c/increment HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"))
	must(t, err)
	n.do(http.MethodGet, "/healthz", "", http.StatusOK) // by now it has been read
	must(t, n.cmd.Process.Signal(syscall.SIGTERM))
	eventually(t, "the node is stopping", func() bool { return strings.Contains(n.stderr.String(), "stopping") })
	begin := time.Now()
	if status := n.stop(syscall.SIGINT); status != 1 {
		t.Errorf("ended with status %d after %v", status, time.Since(begin))
	}
}

// mount makes a small file system in memory.
func mount(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mount a small file system (this test must run as root): %v", err)
	}
	t.Cleanup(func() { must(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return dir
}

func remount(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|flags, ""))
}

func errorCode(t *testing.T, answer string) string {
	t.Helper()
	var e struct {
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal([]byte(answer), &e); err != nil || e.Error.Message == "" {
		t.Fatalf("%q is not an error's body (%v)", answer, err)
	}
	return e.Error.Code
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
