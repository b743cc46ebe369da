package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/holdfast-run/holdfast/runtime"
)

// A verb is a command about a cluster that runs.
type verb struct {
	name  string
	args  []string // what it wants, by name; "[NODE]" may be missing
	about string
	run   func(ctx context.Context, a *runtime.Admin, args []string) (answer, error)
}

// An answer is shown as a table, or as JSON.
type answer interface{ table(w io.Writer) }

func verbs() []verb {
	return []verb{
		{"members", nil, "list the nodes of the cluster", func(ctx context.Context, a *runtime.Admin, _ []string) (answer, error) {
			list, err := a.Members(ctx)
			return members(list), err
		}},
		{"shards", nil, "list the shards, their owners and replicas", func(ctx context.Context, a *runtime.Admin, _ []string) (answer, error) {
			list, err := a.Shards(ctx)
			return shards(list), err
		}},
		{"where", []string{"CLASS", "NAME"}, "say where an object is (id:HEX names it by its ID)", func(ctx context.Context, a *runtime.Admin, args []string) (answer, error) {
			l, err := a.Where(ctx, args[0], args[1])
			return location(l), err
		}},
		{"drain", []string{"[NODE]"}, "move everything away from a node that will be taken out", func(ctx context.Context, a *runtime.Admin, args []string) (answer, error) {
			return done("the node gives up what it owns, then its replicas; `node members` shows how far it is"), a.Drain(ctx, args[0])
		}},
		{"return", []string{"[NODE]"}, "undo drain", func(ctx context.Context, a *runtime.Admin, args []string) (answer, error) {
			return done("the node is given its share again"), a.Return(ctx, args[0])
		}},
		{"remove", []string{"NODE"}, "give up a node that will not come back", func(ctx context.Context, a *runtime.Admin, args []string) (answer, error) {
			return done("the node is removed, and its replicas are made anew on others"), a.Remove(ctx, args[0])
		}},
		{"set", []string{"NAME", "VALUE"}, "change a setting: replicas, voters, lost-after or max-moving", func(ctx context.Context, a *runtime.Admin, args []string) (answer, error) {
			return done("set"), a.Set(ctx, args[0], args[1])
		}},
	}
}

// commandTimeout bounds how long a command waits for the cluster.
const commandTimeout = 30 * time.Second

// command runs a command and returns the exit status.
func command(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	err := dispatch(args, getenv, stdout, stderr)
	var wrong usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &wrong):
		fmt.Fprintf(stderr, "holdfast: %v (node help lists the commands)\n", err)
		return 2
	default:
		fmt.Fprintf(stderr, "holdfast: %v\n", err)
		return 1
	}
}

// A usageError is a mistake in how a command was given.
type usageError string

func (e usageError) Error() string { return string(e) }

func dispatch(args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	name, args := args[0], args[1:]
	switch name {
	case "help":
		help(stdout)
		return nil
	case "secret":
		return secret(args, stdout)
	case "snapshot":
		return snapshot(args, getenv, stdout, stderr)
	case "health":
		return health(args, getenv)
	}
	for _, v := range verbs() {
		if v.name == name {
			return v.do(args, getenv, stdout)
		}
	}
	return usageError(fmt.Sprintf("there is no command %q", name))
}

