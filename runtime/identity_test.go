package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestIdentityIsKept(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "a", "b", "data")
	first := open(t, data, "", 0)
	if first.id.Node == "" || first.id.Cluster == "" || first.id.Shards != 32 {
		t.Errorf("born as %+v", first.id)
	}
	if first.log != filepath.Join(data, "log") {
		t.Errorf("the log is in %s", first.log)
	}
	first.close()
	if again := open(t, data, "", 32); again.id != first.id {
		t.Errorf("reopened as %+v, was %+v", again.id, first.id)
	}
}

func TestTwoNodesOnOneDirectory(t *testing.T) {
	t.Parallel()
	data, log := t.TempDir(), t.TempDir()
	d := open(t, data, log, 0)
	refused(t, data, "", 0, "the data directory "+data+" is in use by another node (process "+fmt.Sprint(os.Getpid())+")")
	refused(t, t.TempDir(), log, 0, "the log directory "+log+" is in use by another node")
	d.close()
	open(t, data, log, 0)
}

// TestHalvesOfTwoNodes pairs data and log directories that do not belong together.
func TestHalvesOfTwoNodes(t *testing.T) {
	t.Parallel()
	data, log := t.TempDir(), t.TempDir()
	one := open(t, data, log, 0)
	one.close()
	otherData, otherLog := t.TempDir(), t.TempDir()
	open(t, otherData, otherLog, 0).close()

	refused(t, data, t.TempDir(), 0, "belongs to node "+string(one.id.Node)+", but the log directory")
	refused(t, t.TempDir(), log, 0, "belongs to node "+string(one.id.Node)+", but the data directory")
	refused(t, data, otherLog, 0, "they must be of one node")
	refused(t, otherData, log, 0, "they must be of one node")
	refused(t, data, data, 0, "they must differ")
	refused(t, data, log, 64, "was made with 32 shards, not 64: the number cannot be changed")
	open(t, data, log, 0)
}

// TestCrashAtBirth cuts the making of an identity after each of its steps.
func TestCrashAtBirth(t *testing.T) {
	t.Parallel()
	unborn := identity{Format: 1, Node: "n", Cluster: "c", Shards: 32, Unborn: true}
	born := unborn
	born.Unborn = false
	for name, logHasIt := range map[string]bool{"data only": false, "data and log": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data, log := t.TempDir(), t.TempDir()
			must(t, writeIdentity(data, unborn))
			if logHasIt {
				must(t, writeIdentity(log, born))
			}
			d := open(t, data, log, 0)
			if d.id != born {
				t.Errorf("completed as %+v", d.id)
			}
			d.close()
			if d = open(t, data, log, 0); d.id != born {
				t.Errorf("reopened as %+v", d.id)
			}
		})
	}
	t.Run("unborn with the log of another", func(t *testing.T) {
		t.Parallel()
		data, log := t.TempDir(), t.TempDir()
		must(t, writeIdentity(data, unborn))
		open(t, t.TempDir(), log, 0).close()
		refused(t, data, log, 0, "they must be of one node")
	})
}

func TestDirectoriesThatAreNotOurs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file, content string
		want          string
	}{
		"foreign":       {"thesis.doc", "do not touch", `is not empty and not a node's (it has "thesis.doc")`},
		"newer format":  {identityFile, `{"format":2,"node":"n","cluster":"c","shards":32}`, "has format 2 and this program knows only up to 1"},
		"damaged":       {identityFile, `{"format":1,"no`, "is damaged"},
		"no node":       {identityFile, `{"format":1,"cluster":"c","shards":32}`, "is not a node's identity"},
		"three shards":  {identityFile, `{"format":1,"node":"n","cluster":"c","shards":3}`, "is not a node's identity"},
		"another thing": {identityFile, `{"name":"left-pad"}`, "is not a node's identity"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := t.TempDir()
			path := filepath.Join(data, c.file)
			must(t, os.WriteFile(path, []byte(c.content), 0o600))
			refused(t, data, "", 0, c.want)
			if text, err := os.ReadFile(path); err != nil || string(text) != c.content {
				t.Errorf("the file was touched: %q, %v", text, err)
			}
		})
	}
	t.Run("a file", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "file")
		must(t, os.WriteFile(path, nil, 0o600))
		refused(t, path, "", 0, "cannot be made: it is a file")
	})
	t.Run("a fresh disk", func(t *testing.T) {
		t.Parallel()
		data := t.TempDir()
		must(t, os.Mkdir(filepath.Join(data, "lost+found"), 0o700))
		open(t, data, "", 0)
	})
	t.Run("wrong number of shards", func(t *testing.T) {
		t.Parallel()
		refused(t, t.TempDir(), "", 3, "want a power of two")
	})
}

func open(t *testing.T, data, log string, shards int) *dirs {
	t.Helper()
	d, err := openDirs(data, log, shards)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	if !d.born() {
		must(t, d.found(shards))
	}
	return d
}

func refused(t *testing.T, data, log string, shards int, want string) {
	t.Helper()
	d, err := openDirs(data, log, shards)
	if err == nil {
		d.close()
		t.Fatalf("opened, want an error with %q", want)
	}
	if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %q, want one line with %q", err, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
