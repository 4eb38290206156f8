package daemon

import (
	"cmp"
	"io"
	"log/slog"

	"berth/base/errs"
)

// newLogger writes what a daemon says to w, as text or as JSON lines.
func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var options slog.HandlerOptions
	var at slog.Level
	if err := at.UnmarshalText([]byte(cmp.Or(level, "info"))); err != nil {
		return nil, errs.New(errs.Invalid, "log level %q: want debug, info, warn or error", level)
	}
	options.Level = at
	switch cmp.Or(format, "text") {
	case "text":
		return slog.New(slog.NewTextHandler(w, &options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &options)), nil
	}
	return nil, errs.New(errs.Invalid, "log format %q: want text or json", format)
}
