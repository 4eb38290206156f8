// Package quiet has containerd's library speak into the node's own log.
package quiet

import (
	"context"
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// Context is ctx for calls of the library: what it has to say, most of it about
// retries, is heard by who looks for it.
func Context(ctx context.Context, to *slog.Logger) context.Context {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.AddHook(heard{ctx, to})
	return log.WithLogger(ctx, logrus.NewEntry(logger))
}

// heard hands on what is logged.
type heard struct {
	ctx context.Context //nolint:containedctx // a hook is given none
	log *slog.Logger
}

func (heard) Levels() []logrus.Level { return logrus.AllLevels }

func (h heard) Fire(e *logrus.Entry) error {
	fields := []any{"said", e.Message}
	for name, value := range e.Data {
		fields = append(fields, name, value)
	}
	h.log.DebugContext(h.ctx, "containerd's library", fields...)
	return nil
}
