package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// maxEntry bounds one entry of the log. A batch that is larger travels in chunks, since
// one huge entry would hold up heartbeats on every member for as long as its disk
// needs for it.
const maxEntry = 512 << 10

// An entry is
//
//	version u8 | kind u8 | term u64 | seq u64 | (of a chunk: offset u32 | total u32) | payload
//
// in big-endian. The term is the committer's stamp. The seq numbers the entries of one
// process; it tells the committer which of its entries was applied.
const (
	entryVersion = 1
	entryHeader  = 1 + 1 + 8 + 8
	chunkHeader  = entryHeader + 4 + 4
)

type entryKind byte

const (
	kindBegin   entryKind = 1 // the first entry of a reign
	kindBatches entryKind = 2
	kindChunk   entryKind = 3 // a part of one large batch
)

type entry struct {
	kind      entryKind
	term, seq uint64
	offset    int // of the payload in the batch, if it is a chunk
	total     int // size of that batch
	payload   []byte
}

// appendHeader appends e without its payload.
func (e entry) appendHeader(b []byte) []byte {
	b = append(b, entryVersion, byte(e.kind))
	b = binary.BigEndian.AppendUint64(b, e.term)
	b = binary.BigEndian.AppendUint64(b, e.seq)
	if e.kind == kindChunk {
		b = binary.BigEndian.AppendUint32(b, uint32(e.offset))
		b = binary.BigEndian.AppendUint32(b, uint32(e.total))
	}
	return b
}

func parseEntry(b []byte) (entry, error) {
	if len(b) < entryHeader {
		return entry{}, fmt.Errorf("entry of %d bytes", len(b))
	}
	if b[0] != entryVersion {
		return entry{}, fmt.Errorf("entry of version %d, which this program does not know", b[0])
	}
	e := entry{
		kind:    entryKind(b[1]),
		term:    binary.BigEndian.Uint64(b[2:]),
		seq:     binary.BigEndian.Uint64(b[10:]),
		payload: b[entryHeader:],
	}
	switch e.kind {
	case kindBegin, kindBatches:
		return e, nil
	case kindChunk:
		if len(b) < chunkHeader {
			return entry{}, errors.New("chunk without a header")
		}
		e.offset = int(binary.BigEndian.Uint32(b[entryHeader:]))
		e.total = int(binary.BigEndian.Uint32(b[entryHeader+4:]))
		e.payload = b[chunkHeader:]
		return e, nil
	}
	return entry{}, fmt.Errorf("entry of kind %d", e.kind)
}
