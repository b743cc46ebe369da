package transport

import (
	"bufio"
	"errors"
	"log/slog"
	"net"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
)

// An inlink is a connection over which a peer sends requests.
type inlink struct {
	net     *Network
	peer    *peer
	conn    *conn
	out     *outbox
	service byte
}

// answerOutbox is how many bytes of answers may wait for a peer that does not read them. Above
// that the connection is closed.
const answerOutbox = 1 << 20

func (n *Network) serveControl(id placement.NodeID, c net.Conn) { n.serveLink(id, c, serviceControl) }
func (n *Network) serveBulk(id placement.NodeID, c net.Conn)    { n.serveLink(id, c, serviceBulk) }

func (n *Network) serveLink(id placement.NodeID, c net.Conn, service byte) {
	l := &inlink{net: n, peer: n.peer(id), conn: c.(*conn), service: service}
	l.out = newOutbox(c, string(n.cfg.Self), answerOutbox, n.cfg.WriteTimeout, n.metrics)
	l.peer.connected()
	if n.run(l.write) {
		l.read()
	}
	l.out.close()
	l.conn.kill()
	l.peer.broke()
}

func (l *inlink) write() {
	if err := l.out.run(); err != nil {
		l.conn.kill()
	}
}

// read passes requests on until the connection breaks. It never waits for a group: others
// share the connection.
func (l *inlink) read() {
	r := bufio.NewReaderSize(l.conn, readBuffer)
	for {
		h, payload, err := readFrame(r, nil) // not into a buffer: groups keep entries
		if err == nil {
			l.net.metrics.framesIn.Inc()
			err = l.dispatch(h, payload)
		}
		if err != nil {
			if errors.Is(err, errFrame) || errors.Is(err, errMessage) {
				l.net.log.Error("a node sends what is not the protocol of nodes", slog.String("peer", string(l.peer.id)), slog.Any("error", err))
			}
			return
		}
	}
}

// dispatch gives a request to its group. An error is the connection's end.
func (l *inlink) dispatch(h head, payload []byte) error {
	g := l.net.group(h.group)
	if h.kind == kindConfirm {
		l.confirm(g, h)
		return nil
	}
	command, err := decodeRequest(h.kind, payload, l.peer.name)
	if err != nil {
		return err
	}
	request := request{from: l, head: h, command: command}
	switch {
	case g == nil:
		request.answer(nil, errNoGroup)
	case !g.queue(request, l.service):
		request.answer(nil, errGroupBusy)
	}
	return nil
}

var (
	errNoGroup   = errors.New("the node has no such group")
	errGroupBusy = errors.New("too many messages wait for the group")
)

// confirm answers what the current term of a group is.
func (l *inlink) confirm(g *Group, h head) {
	term, ok := uint64(0), false
	if g != nil {
		term, ok = g.term()
	}
	if !ok {
		l.answer(h, nil, errNoGroup)
		return
	}
	l.answer(h, confirmAnswer(term), nil)
}

// answer answers a request; either message or err is set.
func (l *inlink) answer(h head, message any, err error) {
	h.kind = kindAnswer
	if err != nil {
		h.kind, message = kindError, err
	}
	if !l.out.put(h, message) {
		l.conn.kill() // it has not read its answers for a long time, or is broken
		return
	}
	l.net.metrics.framesOut.Inc()
}

// A request waits for its group.
type request struct {
	from    *inlink
	head    head
	command any
}

func (r request) answer(message any, err error) { r.from.answer(r.head, message, err) }

// queue puts a request into the group's queue, and returns false if that is full.
func (g *Group) queue(r request, service byte) bool {
	q := g.control
	if service == serviceBulk {
		q = g.bulk
	}
	select {
	case q <- r:
		return true
	default:
		return false
	}
}

// serve is the group's goroutine that gives Raft one message after another. Heartbeats and
// votes go first: entries keep their order among themselves, and need none toward others.
func (g *Group) serve() {
	answers := make(chan raft.RPCResponse, 1)
	for {
		var r request
		select {
		case r = <-g.control:
		default:
			select {
			case r = <-g.control:
			case r = <-g.bulk:
			case <-g.closed:
				return
			}
		}
		select {
		case g.rpcs <- raft.RPC{Command: r.command, RespChan: answers}:
		case <-g.closed:
			return
		}
		select {
		case a := <-answers:
			r.answer(a.Response, a.Error)
		case <-g.closed:
			return
		}
	}
}
