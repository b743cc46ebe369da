package replica

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLogger gives Raft's log to slog. What Raft calls information is of use for debugging
// only.
type raftLogger struct {
	hclog.Logger // does nothing; for the methods that Raft does not use
	log          *slog.Logger
}

func newRaftLogger(log *slog.Logger) hclog.Logger {
	return raftLogger{hclog.NewNullLogger(), log}
}

func (l raftLogger) Log(level hclog.Level, msg string, args ...any) {
	switch level {
	case hclog.Error:
		l.emit(slog.LevelError, msg, args)
	case hclog.Warn:
		l.emit(slog.LevelWarn, msg, args)
	case hclog.NoLevel, hclog.Trace, hclog.Debug, hclog.Info, hclog.Off:
		l.emit(slog.LevelDebug, msg, args)
	}
}

func (l raftLogger) Trace(msg string, args ...any) { l.emit(slog.LevelDebug, msg, args) }
func (l raftLogger) Debug(msg string, args ...any) { l.emit(slog.LevelDebug, msg, args) }
func (l raftLogger) Info(msg string, args ...any)  { l.emit(slog.LevelDebug, msg, args) }
func (l raftLogger) Warn(msg string, args ...any)  { l.emit(slog.LevelWarn, msg, args) }
func (l raftLogger) Error(msg string, args ...any) { l.emit(slog.LevelError, msg, args) }

func (l raftLogger) With(args ...any) hclog.Logger {
	return raftLogger{l.Logger, slog.New(l.log.Handler().WithAttrs(attrs(args)))}
}

func (l raftLogger) emit(level slog.Level, msg string, args []any) {
	if ctx := context.Background(); l.log.Enabled(ctx, level) {
		l.log.LogAttrs(ctx, level, "raft: "+msg, attrs(args)...) //nolint:sloglint // the library's words are what there is to say
	}
}

// attrs turns hclog's keys and values into attributes.
func attrs(args []any) []slog.Attr {
	list := make([]slog.Attr, 0, len(args)/2)
	for i := 0; i+1 < len(args); i += 2 {
		value := args[i+1]
		if f, ok := value.(hclog.Format); ok && len(f) > 0 {
			value = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
		list = append(list, slog.Any(fmt.Sprint(args[i]), value))
	}
	return list
}
