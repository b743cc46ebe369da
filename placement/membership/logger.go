package membership

import (
	"context"
	"log"
	"log/slog"
	"strings"
)

// newLogger returns a logger for memberlist, which writes lines like
// "[WARN] memberlist: something".
func newLogger(l *slog.Logger) *log.Logger { return log.New(lines{l}, "", 0) }

type lines struct{ log *slog.Logger }

var levels = map[string]slog.Level{
	"[DEBUG]": slog.LevelDebug,
	"[INFO]":  slog.LevelDebug, // of no interest to an operator
	"[WARN]":  slog.LevelInfo,
	"[ERR]":   slog.LevelWarn, // it goes on
	"[ERROR]": slog.LevelWarn,
}

func (w lines) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	level, text, _ := strings.Cut(line, " ")
	known, ok := levels[level]
	if !ok {
		known, text = slog.LevelInfo, line
	}
	w.log.LogAttrs(context.Background(), known, "gossip", slog.String("what", strings.TrimPrefix(text, "memberlist: ")))
	return len(p), nil
}
