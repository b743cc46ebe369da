package transport

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
)

var samples = map[kind]any{
	kindAppend: &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("a"), Addr: []byte("elsewhere")},
		Term:      1 << 40, PrevLogEntry: 300, PrevLogTerm: 2, LeaderCommitIndex: 1<<64 - 1,
		Entries: []*raft.Log{
			{Index: 301, Term: 3, Type: raft.LogNoop},
			{Index: 302, Term: 3, Data: []byte("data"), Extensions: []byte("more"), AppendedAt: time.Unix(17, 4)},
		},
	},
	kindVote:       &raft.RequestVoteRequest{Term: 4, LastLogIndex: 5, LastLogTerm: 6, LeadershipTransfer: true},
	kindPreVote:    &raft.RequestPreVoteRequest{RPCHeader: raft.RPCHeader{ID: []byte("a")}, Term: 4, LastLogIndex: 5, LastLogTerm: 6},
	kindTimeoutNow: &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3}},
	kindSnapshot: &raft.InstallSnapshotRequest{
		SnapshotVersion: 1, Term: 7, Leader: []byte("a"), LastLogIndex: 8, LastLogTerm: 9,
		Peers: []byte("p"), Configuration: []byte("c"), ConfigurationIndex: 10, Size: 1 << 40,
	},
}

var answers = []any{
	&raft.AppendEntriesResponse{RPCHeader: raft.RPCHeader{ID: []byte("a")}, Term: 1, LastLog: 2, Success: true},
	&raft.AppendEntriesResponse{NoRetryBackoff: true},
	&raft.RequestVoteResponse{Term: 1, Peers: []byte("p"), Granted: true},
	&raft.RequestPreVoteResponse{Term: 1, Granted: true},
	&raft.TimeoutNowResponse{RPCHeader: raft.RPCHeader{ProtocolVersion: 3}},
	&raft.InstallSnapshotResponse{Term: 1, Success: true},
}

func TestMessages(t *testing.T) {
	t.Parallel()
	for k, message := range samples {
		got, err := decodeRequest(k, appendMessage(nil, "a", message), []byte("a"))
		if diff := cmp.Diff(message, got); err != nil || diff != "" {
			t.Errorf("%T: %v\n%s", message, err, diff)
		}
	}
	for _, message := range answers {
		got := reflect.New(reflect.TypeOf(message).Elem()).Interface()
		err := decodeAnswer(appendMessage(nil, "a", message), []byte("a"), got)
		if diff := cmp.Diff(message, got); err != nil || diff != "" {
			t.Errorf("%T: %v\n%s", message, err, diff)
		}
	}
}

// TestMissing cuts every message off at every place.
func TestMissing(t *testing.T) {
	t.Parallel()
	for k, message := range samples {
		b := appendMessage(nil, "a", message)
		for n := range b {
			if got, err := decodeRequest(k, b[:n], nil); !errors.Is(err, errMessage) {
				t.Fatalf("%d bytes of %d make %+v", n, len(b), got)
			}
		}
		if _, err := decodeRequest(k, append(b, 0), nil); !errors.Is(err, errMessage) {
			t.Errorf("%T: what is too much was accepted", message)
		}
	}
}

// FuzzRequest decodes anything. What is accepted must come out again as it is.
func FuzzRequest(f *testing.F) {
	for k, message := range samples {
		f.Add(byte(k), appendMessage(nil, "a", message))
	}
	f.Fuzz(func(t *testing.T, k byte, b []byte) {
		message, err := decodeRequest(kind(k), b, []byte("a"))
		if err != nil {
			return
		}
		again, err := decodeRequest(kind(k), appendMessage(nil, "a", message), []byte("a"))
		if diff := cmp.Diff(message, again); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for i, message := range answers {
		f.Add(byte(i), appendMessage(nil, "a", message))
	}
	f.Fuzz(func(t *testing.T, i byte, b []byte) {
		as := reflect.TypeOf(answers[int(i)%len(answers)]).Elem()
		message, again := reflect.New(as).Interface(), reflect.New(as).Interface()
		if decodeAnswer(b, []byte("a"), message) != nil {
			return
		}
		err := decodeAnswer(appendMessage(nil, "a", message), []byte("a"), again)
		if diff := cmp.Diff(message, again); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
		var term confirmAnswer
		_ = decodeAnswer(b, nil, &term)
	})
}

func FuzzFrames(f *testing.F) {
	var stream []byte
	for k, message := range samples {
		stream = appendFrame(stream, head{1, 2, k}, "a", message)
	}
	f.Add(stream)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(b), readBuffer)
		read := 0
		for {
			_, payload, err := readFrame(r, nil)
			if err != nil {
				if read == len(b) && !errors.Is(err, io.EOF) {
					t.Errorf("at the end: %v", err)
				}
				return
			}
			if read += lengthBytes + headBytes + len(payload); read > len(b) {
				t.Fatal("more was read than there is")
			}
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(hello{service: 'h', version: protocolVersion, cluster: "blue", node: "a", addressee: "b"}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHello(bytes.NewReader(b))
		if err == nil && !bytes.HasPrefix(b, h.encode()) {
			t.Errorf("%q is read as %+v", b, h)
		}
	})
}
