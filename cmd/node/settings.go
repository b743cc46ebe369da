package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/jsonc"
)

// settings are what a node can be told. Flags win over environment variables, those
// over the configuration file, and that over the defaults.
type settings struct {
	Listen      string     `json:"listen"`
	Data        string     `json:"data"`
	LogDir      string     `json:"logDir"`
	LogLevel    slog.Level `json:"logLevel"`
	LogFormat   string     `json:"logFormat"`
	DebugListen string     `json:"debugListen"`
	Hosts       list       `json:"hosts"`
	Origins     list       `json:"origins"`

	SecretFile      string `json:"clusterSecretFile"`
	ClusterListen   string `json:"clusterListen"`
	GossipListen    string `json:"gossipListen"`
	Advertise       string `json:"advertise"`
	Labels          labels `json:"labels"`
	Join            list   `json:"join"`
	Bootstrap       bool   `json:"bootstrap"`
	BootstrapExpect int    `json:"bootstrapExpect"`
	CertificateFile string `json:"clusterCertificateFile"`
	KeyFile         string `json:"clusterKeyFile"`
	AuthoritiesFile string `json:"clusterAuthoritiesFile"`

	// Only in the file: what a cluster is born with, and what is set once.
	Shards       int      `json:"shards"`
	MaxBodyBytes int64    `json:"maxBodyBytes"`
	IdleAfter    duration `json:"idleAfter"`
	StopTimeout  duration `json:"stopTimeout"`

	config  string
	version bool
}

func defaults() settings {
	return settings{Listen: "127.0.0.1:8787", Data: "holdfast-data", LogFormat: "text", ClusterListen: "127.0.0.1:8788"}
}

// load reads the settings from the command line, the environment and the file that
// they may name. The error is flag.ErrHelp if that is what was asked for.
func load(args []string, getenv func(string) string) (settings, error) {
	s := defaults()
	if err := s.apply(args, getenv); err != nil {
		return s, err
	}
	if s.config != "" {
		path := s.config
		s = defaults()
		if err := s.read(path); err != nil {
			return s, err
		}
		if err := s.apply(args, getenv); err != nil {
			return s, err
		}
	}
	return s, s.check()
}

// flags returns the flags, bound to s, with its present values as defaults.
func (s *settings) flags() *flag.FlagSet {
	f := flag.NewFlagSet("node", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&s.Listen, "listen", s.Listen, "serve on this `address`")
	f.StringVar(&s.Data, "data", s.Data, "keep everything in this `directory`")
	f.StringVar(&s.LogDir, "log-dir", s.LogDir, "keep the Raft log in this `directory`, which may be on a disk of its own (default: log in the data directory)")
	f.StringVar(&s.config, "config", s.config, "read more settings from this `file` (wrangler.jsonc, section \"holdfast\")")
	f.TextVar(&s.LogLevel, "log-level", s.LogLevel, "log from this `level` on: debug, info, warn or error")
	f.StringVar(&s.LogFormat, "log-format", s.LogFormat, "log as text or json")
	f.StringVar(&s.DebugListen, "debug-listen", s.DebugListen, "serve Go's profiles (/debug/pprof) on this `address`; keep it private (default: not at all)")
	f.StringVar(&s.SecretFile, "cluster-secret-file", s.SecretFile, "be one of a cluster that shares the secret in this `file`; `node secret` makes one")
	f.StringVar(&s.ClusterListen, "cluster-listen", s.ClusterListen, "serve the other nodes of the cluster on this `address`")
	f.StringVar(&s.GossipListen, "gossip-listen", s.GossipListen, "gossip on this `address`, TCP and UDP (default: the port after that of --cluster-listen)")
	f.StringVar(&s.Advertise, "advertise", s.Advertise, "the `host` or host:port at which the other nodes reach this one (default: that of --cluster-listen)")
	f.Var(&s.Labels, "label", "`name=value`: zone=a says where the node stands; replicas are spread over zones")
	f.Var(&s.Join, "join", "join the cluster of the nodes with these `addresses` (their --cluster-listen), with commas between")
	f.BoolVar(&s.Bootstrap, "bootstrap", s.Bootstrap, "found a new cluster, if the data directory is new")
	f.IntVar(&s.BootstrapExpect, "bootstrap-expect", s.BootstrapExpect, "found a new cluster as soon as this `number` of new nodes that --join names have started")
	f.StringVar(&s.CertificateFile, "cluster-cert-file", s.CertificateFile, "prove the node to others with the certificate in this `file` instead of one made from the secret")
	f.StringVar(&s.KeyFile, "cluster-key-file", s.KeyFile, "the certificate's key `file`")
	f.StringVar(&s.AuthoritiesFile, "cluster-ca-file", s.AuthoritiesFile, "the `file` of the authorities that prove other nodes")
	f.Var(&s.Hosts, "hosts", "answer to these `names`, separated by commas; * is any (default: localhost and IP addresses on loopback, otherwise any)")
	f.Var(&s.Origins, "origins", "let web pages of these foreign `origins` open WebSockets, call methods and create objects")
	f.BoolVar(&s.version, "version", false, "print the version and exit")
	return f
}

