package backup

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-run/holdfast/placement"
)

var header = Header{Cluster: "abc", Shards: 2, Version: "1", Time: time.Unix(1, 0).UTC(), Settings: map[string]string{"replicas": "3"}}

var states = []string{"the first state", strings.Repeat("second", 1000)}

func section(i int) Section {
	return Section{Shard: placement.ShardID(i), Index: uint64(10 + i), Term: 3, Length: int64(len(states[i]))}
}

// write writes a file, and begins one of its states in vain.
func write(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot")
	w, err := Create(path, header)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Discard()
	gone := errors.New("the owner is gone")
	for i, s := range states {
		for _, broken := range []io.Reader{
			io.MultiReader(strings.NewReader(s[:4]), iotest.ErrReader(gone)),
			strings.NewReader(s[:5]),
		} {
			if err := w.Add(section(i), broken); !errors.As(err, new(*SourceError)) {
				t.Fatalf("a broken source gives %v", err)
			}
		}
		if err := w.Add(section(i), strings.NewReader(s+"too much")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the file has its name before it is whole")
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(file)) != w.Size() {
		t.Errorf("the file has %d bytes, Size says %d", len(file), w.Size())
	}
	return file
}

func readAll(file io.Reader) (h Header, got []string, err error) {
	r, err := NewReader(file)
	if err != nil {
		return h, nil, err
	}
	for {
		s, state, err := r.Next()
		if errors.Is(err, io.EOF) {
			return r.Header(), got, nil
		}
		if err != nil {
			return h, nil, err
		}
		text, err := io.ReadAll(state)
		if err != nil {
			return h, nil, err
		}
		if int64(len(text)) != s.Length {
			return h, nil, errors.New("the length is wrong")
		}
		got = append(got, string(text))
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	t.Parallel()
	h, got, err := readAll(iotest.OneByteReader(bytes.NewReader(write(t))))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(header, h); diff != "" {
		t.Errorf("the header (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(states, got); diff != "" {
		t.Errorf("the states (-want +got):\n%s", diff)
	}
}

func TestEveryTruncationIsFound(t *testing.T) {
	t.Parallel()
	file := write(t)
	for n := range file {
		want := ErrTruncated
		if n == 0 {
			want = ErrForeign
		}
		if _, _, err := readAll(bytes.NewReader(file[:n])); !errors.Is(err, want) {
			t.Fatalf("the first %d of %d bytes give %v", n, len(file), err)
		}
	}
	if _, _, err := readAll(bytes.NewReader(append(file, 0))); !errors.Is(err, ErrDamaged) {
		t.Errorf("a byte too many gives %v", err)
	}
}

func TestEveryFlippedBitIsFound(t *testing.T) {
	t.Parallel()
	file := write(t)
	for i := range file {
		bad := bytes.Clone(file)
		bad[i] ^= 1 << (i % 8)
		if _, _, err := readAll(bytes.NewReader(bad)); err == nil {
			t.Fatalf("byte %d of %d is wrong, and nobody says so", i, len(file))
		}
	}
}

func TestFilesThatAreNone(t *testing.T) {
	t.Parallel()
	newer := write(t)
	newer[len(magic)+3] = 9
	if _, err := NewReader(bytes.NewReader(newer)); err == nil || !strings.Contains(err.Error(), "format 9") {
		t.Errorf("a newer format gives %v", err)
	}
	if _, err := NewReader(strings.NewReader("PK\x03\x04 something else altogether, long enough")); !errors.Is(err, ErrForeign) {
		t.Errorf("another file gives %v", err)
	}
}

func TestNothingIsOverwrittenOrLeft(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "snapshot")
	w, err := Create(path, header)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err == nil {
		t.Error("a file without its shards is taken for whole")
	}
	w.Discard()
	if left, _ := filepath.Glob(path + "*"); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(path, header); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("a file that is there gives %v", err)
	}
}

func FuzzReader(f *testing.F) {
	file := write(f)
	f.Add(file)
	f.Add(file[:100])
	f.Fuzz(func(t *testing.T, file []byte) {
		_, got, err := readAll(bytes.NewReader(file))
		if err == nil && len(got) == 0 {
			t.Error("a whole file has no shard")
		}
	})
}
