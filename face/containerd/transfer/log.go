package transfer

import (
	"context"
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// quietly lets what the library has to say, most of it about retries, be heard
// by who looks for it, in the node's own log.
func (s *Service) quietly(ctx context.Context) context.Context {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.AddHook(heard{ctx, s.Log})
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
	h.log.DebugContext(h.ctx, "a transfer goes on", fields...)
	return nil
}
