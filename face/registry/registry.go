// Package registry answers the OCI distribution protocol out of a folder:
// the registry of `berth registry`. It is a program's whole registry, made
// for one machine and for tests: no accounts, no TLS, deletion allowed.
package registry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the driver named below; the library knows drivers by import
	"github.com/sirupsen/logrus"

	"berth/base/errs"
)

// Handler serves the registry kept in dir, which it makes if need be. What
// runs behind it (old uploads are removed) ends with ctx.
//
// The library logs through one logger of the whole process; Handler leads
// it to log, that of the last call. Its metrics are not switched on.
func Handler(ctx context.Context, dir string, log *slog.Logger) (_ http.Handler, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	lead(ctx, log)
	defer func() { // the library's way to say that it cannot begin
		if p := recover(); p != nil {
			err = errs.New(errs.Internal, "open registry in %s: %v", dir, p)
		}
	}()
	return handlers.NewApp(ctx, settings(dir)), nil
}

func settings(dir string) *configuration.Configuration {
	c := &configuration.Configuration{
		Version: configuration.CurrentVersion,
		Storage: configuration.Storage{
			"filesystem": {"rootdirectory": dir},
			"delete":     {"enabled": true},
			"redirect":   {"disable": true},
			"cache":      {"blobdescriptor": "inmemory"},
		},
	}
	// An index may be pushed with only the platforms that are at hand.
	c.Validation.Manifests.Indexes.Platforms = "none"
	c.Catalog.MaxEntries = 1000
	return c
}

// lead makes the library's logger write to log: failures as warnings, what
// it does at each request as debugging.
func lead(ctx context.Context, log *slog.Logger) {
	l := logrus.StandardLogger()
	l.SetOutput(io.Discard)
	l.SetFormatter(silent{})
	l.SetLevel(logrus.ErrorLevel)
	if log.Enabled(ctx, slog.LevelDebug) {
		l.SetLevel(logrus.InfoLevel)
	}
	l.ReplaceHooks(logrus.LevelHooks{})
	l.AddHook(hook(func(e *logrus.Entry) {
		level := slog.LevelDebug
		if e.Level <= logrus.ErrorLevel && !answered(e) {
			level = slog.LevelWarn
		}
		log.Log(ctx, level, "registry", "text", e.Message, "error", e.Data["err.message"])
	}))
}

// answered says whether the entry is about a request that got its answer,
// such as "blob unknown": the client's business, not the log's.
func answered(e *logrus.Entry) bool {
	_, ok := e.Data["err.code"]
	return ok
}

type hook func(*logrus.Entry)

func (hook) Levels() []logrus.Level { return logrus.AllLevels }

func (h hook) Fire(e *logrus.Entry) error { h(e); return nil }

// silent spares the work of formatting what goes to io.Discard.
type silent struct{}

func (silent) Format(*logrus.Entry) ([]byte, error) { return nil, nil }
