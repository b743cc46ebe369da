package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/holdfast-run/holdfast/runtime/internal/fsync"
)

// format is the version of what this package writes into a file. A file of another
// version is refused.
const format = "holdfast storage 1"

const (
	pageSize = 4096

	// mmapSize is the address space taken for a file, so that it hardly ever has to be
	// mapped anew: that waits for all readers, and new readers wait for it.
	mmapSize = (1 << 30) << (4 * (^uint(0) >> 63)) // 16 GiB, or 1 GiB on 32 bits
)

// The buckets of a file. The first three hold records: a value is preceded by the
// CRC-32C of its key and itself.
var (
	rowsBucket    = []byte("rows")
	alarmsBucket  = []byte("alarms")
	objectsBucket = []byte("objects")
	metaBucket    = []byte("meta")

	formatKey = []byte("format")
	stateKey  = []byte("state")
	tallyKey  = []byte("tally")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A file is the bbolt file of a machine. A file that is damaged can make bbolt panic
// or touch memory that is not mapped, so all use of it goes through guard.
type file struct {
	db           *bbolt.DB
	path         string
	logger       *slog.Logger
	txOperations int
	stuck        bool        // a transaction panicked, and may hold bbolt's locks for ever
	closing      atomic.Bool // whoever reads for long must end
}

// openFile opens a file that exists, and returns what the machine was when it was
// last flushed.
func openFile(path string, o Options) (f *file, s state, err error) {
	f = &file{path: path, logger: o.Logger, txOperations: o.txOperations}
	if err := checkPages(path); err != nil {
		return nil, state{}, err
	}
	err = f.guard(func() error {
		f.db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout:         o.LockTimeout,
			FreelistType:    bbolt.FreelistMapType,
			InitialMmapSize: mmapSize,
			PageSize:        pageSize,
			MaxSize:         o.maxSize,
			NoStatistics:    true,
		})
		if errors.Is(err, berrors.ErrTimeout) {
			return fmt.Errorf("%s is in use by another process", path)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return f.view(func(r *reader) error {
			s, err = r.state()
			return err
		})
	})
	if err != nil {
		if f.db != nil { // it did not panic while it was opened
			err = errors.Join(err, f.close())
		}
		return nil, state{}, err
	}
	return f, s, nil
}

// createFile makes an empty file, whole or not at all.
func createFile(path string, o Options) error {
	temp := path + ".new"
	if err := remove(temp); err != nil {
		return err
	}
	db, err := bbolt.Open(temp, 0o600, &bbolt.Options{Timeout: o.LockTimeout, FreelistType: bbolt.FreelistMapType, PageSize: pageSize})
	if err != nil {
		return fmt.Errorf("%s: %w", temp, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{rowsBucket, alarmsBucket, objectsBucket, metaBucket} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		if err := tx.Bucket(metaBucket).Put(formatKey, []byte(format)); err != nil {
			return err
		}
		return (&writer{reader: reader{tx: tx, path: temp}}).finish(&state{})
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("%s: %w", temp, err)
	}
	return install(temp, path)
}

// install gives a file that is whole and synced its final name, durably.
func install(temp, path string) error {
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return fsync.Dir(filepath.Dir(path))
}

// close waits for all reads to end.
func (f *file) close() error {
	f.closing.Store(true)
	if f.stuck {
		return nil
	}
	return f.guard(f.db.Close)
}

// view runs fn over one consistent state of the file.
func (f *file) view(fn func(*reader) error) error {
	r, err := f.begin()
	if err != nil {
		return err
	}
	defer r.close()
	return f.guard(func() error { return fn(r) })
}

func (f *file) begin() (*reader, error) {
	tx, err := f.db.Begin(false)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.path, err)
	}
	return &reader{tx: tx, path: f.path}, nil
}

// guard turns a panic in fn, a fault of the mapped memory among them, into an error.
func (f *file) guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			f.logger.Error("reading a damaged file", slog.String("file", f.path), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			err = corruptf("%s: %v", f.path, p)
		}
	}()
	return fn()
}

