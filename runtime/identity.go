package runtime

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/fsync"
)

// A node's identity is born with its data directory and dies with it. It lies in
// both the data and the log directory, so that neither can be used with another
// node's half: a node that came back under its old ID without its log would have
// forgotten what it promised.
type identity struct {
	Format  int              `json:"format"`
	Node    placement.NodeID `json:"node"`
	Cluster string           `json:"cluster"`
	Shards  int              `json:"shards"`
	// Joined is set if the cluster was there before the node.
	Joined bool `json:"joined,omitempty"`
	// Unborn is set in the data directory until the log directory has its copy:
	// a crash in between leaves a pair that is completed, not refused. As long as there is no
	// Cluster either, the node has only an ID, which it looks for a cluster with.
	Unborn bool `json:"unborn,omitempty"`
}

// format is the version of the layout of both directories that this program writes.
const format = 1

const (
	identityFile = "node.json"
	lockFile     = "LOCK"
	shardsDir    = "shards"
	tableFile    = "placement.table"
	logDir       = "log" // of the data directory, unless Config.Log names another
	walDir       = "raft"
)

// dirs is the pair of directories that a node lives in. It holds their locks.
//
//	DATA/node.json     who the node is
//	DATA/LOCK          held while a node runs
//	DATA/placement.table  which nodes there are, and who holds which shard
//	DATA/shards/       the applied state, one file per shard
//	LOG/node.json      the same identity
//	LOG/LOCK           held while a node runs
//	LOG/raft/          the log of all shards
//
// LOG is DATA/log, or a directory on a disk of its own.
type dirs struct {
	data, log string
	id        identity
	locks     []*os.File
}