// secret makes a cluster's secret: on standard output, or in a file unless that is there.
func secret(args []string, stdout io.Writer) error {
	f := flag.NewFlagSet("secret", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	path := f.String("file", "", "")
	if err := f.Parse(args); err != nil || f.NArg() > 0 {
		return usageError("usage: node secret [--file FILE]")
	}
	if *path == "" {
		_, err := fmt.Fprintln(stdout, runtime.NewSecret())
		return err
	}
	file, err := os.OpenFile(*path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make the secret: %w", err)
	}
	_, err = fmt.Fprintln(file, runtime.NewSecret())
	return errors.Join(err, file.Sync(), file.Close())
}

// health asks the node on this machine whether it is ready, for the health checks of
// containers, which may have no other program.
func health(args []string, getenv func(string) string) error {
	f := flag.NewFlagSet("health", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	listen := f.String("listen", orElse(getenv("HOLDFAST_LISTEN"), defaults().Listen), "")
	if err := f.Parse(args); err != nil || f.NArg() > 0 {
		return usageError("usage: node health [--listen ADDRESS]")
	}
	host, port, err := net.SplitHostPort(*listen)
	if err != nil {
		return usageError(fmt.Sprintf("the address %q is not of the form host:port", *listen))
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(context.Background(), healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("the node does not answer: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("the node is not ready: %s", strings.TrimSpace(string(text)))
	}
	return nil
}

const healthTimeout = 3 * time.Second

func (v verb) do(args []string, getenv func(string) string, stdout io.Writer) error {
	s := defaults()
	f := flag.NewFlagSet(v.name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	secret := f.String("cluster-secret-file", getenv("HOLDFAST_CLUSTER_SECRET_FILE"), "")
	at := f.String("at", orElse(getenv("HOLDFAST_AT"), orElse(getenv("HOLDFAST_CLUSTER_LISTEN"), s.ClusterListen)), "")
	asJSON := f.Bool("json", false, "")
	plain, err := parseMixed(f, args)
	if err != nil {
		return usageError(fmt.Sprintf("%s: %v", v.name, err))
	}
	least := len(v.args)
	if least > 0 && strings.HasPrefix(v.args[least-1], "[") {
		least--
	}
	if len(plain) < least || len(plain) > len(v.args) {
		return usageError(fmt.Sprintf("usage: node %s %s", v.name, strings.Join(v.args, " ")))
	}
	for len(plain) < len(v.args) {
		plain = append(plain, "")
	}
	admin, err := runtime.Connect(runtime.Cluster{SecretFile: *secret}, *at)
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close() }() // nothing is under way
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	a, err := v.run(ctx, admin, plain)
	if err != nil {
		return err
	}
	if *asJSON {
		text, err := json.MarshalIndent(a, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(stdout, "%s\n", text)
		return err
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	a.table(w)
	return w.Flush()
}

// parseMixed parses flags that may stand before, between and after other arguments.
func parseMixed(f *flag.FlagSet, args []string) (plain []string, err error) {
	for {
		if err := f.Parse(args); err != nil {
			return nil, err
		}
		if f.NArg() == 0 {
			return plain, nil
		}
		plain = append(plain, f.Arg(0))
		args = f.Args()[1:]
	}
}

func orElse(s, other string) string {
	if s != "" {
		return s
	}
	return other
}

func help(w io.Writer) {
	fmt.Fprint(w, "Usage: node COMMAND [flags]\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "  secret [--file FILE]\tprint a new cluster secret, or write it to a file if there is none\n")
	fmt.Fprint(t, "  health [--listen ADDRESS]\tsay whether the node at its front door is ready\n")
	fmt.Fprint(t, "  snapshot save FILE\tsave the whole cluster; with --data DIR [--log-dir DIR] one node that is stopped\n")
	fmt.Fprint(t, "  snapshot check FILE\tread a snapshot through\n")
	fmt.Fprint(t, "  snapshot restore FILE --data DIR [--log-dir DIR]\tmake the first node of a new cluster of it\n")
	for _, v := range verbs() {
		fmt.Fprintf(t, "  %s\t%s\n", strings.TrimSpace(v.name+" "+strings.Join(v.args, " ")), v.about)
	}
	fmt.Fprint(t, "\nFlags of the others:\n")
	fmt.Fprint(t, "  --cluster-secret-file FILE\tthe cluster's secret (or HOLDFAST_CLUSTER_SECRET_FILE)\n")
	fmt.Fprintf(t, "  --at ADDRESS\tthe --cluster-listen of any node (or HOLDFAST_AT; default: %s)\n", defaults().ClusterListen)
	fmt.Fprint(t, "  --json\tprint JSON\n")
	_ = t.Flush()
}

type members []runtime.Member

func (list members) table(w io.Writer) {
	fmt.Fprint(w, "NODE\tADDRESS\tZONE\tSTATE\tROLE\tOWNS\tREPLICAS\tVERSION\n")
	for _, m := range list {
		role := "member"
		if m.Voter {
			role = "voter"
		}
		if m.Leader {
			role = "leader"
		}
		state := m.State
		if m.Down {
			state += ", down"
		}
		replicas := fmt.Sprint(m.Holds)
		if m.Holds != m.Wanted {
			replicas = fmt.Sprintf("%d of %d", m.Holds, m.Wanted)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", m.ID, m.Addr, orElse(m.Zone, "-"), state, role, m.Owns, replicas, m.Version)
	}
}

type shards []runtime.ShardInfo

func (list shards) table(w io.Writer) {
	fmt.Fprint(w, "SHARD\tOWNER\tEPOCH\tAPPLIED\tVOTERS\tREPLICAS\tSTATE\n")
	for _, s := range list {
		state := "steady"
		switch {
		case s.Owner == "":
			state = "no owner"
		case s.Moving:
			state = "moving"
		case s.Owner != s.Wanted:
			state = "to be handed to " + short(s.Wanted)
		}
		fmt.Fprintf(w, "%d\t%s\t%d\t%d\t%s\t%s\t%s\n", s.ID, orElse(short(s.Owner), "-"), s.Epoch, s.Applied, shorts(s.Voters), shorts(s.Replicas), state)
	}
}

// short returns enough of a node's ID for people; every command takes it.
func short(id string) string { return id[:min(len(id), 6)] }

func shorts(ids []string) string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = short(id)
	}
	return strings.Join(list, ",")
}

type location runtime.Location

func (l location) table(w io.Writer) {
	fmt.Fprintf(w, "object\t%s %s\nid\t%s\nslot\t%d\nshard\t%d\nowner\t%s\naddress\t%s\nreplicas\t%s\n",
		l.Class, l.Name, l.ID, l.Slot, l.Shard, orElse(l.Owner, "nobody at the moment"), l.Addr, strings.Join(l.Replicas, ","))
}

type done string

func (d done) table(w io.Writer) { fmt.Fprintln(w, string(d)) }
