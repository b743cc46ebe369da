package relay

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// examples are one frame of each kind, with all that it carries.
func examples() []*frame {
	ref := host.Ref{Class: "room", ID: placement.NamedID("room", "a"), Name: "a", Named: true}
	sock := host.Socket{ID: 7, Tags: []string{"x", "y"}, Attachment: []byte("note"), Accepted: time.Unix(5, 6), AutoResponse: time.Unix(7, 8), Closing: true, Seen: 9}
	full := frame{
		epoch: 3, shard: 2, object: ref.ID, ref: ref, socket: 7, attempt: 4, number: 300, code: 1012, text: "why", flag: true, first: true,
		when: time.Unix(1, 2), ids: []host.SocketID{1, 2}, pairs: []host.AutoResponse{{Request: "ping", Response: "pong"}},
		members: []member{{ref, sock}, {host.Ref{Class: "b", ID: placement.UniqueID("b")}, host.Socket{ID: 8}}}, data: []byte("data"),
	}
	var all []*frame
	for k := kindGather; k < kinds; k++ {
		f := &frame{kind: k}
		for _, c := range []struct {
			has field
			set func()
		}{
			{hasEpoch, func() { f.epoch = full.epoch }},
			{hasShard, func() { f.shard = full.shard }},
			{hasObject, func() { f.object = full.object }},
			{hasRef, func() { f.ref = full.ref }},
			{hasSocket, func() { f.socket = full.socket }},
			{hasAttempt, func() { f.attempt = full.attempt }},
			{hasNumber, func() { f.number = full.number }},
			{hasCode, func() { f.code = full.code }},
			{hasText, func() { f.text = full.text }},
			{hasFlag, func() { f.flag = full.flag }},
			{hasFirst, func() { f.first = full.first }},
			{hasWhen, func() { f.when = full.when }},
			{hasIDs, func() { f.ids = full.ids }},
			{hasPairs, func() { f.pairs = full.pairs }},
			{hasMembers, func() { f.members = full.members }},
			{hasData, func() { f.data = full.data }},
		} {
			if layout[k]&c.has != 0 {
				c.set()
			}
		}
		all = append(all, f)
	}
	return all
}

var same = cmp.Options{cmp.AllowUnexported(frame{}, member{}), cmpopts.EquateEmpty()}

func TestFrames(t *testing.T) {
	t.Parallel()
	for _, want := range examples() {
		b := append(want.head(), want.data...)
		got, err := decodeFrame(b)
		if err != nil {
			t.Errorf("kind %d: %v", want.kind, err)
			continue
		}
		if diff := cmp.Diff(want, got, same); diff != "" {
			t.Errorf("kind %d: %s", want.kind, diff)
		}
		head := len(want.head())
		for n := range head {
			if _, err := decodeFrame(b[:n]); err == nil {
				t.Errorf("kind %d cut after %d of %d bytes was taken", want.kind, n, head)
			}
		}
	}
}

func TestFramesAreBounded(t *testing.T) {
	t.Parallel()
	in := binary.BigEndian.AppendUint32(nil, maxFrameBytes+1)
	if _, err := readFrame(bufio.NewReader(bytes.NewReader(in))); err == nil {
		t.Error("a frame over the limit was taken")
	}
	many := binary.AppendUvarint([]byte{byte(kindAccept), 1}, maxMembers)
	if _, err := decodeFrame(many); err == nil {
		t.Error("a frame that promises more than it has was taken")
	}
}

func FuzzFrame(f *testing.F) {
	for _, e := range examples() {
		f.Add(append(e.head(), e.data...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeFrame(b)
		if err != nil {
			return
		}
		again, err := decodeFrame(append(got.head(), got.data...))
		if err != nil {
			t.Fatalf("encoded again: %v", err)
		}
		if diff := cmp.Diff(got, again, same); diff != "" {
			t.Error(diff)
		}
	})
}
