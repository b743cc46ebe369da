package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/holdfast-run/holdfast/runtime"
)

const snapshotUsage = usageError("usage: node snapshot save FILE [--data DIR [--log-dir DIR]], node snapshot check FILE, or node snapshot restore FILE --data DIR [--log-dir DIR]")

// snapshot saves, checks and restores snapshots of a whole cluster. SIGINT and SIGTERM end it in
// good order.
func snapshot(args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("snapshot", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	secret := f.String("cluster-secret-file", getenv("HOLDFAST_CLUSTER_SECRET_FILE"), "")
	at := f.String("at", orElse(getenv("HOLDFAST_AT"), orElse(getenv("HOLDFAST_CLUSTER_LISTEN"), defaults().ClusterListen)), "")
	data := f.String("data", "", "")
	log := f.String("log-dir", "", "")
	asJSON := f.Bool("json", false, "")
	plain, err := parseMixed(f, args)
	if err != nil {
		return usageError(fmt.Sprintf("snapshot: %v", err))
	}
	if len(plain) != 2 || *log != "" && *data == "" {
		return snapshotUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var s runtime.Snapshot
	done := ""
	switch what, path := plain[0], plain[1]; {
	case what == "save" && *data != "":
		s, err = runtime.SaveStopped(ctx, path, *data, *log, progress(stderr))
		done = fmt.Sprintf("saved %d shards of cluster %s in %s", s.Shards, s.Cluster, path)
	case what == "save":
		s, err = saveRunning(ctx, *secret, *at, path, stderr)
		done = fmt.Sprintf("saved %d shards of cluster %s in %s", s.Shards, s.Cluster, path)
	case what == "check" && *data == "":
		s, err = runtime.CheckSnapshot(path)
		done = fmt.Sprintf("%s is whole: %d shards of cluster %s, saved at %s by version %s", path, s.Shards, s.Cluster, s.Time.Format(time.RFC3339), s.Version)
	case what == "restore" && *data != "":
		s, err = runtime.RestoreSnapshot(ctx, path, *data, *log, progress(stderr))
		done = fmt.Sprintf("restored %d shards of cluster %s: %s is now node %s, the first of the new cluster %s", s.Shards, s.Cluster, *data, s.Node, s.New)
	default:
		return snapshotUsage
	}
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(stdout).Encode(s)
	}
	_, err = fmt.Fprintln(stdout, done)
	return err
}

func saveRunning(ctx context.Context, secret, at, path string, stderr io.Writer) (runtime.Snapshot, error) {
	if secret == "" {
		return runtime.Snapshot{}, errors.New("the cluster's secret is missing (--cluster-secret-file); a node that runs alone is stopped first, and saved with --data DIR")
	}
	admin, err := runtime.Connect(runtime.Cluster{SecretFile: secret}, at)
	if err != nil {
		return runtime.Snapshot{}, err
	}
	defer func() { _ = admin.Close() }() //nolint:contextcheck // nothing is under way any more
	return admin.SaveSnapshot(ctx, path, progress(stderr))
}

// progress writes a line once a second.
func progress(w io.Writer) runtime.Progress {
	last := time.Now()
	return func(done, shards int, bytes int64) {
		if time.Since(last) >= time.Second {
			last = time.Now()
			fmt.Fprintf(w, "%d of %d shards, %d MiB\n", done, shards, bytes>>20)
		}
	}
}
