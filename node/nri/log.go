package nri

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/containerd/nri/pkg/log"
)

// logger is what the library writes to. It tells much of each plugin.
type logger struct{ *slog.Logger }

// keepLog makes l what the library writes to, which has one log for all: the
// first one that it is given.
func keepLog(l *slog.Logger) {
	if _, ours := log.Get().(logger); !ours {
		log.Set(logger{l})
	}
}

func (l logger) write(ctx context.Context, level slog.Level, format string, args []any) {
	if l.Enabled(ctx, level) {
		l.Log(ctx, level, "nri", "says", fmt.Sprintf(format, args...))
	}
}

func (l logger) Debugf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelDebug, format, args)
}

func (l logger) Infof(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelDebug, format, args)
}

func (l logger) Warnf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelWarn, format, args)
}

func (l logger) Errorf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelError, format, args)
}