// checkPages makes sure that a file is one of bbolt's and as long as it says, which
// bbolt takes for granted.
func checkPages(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < 4*pageSize {
		return corruptf("%s is truncated: it has only %d bytes", path, info.Size())
	}
	var newest bboltMeta
	for page := range 2 {
		buf := make([]byte, bboltMetaEnd)
		if _, err := f.ReadAt(buf, int64(page)*pageSize); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if m, ok := parseBboltMeta(buf); ok && m.tx >= newest.tx {
			newest = m
		}
	}
	switch {
	case newest.pages == 0:
		return corruptf("%s is not a bbolt file, or both of its meta pages are damaged", path)
	case newest.pageSize != pageSize:
		return corruptf("%s has pages of %d bytes, want %d", path, newest.pageSize, pageSize)
	case newest.pages > uint64(info.Size())/pageSize:
		return corruptf("%s is truncated: it has %d bytes and should have %d", path, info.Size(), newest.pages*pageSize)
	case newest.freelist >= newest.pages:
		return corruptf("%s has no list of free pages", path)
	}
	return nil
}

// bboltMeta is what we need of a meta page of bbolt.
type bboltMeta struct {
	pageSize            uint32
	freelist, pages, tx uint64
}

const bboltMetaEnd = 16 + 64 // the page's header and the meta

func parseBboltMeta(page []byte) (m bboltMeta, ok bool) {
	le, b := binary.LittleEndian, page[16:bboltMetaEnd]
	sum := fnv.New64a()
	sum.Write(b[:56])
	const magic, version = 0xED0CDAED, 2
	if le.Uint32(b) != magic || le.Uint32(b[4:]) != version || le.Uint64(b[56:]) != sum.Sum64() {
		return bboltMeta{}, false
	}
	return bboltMeta{pageSize: le.Uint32(b[8:]), freelist: le.Uint64(b[32:]), pages: le.Uint64(b[40:]), tx: le.Uint64(b[48:])}, true
}

// A state is what a machine is beside its rows.
type state struct {
	index, term uint64 // of the last applied entry
	digest      uint64 // of all of them
	confIndex   uint64
	conf        []byte
}

func (s *state) encode() []byte {
	b := make([]byte, 0, 32+len(s.conf))
	for _, n := range []uint64{s.index, s.term, s.digest, s.confIndex} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return append(b, s.conf...)
}

func parseState(b []byte) (s state, ok bool) {
	if len(b) < 32 {
		return state{}, false
	}
	for i, n := range []*uint64{&s.index, &s.term, &s.digest, &s.confIndex} {
		*n = binary.BigEndian.Uint64(b[8*i:])
	}
	if len(b) > 32 {
		s.conf = append([]byte{}, b[32:]...)
	}
	return s, true
}

// A tally counts the records of a file and adds up their checksums. A full check
// finds by it that records are missing, which their own checksums cannot tell.
type tally struct{ records, sum uint64 }

func (t *tally) add(sealed []byte) {
	t.records++
	t.sum += uint64(binary.BigEndian.Uint32(sealed))
}

func (t *tally) remove(sealed []byte) {
	t.records--
	t.sum -= uint64(binary.BigEndian.Uint32(sealed))
}

// seal returns the record of a value: its checksum and itself.
func seal(key, value []byte) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(value)), checksum(key, value))
	return append(b, value...)
}

// unseal returns the value of a record. The error wraps [ErrCorrupt].
func unseal(path string, key, record []byte) ([]byte, error) {
	if len(record) < 4 || binary.BigEndian.Uint32(record) != checksum(key, record[4:]) {
		return nil, corruptf("%s: the record with key %q does not have its checksum", path, key)
	}
	return record[4:], nil
}

func checksum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// A reader reads one consistent state of a file. What it returns are the file's own
// bytes, valid until it is closed.
type reader struct {
	tx   *bbolt.Tx
	path string
}

// close never fails: it only ends a read.
func (r *reader) close() { _ = r.tx.Rollback() }

