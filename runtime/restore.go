package runtime

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/backup"
	"github.com/holdfast-run/holdfast/runtime/internal/fsync"
	"github.com/holdfast-run/holdfast/runtime/internal/raftlog"
	"github.com/holdfast-run/holdfast/runtime/internal/shard"
)

// unfinished is a file in the data directory until a restore is complete. No node starts there.
const unfinished = "unfinished-restore"

// RestoreSnapshot makes the directories of a new node, the only one of a new cluster, with the
// objects of a snapshot. log may be "". The directories must be missing or empty; after an error
// they are again.
func RestoreSnapshot(ctx context.Context, path, data, log string, progress Progress) (s Snapshot, err error) {
	fail := func(err error) (Snapshot, error) {
		return Snapshot{}, fmt.Errorf("restore the snapshot %s: %w", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fail(plain(err))
	}
	defer func() { _ = f.Close() }() // it was only read
	in, err := backup.NewReader(f)
	if err != nil {
		return fail(err)
	}
	r, err := newRestore(in, data, log, progress)
	if err != nil {
		return fail(err)
	}
	defer r.dirs.close()
	if err := r.run(ctx); err != nil {
		return fail(errors.Join(err, r.undo()))
	}
	s = describe(in.Header())
	s.Node, s.New = string(r.dirs.id.Node), r.dirs.id.Cluster
	return s, nil
}

type restore struct {
	in       *backup.Reader
	dirs     *dirs
	progress Progress
}

// newRestore takes possession of two empty directories.
func newRestore(in *backup.Reader, data, log string, progress Progress) (_ *restore, err error) {
	d := &dirs{}
	if log == "" {
		log = filepath.Join(data, logDir)
	}
	if d.data, err = filepath.Abs(data); err != nil {
		return nil, err
	}
	if d.log, err = filepath.Abs(log); err != nil {
		return nil, err
	}
	if d.data == d.log {
		return nil, fmt.Errorf("the data and the log directory are both %s: they must differ", d.data)
	}
	for _, dir := range []struct{ role, path string }{{"data", d.data}, {"log", d.log}} {
		if err := vacant(dir.role, dir.path); err != nil {
			return nil, err
		}
	}
	if err := d.claim("data", d.data, []string{logDir}); err != nil {
		return nil, err
	}
	if err := d.claim("log", d.log, nil); err != nil {
		d.close()
		return nil, err
	}
	d.id = identity{
		Format:  format,
		Node:    placement.NodeID(strings.ToLower(rand.Text())),
		Cluster: strings.ToLower(rand.Text()),
		Shards:  in.Header().Shards,
	}
	return &restore{in, d, progress}, nil
}

// vacant returns nil if a directory is missing or has nothing in it.
func vacant(role, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the %s directory %s cannot be read: %w", role, dir, plain(err))
	}
	for _, e := range entries {
		if e.Name() != "lost+found" {
			return fmt.Errorf("the %s directory %s is not empty (it has %q): name an empty or a new one", role, dir, e.Name())
		}
	}
	return nil
}

// run makes everything. The identity comes last: until it is there, and the mark is gone, no
// node starts.
func (r *restore) run(ctx context.Context) error {
	d := r.dirs
	mark := filepath.Join(d.data, unfinished)
	if err := fsync.Replace(mark, nil); err != nil {
		return err
	}
	for _, dir := range []string{d.shards(), d.wal()} {
		if err := makeDir(dir); err != nil {
			return fmt.Errorf("make %s: %w", dir, plain(err))
		}
	}
	if err := r.shards(ctx); err != nil {
		return err
	}
	for _, dir := range []string{d.log, d.data} {
		if err := writeIdentity(dir, d.id); err != nil {
			return err
		}
	}
	if err := os.Remove(mark); err != nil {
		return err
	}
	return fsync.Dir(d.data)
}

func (r *restore) shards(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	log, err := raftlog.Open(r.dirs.wal(), raftlog.Options{OnFatal: cancel})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	var bytes int64
	for {
		s, state, err := r.in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		err = shard.Restore(log, r.dirs.shard(s.Shard), r.dirs.id.Node, s, attentive{ctx, state}) //nolint:contextcheck // the reader ends with ctx
		if cause := errors.Join(context.Cause(ctx), r.in.Err()); cause != nil {
			return cause // not what followed from it
		}
		if err != nil {
			return fmt.Errorf("shard %d: %w", s.Shard, err)
		}
		bytes += s.Length
		r.progress(int(s.Shard)+1, r.dirs.id.Shards, bytes)
	}
}

// undo empties the directories.
func (r *restore) undo() error {
	return errors.Join(
		os.RemoveAll(r.dirs.shards()),
		os.RemoveAll(r.dirs.wal()),
		remove(filepath.Join(r.dirs.log, identityFile)),
		remove(filepath.Join(r.dirs.log, lockFile)),
		removeEmpty(r.dirs.log, r.dirs.data),
		remove(filepath.Join(r.dirs.data, identityFile)),
		remove(filepath.Join(r.dirs.data, unfinished)),
		remove(filepath.Join(r.dirs.data, lockFile)),
	)
}

// removeEmpty removes a log directory that lies in the data directory.
func removeEmpty(log, data string) error {
	if filepath.Dir(log) != data {
		return nil
	}
	return remove(log)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// attentive stops reading when its context ends.
type attentive struct {
	ctx context.Context
	io.Reader
}

func (a attentive) Read(b []byte) (int, error) {
	if a.ctx.Err() != nil {
		return 0, context.Cause(a.ctx)
	}
	return a.Reader.Read(b)
}

func transportAddr(id placement.NodeID) raft.ServerAddress { return raft.ServerAddress(id) }
