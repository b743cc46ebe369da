package raftlog

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// Pebble's log files are blocks of 32 KiB full of chunks, of which none crosses a block's
// end. A record is one full chunk, or a first, any number of middle, and a last one:
//
//	crc u32 | length u16 | type u8 | log number u32 | synced offset u64 | payload
//
// Types 1 to 4 (manifests) end after the type; 5 to 8 after the log number; 9 to 12
// have everything. The CRC-32C, masked as LevelDB does it, covers all from the type
// on. What is left of a block, if no header fits, is zero.
const (
	blockSize = 32 << 10

	plainHeader  = 7
	numberHeader = plainHeader + 4
	syncHeader   = numberHeader + 8
)

// A chunkFile is the content of such a file. num is the log number that its chunks
// must have: what a recycled file held before has another.
type chunkFile struct {
	data []byte
	kind chunkKind
	num  uint32
}

type chunkKind int

const (
	walChunks chunkKind = iota
	manifestChunks
)

type chunk struct {
	start, end  int
	payload     []byte
	first, last bool   // of its record
	synced      uint64 // the file was on disk up to here, if the chunk says so
}

// records calls f with the beginning of each record of the valid part, which ends at
// the offset returned.
func (f chunkFile) records(each func(prefix []byte)) (end int) {
	for at := 0; ; {
		at = f.skipPadding(at)
		first, ok := f.chunk(at)
		if !ok || !first.first {
			return end
		}
		c := first
		for !c.last {
			c, ok = f.chunk(f.skipPadding(c.end))
			if !ok || c.first {
				return end
			}
		}
		each(f.prefix(first))
		at = c.end
		end = at
	}
}

// find returns the first valid chunk at or after an offset, wherever it begins.
func (f chunkFile) find(at int) (chunk, bool) {
	number := binary.LittleEndian.AppendUint32(nil, f.num)
	for ; at+plainHeader <= len(f.data); at++ {
		if f.kind == walChunks {
			if at+numberHeader > len(f.data) {
				break
			}
			skip := bytes.Index(f.data[at+plainHeader:], number)
			if skip < 0 {
				break
			}
			at += skip
		}
		if c, ok := f.chunk(at); ok {
			return c, true
		}
	}
	return chunk{}, false
}

// prefix returns the first bytes of the record that a first chunk begins; more than the
// chunk has if parseBatch wants more and the next chunk is whole.
func (f chunkFile) prefix(first chunk) []byte {
	p := first.payload
	if first.last || len(p) >= batchPrefix {
		return p
	}
	if c, ok := f.chunk(f.skipPadding(first.end)); ok && !c.first {
		p = append(p[:len(p):len(p)], c.payload...)
	}
	return p
}

// skipPadding returns at, or the next block's start if no chunk fits before it.
func (f chunkFile) skipPadding(at int) int {
	left := blockSize - at%blockSize
	if left >= syncHeader || at+left > len(f.data) {
		return at
	}
	for _, b := range f.data[at : at+left] {
		if b != 0 {
			return at
		}
	}
	return at + left
}

// chunk returns the chunk that starts at an offset, if there is a valid one.
func (f chunkFile) chunk(at int) (chunk, bool) {
	block := f.data[min(at, len(f.data)):min(at+blockSize-at%blockSize, len(f.data))]
	if len(block) < plainHeader {
		return chunk{}, false
	}
	header, ok := f.header(block)
	if !ok || header > len(block) {
		return chunk{}, false
	}
	size := header + int(binary.LittleEndian.Uint16(block[4:]))
	if size > len(block) || binary.LittleEndian.Uint32(block) != maskedCRC(block[6:size]) {
		return chunk{}, false
	}
	position := (block[6] - 1) % 4 // full, first, middle, last
	c := chunk{
		start:   at,
		end:     at + size,
		payload: block[header:size],
		first:   position <= 1,
		last:    position == 0 || position == 3,
	}
	if header == syncHeader {
		c.synced = binary.LittleEndian.Uint64(block[numberHeader:])
	}
	return c, true
}

// header returns the size of a chunk's header, and whether it belongs to this file.
func (f chunkFile) header(block []byte) (size int, ok bool) {
	switch typ := block[6]; {
	case typ >= 1 && typ <= 4:
		return plainHeader, f.kind == manifestChunks
	case typ >= 5 && typ <= 12:
		if f.kind != walChunks || len(block) < numberHeader || binary.LittleEndian.Uint32(block[plainHeader:]) != f.num {
			return 0, false
		}
		if typ <= 8 {
			return numberHeader, true
		}
		return syncHeader, true
	}
	return 0, false
}

func maskedCRC(b []byte) uint32 {
	c := crc32.Checksum(b, castagnoli)
	return (c>>15 | c<<17) + 0xa282ead8
}
