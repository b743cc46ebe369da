package topology

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/holdfast-run/holdfast/runtime/internal/fsync"
	"github.com/holdfast-run/holdfast/runtime/internal/replica"
)

// A machine is the table as a replicated state machine. All of it is in memory; its file
// is written whole by Flush and is the snapshot that other members get:
//
//	holdfast placement FORMAT CRC32C LENGTH \n JSON
type machine struct {
	path string

	writing sync.Mutex // held while the file is written, before mu

	mu      sync.Mutex // guards what follows
	now     image
	file    []byte // what is on disk
	durable image  // the same, read
	bytes   int    // applied since
	since   time.Time
	changed chan struct{}     // closed when the state changes
	waiting map[string]*error // by token: what became of the command
}

// An image is what the file holds.
type image struct {
	Index        uint64 `json:"index"`
	Term         uint64 `json:"term"`
	MembersIndex uint64 `json:"membersIndex"`
	Members      []byte `json:"members"` // as Raft encodes them
	State        *State `json:"state"`
}

const (
	fileFormat = 1
	maxFile    = 64 << 20
	maxHeader  = 64
)

// ErrDamaged means that the table's file is not as it was written.
var ErrDamaged = errors.New("the file is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// openMachine reads the file, if there is one.
func openMachine(path string) (*machine, error) {
	m := &machine{
		path:    path,
		now:     image{State: &State{}},
		changed: make(chan struct{}),
		waiting: make(map[string]*error),
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		m.durable = m.now
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	file, img, err := readImage(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	m.now, m.durable, m.file = img, img, file
	return m, nil
}

func readImage(r io.Reader) (file []byte, i image, err error) {
	file, err = io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, i, err
	}
	i, err = parseImage(file)
	return file, i, err
}

func (i image) encode() ([]byte, error) {
	text, err := json.MarshalIndent(i, "", "\t")
	if err != nil {
		return nil, err
	}
	header := fmt.Sprintf("holdfast placement %d %08x %d\n", fileFormat, crc32.Checksum(text, castagnoli), len(text))
	return append([]byte(header), text...), nil
}

func parseImage(file []byte) (i image, err error) {
	end := bytes.IndexByte(file[:min(len(file), maxHeader)], '\n')
	if end < 0 || len(file) > maxFile {
		return i, ErrDamaged
	}
	var format, length int
	var sum uint32
	if n, _ := fmt.Sscanf(string(file[:end]), "holdfast placement %d %x %d", &format, &sum, &length); n != 3 {
		return i, ErrDamaged
	}
	if format > fileFormat {
		return i, fmt.Errorf("it has format %d and this program knows only up to %d: run the newer version", format, fileFormat)
	}
	text := file[end+1:]
	if len(text) != length || crc32.Checksum(text, castagnoli) != sum {
		return i, ErrDamaged
	}
	if err := json.Unmarshal(text, &i); err != nil || i.State == nil {
		return i, errors.Join(ErrDamaged, err)
	}
	return i, nil
}

// Apply applies the commands of one entry. Where the nodes are it makes durable at once: a
// node that starts again finds the others by it, before there is a leader who could say what of
// the log is committed. If all stopped at once, nobody would ever be elected.
func (m *machine) Apply(index, term uint64, batches []byte) error {
	before := m.now.State // written by no other goroutine
	if err := m.apply(index, term, batches); err != nil {
		return err
	}
	if maps.Equal(before.Nodes, m.now.State.Nodes) {
		return nil
	}
	return m.Flush(context.Background())
}

func (m *machine) apply(index, term uint64, batches []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.Index, m.now.Term = index, term
	m.soil(len(batches))
	before := m.now.State
	for len(batches) > 0 {
		c, rest, err := nextCommand(batches)
		if err != nil {
			return err
		}
		batches = rest
		m.now.State, err = m.now.State.with(c, index)
		if outcome := m.waiting[c.Token]; outcome != nil {
			*outcome = err
		}
	}
	if m.now.State != before {
		m.announce()
	}
	return nil
}

// soil notes that the file is behind.
func (m *machine) soil(size int) {
	m.bytes += size
	if m.since.IsZero() {
		m.since = time.Now()
	}
}

func (m *machine) announce() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// expect makes outcome return what became of the command with the token, once it has
// been applied here. It must be called once.
func (m *machine) expect(token string) (outcome func() error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	answer := new(error)
	m.waiting[token] = answer
	return func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.waiting, token)
		return *answer
	}
}

// state returns the table, and a channel that is closed when it is another one.
func (m *machine) state() (*State, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now.State, m.changed
}

func (m *machine) SetConfiguration(index uint64, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.MembersIndex, m.now.Members = index, data
	m.soil(len(data))
}

func (m *machine) Configuration() (uint64, []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now.MembersIndex, m.now.Members
}

func (m *machine) Applied() (index, term uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now.Index, m.now.Term
}

func (m *machine) Durable() (index, term uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.durable.Index, m.durable.Term
}

func (m *machine) Unflushed() (int, time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes, m.since
}

// Flush writes the file, unless it is up to date.
func (m *machine) Flush(context.Context) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	m.mu.Lock()
	img, clean, pending := m.now, m.since.IsZero(), m.bytes
	m.since = time.Time{}
	m.mu.Unlock()
	if clean || img.Index == 0 {
		return nil // a state that has applied nothing is no snapshot
	}
	file, err := img.encode()
	if err != nil {
		return err
	}
	if err := fsync.Replace(m.path, file); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.file, m.durable = file, img
	m.bytes -= pending
	return nil
}

// Snapshot flushes, and returns the file.
func (m *machine) Snapshot(ctx context.Context) (*replica.Snapshot, error) {
	if err := m.Flush(ctx); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	content := bytes.NewReader(m.file)
	return &replica.Snapshot{
		Index:              m.durable.Index,
		Term:               m.durable.Term,
		ConfigurationIndex: m.durable.MembersIndex,
		Configuration:      m.durable.Members,
		Size:               content.Size(),
		WriterTo:           content,
		Closer:             io.NopCloser(nil),
	}, nil
}

// Restore takes over another member's file.
func (m *machine) Restore(r io.Reader) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	file, img, err := readImage(r)
	if err == nil {
		err = fsync.Replace(m.path, file)
	}
	if err != nil {
		return fmt.Errorf("restore the placement table: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now, m.durable, m.file = img, img, file
	m.bytes, m.since = 0, time.Time{}
	m.announce()
	return nil
}
