// Package keeper is the parent of every container: the keeper process, and
// the node's hold on it.
package keeper

import (
	"context"
	"log/slog"

	"berth/base/errs"
)

// ServeConfig is what a keeper process needs.
type ServeConfig struct {
	Socket  string // unix SOCK_SEQPACKET, mode 0600, root only
	PidFile string
	Cgroup  bool // leave the node's cgroup for one of its own, where that is possible
	Log     *slog.Logger
}

// Serve is the keeper process (`berth keeper`): it never returns while
// processes live, unless a forced Shutdown says so. Call it before anything
// heavy is loaded, as the only work of its process.
func Serve(ctx context.Context, c ServeConfig) error { return errs.Unsupported }
