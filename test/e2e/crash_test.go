//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKill kills a node again and again while clients increment counters and talk in a
// room. Each time, everything that was acknowledged is there, and nothing was invented.
//
// HOLDFAST_E2E_ROUNDS says how often, HOLDFAST_E2E_SEED repeats a run's delays.
func TestKill(t *testing.T) {
	t.Parallel()
	rounds := fromEnv(t, "HOLDFAST_E2E_ROUNDS", 15)
	seed := fromEnv(t, "HOLDFAST_E2E_SEED", time.Now().UnixNano())
	t.Logf("HOLDFAST_E2E_SEED=%d", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 0))

	data := filepath.Join(t.TempDir(), "data")
	n := start(t, data)
	counters := newLoad(n, 0)
	counters.counters = []*tally{{}, {}, {}, {}}
	var talk conversation
	for round := range rounds {
		for i := range 16 {
			counters.wg.Go(func() { counters.run(n, i%len(counters.counters)) })
		}
		talk.begin(t, n)
		time.Sleep(time.Duration(random.IntN(700)) * time.Millisecond) // the moment of a crash is nobody's choice
		n.kill()
		counters.wg.Wait()
		talk.end()
		n = start(t, data)
		counters.check(t, n)
		talk.check(t, n)
		if t.Failed() {
			t.Fatalf("in round %d of seed %d", round, seed)
		}
	}
	t.Logf("%d increments and %d messages were acknowledged", counters.acked(), talk.heard)
}

// A conversation is one member of a chat room who says numbers, and counts which
// of them came back.
type conversation struct {
	said, heard int64 // the last number that was sent, and the last that came back
	done        chan struct{}
}

func (c *conversation) begin(t *testing.T, n *node) {
	s := dial(t, n, "/objects/chatroom/crash/websocket?name=teller")
	c.done = make(chan struct{})
	go func() { // until the node is killed
		defer close(c.done)
		for {
			c.said++
			if !s.trySay(fmt.Sprintf("number %d.", c.said)) {
				return
			}
			for {
				frame, err := s.read()
				if err != nil {
					return
				}
				if strings.Contains(frame, `"type":"error"`) { // too fast: not said
					time.Sleep(20 * time.Millisecond)
					break
				}
				if strings.Contains(frame, fmt.Sprintf(`"number %d."`, c.said)) && strings.HasPrefix(frame, `{"type":"message"`) {
					c.heard = c.said
					break
				}
			}
		}
	}()
}

func (c *conversation) end() { <-c.done }

// check reads the end of the room's history.
func (c *conversation) check(t *testing.T, n *node) {
	t.Helper()
	history := n.do(http.MethodGet, "/objects/chatroom/crash/messages?limit=10", "", http.StatusOK)
	if c.heard > 0 && !strings.Contains(history, fmt.Sprintf("number %d.", c.heard)) {
		t.Errorf("number %d was heard and is not in the history: %s", c.heard, history)
	}
	if strings.Contains(history, fmt.Sprintf("number %d.", c.said+1)) {
		t.Errorf("number %d was never said and is in the history: %s", c.said+1, history)
	}
}

// TestTornTail makes the end of the log look as a power failure leaves it: the last
// write, which nobody was told of, is there in part.
func TestTornTail(t *testing.T) {
	t.Parallel()
	for name, tear := range map[string]func(t *testing.T, wal string){
		"garbage":      func(t *testing.T, wal string) { appendTo(t, wal, randomBytes(300)) },
		"half a block": func(t *testing.T, wal string) { appendTo(t, wal, make([]byte, 16<<10)) },
		"part of a record": func(t *testing.T, wal string) {
			written := strings.TrimRight(readFile(t, wal), "\x00")
			// Less than two whole records: of two, the second could prove that the first was on disk.
			appendTo(t, wal, []byte(written[len(written)/2:len(written)/2+64]))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := filepath.Join(t.TempDir(), "data")
			acked := killedAfter(t, data, 100)
			tear(t, newestWAL(t, data))
			n := start(t, data)
			if got := n.value(0); got != acked {
				t.Errorf("the counter is %d, and %d increments were acknowledged", got, acked)
			}
			n.do(http.MethodPost, "/objects/counter/c0/increment", "", http.StatusOK)
			n.kill()
			if got := start(t, data).value(0); got != acked+1 {
				t.Errorf("the counter is %d after one more", got)
			}
		})
	}
}

// TestLostTail takes bytes away that were acknowledged, which no disk that keeps its
// word does. The node cannot know; it starts, with what was there before.
func TestLostTail(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	acked := killedAfter(t, data, 100)
	wal := newestWAL(t, data)
	written := strings.TrimRight(readFile(t, wal), "\x00")
	must(t, os.Truncate(wal, int64(len(written)-3)))
	n := start(t, data)
	if got := n.value(0); got < acked-1 || got > acked {
		t.Errorf("the counter is %d, and only the last of %d increments was damaged", got, acked)
	}
}

// TestCorruptLog damages the middle of the log: the node says where, and does not start.
func TestCorruptLog(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	killedAfter(t, data, 300)
	wal := newestWAL(t, data)
	content := []byte(readFile(t, wal))
	written := len(strings.TrimRight(string(content), "\x00"))
	content[written/2] ^= 0x10
	must(t, os.WriteFile(wal, content, 0o600))
	n := launch(t, data)
	if status := n.wait(); status != 1 {
		t.Errorf("ended with status %d", status)
	}
	message := lastLine(n.stderr.String())
	t.Log(message)
	oneSentence(t, message, filepath.Base(wal))
	if !strings.Contains(message, "offset ") || strings.Contains(n.stderr.String(), "goroutine ") {
		t.Errorf("it said %q, want the offset and no stack", n.stderr.String())
	}
	if after := readFile(t, wal); after != string(content) {
		t.Error("the damaged log was changed")
	}
}