func (r *reader) bucket(name []byte) *bbolt.Bucket {
	b := r.tx.Bucket(name)
	if b == nil {
		panic(fmt.Sprintf("there is no bucket %q", name))
	}
	return b
}

// state refuses a file of a foreign format.
func (r *reader) state() (state, error) {
	meta := r.tx.Bucket(metaBucket)
	if meta == nil {
		return state{}, fmt.Errorf("%s was not written by this program", r.path)
	}
	if got := string(meta.Get(formatKey)); got != format {
		return state{}, fmt.Errorf("%s has format %q, and this program knows only %q", r.path, got, format)
	}
	b, err := unseal(r.path, stateKey, meta.Get(stateKey))
	if err != nil {
		return state{}, err
	}
	s, ok := parseState(b)
	if !ok {
		return state{}, corruptf("%s: malformed state", r.path)
	}
	return s, nil
}

// readTally returns a tally of nothing for a file that is just being made.
func (r *reader) readTally() (tally, error) {
	record := r.bucket(metaBucket).Get(tallyKey)
	if record == nil {
		return tally{}, nil
	}
	b, err := unseal(r.path, tallyKey, record)
	if err != nil {
		return tally{}, err
	}
	if len(b) != 16 {
		return tally{}, corruptf("%s: malformed tally", r.path)
	}
	return tally{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}, nil
}

// get returns the value of a row, nil if there is none.
func (r *reader) get(key string) ([]byte, error) {
	c := r.cursor(rowsBucket, false)
	if err := c.seek(key); err != nil {
		return nil, err
	}
	if !c.ok || c.key != key {
		return nil, nil
	}
	return c.value, nil
}

// holds reports whether there is a row whose key begins with prefix.
func (r *reader) holds(prefix string) (bool, error) {
	c := r.cursor(rowsBucket, false)
	if err := c.seek(prefix); err != nil {
		return false, err
	}
	return c.ok && strings.HasPrefix(c.key, prefix), nil
}

func (r *reader) cursor(bucket []byte, reverse bool) *fileCursor {
	return &fileCursor{path: r.path, c: r.bucket(bucket).Cursor(), reverse: reverse}
}

// A fileCursor walks the records of a bucket and checks each. The two neighbours of a
// place that it seeks are checked as well: a key that is damaged is one of them, so it
// is found out and not taken for a missing one.
type fileCursor struct {
	path    string
	c       *bbolt.Cursor
	reverse bool

	entry // the value is the file's
	ok    bool
}

func (f *fileCursor) head() (entry, bool) { return f.entry, f.ok }

// seek moves to the first key that is not before the given one; in reverse, to the
// last that is before it.
func (f *fileCursor) seek(key string) error {
	sought := []byte(key)
	if err := f.set(f.c.Seek(sought)); err != nil {
		return err
	}
	after, ok := f.entry, f.ok
	switch {
	case ok && after.key == key && !f.reverse:
		return nil
	case ok && after.key < key:
		return f.disorder()
	}
	before := f.c.Last
	if ok {
		before = f.c.Prev
	}
	if err := f.set(before()); err != nil {
		return err
	}
	if f.ok && f.key >= key {
		return f.disorder()
	}
	if !f.reverse {
		f.c.Seek(sought)
		f.entry, f.ok = after, ok
	}
	return nil
}

func (f *fileCursor) next() error {
	last, step := f.key, f.c.Next
	if f.reverse {
		step = f.c.Prev
	}
	if err := f.set(step()); err != nil {
		return err
	}
	if f.ok && (f.key <= last) != f.reverse {
		return f.disorder()
	}
	return nil
}

func (f *fileCursor) set(key, record []byte) (err error) {
	f.entry, f.ok = entry{}, key != nil
	if f.ok {
		f.entry = newEntry(string(key), nil)
		f.value, err = unseal(f.path, key, record)
	}
	return err
}

func (f *fileCursor) disorder() error {
	return corruptf("%s: the key %q is not where it belongs", f.path, f.key)
}
