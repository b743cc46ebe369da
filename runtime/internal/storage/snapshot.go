package storage

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// A snapshot travels as a header, the bbolt file, and the SHA-256 of both:
//
//	"HFSNAP1\n" | index u64 | term u64 | length u64 | CRC-32C of this u32 | file | SHA-256
const (
	snapshotMagic  = "HFSNAP1\n"
	snapshotHeader = len(snapshotMagic) + 3*8 + 4
)

// A Snapshot is the state of a machine at one index, held for reading. While it is held,
// the file cannot reuse its pages: close it soon.
type Snapshot struct {
	Index, Term        uint64
	ConfigurationIndex uint64
	Configuration      []byte
	Size               int64 // what WriteTo writes

	disk    *reader
	file    *file
	discard func() error // of a file that was made for the snapshot only
}

// Snapshot flushes, and returns the state that the file then has.
func (m *Machine) Snapshot(ctx context.Context) (*Snapshot, error) {
	if m.path == "" {
		return m.memorySnapshot(ctx)
	}
	if err := m.Flush(ctx); err != nil {
		return nil, err
	}
	m.mu.RLock()
	f := m.file
	r, err := f.begin()
	m.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	return newSnapshot(f, r, func() error { return nil })
}

func newSnapshot(f *file, r *reader, discard func() error) (*Snapshot, error) {
	s := &Snapshot{file: f, disk: r, discard: discard}
	err := f.guard(func() error {
		st, err := r.state()
		s.Index, s.Term = st.index, st.term
		s.ConfigurationIndex, s.Configuration = st.confIndex, st.conf
		s.Size = int64(snapshotHeader) + r.tx.Size() + sha256.Size
		return err
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// memorySnapshot writes the rows of a machine without a file into one, which lasts
// as long as the snapshot.
func (m *Machine) memorySnapshot(ctx context.Context) (*Snapshot, error) {
	m.mu.RLock()
	v, st := m.currentView(), m.state
	m.mu.RUnlock()
	f, discard, err := temporary(m.options, func(path string) error { return createFile(path, m.options) })
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	if err := f.write(ctx, v.tables[0], &st); err != nil {
		return nil, errors.Join(err, discard())
	}
	r, err := f.begin()
	if err != nil {
		return nil, errors.Join(err, discard())
	}
	return newSnapshot(f, r, discard)
}

// temporary opens a file made by fill in a directory of its own. discard removes both.
func temporary(o Options, fill func(path string) error) (f *file, discard func() error, err error) {
	dir, err := os.MkdirTemp("", "holdfast-snapshot-")
	if err != nil {
		return nil, nil, err
	}
	path := filepath.Join(dir, "snapshot.db")
	if err = fill(path); err == nil {
		f, _, err = openFile(path, o)
	}
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return f, func() error { return errors.Join(f.close(), os.RemoveAll(dir)) }, nil
}

// WriteTo streams the snapshot. It may be called once.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	head := append(make([]byte, 0, snapshotHeader), snapshotMagic...)
	for _, n := range []uint64{s.Index, s.Term, uint64(s.disk.tx.Size())} {
		head = binary.BigEndian.AppendUint64(head, n)
	}
	head = binary.BigEndian.AppendUint32(head, crc32.Checksum(head, castagnoli))

	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	if _, err := out.Write(head); err != nil {
		return 0, err
	}
	var n int64
	err := s.file.guard(func() (err error) {
		n, err = s.disk.tx.WriteTo(out)
		return err
	})
	if err == nil {
		_, err = w.Write(sum.Sum(nil))
	}
	if err != nil {
		return int64(len(head)) + n, fmt.Errorf("send snapshot of %s: %w", s.file.path, err)
	}
	return s.Size, nil
}

// Close gives up the snapshot.
func (s *Snapshot) Close() error {
	s.disk.close()
	return s.discard()
}

// WriteSnapshot flushes, writes a snapshot, and returns the index and term that it has.
func (m *Machine) WriteSnapshot(w io.Writer) (index, term uint64, err error) {
	s, err := m.Snapshot(context.Background())
	if err != nil {
		return 0, 0, err
	}
	_, err = s.WriteTo(w)
	return s.Index, s.Term, errors.Join(err, s.Close())
}

// Restore replaces the whole state by that of a snapshot. Until the snapshot has been
// received and checked nothing changes; reads go on meanwhile, and see the old state or the
// new one.
func (m *Machine) Restore(r io.Reader) error {
	if m.path == "" {
		return m.memoryRestore(r)
	}
	m.flushing.Lock()
	defer m.flushing.Unlock()
	if errors.Is(m.failed, fs.ErrClosed) {
		return m.failed
	}
	temp := m.path + ".restore"
	f, st, err := receive(r, temp, m.options)
	if err != nil {
		return fmt.Errorf("restore %s: %w", m.path, errors.Join(err, remove(temp)))
	}
	if err := install(temp, m.path); err != nil {
		m.failed = fmt.Errorf("restore %s: %w", m.path, err)
		return errors.Join(m.failed, f.close())
	}
	f.path, m.failed = m.path, nil
	return m.replace(f, newTable(false), st).close()
}

// replace swaps in a new state, and returns the file that the old one had.
func (m *Machine) replace(f *file, t *table, st state) (old *file) {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	old = m.file
	m.file, m.active, m.frozen, m.view = f, t, nil, nil
	m.state, m.durable = st, st
	return old
}

func (m *Machine) memoryRestore(r io.Reader) error {
	var st state
	f, discard, err := temporary(m.options, func(path string) error {
		f, s, err := receive(r, path, m.options)
		if err != nil {
			return err
		}
		st = s
		return f.close()
	})
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	t := newTable(true)
	err = f.view(func(r *reader) error {
		c := r.cursor(rowsBucket, false)
		err := c.seek("")
		for ; err == nil && c.ok; err = c.next() {
			t.load(c.entry)
		}
		return err
	})
	if err := errors.Join(err, discard()); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	m.replace(nil, t, st)
	return nil
}

// receive writes a snapshot to a file, opens it and checks all of it.
func receive(r io.Reader, path string, o Options) (f *file, st state, err error) {
	index, term, err := receiveFile(r, path)
	if err != nil {
		return nil, state{}, err
	}
	if f, st, err = openFile(path, o); err != nil {
		return nil, state{}, err
	}
	if st.index != index || st.term != term {
		err = corruptf("the snapshot is announced as entry %d of term %d, and is of %d and %d", index, term, st.index, st.term)
	} else {
		err = f.check(context.Background())
	}
	if err != nil {
		return nil, state{}, errors.Join(err, f.close())
	}
	return f, st, nil
}

func receiveFile(r io.Reader, path string) (index, term uint64, err error) {
	sum := sha256.New()
	in := io.TeeReader(r, sum)
	head := make([]byte, snapshotHeader)
	if _, err := io.ReadFull(in, head); err != nil {
		return 0, 0, fmt.Errorf("receive the snapshot's header: %w", err)
	}
	fields := head[len(snapshotMagic):]
	if string(head[:len(snapshotMagic)]) != snapshotMagic || binary.BigEndian.Uint32(fields[24:]) != crc32.Checksum(head[:snapshotHeader-4], castagnoli) {
		return 0, 0, corruptf("not a snapshot, or its header is damaged")
	}
	size := binary.BigEndian.Uint64(fields[16:])

	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, 0, err
	}
	_, err = io.CopyN(f, in, int64(size))
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, 0, fmt.Errorf("receive %d bytes of snapshot: %w", size, err)
	}
	want := sum.Sum(nil)
	got := make([]byte, sha256.Size)
	if _, err := io.ReadFull(r, got); err != nil {
		return 0, 0, fmt.Errorf("receive the snapshot's checksum: %w", err)
	}
	if string(got) != string(want) {
		return 0, 0, corruptf("the snapshot does not have its checksum")
	}
	return binary.BigEndian.Uint64(fields), binary.BigEndian.Uint64(fields[8:]), nil
}

// remove removes a file that may be missing.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