func (s *settings) apply(args []string, getenv func(string) string) error {
	f := s.flags()
	var err error
	f.VisitAll(func(fl *flag.Flag) {
		if v := getenv(envName(fl.Name)); v != "" && err == nil {
			if e := fl.Value.Set(v); e != nil {
				err = fmt.Errorf("environment variable %s=%q: %w", envName(fl.Name), v, reason(e))
			}
		}
	})
	if err != nil {
		return err
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: every setting is a flag, such as --data %[1]s", f.Arg(0))
	}
	return nil
}

// envName returns the environment variable of a flag: log-dir is HOLDFAST_LOG_DIR.
func envName(flag string) string {
	return "HOLDFAST_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// reason says what is wrong with a value in fewer words than strconv.
func reason(err error) error {
	if errors.Is(err, strconv.ErrSyntax) {
		return errors.New("not a value of its type")
	}
	return err
}

// read takes the section "holdfast" of a wrangler.jsonc. What is wrangler's own is
// for wrangler; any other key is a mistake.
func (s *settings) read(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	text = jsonc.ToJSON(text)
	var sections map[string]json.RawMessage
	if err := json.Unmarshal(text, &sections); err != nil {
		return fmt.Errorf("read the configuration: %s%s: %w", path, position(text, err), err)
	}
	for key := range sections {
		if key != "holdfast" && !wranglerKeys[key] {
			return fmt.Errorf("read the configuration: %s: unknown key %q (a node's own settings are in the section \"holdfast\")", path, key)
		}
	}
	if sections["holdfast"] == nil {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(sections["holdfast"]))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		return fmt.Errorf("read the configuration: %s, section \"holdfast\": %s", path, strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// position returns the line of a syntax error, as an addition to the file's name.
func position(text []byte, err error) string {
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) {
		return ""
	}
	return fmt.Sprintf(":%d", 1+bytes.Count(text[:min(int(syntax.Offset), len(text))], []byte("\n")))
}

func (s *settings) check() error {
	if s.LogFormat != "text" && s.LogFormat != "json" {
		return fmt.Errorf("the log format is %q, want text or json", s.LogFormat)
	}
	if s.SecretFile == "" {
		for name, set := range map[string]bool{"--join": len(s.Join) > 0, "--bootstrap": s.Bootstrap, "--bootstrap-expect": s.BootstrapExpect > 0} {
			if set {
				return fmt.Errorf("%s is for a cluster, and a cluster needs --cluster-secret-file", name)
			}
		}
	}
	addrs := []string{s.Listen}
	if s.DebugListen != "" {
		addrs = append(addrs, s.DebugListen)
	}
	for _, addr := range addrs {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("the address %q is not of the form host:port", addr)
		}
	}
	return nil
}

// usage prints what --help shows.
func usage(w io.Writer) {
	s := defaults()
	var b strings.Builder
	b.WriteString("Usage: node [flags]\n       node COMMAND [flags]   (node help lists the commands)\n\nRuns a Holdfast node: durable objects with WebSockets, on this machine's disk.\n\n")
	s.flags().VisitAll(func(f *flag.Flag) {
		value, text := flag.UnquoteUsage(f)
		fmt.Fprintf(&b, "  --%-28s %s", strings.TrimSpace(f.Name+" "+strings.ToUpper(value)), text)
		if f.DefValue != "" && f.DefValue != "false" {
			fmt.Fprintf(&b, " (default: %s)", f.DefValue)
		}
		b.WriteByte('\n')
	})
	b.WriteString("  --help                         print this and exit\n")
	b.WriteString("\nEach flag has an environment variable: --log-dir is HOLDFAST_LOG_DIR.\nFlags win over the environment, the environment over the file.\n")
	_, _ = io.WriteString(w, b.String())
}

// A list is written with commas as a flag, and as an array in the file.
type list []string

// String implements [flag.Value].
func (l *list) String() string { return strings.Join(*l, ",") }

// Set implements [flag.Value].
func (l *list) Set(text string) error {
	*l = nil
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			*l = append(*l, item)
		}
	}
	return nil
}

// Labels say where a node stands.
type labels struct {
	Zone string `json:"zone"`
}

func (l *labels) String() string {
	if l.Zone == "" {
		return ""
	}
	return "zone=" + l.Zone
}

func (l *labels) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name != "zone" || value == "" {
		return errors.New("the only label is zone=NAME")
	}
	l.Zone = value
	return nil
}

// A duration is a time.Duration that is written "10s".
type duration time.Duration

// UnmarshalText reads what time.ParseDuration reads, and nothing below zero.
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return err
	}
	if v < 0 {
		return fmt.Errorf("the duration %s is negative", text)
	}
	*d = duration(v)
	return nil
}
