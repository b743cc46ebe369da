package raftlog

// sizes knows about how many bytes lie between two indexes of a log, without keeping
// the size of each record: a mark every markBytes, and a straight line between marks.
type sizes struct {
	marks []mark // in order; the first is before the first record
	bytes uint64 // all that was ever appended, up to the last record
}

// A mark says that bytes were appended up to and including index.
type mark struct{ index, bytes uint64 }

const markBytes = 1 << 20

// start begins with the records first to last, which have size bytes together.
func (s *sizes) start(first, last, size uint64) {
	s.marks, s.bytes = nil, size
	if first == 0 {
		return
	}
	s.marks = append(s.marks, mark{first - 1, 0})
	if last >= first {
		s.marks = append(s.marks, mark{last, size})
	}
}

func (s *sizes) append(index, bytes uint64) {
	s.bytes += bytes
	if s.bytes-s.marks[len(s.marks)-1].bytes >= markBytes {
		s.marks = append(s.marks, mark{index, s.bytes})
	}
}

func (s *sizes) total() uint64 {
	if len(s.marks) == 0 {
		return 0
	}
	return s.bytes - s.marks[0].bytes
}

// tail returns the first index of the last n bytes. last is the last index.
func (s *sizes) tail(n, last uint64) uint64 {
	if s.total() <= n {
		return 0
	}
	cut := s.bytes - n
	end := mark{last, s.bytes}
	for i := len(s.marks) - 1; i >= 0; i-- {
		if m := s.marks[i]; m.bytes <= cut {
			return m.index + 1 + between(cut-m.bytes, end.bytes-m.bytes, end.index-m.index)
		}
		end = s.marks[i]
	}
	return 0
}

// cutHead forgets what is below first.
func (s *sizes) cutHead(first uint64) {
	i := 0
	for i+1 < len(s.marks) && s.marks[i+1].index < first {
		i++
	}
	if i+1 < len(s.marks) {
		a, b := s.marks[i], s.marks[i+1]
		s.marks[i] = mark{first - 1, a.bytes + between(first-1-a.index, b.index-a.index, b.bytes-a.bytes)}
	}
	s.marks = append(s.marks[:0:0], s.marks[i:]...)
}

// cutTail forgets what is above last.
func (s *sizes) cutTail(last uint64) {
	for len(s.marks) > 1 && s.marks[len(s.marks)-1].index > last {
		s.marks = s.marks[:len(s.marks)-1]
	}
	s.bytes = s.marks[len(s.marks)-1].bytes
}

// between is a part of whole in proportion: part/of * whole.
func between(part, of, whole uint64) uint64 {
	if of == 0 {
		return 0
	}
	return uint64(float64(part) / float64(of) * float64(whole))
}
