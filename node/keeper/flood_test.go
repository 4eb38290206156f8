package keeper_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"berth/node/keeper"
)

func flood(b *testing.B, dir, id, script string) {
	b.Helper()
	exits := make(chan keeper.Exit, 1)
	k, err := keeper.Open(b.Context(), keeper.Config{
		Socket: dir + "/keeper.sock", PidFile: dir + "/keeper.pid", Command: command(dir),
		Exited: func(e keeper.Exit) { exits <- e }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	r := &rig{dir: dir}
	l := r.script(id, script)
	l.Log.MaxSize, l.Log.MaxFiles = 16<<20, 2
	if _, err := k.Launch(b.Context(), l); err != nil {
		b.Fatal(err)
	}
	<-exits
	if err := k.Shutdown(b.Context(), true); err != nil {
		b.Error(err)
	}
	cancel()
	<-done
	_ = k.Close()
	logs, _ := filepath.Glob(filepath.Join(dir, id+".log*"))
	for _, name := range logs {
		_ = os.Remove(name)
	}
}