// TestLostState takes the applied state away, whole or in part. The log has it all
// until it is truncated; a node that cannot rebuild the state says so.
func TestLostState(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, file string){
		"missing":   func(t *testing.T, file string) { must(t, os.Remove(file)) },
		"empty":     func(t *testing.T, file string) { must(t, os.Truncate(file, 0)) },
		"truncated": func(t *testing.T, file string) { must(t, os.Truncate(file, 5000)) },
		"garbled": func(t *testing.T, file string) {
			must(t, os.WriteFile(file, randomBytes(40_000), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := filepath.Join(t.TempDir(), "data")
			n := start(t, data)
			load := newLoad(n, 16)
			eventually(t, "increments", func() bool { return load.acked() > 100 })
			load.stop()
			if status := n.stop(syscall.SIGTERM); status != 0 { // the state is flushed
				t.Fatalf("ended with status %d", status)
			}
			for _, file := range stateFiles(t, data) {
				damage(t, file)
			}
			n = launch(t, data)
			if n.cameUp() {
				load.check(t, n) // rebuilt from the log: all of it, or the test fails
				return
			}
			if name == "missing" {
				t.Fatal("the node did not rebuild its state from the log")
			}
			message := lastLine(n.stderr.String())
			t.Log(message)
			if !strings.HasPrefix(message, "holdfast: ") || !strings.Contains(message, filepath.Join(data, "shards")) || strings.Contains(n.stderr.String(), "goroutine ") {
				t.Errorf("it said %q, want one sentence that names the file", n.stderr.String())
			}
			for _, file := range stateFiles(t, data) { // as it advises
				must(t, os.Rename(file, filepath.Join(t.TempDir(), "away")))
			}
			load.check(t, start(t, data))
		})
	}
}

// TestFullDisk fills a small disk: writes are refused, reads go on, and when there is
// room again so do writes.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := mount(t, 768<<20)
	data := filepath.Join(disk, "data")
	n := start(t, data)
	n.do(http.MethodPost, "/objects/counter/c0/increment", "", http.StatusOK)
	ballast := filepath.Join(disk, "ballast")
	fill(t, ballast)
	var acked int64 = 1
	eventually(t, "507", func() bool {
		status, answer, err := n.try(http.MethodPost, "/objects/counter/c0/increment", "")
		must(t, err)
		switch status {
		case http.StatusOK:
			acked++
			return false
		case http.StatusInsufficientStorage:
			return errorCode(t, answer) == "storage_full"
		}
		t.Fatalf("a write to a full disk was answered with %d %s", status, answer)
		return false
	})
	if got := n.value(0); got != acked {
		t.Errorf("on the full disk the counter is %d, and %d increments were acknowledged", got, acked)
	}
	must(t, os.Remove(ballast))
	eventually(t, "writes after there is room again", func() bool {
		status, _, err := n.try(http.MethodPost, "/objects/counter/c0/increment", "")
		must(t, err)
		return status == http.StatusOK
	})
	if got := n.value(0); got != acked+1 {
		t.Errorf("the counter is %d after %d increments", got, acked+1)
	}
	n.kill()
	if got := start(t, data).value(0); got != acked+1 {
		t.Errorf("after a crash the counter is %d, want %d", got, acked+1)
	}
}

// cameUp reports whether the node gets ready; it has ended if not.
func (n *node) cameUp() bool {
	n.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		select {
		case <-n.exited:
			return false
		default:
		}
		if status, _, err := n.try(http.MethodGet, "/readyz", ""); err == nil && status == http.StatusOK {
			return true
		}
	}
	n.t.Fatal("the node neither gets ready nor ends")
	return false
}

// killedAfter runs a node until a client has made some increments one by one, and
// kills it.
func killedAfter(t *testing.T, data string, increments int64) int64 {
	t.Helper()
	n := start(t, data)
	for range increments {
		n.do(http.MethodPost, "/objects/counter/c0/increment", "", http.StatusOK)
	}
	n.kill()
	return increments
}

// newestWAL returns the file that the log was written to last.
func newestWAL(t *testing.T, data string) string {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(data, "log", "raft", "*.log"))
	must(t, err)
	if len(logs) == 0 {
		t.Fatal("there is no write-ahead log")
	}
	return slices.Max(logs)
}

func stateFiles(t *testing.T, data string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(data, "shards", "*"))
	must(t, err)
	if len(files) == 0 {
		t.Fatal("there is no applied state")
	}
	return files
}

// fill writes to a file until the disk is full, at the pace of a fast disk.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	block := make([]byte, 1<<20)
	for {
		if _, err := f.Write(block); err != nil {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func appendTo(t *testing.T, path string, content []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.Write(content)
	must(t, err)
	must(t, f.Close())
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

// randomBytes returns n bytes that are garbage, and the same garbage every time.
func randomBytes(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func lastLine(s string) string {
	lines := strings.SplitAfter(strings.TrimSuffix(s, "\n"), "\n")
	return lines[len(lines)-1] + "\n"
}

func fromEnv(t *testing.T, name string, otherwise int64) int64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseInt(text, 10, 64)
	must(t, err)
	return n
}
