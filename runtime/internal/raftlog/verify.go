package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/wal"
)

// A write-ahead log ends where its first invalid record begins. After a crash that is
// how it must be: the last writes are torn, in any order of their blocks, and nobody
// was told that they had happened. But if one bit of an old record flips, everything
// after it would be lost in silence.
//
// To tell the two apart Pebble writes into each chunk up to which offset the file was
// synced before. That is not enough for us (v2.1.7): it looks for such a promise only
// in later blocks of 32 KiB, not in the block of the damage; its count leaves out
// the bytes of every full block, so that with records of some size nearly nothing is ever
// promised; the end-of-log mark is believed without a checksum; and a damaged
// MANIFEST is silently taken to end there.
//
// So each batch we write begins with a promise of our own: the sequence number below
// which all records were on disk when it was made. Before Pebble opens the files we
// look in what follows the valid part of each one for a chunk that promises a
// record we do not have. If there is one, the file is damaged; if not, its tail is torn.

const walSuffix = ".log"

// A promise is the first operation of a batch, in Pebble's encoding of data that is only
// in the log: kind, length, then magic and sequence number.
const (
	promiseMagic = 0x31706668 // "hfp1"
	promiseSize  = 4 + 8

	batchHeader = 8 + 4 // sequence number, count
	opLogData   = 3
)

func appendPromise(b []byte, durable uint64) []byte {
	b = binary.LittleEndian.AppendUint32(b, promiseMagic)
	return binary.LittleEndian.AppendUint64(b, durable)
}

// A batch is what the beginning of a record in the write-ahead log says.
type batch struct {
	seq, next uint64 // sequence numbers of its first row, and of the row after it
	promise   uint64 // 0 if there is none
}

// batchPrefix is how much of a record parseBatch wants to see.
const batchPrefix = batchHeader + 2 + promiseSize

func parseBatch(b []byte) (batch, bool) {
	if len(b) < batchHeader {
		return batch{}, false
	}
	seq := binary.LittleEndian.Uint64(b)
	r := batch{seq: seq, next: seq + uint64(binary.LittleEndian.Uint32(b[8:]))}
	if len(b) < batchPrefix || b[batchHeader] != opLogData || b[batchHeader+1] != promiseSize {
		return r, true
	}
	if p := b[batchHeader+2:]; binary.LittleEndian.Uint32(p) == promiseMagic {
		r.promise = binary.LittleEndian.Uint64(p[4:])
	}
	return r, true
}

// verify returns an error that wraps [ErrCorrupt] if a file of the log has lost
// records that were on disk.
func verify(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		path := fs.PathJoin(dir, name)
		switch num, _, isWAL := wal.ParseLogFilename(name); {
		case isWAL:
			err = verifyWAL(fs, path, uint32(num))
		case strings.HasPrefix(name, "MANIFEST-"):
			err = verifyManifest(fs, path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// verifyWAL checks that nothing after the valid part of a write-ahead log shows that
// there was more.
func verifyWAL(fs vfs.FS, path string, num uint32) error {
	data, err := readFile(fs, path)
	if err != nil {
		return err
	}
	f := chunkFile{data: data, kind: walChunks, num: num}
	var next uint64 // the sequence number that should follow the valid part
	end := f.records(func(prefix []byte) {
		if b, ok := parseBatch(prefix); ok {
			next = b.next
		}
	})

	lost := func(at int) error {
		return fmt.Errorf("%w: %s at offset %d: the record there is damaged, but was on disk when the one at offset %d was written", ErrCorrupt, path, end, at)
	}
	var after uint64 // the end of the first whole record after the damage
	for at := end; ; {
		c, ok := f.find(at)
		if !ok {
			return nil
		}
		at = c.end
		if c.synced > uint64(end) { // Pebble's promise is never too large
			return lost(c.start)
		}
		b, ok := parseBatch(f.prefix(c))
		if !c.first || !ok {
			continue
		}
		if b.promise > next && next > 0 || b.promise >= after && after > 0 {
			return lost(c.start)
		}
		if after == 0 && b.next > b.seq {
			after = b.next
		}
	}
}

// verifyManifest checks that nothing follows the valid part of a manifest: each of
// its records is on disk before the next is written.
func verifyManifest(fs vfs.FS, path string) error {
	data, err := readFile(fs, path)
	if err != nil {
		return err
	}
	f := chunkFile{data: data, kind: manifestChunks}
	end := f.records(func([]byte) {})
	for at := end; ; {
		c, ok := f.find(at)
		if !ok {
			return nil
		}
		if at = c.end; c.first {
			return fmt.Errorf("%w: %s at offset %d: the record there is damaged, but was on disk when the one at offset %d was written", ErrCorrupt, path, end, c.start)
		}
	}
}

func readFile(fs vfs.FS, path string) (data []byte, err error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err = io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}
