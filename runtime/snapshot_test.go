package runtime_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-run/holdfast/runtime"
)

func quiet(int, int, int64) {}

// saved makes a node with some objects, and a snapshot of it.
func saved(t *testing.T) (path, data string) {
	t.Helper()
	dir := t.TempDir()
	path, data = filepath.Join(dir, "snapshot"), filepath.Join(dir, "data")
	n := start(t, runtime.Config{Data: data, Listen: "127.0.0.1:0", Shards: 4})
	for i := range 20 {
		if _, err := greet.Call(t.Context(), greeterClass.Named(n, fmt.Sprint("door", i)), fmt.Sprint("guest", i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := runtime.SaveStopped(t.Context(), path, data, "", quiet); err == nil || !strings.Contains(err.Error(), "in use by another node") {
		t.Errorf("of a node that runs: %v", err)
	}
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := runtime.SaveStopped(t.Context(), path, data, "", quiet)
	if err != nil || s.Shards != 4 {
		t.Fatalf("saved %+v, %v", s, err)
	}
	return path, data
}

func TestRestoredNodeHasEverythingAndIsAnother(t *testing.T) {
	t.Parallel()
	path, data := saved(t)
	old := start(t, runtime.Config{Data: data, Listen: "127.0.0.1:0"}) // the save did it no harm
	s, err := runtime.CheckSnapshot(path)
	if err != nil {
		t.Fatal(err)
	}
	to, log := filepath.Join(t.TempDir(), "new"), filepath.Join(t.TempDir(), "log")
	r, err := runtime.RestoreSnapshot(t.Context(), path, to, log, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if r.Cluster != s.Cluster || r.New == s.Cluster || r.Node == old.ID() {
		t.Errorf("restored %+v of %+v", r, s)
	}
	for round := range 2 { // the second start has a log
		n := start(t, runtime.Config{Data: to, Log: log, Listen: "127.0.0.1:0"})
		if n.ID() != r.Node {
			t.Errorf("the node is %s, want %s", n.ID(), r.Node)
		}
		for i := range 20 {
			before, err := greet.Call(t.Context(), greeterClass.Named(n, fmt.Sprint("door", i)), "me")
			want := fmt.Sprint("guest", i)
			if round > 0 {
				want = "me"
			}
			if err != nil || before != want {
				t.Errorf("round %d: the last guest was %q, want %q, error %v", round, before, want, err)
			}
		}
		if err := n.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := runtime.RestoreSnapshot(t.Context(), path, to, log, quiet); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("over a node: %v", err)
	}
}

func TestRestoreThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	path, _ := saved(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	flipped[len(whole)/2] ^= 1
	canceled, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("interrupted"))
	for name, c := range map[string]struct {
		ctx  context.Context
		file []byte
		want string
	}{
		"truncated in the middle": {t.Context(), whole[:len(whole)/2], "truncated"},
		"truncated at the end":    {t.Context(), whole[:len(whole)-1], "truncated"},
		"damaged":                 {t.Context(), flipped, "damaged"},
		"foreign":                 {t.Context(), []byte("hello"), "not a snapshot"},
		"interrupted":             {canceled, whole, "interrupted"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			bad, to := filepath.Join(dir, "bad"), filepath.Join(dir, "data")
			if err := os.WriteFile(bad, c.file, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := runtime.RestoreSnapshot(c.ctx, bad, to, "", quiet)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, c.want)
			}
			if left, _ := os.ReadDir(to); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

func TestNoNodeStartsOnAnUnfinishedRestore(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "unfinished-restore"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := runtime.Start(t.Context(), runtime.Config{Data: data, Listen: "127.0.0.1:0"})
	if err == nil || !strings.Contains(err.Error(), "unfinished-restore") {
		t.Errorf("it gives %v", err)
	}
}