// openDirs takes possession of a node's directories, and makes them if they are
// missing or empty; then the node is not born yet. A shards of 0 means what is stored.
// Every error is one sentence that an operator can act upon.
func openDirs(data, log string, shards int) (_ *dirs, err error) {
	if log == "" {
		log = filepath.Join(data, logDir)
	}
	d := &dirs{}
	if d.data, err = filepath.Abs(data); err != nil {
		return nil, fmt.Errorf("find the data directory: %w", err)
	}
	if d.log, err = filepath.Abs(log); err != nil {
		return nil, fmt.Errorf("find the log directory: %w", err)
	}
	if d.data == d.log {
		return nil, fmt.Errorf("the data and the log directory are both %s: they must differ", d.data)
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	for _, dir := range []struct {
		role, path string
		known      []string
	}{
		{"data", d.data, []string{shardsDir, logDir}},
		{"log", d.log, []string{walDir}},
	} {
		if err := d.claim(dir.role, dir.path, dir.known); err != nil {
			return nil, err
		}
	}
	if err := d.identify(shards); err != nil {
		return nil, err
	}
	for _, dir := range []string{d.shards(), d.wal()} {
		if err := makeDir(dir); err != nil {
			return nil, fmt.Errorf("make %s: %w", dir, plain(err))
		}
	}
	return d, nil
}

// shards returns the directory of the shards' files.
func (d *dirs) shards() string { return filepath.Join(d.data, shardsDir) }

// table returns the file of the placement table.
func (d *dirs) table() string { return filepath.Join(d.data, tableFile) }

// incarnation returns the file that counts the node's lives in the gossip.
func (d *dirs) incarnation() string { return filepath.Join(d.data, "gossip.incarnation") }

// wal returns the directory of the log engine.
func (d *dirs) wal() string { return filepath.Join(d.log, walDir) }

// close releases the locks.
func (d *dirs) close() {
	for _, f := range d.locks {
		_ = f.Close() // nothing was written that could be lost
	}
	d.locks = nil
}

// claim makes sure that a directory exists, is ours or empty, can be written, and
// is used by no other process.
func (d *dirs) claim(role, dir string, known []string) error {
	if err := makeDir(dir); err != nil {
		return fmt.Errorf("the %s directory %s cannot be made: %w", role, dir, plain(err))
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("the %s directory %s cannot be read: %w", role, dir, plain(err))
	}
	if name, foreign := foreignEntry(entries, known); foreign {
		return fmt.Errorf("the %s directory %s is not empty and not a node's (it has %q): name an empty or a new one", role, dir, name)
	}
	lock, err := lockDir(filepath.Join(dir, lockFile))
	if errors.Is(err, errLocked) {
		return fmt.Errorf("the %s directory %s is in use by another node%s", role, dir, holder(dir))
	}
	if err != nil {
		return fmt.Errorf("the %s directory %s is not writable: %w", role, dir, plain(err))
	}
	d.locks = append(d.locks, lock)
	// For the sentence of whoever comes second. Without it, on a full disk, that
	// sentence is only shorter.
	if lock.Truncate(0) == nil {
		_, _ = fmt.Fprint(lock, os.Getpid())
	}
	return nil
}

// foreignEntry returns what a directory without an identity holds that a node
// would not have left there.
func foreignEntry(entries []fs.DirEntry, known []string) (string, bool) {
	ours := map[string]bool{lockFile: true, identityFile + fsync.Next: true, "lost+found": true}
	for _, name := range known {
		ours[name] = true
	}
	var foreign string
	for _, e := range entries {
		if e.Name() == identityFile {
			return "", false
		}
		if !ours[e.Name()] && foreign == "" {
			foreign = e.Name()
		}
	}
	return foreign, foreign != ""
}

// identify reads the identity of both directories, or gives them one.
func (d *dirs) identify(shards int) error {
	data, err := readIdentity(d.data)
	if err != nil {
		return err
	}
	log, err := readIdentity(d.log)
	if err != nil {
		return err
	}
	switch {
	case data == nil && log == nil:
		if _, err := placement.Even(cmp.Or(shards, placement.DefaultShards)); err != nil {
			return err
		}
		d.id = identity{Format: format, Node: placement.NodeID(strings.ToLower(rand.Text())), Unborn: true}
		return writeIdentity(d.data, d.id)
	case data == nil:
		return fmt.Errorf("the log directory %s belongs to node %s, but the data directory %s is empty: give the node its own data directory, or a new log directory", d.log, log.Node, d.data)
	case data.Unborn && data.Cluster == "" && log == nil:
		d.id = *data
		return nil
	case data.Unborn && data.Cluster != "" && (log == nil || log.Node == data.Node):
		return d.birth(*data)
	case log == nil:
		return fmt.Errorf("the data directory %s belongs to node %s, but the log directory %s is empty: give the node its own log directory, or a new data directory", d.data, data.Node, d.log)
	case *data != *log:
		return fmt.Errorf("the data directory %s belongs to node %s and the log directory %s to node %s: they must be of one node", d.data, data.Node, d.log, log.Node)
	case shards != 0 && shards != data.Shards:
		return fmt.Errorf("the data directory %s was made with %d shards, not %d: the number cannot be changed", d.data, data.Shards, shards)
	}
	d.id = *data
	return nil
}

// born reports whether the node belongs to a cluster, be it one of its own.
func (d *dirs) born() bool { return !d.id.Unborn }

// found makes the node the first of a new cluster, with a number of shards; 0 means the default.
func (d *dirs) found(shards int) error {
	return d.birth(identity{
		Format:  format,
		Node:    d.id.Node,
		Cluster: strings.ToLower(rand.Text()),
		Shards:  cmp.Or(shards, placement.DefaultShards),
	})
}

// join makes the node one of a cluster that there is.
func (d *dirs) join(cluster string, shards int) error {
	return d.birth(identity{Format: format, Node: d.id.Node, Cluster: cluster, Shards: shards, Joined: true})
}

// birth writes a new identity: as unborn into the data directory, into the log
// directory, and then as complete into the data directory.
func (d *dirs) birth(id identity) error {
	if _, err := placement.Even(id.Shards); err != nil {
		return err
	}
	id.Unborn = true
	if err := writeIdentity(d.data, id); err != nil {
		return err
	}
	id.Unborn = false
	if err := writeIdentity(d.log, id); err != nil {
		return err
	}
	d.id = id
	return writeIdentity(d.data, id)
}

// readIdentity returns nil if there is none.
func readIdentity(dir string) (*identity, error) {
	path := filepath.Join(dir, identityFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's identity: %w", err)
	}
	var id identity
	if err := json.Unmarshal(text, &id); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w; restore it from the other of the node's two directories, where it is the same", path, err)
	}
	if id.Format > format {
		return nil, fmt.Errorf("%s has format %d and this program knows only up to %d: run the newer version", dir, id.Format, format)
	}
	if id.Unborn && id.Cluster == "" && id.Node != "" && id.Format >= 1 {
		return &id, nil
	}
	if _, err := placement.Even(id.Shards); err != nil || id.Format < 1 || id.Node == "" || id.Cluster == "" {
		return nil, fmt.Errorf("%s is not a node's identity; restore it from the other of the node's two directories, where it is the same", path)
	}
	return &id, nil
}

func writeIdentity(dir string, id identity) error {
	text, err := json.MarshalIndent(id, "", "\t")
	if err != nil {
		return err
	}
	if err := fsync.Replace(filepath.Join(dir, identityFile), append(text, '\n')); err != nil {
		return fmt.Errorf("write the node's identity: %w", err)
	}
	return nil
}

// holder returns who holds a directory's lock, if it is known.
func holder(dir string) string {
	text, err := os.ReadFile(filepath.Join(dir, lockFile))
	if err != nil || len(text) == 0 {
		return ""
	}
	return fmt.Sprintf(" (process %s)", text)
}

// makeDir makes a directory and its parents, each durably.
func makeDir(dir string) error {
	info, err := os.Stat(dir)
	if err == nil {
		if !info.IsDir() {
			return errors.New("it is a file")
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if err := makeDir(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return fsync.Dir(parent)
}

// plain returns the reason of a file error without the operation and the path, which
// the sentence around it has named.
func plain(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}
