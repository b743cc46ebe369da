package raftlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// The kinds of rows.
const (
	kindLog    = 'l'
	kindStable = 's'
)

// keySize is that of a log row's key.
const keySize = 8 + 1 + 8

func logKey(group, index uint64) []byte { return appendLogKey(make([]byte, 0, keySize), group, index) }

func appendLogKey(b []byte, group, index uint64) []byte {
	b = binary.BigEndian.AppendUint64(b, group)
	b = append(b, kindLog)
	return binary.BigEndian.AppendUint64(b, index)
}

func stableKey(group uint64, key []byte) []byte {
	b := make([]byte, 0, 9+len(key))
	b = binary.BigEndian.AppendUint64(b, group)
	b = append(b, kindStable)
	return append(b, key...)
}

// logEnd is the first key after a group's log rows.
func logEnd(group uint64) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 9), group)
	return append(b, kindLog+1)
}

// A log record is
//
//	crc u32 | version u8 | type u8 | term u64 | appended i64 | extensions length u32 | extensions | data
//
// little-endian; the CRC-32C covers the key and everything after itself, so that a
// record in the wrong place is a damaged one. Appended is in Unix nanoseconds.
const (
	recordVersion = 1
	recordHeader  = 4 + 1 + 1 + 8 + 8 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func recordSize(log *raft.Log) int { return recordHeader + len(log.Extensions) + len(log.Data) }

// putRecord encodes log into b, which has its size.
func putRecord(b, key []byte, log *raft.Log) {
	b[4] = recordVersion
	b[5] = byte(log.Type)
	binary.LittleEndian.PutUint64(b[6:], log.Term)
	var appended int64
	if !log.AppendedAt.IsZero() {
		appended = log.AppendedAt.UnixNano()
	}
	binary.LittleEndian.PutUint64(b[14:], uint64(appended))
	binary.LittleEndian.PutUint32(b[22:], uint32(len(log.Extensions)))
	n := copy(b[recordHeader:], log.Extensions)
	copy(b[recordHeader+n:], log.Data)
	binary.LittleEndian.PutUint32(b, checksum(key, b[4:]))
}

// parseRecord decodes a record; what it returns shares no memory with b.
func parseRecord(b, key []byte, log *raft.Log) error {
	if len(b) < recordHeader {
		return fmt.Errorf("%w: record of %d bytes", ErrCorrupt, len(b))
	}
	if binary.LittleEndian.Uint32(b) != checksum(key, b[4:]) {
		return fmt.Errorf("%w: checksum mismatch", ErrCorrupt)
	}
	if b[4] != recordVersion {
		return fmt.Errorf("record version %d is newer than this program", b[4])
	}
	log.Type = raft.LogType(b[5])
	log.Term = binary.LittleEndian.Uint64(b[6:])
	log.AppendedAt = time.Time{}
	if appended := int64(binary.LittleEndian.Uint64(b[14:])); appended != 0 {
		log.AppendedAt = time.Unix(0, appended)
	}
	n := int(binary.LittleEndian.Uint32(b[22:]))
	if n > len(b)-recordHeader {
		return fmt.Errorf("%w: extensions of %d bytes", ErrCorrupt, n)
	}
	content := append([]byte(nil), b[recordHeader:]...)
	log.Extensions, log.Data = nil, content[n:]
	if n > 0 {
		log.Extensions = content[:n:n]
	}
	return nil
}

func checksum(key, rest []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, rest)
}
