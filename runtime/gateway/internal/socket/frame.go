package socket

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"sync"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// Opcodes of RFC 6455.
const (
	opText   = 0x1
	opBinary = 0x2
	opClose  = 0x8
	opPing   = 0x9
	opPong   = 0xa

	finBit  = 0x80
	rsv1Bit = 0x40 // of permessage-deflate: the message is compressed
)

// A frame is one whole message as it goes over the wire, unmasked. It never changes
// once it is queued, and all sockets that it goes to share it.
type frame struct {
	op     byte
	plain  encoding
	once   sync.Once
	packed encoding // compressed; set by once
}

// An encoding is a frame's bytes in two parts, so that a large payload is not copied.
type encoding struct {
	head    [10]byte
	headLen uint8
	data    []byte
}

func (e *encoding) len() int { return int(e.headLen) + len(e.data) }

// copyAt copies the encoding's bytes from an offset on, as many as fit.
func (e *encoding) copyAt(p []byte, offset int) int {
	n := 0
	if offset < int(e.headLen) {
		n = copy(p, e.head[offset:e.headLen])
		offset += n
	}
	if data := offset - int(e.headLen); data >= 0 {
		n += copy(p[n:], e.data[data:])
	}
	return n
}

func newFrame(m host.Message) *frame {
	op := byte(opText)
	if m.Binary {
		op = opBinary
	}
	return controlFrame(op, m.Data)
}

func controlFrame(op byte, data []byte) *frame {
	return &frame{op: op, plain: encode(finBit|op, data)}
}

func closeFrame(code int, reason string) *frame {
	data := make([]byte, 2, 2+len(reason))
	binary.BigEndian.PutUint16(data, uint16(code))
	return controlFrame(opClose, append(data, reason...))
}

func encode(first byte, data []byte) encoding {
	e := encoding{data: data}
	e.head[0] = first
	switch n := len(data); {
	case n < 126:
		e.head[1], e.headLen = byte(n), 2
	case n < 1<<16:
		e.head[1], e.headLen = 126, 4
		binary.BigEndian.PutUint16(e.head[2:], uint16(n))
	default:
		e.head[1], e.headLen = 127, 10
		binary.BigEndian.PutUint64(e.head[2:], uint64(n))
	}
	return e
}

// compressed returns the frame's compressed form, made by the first that asks. If it
// would be no shorter, it is the plain one.
func (f *frame) compressed(p *press) *encoding {
	f.once.Do(func() {
		if data := p.deflate(f.plain.data); len(data) < len(f.plain.data) {
			f.packed = encode(finBit|rsv1Bit|f.op, data)
		} else {
			f.packed = f.plain
		}
	})
	return &f.packed
}

// A press compresses. A flate.Writer is over half a megabyte, so they are few and used again.
type press struct{ pool sync.Pool }

// deflate compresses one message by itself, as permessage-deflate without context
// takeover wants it: the empty block that ends a flush is left out.
func (p *press) deflate(data []byte) []byte {
	var out bytes.Buffer
	w, _ := p.pool.Get().(*flate.Writer)
	if w == nil {
		w, _ = flate.NewWriter(&out, flate.BestSpeed) // fails for a bad level only
	} else {
		w.Reset(&out)
	}
	_, _ = w.Write(data) // a bytes.Buffer takes all
	_ = w.Flush()
	p.pool.Put(w)
	return bytes.TrimSuffix(out.Bytes(), []byte{0, 0, 0xff, 0xff})
}
