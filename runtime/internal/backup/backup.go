// Package backup is the file that holds a snapshot of a whole cluster. It promises that a file
// which is truncated or damaged is never taken for a whole one. The file is, with all numbers
// big-endian and every checksum a CRC-32C:
//
//	"holdfast snapshot\n" | format u32 | length u32 | header, JSON | checksum u32 of all that
//	for each shard from 0 on:
//	    shard u32 | index u64 | term u64 | length u64 | checksum u32 of these
//	    the shard's state | checksum u32 of it
//	"the end\n" | length of all before u64 | SHA-256 of all before but the states
package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/fsync"
)

// Format is the version of the file that this program writes.
const Format = 1

const (
	magic     = "holdfast snapshot\n"
	ending    = "the end\n"
	headBytes = 4 + 3*8
	maxHeader = 64 << 10
	copyBytes = 256 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Errors to compare with errors.Is.
var (
	ErrForeign   = errors.New("it is not a snapshot of a cluster")
	ErrTruncated = errors.New("it is truncated")
	ErrDamaged   = errors.New("it is damaged")
)

// A Header says what the file is a snapshot of.
type Header struct {
	Cluster  string            `json:"cluster"`
	Shards   int               `json:"shards"`
	Version  string            `json:"version"` // of the program that wrote it
	Time     time.Time         `json:"time"`    // when the save began
	Settings map[string]string `json:"settings,omitempty"`
}

// A Section is one shard in the file.
type Section struct {
	Shard       placement.ShardID
	Index, Term uint64 // of the last entry applied
	Length      int64  // of the state
}

func (s Section) encode() []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, headBytes+4), uint32(s.Shard))
	for _, n := range []uint64{s.Index, s.Term, uint64(s.Length)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// A SourceError means that a state could not be read to its end. Nothing of it is in the file: it
// can be added again.
type SourceError struct{ Err error }

func (e *SourceError) Error() string { return e.Err.Error() }

// Unwrap returns why.
func (e *SourceError) Unwrap() error { return e.Err }

// A Writer writes a file. Until Commit it has another name.
type Writer struct {
	path   string
	file   *os.File
	header Header
	next   placement.ShardID
	at     int64
	spine  hash.Hash // of all but the states
}

// Create begins a file, which must not exist yet. Commit or Discard ends it.
func Create(path string, h Header) (*Writer, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("%s exists already: name another file", path)
	}
	f, err := os.OpenFile(path+".partial", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	w := &Writer{path: path, file: f, header: h, spine: sha256.New()}
	text, err := json.Marshal(h)
	if err == nil {
		b := binary.BigEndian.AppendUint32([]byte(magic), Format)
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(text))), text...)
		err = w.write(binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)))
	}
	if err != nil {
		w.Discard()
		return nil, err
	}
	return w, nil
}

func (w *Writer) write(b []byte) error {
	w.spine.Write(b)
	n, err := w.file.Write(b)
	w.at += int64(n)
	return err
}

// Add writes the next shard. If the state cannot be read, the error is a [SourceError].
func (w *Writer) Add(s Section, state io.Reader) error {
	if s.Shard != w.next || s.Length <= 0 {
		return &SourceError{fmt.Errorf("the state of shard %d is announced with %d bytes, and shard %d is wanted", s.Shard, s.Length, w.next)}
	}
	head, sum, source := s.encode(), crc32.New(castagnoli), &source{Reader: state}
	_, err := w.file.Write(head)
	if err == nil {
		_, err = io.CopyBuffer(io.MultiWriter(w.file, sum), io.LimitReader(source, s.Length), make([]byte, copyBytes))
	}
	if err == nil && source.n < s.Length {
		source.err = io.ErrUnexpectedEOF
	}
	if source.err != nil {
		return errors.Join(w.rewind(), &SourceError{source.err})
	}
	if err != nil {
		return err
	}
	tail := binary.BigEndian.AppendUint32(nil, sum.Sum32())
	if _, err := w.file.Write(tail); err != nil {
		return err
	}
	w.spine.Write(head)
	w.spine.Write(tail)
	w.at += int64(len(head)+len(tail)) + s.Length
	w.next++
	return nil
}

// rewind forgets a section that is not complete.
func (w *Writer) rewind() error {
	if err := w.file.Truncate(w.at); err != nil {
		return err
	}
	_, err := w.file.Seek(w.at, io.SeekStart)
	return err
}

// Size returns how long the file is.
func (w *Writer) Size() int64 { return w.at }

// Commit makes the file whole, durable, and gives it its name.
func (w *Writer) Commit() error {
	if int(w.next) != w.header.Shards {
		return fmt.Errorf("%d of %d shards are there", w.next, w.header.Shards)
	}
	b := binary.BigEndian.AppendUint64([]byte(ending), uint64(w.at))
	n, err := w.file.Write(append(b, w.spine.Sum(nil)...))
	w.at += int64(n)
	if err == nil {
		err = w.file.Sync()
	}
	if err = errors.Join(err, w.file.Close()); err != nil {
		return err
	}
	if err := os.Rename(w.file.Name(), w.path); err != nil {
		return err
	}
	return fsync.Dir(filepath.Dir(w.path))
}

// Discard gives the file up. It does nothing after Commit.
func (w *Writer) Discard() {
	_ = w.file.Close()
	_ = os.Remove(w.file.Name()) // after Commit it has another name
}

