package topology

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/holdfast-run/holdfast/placement"
)

// PutNode adds a node to the cluster, or says anew where it is and that it is up. Like the
// other changes it may be asked of any node: it is carried to the leader, and tried again
// until it is done, refused (the error is a [Refusal]), or ctx has ended. All of them may be
// repeated.
func (t *Topology) PutNode(ctx context.Context, n placement.Node) error {
	return t.propose(ctx, fmt.Sprintf("put node %s into the placement table", n.ID), command{Put: &n})
}

// Drain makes a node give up what it owns and, if there is another place for them, its
// replicas.
func (t *Topology) Drain(ctx context.Context, id placement.NodeID) error {
	return t.mark(ctx, "drain", id, placement.NodeDraining)
}

// Leave makes a node give up what it owns. It keeps its replicas, since it will be back.
func (t *Topology) Leave(ctx context.Context, id placement.NodeID) error {
	return t.mark(ctx, "take leave of", id, placement.NodeLeaving)
}

// Return undoes Drain and Leave.
func (t *Topology) Return(ctx context.Context, id placement.NodeID) error {
	return t.mark(ctx, "return", id, placement.NodeUp)
}

// Remove gives up a node for ever. What it holds is made anew elsewhere; it cannot come
// back under its ID.
func (t *Topology) Remove(ctx context.Context, id placement.NodeID) error {
	return t.mark(ctx, "remove", id, placement.NodeRemoved)
}

func (t *Topology) mark(ctx context.Context, what string, id placement.NodeID, s placement.NodeState) error {
	if id == t.cfg.Self.ID { // what announce says would undo it
		t.retract()
		t.running.Wait()
	}
	return t.propose(ctx, fmt.Sprintf("%s node %s", what, id), command{Mark: &marking{id, s}})
}

// Set changes a setting of the cluster.
func (t *Topology) Set(ctx context.Context, name Setting, value string) error {
	if err := name.check(value); err != nil {
		return err
	}
	return t.propose(ctx, fmt.Sprintf("set %s", name), command{Set: &setting{name, value}})
}

// Limits of a change.
const (
	proposeTimeout = 30 * time.Second // if the caller has none
	offerTimeout   = 5 * time.Second  // of one try
	firstPause     = 20 * time.Millisecond
	longestPause   = 500 * time.Millisecond
)

// errNotLeader means that a node was asked for what only the leader can do. It did nothing.
var errNotLeader = errors.New("it does not lead the placement group")

// propose has a change made by whoever leads.
func (t *Topology) propose(ctx context.Context, what string, c command) error {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	var hint placement.NodeID
	for try := 0; ; try++ {
		err := t.offer(ctx, c, try, &hint)
		if err == nil {
			return nil
		}
		if errors.As(err, new(Refusal)) {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-time.After(min(firstPause<<min(try, 10), longestPause)):
		case <-ctx.Done():
			return fmt.Errorf("%s: %w; the last try: %w", what, context.Cause(ctx), err)
		}
	}
}

// offer makes one try: here, with the leader, or with anybody who may know the leader.
func (t *Topology) offer(ctx context.Context, c command, try int, hint *placement.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, offerTimeout)
	defer cancel()
	if t.reign.Load() != nil {
		return t.commit(ctx, c)
	}
	to, ok := t.Leader()
	if !ok || to == t.cfg.Self.ID {
		to = *hint
	}
	if *hint = ""; to == "" || to == t.cfg.Self.ID {
		others := t.others()
		if len(others) == 0 {
			return errors.New("no other node is known")
		}
		to = others[try%len(others)]
	}
	leader, err := t.send(ctx, to, c)
	*hint = leader
	return err
}

// others returns the other nodes that are known.
func (t *Topology) others() []placement.NodeID {
	nodes := t.State().Present()
	if t.State().ID == "" {
		nodes = t.cfg.Members
	}
	var ids []placement.NodeID
	for _, n := range nodes {
		if n.ID != t.cfg.Self.ID {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// commit has a command committed by this node's reign, and returns what became of it.
func (t *Topology) commit(ctx context.Context, c command) error {
	reign := t.reign.Load()
	if reign == nil {
		return errNotLeader
	}
	c.Token = rand.Text() // another one for each try: an earlier one may still be under way
	batch, err := c.encode()
	if err != nil {
		return err
	}
	outcome := t.machine.expect(c.Token)
	done := make(chan error, 1)
	reign.Commit(batch, func(err error) { done <- errors.Join(err, outcome()) })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// An answer is what a node says to a proposal.
type answer struct {
	Refused string           `json:"refused,omitempty"`
	Leader  placement.NodeID `json:"leader,omitempty"` // whom to ask instead
	Error   string           `json:"error,omitempty"`
}

// send asks another node to commit a command. If it does not lead, it may know who does.
func (t *Topology) send(ctx context.Context, to placement.NodeID, c command) (leader placement.NodeID, err error) {
	body, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	var a answer
	status, err := call(ctx, t.cfg.RoundTripper(to), http.MethodPost, "http://node"+pathPropose, body, &a)
	switch {
	case err != nil:
		return "", fmt.Errorf("ask node %s: %w", to, err)
	case a.Refused != "":
		return "", Refusal(a.Refused)
	case status == http.StatusOK:
		return "", nil
	case status == http.StatusMisdirectedRequest:
		return a.Leader, fmt.Errorf("ask node %s: %w", to, errNotLeader)
	}
	return "", fmt.Errorf("ask node %s: %s", to, a.Error)
}

// maxAnswer bounds what another node may answer.
const maxAnswer = 16 << 20

// call makes one request and decodes the answer, whatever its status.
func call(ctx context.Context, rt http.RoundTripper, method, url string, body []byte, into any) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return 0, fmt.Errorf("it answers %s with what is no answer: %w", resp.Status, err)
	}
	return resp.StatusCode, nil
}
