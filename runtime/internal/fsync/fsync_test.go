package fsync

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReplace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path+Next, []byte("left by a crash, and longer"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two", ""} {
		if err := Replace(path, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); string(got) != want || err != nil {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
		if _, err := os.Stat(path + Next); err == nil {
			t.Error("the new file is still there")
		}
	}
	if err := Replace(filepath.Join(path, "x"), nil); err == nil {
		t.Error("a file under a file was replaced")
	}
}