// A source remembers whose fault an error was.
type source struct {
	io.Reader
	n   int64
	err error
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	s.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// A Reader reads a file from its beginning to its end.
type Reader struct {
	in     io.Reader
	header Header
	next   placement.ShardID
	body   *body
	at     int64
	spine  hash.Hash
	err    error
}

// NewReader reads the header.
func NewReader(in io.Reader) (*Reader, error) {
	r := &Reader{in: in, spine: sha256.New()}
	start := make([]byte, len(magic)+8)
	if err := r.read(start); err != nil || string(start[:len(magic)]) != magic {
		if err != nil && !errors.Is(err, ErrTruncated) {
			return nil, err
		}
		if n := min(int(r.at), len(magic)); n > 0 && string(start[:n]) == magic[:n] {
			return nil, ErrTruncated
		}
		return nil, ErrForeign
	}
	format, length := binary.BigEndian.Uint32(start[len(magic):]), binary.BigEndian.Uint32(start[len(magic)+4:])
	if format != Format {
		return nil, fmt.Errorf("it has format %d and this program knows only %d: use the version that wrote it", format, Format)
	}
	if length > maxHeader {
		return nil, ErrDamaged
	}
	rest := make([]byte, length+4)
	if err := r.read(rest); err != nil {
		return nil, err
	}
	text := rest[:length]
	if crc32.Update(crc32.Checksum(start, castagnoli), castagnoli, text) != binary.BigEndian.Uint32(rest[length:]) {
		return nil, ErrDamaged
	}
	if err := json.Unmarshal(text, &r.header); err != nil {
		return nil, ErrDamaged
	}
	if _, err := placement.Even(r.header.Shards); err != nil || r.header.Cluster == "" {
		return nil, ErrDamaged
	}
	return r, nil
}

// Header returns what the file is a snapshot of.
func (r *Reader) Header() Header { return r.header }

// Err returns the first error met, within a state too.
func (r *Reader) Err() error { return r.err }

// Next returns the next shard, whose state ends with io.EOF only if it has its checksum. After
// the last shard the error is io.EOF if the file is whole. What was not read is skipped, and
// checked.
func (r *Reader) Next() (Section, io.Reader, error) {
	if r.err == nil && r.body != nil {
		_, r.err = io.CopyBuffer(io.Discard, r.body, make([]byte, copyBytes))
	}
	if r.err != nil {
		return Section{}, nil, r.err
	}
	if int(r.next) == r.header.Shards {
		r.body = nil
		r.err = r.end()
		return Section{}, nil, r.err
	}
	var s Section
	if s, r.err = r.head(); r.err != nil {
		return Section{}, nil, r.err
	}
	r.next++
	r.body = &body{file: r, left: s.Length, sum: crc32.New(castagnoli)}
	return s, r.body, nil
}

func (r *Reader) head() (s Section, err error) {
	b := make([]byte, headBytes+4)
	if err := r.read(b); err != nil {
		return s, err
	}
	length := binary.BigEndian.Uint64(b[20:])
	s = Section{
		Shard:  placement.ShardID(binary.BigEndian.Uint32(b)),
		Index:  binary.BigEndian.Uint64(b[4:]),
		Term:   binary.BigEndian.Uint64(b[12:]),
		Length: int64(length),
	}
	if !bytes.Equal(b, s.encode()) || s.Shard != r.next || length == 0 || length > math.MaxInt64/2 {
		return s, ErrDamaged
	}
	return s, nil
}

// end returns io.EOF if the file ends as it should.
func (r *Reader) end() error {
	at, sum := r.at, r.spine.Sum(nil)
	b := make([]byte, len(ending)+8+sha256.Size)
	if err := r.read(b); err != nil {
		return err
	}
	want := binary.BigEndian.AppendUint64([]byte(ending), uint64(at))
	if !bytes.Equal(b, append(want, sum...)) {
		return ErrDamaged
	}
	if n, err := io.ReadFull(r.in, b[:1]); n > 0 || !errors.Is(err, io.EOF) {
		return ErrDamaged
	}
	return io.EOF
}

func (r *Reader) read(b []byte) error {
	n, err := io.ReadFull(r.in, b)
	r.at += int64(n)
	r.spine.Write(b[:n])
	return truncated(err)
}

func truncated(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrTruncated
	}
	return err
}

// A body is the state of a shard.
type body struct {
	file *Reader
	left int64
	sum  hash.Hash32
	done bool
}

func (b *body) Read(p []byte) (n int, err error) {
	r := b.file
	switch {
	case r.err != nil:
		return 0, r.err
	case b.done:
		return 0, io.EOF
	case b.left == 0:
		tail := make([]byte, 4)
		if r.err = r.read(tail); r.err == nil && binary.BigEndian.Uint32(tail) != b.sum.Sum32() {
			r.err = ErrDamaged
		}
		b.done = r.err == nil
		if r.err != nil {
			return 0, r.err
		}
		return 0, io.EOF
	}
	n, err = r.in.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	r.at += int64(n)
	b.sum.Write(p[:n])
	if err != nil && (b.left > 0 || !errors.Is(err, io.EOF)) {
		r.err = truncated(err)
		return n, r.err
	}
	return n, nil
}

// Check reads a whole file.
func Check(path string) (Header, error) {
	f, err := os.Open(path)
	if err != nil {
		return Header{}, reason(err)
	}
	defer func() { _ = f.Close() }() // it was only read
	r, err := NewReader(f)
	if err != nil {
		return Header{}, err
	}
	for {
		if _, _, err := r.Next(); errors.Is(err, io.EOF) {
			return r.header, nil
		} else if err != nil {
			return Header{}, err
		}
	}
}

func reason(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
