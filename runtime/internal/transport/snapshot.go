package transport

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
)

// A snapshot has a connection of its own: the request as a frame, then the snapshot's bytes as
// they are, then the answer. Time-outs are for progress, not for the whole, which may
// take as long as it takes; while the receiver restores it says that it is still there.

const snapshotBuffer = 256 << 10

// sendSnapshot sends a snapshot and waits until it has been restored.
func (g *Group) sendSnapshot(to placement.NodeID, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	n := g.net
	c, err := n.open(n.ctx, to, serviceSnapshot)
	if err != nil {
		return err
	}
	defer c.kill()
	if !g.keep(c) {
		return ErrClosed
	}
	defer g.release(c)
	w := &progressWriter{conn: c, timeout: n.cfg.SnapshotTimeout}
	if _, err := w.Write(appendFrame(nil, head{1, g.id, kindSnapshot}, string(n.cfg.Self), req)); err != nil {
		return err
	}
	copied, err := io.CopyBuffer(w, io.LimitReader(data, req.Size), make([]byte, snapshotBuffer))
	switch {
	case errors.Is(w.err, os.ErrDeadlineExceeded):
		return w.err
	case w.err != nil: // the receiver may have said why it reads no further
		if refusal := n.awaitRestore(c, n.peer(to).name, resp); errors.As(refusal, new(remoteError)) {
			return refusal
		}
		return w.err
	case err != nil:
		return err
	case copied < req.Size:
		return fmt.Errorf("it has %d bytes, and should have %d", copied, req.Size)
	}
	return n.awaitRestore(c, n.peer(to).name, resp)
}

// awaitRestore waits for the answer to a snapshot.
func (n *Network) awaitRestore(c *conn, sender []byte, resp *raft.InstallSnapshotResponse) error {
	r := bufio.NewReader(c)
	for limit := time.Now().Add(n.cfg.RestoreTimeout); time.Now().Before(limit); {
		if err := c.SetReadDeadline(time.Now().Add(n.cfg.SnapshotTimeout)); err != nil {
			return err
		}
		h, payload, err := readFrame(r, nil)
		switch {
		case err != nil:
			return err
		case h.kind == kindAnswer:
			return decodeAnswer(payload, sender, resp)
		case h.kind == kindError:
			return remoteError(payload)
		case h.kind != kindWait:
			return errMessage
		}
	}
	return ErrTimeout
}

// serveSnapshot receives one.
func (n *Network) serveSnapshot(from placement.NodeID, nc net.Conn) {
	c := nc.(*conn)
	defer c.Close()
	r := bufio.NewReaderSize(&progressReader{c, n.cfg.SnapshotTimeout}, snapshotBuffer)
	h, payload, err := readFrame(r, nil)
	if err != nil {
		return
	}
	command, err := decodeRequest(h.kind, payload, []byte(from))
	req, ok := command.(*raft.InstallSnapshotRequest)
	if err != nil || !ok {
		n.log.Error("a node sends what is not the protocol of nodes", slog.String("peer", string(from)), slog.Any("error", err))
		return
	}
	w := &progressWriter{conn: c, timeout: n.cfg.SnapshotTimeout}
	answer := func(k kind, message any) error {
		_, err := w.Write(appendFrame(nil, head{h.request, h.group, k}, string(n.cfg.Self), message))
		return err
	}
	resp, err := n.installSnapshot(h.group, c, req, io.LimitReader(r, req.Size), func() error { return answer(kindWait, nil) })
	if err != nil {
		_ = answer(kindError, err)
		return
	}
	_ = answer(kindAnswer, resp)
}

// installSnapshot gives a snapshot to its group, and says every now and then that it is still
// being worked on.
func (n *Network) installSnapshot(group uint64, c *conn, req *raft.InstallSnapshotRequest, data io.Reader, alive func() error) (any, error) {
	select {
	case n.receives <- struct{}{}:
		defer func() { <-n.receives }()
	default:
		return nil, errors.New("the node receives too many snapshots already")
	}
	g := n.group(group)
	if g == nil || !g.keep(c) {
		return nil, errNoGroup
	}
	defer g.release(c)
	answers := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: req, Reader: data, RespChan: answers}
	tick := time.NewTicker(n.cfg.SnapshotTimeout / 4)
	defer tick.Stop()
	rpcs := g.rpcs
	for {
		select {
		case rpcs <- rpc:
			rpcs = nil
		case a := <-answers:
			return a.Response, a.Error
		case <-tick.C:
			if err := alive(); err != nil && rpcs != nil {
				return nil, err // Raft has not begun; later it notices by itself
			}
		case <-g.closed:
			return nil, ErrClosed
		}
	}
}

// keep notes a connection that breaks when the group is closed.
func (g *Group) keep(c *conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isClosed() {
		return false
	}
	g.snapshots[c] = struct{}{}
	return true
}

func (g *Group) release(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.snapshots, c)
}

// A progressReader fails when nothing comes for a while, a progressWriter when nothing goes.
type progressReader struct {
	conn    net.Conn
	timeout time.Duration
}

func (r *progressReader) Read(p []byte) (int, error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(r.timeout)); err != nil {
		return 0, err
	}
	return r.conn.Read(p)
}

type progressWriter struct {
	conn    net.Conn
	timeout time.Duration
	err     error
}

func (w *progressWriter) Write(p []byte) (int, error) {
	if err := w.conn.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
		return 0, err
	}
	n, err := w.conn.Write(p)
	w.err = err
	return n, err
}
