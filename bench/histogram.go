//go:build linux

package main

import (
	"math/bits"
	"time"
)

// A histogram counts durations in buckets whose width is at most 1/32 of their
// value, from 1 us up to about an hour. Recording costs a few nanoseconds.
type histogram struct {
	counts [32 * 32]uint32
	total  uint64
}

func (h *histogram) record(d time.Duration) {
	h.counts[bucketOf(uint64(d.Microseconds()))]++
	h.total++
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
}

// quantile returns the upper bound of the bucket in which the q-th part of all
// recorded durations ends.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.total))
	var seen uint64
	for i, n := range h.counts {
		seen += uint64(n)
		if seen > rank {
			return time.Duration(upperBound(i)) * time.Microsecond
		}
	}
	return 0
}

// bucketOf puts values below 32 into a bucket each, and every further power of two
// into 32 equal ones.
func bucketOf(us uint64) int {
	if us < 32 {
		return int(us)
	}
	shift := bits.Len64(us) - 6
	return min(32*(shift+1)+int(us>>shift)-32, 32*32-1)
}

func upperBound(bucket int) uint64 {
	if bucket < 32 {
		return uint64(bucket) + 1
	}
	shift := bucket/32 - 1
	return uint64(bucket%32+32+1) << shift
}
