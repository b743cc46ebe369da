package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/backup"
	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
	"github.com/holdfast-run/holdfast/runtime/internal/shard"
	"github.com/holdfast-run/holdfast/runtime/internal/transport"
)

// A Snapshot says what a snapshot of a cluster has.
type Snapshot struct {
	Cluster  string            `json:"cluster"` // whose it is
	Shards   int               `json:"shards"`
	Version  string            `json:"version"` // of the program that made it
	Time     time.Time         `json:"time"`    // everything acknowledged before is in it
	Settings map[string]string `json:"settings,omitempty"`
	Bytes    int64             `json:"bytes,omitempty"`
	// Node and New are the node and the cluster that a restore has made.
	Node string `json:"node,omitempty"`
	New  string `json:"new,omitempty"`
}

// Progress is told how many shards are done, and how many bytes that is.
type Progress func(done, shards int, bytes int64)

// Limits of a save.
const (
	saveRetry = 30 * time.Second       // how long a shard may have no owner, or break off
	savePause = 250 * time.Millisecond // between two tries
	saveIdle  = time.Minute            // without a byte
)

// SaveSnapshot writes a snapshot of the cluster into a new file.
func (a *Admin) SaveSnapshot(ctx context.Context, path string, progress Progress) (Snapshot, error) {
	var h backup.Header
	asking, cancel := context.WithTimeout(ctx, saveRetry)
	defer cancel()
	if err := a.do(asking, http.MethodGet, "snapshot", nil, &h); err != nil {
		return Snapshot{}, err
	}
	return save(ctx, path, h, progress, saveRetry, a.fetchShard)
}

// save writes a file, with the shards that fetch returns.
func save(ctx context.Context, path string, h backup.Header, progress Progress, retry time.Duration, fetch func(context.Context, placement.ShardID) (backup.Section, io.ReadCloser, error)) (Snapshot, error) {
	fail := func(err error) (Snapshot, error) {
		return Snapshot{}, fmt.Errorf("save a snapshot: %w", err)
	}
	w, err := backup.Create(path, h)
	if err != nil {
		return fail(err)
	}
	defer w.Discard()
	for i := range h.Shards {
		if err := saveShard(ctx, w, placement.ShardID(i), retry, fetch); err != nil {
			return fail(err)
		}
		progress(i+1, h.Shards, w.Size())
	}
	if err := w.Commit(); err != nil {
		return fail(err)
	}
	s := describe(h)
	s.Bytes = w.Size()
	return s, nil
}

