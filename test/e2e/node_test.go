//go:build e2e

// Package e2e runs the built binary as a process, as a user would, and does to it what
// happens to processes: signals, kill -9, full disks, damaged files.
//
//	go test -tags e2e ./test/e2e
//
// It needs Linux, and root for the tests that mount a small file system.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long anything may take that should happen at once. It is generous:
// the tests run next to each other on machines of two cores.
const patience = 30 * time.Second

var binary string // the built cmd/node; set by TestMain before any test

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "holdfast-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "node")
	build := exec.Command("go", "build", "-o", binary, "github.com/holdfast-run/holdfast/cmd/node")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build cmd/node: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// A node is a process under test.
type node struct {
	t      *testing.T
	cmd    *exec.Cmd
	base   string // http://host:port
	data   string
	stdout output
	stderr output
	exited chan struct{} // closed when the process has ended
}

// start runs a node on a data directory and waits until it is ready.
func start(t *testing.T, data string, args ...string) *node {
	t.Helper()
	n := launch(t, data, args...)
	n.awaitReady()
	return n
}

// launch runs a node and does not wait.
func launch(t *testing.T, data string, args ...string) *node {
	t.Helper()
	addr := freeAddr(t)
	n := &node{t: t, base: "http://" + addr, data: data, exited: make(chan struct{})}
	n.cmd = exec.Command(binary, append([]string{"--listen", addr, "--data", data}, args...)...)
	n.cmd.Stdout, n.cmd.Stderr = &n.stdout, &n.stderr
	n.cmd.Dir = t.TempDir()
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // until the process ends, which the cleanup sees to
		defer close(n.exited)
		_ = n.cmd.Wait()
	}()
	t.Cleanup(func() {
		n.kill()
		if t.Failed() {
			t.Logf("the node on %s said:\n%s%s", data, n.stdout.String(), n.stderr.String())
		}
	})
	return n
}

func (n *node) awaitReady() {
	n.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		select {
		case <-n.exited:
			n.t.Fatalf("the node ended with status %d:\n%s", n.cmd.ProcessState.ExitCode(), n.stderr.String())
		default:
		}
		if status, _, err := n.try(http.MethodGet, "/readyz", ""); err == nil && status == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatal("the node is not ready")
		}
	}
}

// kill ends the process as a crash would, and waits for its end.
func (n *node) kill() {
	_ = n.cmd.Process.Kill()
	<-n.exited
}

// stop asks the process to end and returns its exit status.
func (n *node) stop(sig syscall.Signal) int {
	n.t.Helper()
	if err := n.cmd.Process.Signal(sig); err != nil {
		n.t.Fatal(err)
	}
	return n.wait()
}

// wait returns the exit status.
func (n *node) wait() int {
	n.t.Helper()
	select {
	case <-n.exited:
	case <-time.After(patience):
		n.t.Fatal("the node does not end")
	}
	return n.cmd.ProcessState.ExitCode()
}

// try makes a request.
func (n *node) try(method, path, body string) (status int, answer string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, n.base+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// do makes a request that must be answered with a status, and returns the answer.
func (n *node) do(method, path, body string, want int) string {
	n.t.Helper()
	status, answer, err := n.try(method, path, body)
	if err != nil {
		n.t.Fatal(err)
	}
	if status != want {
		n.t.Fatalf("%s %s was answered with %d %s, want %d", method, path, status, answer, want)
	}
	return answer
}

// refuse runs the binary with arguments that it must refuse, and checks that it says so
// in one sentence.
func refuse(t *testing.T, status int, sentence string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = t.TempDir()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != status {
		t.Errorf("%v ended with %v, want status %d; it said:\n%s", args, err, status, stderr.String())
	}
	oneSentence(t, stderr.String(), sentence)
}

// oneSentence checks that a message is one line with a certain content.
func oneSentence(t *testing.T, message, content string) {
	t.Helper()
	if strings.Count(message, "\n") != 1 || !strings.HasPrefix(message, "holdfast: ") || !strings.Contains(message, content) {
		t.Errorf("it said %q, want one line with %q", message, content)
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// output collects what a process writes, for tests that read it meanwhile.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
