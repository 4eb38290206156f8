package daemon

import (
	"context"
	"io"
	"path/filepath"

	"berth/base/heap"
	"berth/node/keeper"
)

// KeeperConfig says how a keeper runs.
type KeeperConfig struct {
	State     string // as the node's
	LogLevel  string
	LogFormat string
	Log       io.Writer
}

// RunKeeper runs the keeper role: the parent of every container.
func RunKeeper(ctx context.Context, c KeeperConfig) error {
	defer heap.Calm()()
	log, err := newLogger(c.Log, c.LogLevel, c.LogFormat)
	if err != nil {
		return err
	}
	return keeper.Serve(ctx, keeper.ServeConfig{
		Socket:  filepath.Join(c.State, "keeper.sock"),
		PidFile: filepath.Join(c.State, "keeper.pid"),
		Log:     log,
	})
}
