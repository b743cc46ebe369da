//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A server is a process that is measured: a node, or a yardstick.
type server struct {
	name  string
	addr  string
	debug string // where it serves profiles, if it does
	pid   int    // 0 if not known: then its CPU time reads as 0
	cmd   *exec.Cmd
}

// node starts a node with an empty data directory, or returns the one at -url.
func (b *bench) node(ctx context.Context) (*server, error) {
	if b.url != "" {
		return &server{name: "holdfast", addr: strings.TrimPrefix(b.url, "http://"), pid: b.pid}, nil
	}
	dir, err := os.MkdirTemp(b.scratch, "data-")
	if err != nil {
		return nil, err
	}
	return b.nodeOn(ctx, dir)
}

// nodeOn starts a node on a data directory and waits until it is ready.
func (b *bench) nodeOn(ctx context.Context, dir string) (*server, error) {
	if b.nodePath == "" {
		path := filepath.Join(b.scratch, "node")
		build := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/holdfast-run/holdfast/cmd/node")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build cmd/node: %w\n%s", err, out)
		}
		b.nodePath = path
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	args := []string{"--listen", addr, "--data", filepath.Join(dir, "data"), "--log-level", "warn"}
	debug := ""
	if b.profile != "" {
		if debug, err = freeAddr(); err != nil {
			return nil, err
		}
		args = append(args, "--debug-listen", debug)
	}
	s, err := start(ctx, "holdfast", addr, "/readyz", exec.CommandContext(ctx, b.nodePath, args...))
	if err != nil {
		return nil, err
	}
	s.debug = debug
	return s, nil
}

// yardstick starts this program again as one of the yardstick servers.
func (b *bench) yardstick(ctx context.Context, kind string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.scratch, "yardstick-")
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	return start(ctx, kind, addr, "/", exec.CommandContext(ctx, self, "yardstick", kind, addr, dir))
}

func start(ctx context.Context, name, addr, ready string, cmd *exec.Cmd) (*server, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	// If this process is killed, so is what it started.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{name: name, addr: addr, pid: cmd.Process.Pid, cmd: cmd}
	if err := s.awaitReady(ctx, ready); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("start %s: %w\n%s", name, err, stderr.Bytes())
	}
	return s, nil
}

func (s *server) awaitReady(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.addr+path, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		if ctx.Err() != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		time.Sleep(time.Millisecond)
	}
}

// stop ends a server that this program started and waits for it.
func (s *server) stop(sig syscall.Signal) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(sig)
	_ = s.cmd.Wait()
}

// cpu returns the CPU time that the server has used so far, in the 10 ms steps in
// which the kernel tells it.
func (s *server) cpu() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.pid))
	if err != nil {
		return 0
	}
	// The command's name is in parentheses and may contain anything; user and
	// system time are the 12th and 13th field after it.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * (time.Second / 100)
}

// resident returns the bytes of memory that the server occupies.
func (s *server) resident() int64 {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.pid))
	if err != nil {
		return 0
	}
	pages, _ := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// freeAddr returns a loopback address that nothing listens on at the moment.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // returns at once
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
