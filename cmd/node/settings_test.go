package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestPrecedence(t *testing.T) {
	t.Parallel()
	file := write(t, `{
		"name": "worker", // wrangler's
		"holdfast": {
			"listen": "file:1", "data": "file", "logDir": "file", "logLevel": "warn",
			"origins": ["a.example"], "stopTimeout": "3s",
		},
	}`)
	env := map[string]string{"HOLDFAST_LISTEN": "env:2", "HOLDFAST_DATA": "env", "HOLDFAST_CONFIG": file, "HOLDFAST_HOSTS": "b.example, *.c.example"}
	got, err := load([]string{"--listen", "flag:3"}, func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	want := settings{
		Listen:        "flag:3",
		ClusterListen: "127.0.0.1:8788",
		Data:          "env",
		LogDir:        "file",
		LogLevel:      4,
		LogFormat:     "text",
		Hosts:         list{"b.example", "*.c.example"},
		Origins:       list{"a.example"},
		StopTimeout:   duration(3 * time.Second),
		config:        file,
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(settings{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("settings differ (-want +got):\n%s", diff)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file string
		env  map[string]string
		args []string
		want string
	}{
		"typo at the top":      {file: `{"holdfst": {}}`, want: `unknown key "holdfst"`},
		"typo in the section":  {file: `{"holdfast": {"dta": "x"}}`, want: `unknown field "dta"`},
		"not a duration":       {file: `{"holdfast": {"idleAfter": "soon"}}`, want: `invalid duration "soon"`},
		"negative duration":    {file: `{"holdfast": {"idleAfter": "-1s"}}`, want: `is negative`},
		"wrong type":           {file: `{"holdfast": {"shards": "many"}}`, want: `shards of type int`},
		"not JSON":             {file: "{\n\n\"holdfast\": nope}", want: `:3: invalid character`},
		"bad level in the env": {env: map[string]string{"HOLDFAST_LOG_LEVEL": "loud"}, want: `HOLDFAST_LOG_LEVEL="loud"`},
		"bad format":           {env: map[string]string{"HOLDFAST_LOG_FORMAT": "xml"}, want: `"xml"`},
		"argument":             {args: []string{"data"}, want: `unexpected argument "data"`},
		"bad address":          {args: []string{"--debug-listen", "6060"}, want: `"6060" is not of the form host:port`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := c.args
			if c.file != "" {
				args = append(args, "--config", write(t, c.file))
			}
			_, err := load(args, func(k string) string { return c.env[k] })
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestHelpNamesEveryFlag(t *testing.T) {
	t.Parallel()
	if _, err := load([]string{"--help"}, func(string) string { return "" }); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help gives %v", err)
	}
	var b bytes.Buffer
	usage(&b)
	for _, f := range []string{"listen ADDRESS", "data DIRECTORY", "log-dir DIRECTORY", "config FILE", "log-level LEVEL", "log-format", "debug-listen ADDRESS", "hosts NAMES", "origins ORIGINS", "join ADDRESSES", "bootstrap", "bootstrap-expect NUMBER", "cluster-secret-file FILE", "cluster-listen ADDRESS", "gossip-listen ADDRESS", "advertise HOST", "label NAME=VALUE", "version", "help"} {
		if !strings.Contains(b.String(), "  --"+f+" ") {
			t.Errorf("the help lacks --%s:\n%s", f, b.String())
		}
	}
}

func TestReachable(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"127.0.0.1:1": "127.0.0.1:1",
		"[::]:2":      "localhost:2",
		"0.0.0.0:3":   "localhost:3",
		"[::1]:4":     "[::1]:4",
	} {
		if got := reachable(addr); got != want {
			t.Errorf("%s is reachable at %s, want %s", addr, got, want)
		}
	}
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "wrangler.jsonc")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