func saveShard(ctx context.Context, w *backup.Writer, id placement.ShardID, retry time.Duration, fetch func(context.Context, placement.ShardID) (backup.Section, io.ReadCloser, error)) error {
	began := time.Now()
	for {
		section, state, err := fetch(ctx, id)
		broken := err != nil
		if err == nil {
			err = w.Add(section, state)
			broken = errors.As(err, new(*backup.SourceError))
			_ = state.Close()
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !broken || time.Since(began) >= retry:
			return err
		}
		select {
		case <-time.After(savePause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func describe(h backup.Header) Snapshot {
	return Snapshot{Cluster: h.Cluster, Shards: h.Shards, Version: h.Version, Time: h.Time, Settings: h.Settings}
}

func (a *Admin) fetchShard(ctx context.Context, id placement.ShardID) (backup.Section, io.ReadCloser, error) {
	s, state, err := fetchShard(ctx, a.network.RoundTripperTo(a.addr), adminPrefix+"snapshot/shard", id)
	if err != nil {
		err = fmt.Errorf("ask the node at %s for shard %d: %w", a.addr, id, err)
	}
	return s, state, err
}

const (
	headerIndex = "Holdfast-Index"
	headerTerm  = "Holdfast-Term"
)

// fetchShard asks another node for a shard's state.
func fetchShard(ctx context.Context, rt http.RoundTripper, path string, id placement.ShardID) (s backup.Section, state io.ReadCloser, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	idle := time.AfterFunc(saveIdle, func() { cancel(fmt.Errorf("nothing came for %v", saveIdle)) })
	defer func() {
		if err != nil {
			idle.Stop()
			cancel(nil)
		}
	}()
	q := url.Values{"id": {strconv.Itoa(int(id))}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+path+"?"+q.Encode(), nil)
	if err != nil {
		return s, nil, err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return s, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return s, nil, answeredError(resp)
	}
	index, err1 := strconv.ParseUint(resp.Header.Get(headerIndex), 10, 64)
	term, err2 := strconv.ParseUint(resp.Header.Get(headerTerm), 10, 64)
	if err := errors.Join(err1, err2); err != nil || resp.ContentLength <= 0 {
		_ = resp.Body.Close()
		return s, nil, errors.New("the answer is no shard")
	}
	s = backup.Section{Shard: id, Index: index, Term: term, Length: resp.ContentLength}
	return s, &fetched{resp.Body, idle, cancel}, nil
}

// fetched is a state that is given up when nothing comes.
type fetched struct {
	io.ReadCloser
	idle   *time.Timer
	cancel context.CancelCauseFunc
}

func (f *fetched) Read(b []byte) (int, error) {
	f.idle.Reset(saveIdle)
	return f.ReadCloser.Read(b)
}

func (f *fetched) Close() error {
	f.idle.Stop()
	f.cancel(nil)
	return f.ReadCloser.Close()
}

// What follows is the node's side.

const pathShardSnapshot = "/shards/snapshot"

func (n *Node) adminSnapshot(*http.Request) (any, error) {
	table := n.topology.State()
	return backup.Header{
		Cluster: n.dirs.id.Cluster, Shards: n.dirs.id.Shards, Version: Version,
		Time: time.Now().UTC(), Settings: table.Settings,
	}, nil
}

// adminSnapshotShard streams a shard's state from its owner, whoever that is.
func (n *Node) adminSnapshotShard(w http.ResponseWriter, r *http.Request) {
	n.answerShard(w, r, func(ctx context.Context, id placement.ShardID) (backup.Section, io.ReadCloser, error) {
		owner, known := n.shards.Owner(id)
		switch {
		case !known:
			return backup.Section{}, nil, fmt.Errorf("shard %d has no owner at the moment", id)
		case owner == n.dirs.id.Node:
			return n.shardSnapshot(ctx, id)
		}
		s, state, err := fetchShard(ctx, n.cluster.network.RoundTripper(owner), pathShardSnapshot, id)
		if err != nil {
			err = fmt.Errorf("ask node %s: %w", owner, err)
		}
		return s, state, err
	})
}

// serveSnapshot streams the state of a shard that this node owns.
func (n *Node) serveSnapshot(w http.ResponseWriter, r *http.Request) {
	n.answerShard(w, r, n.shardSnapshot)
}

func (n *Node) shardSnapshot(ctx context.Context, id placement.ShardID) (backup.Section, io.ReadCloser, error) {
	sh := n.shards.get(id)
	if sh == nil {
		return backup.Section{}, nil, fmt.Errorf("snapshot of shard %d: %w", id, shard.ErrNotOwner)
	}
	return sh.Snapshot(ctx)
}

func (n *Node) answerShard(w http.ResponseWriter, r *http.Request, get func(context.Context, placement.ShardID) (backup.Section, io.ReadCloser, error)) {
	id, err := strconv.ParseUint(r.URL.Query().Get("id"), 10, 32)
	if err != nil || id >= uint64(n.dirs.id.Shards) {
		answerJSON(w, http.StatusNotFound, adminError{"there is no such shard"})
		return
	}
	s, state, err := get(r.Context(), placement.ShardID(id))
	if err != nil {
		answerJSON(w, http.StatusServiceUnavailable, adminError{err.Error()})
		return
	}
	defer func() { _ = state.Close() }() // what was not read is not wanted
	w.Header().Set("Content-Length", strconv.FormatInt(s.Length, 10))
	w.Header().Set(headerIndex, strconv.FormatUint(s.Index, 10))
	w.Header().Set(headerTerm, strconv.FormatUint(s.Term, 10))
	if _, err := io.Copy(w, state); err != nil {
		panic(http.ErrAbortHandler) // so that nobody takes it for whole
	}
}

// SaveStopped writes a snapshot of a cluster of one node that does not run into a new file. log may
// be "". What is in the log only is applied first, as by a start.
func SaveStopped(ctx context.Context, path, data, log string, progress Progress) (_ Snapshot, err error) {
	fail := func(err error) (Snapshot, error) {
		return Snapshot{}, fmt.Errorf("save a snapshot: %w", err)
	}
	if id, err := readIdentity(data); err != nil {
		return fail(err)
	} else if id == nil || id.Unborn {
		return fail(fmt.Errorf("%s is not the data directory of a node", data))
	}
	d, err := openDirs(data, log, 0)
	if err != nil {
		return fail(err)
	}
	defer d.close()
	fatal := make(chan error, 1)
	report := func(err error) {
		select {
		case fatal <- err:
		default: // the first says why
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	engine, err := raftlog.Open(d.wal(), raftlog.Options{OnFatal: func(err error) { report(err); cancel(err) }})
	if err != nil {
		return fail(err)
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	h := backup.Header{Cluster: d.id.Cluster, Shards: d.id.Shards, Version: Version, Time: time.Now().UTC()}
	return save(ctx, path, h, progress, 0, func(ctx context.Context, id placement.ShardID) (backup.Section, io.ReadCloser, error) {
		return d.stoppedShard(ctx, engine, id, func(err error) { report(err); cancel(err) })
	})
}

// stoppedShard opens a shard for as long as its state is read.
func (d *dirs) stoppedShard(ctx context.Context, log *raftlog.Log, id placement.ShardID, fatal func(error)) (backup.Section, io.ReadCloser, error) {
	sh, err := shard.Open(ctx, shard.Config{
		ID: id, NodeID: d.id.Node, Path: d.shard(id), Log: log, Join: true, OnFatal: fatal,
		Transport: transport.NewLocal(transportAddr(d.id.Node)),
		Lead:      func(ctx context.Context, _ placement.ShardID, _ *shard.Store) { <-ctx.Done() },
	})
	if err != nil {
		return backup.Section{}, nil, err
	}
	s, state, err := d.awaitOwner(ctx, sh)
	if err != nil {
		return s, nil, errors.Join(err, sh.Stop(context.WithoutCancel(ctx)))
	}
	return s, &stopped{state, sh}, nil
}

// ownTimeout is how long the only node of a cluster may take to own a shard.
const ownTimeout = 10 * time.Second

func (d *dirs) awaitOwner(ctx context.Context, sh *shard.Shard) (backup.Section, io.ReadCloser, error) {
	const step = 2 * time.Millisecond
	for deadline := time.Now().Add(ownTimeout); ; {
		if _, leads := sh.Reign(); leads {
			return sh.Snapshot(ctx)
		}
		voters := sh.Report().Voters()
		if len(voters) > 1 || len(voters) == 1 && voters[0] != d.id.Node || time.Now().After(deadline) {
			return backup.Section{}, nil, errors.New("the node is not alone in its cluster: save the snapshot while the cluster runs (--at ADDRESS)")
		}
		select {
		case <-time.After(step):
		case <-ctx.Done():
			return backup.Section{}, nil, context.Cause(ctx)
		}
	}
}

type stopped struct {
	io.ReadCloser
	shard *shard.Shard
}

func (s *stopped) Close() error {
	return errors.Join(s.ReadCloser.Close(), s.shard.Stop(context.Background()))
}

// CheckSnapshot reads a whole file and returns what it has, or what is wrong with it.
func CheckSnapshot(path string) (Snapshot, error) {
	h, err := backup.Check(path)
	if err != nil {
		return Snapshot{}, fmt.Errorf("check the snapshot %s: %w", path, err)
	}
	return describe(h), nil
}

// shard returns the file of a shard.
func (d *dirs) shard(id placement.ShardID) string {
	return filepath.Join(d.shards(), fmt.Sprintf("%04d.db", id))
}
