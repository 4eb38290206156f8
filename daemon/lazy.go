package daemon

import (
	"cmp"
	"context"
	"io"
	"os"
	"path/filepath"

	"berth/image/toc"
	"berth/image/tree"
	"berth/node/container"
	"berth/node/image"
	"berth/node/lazy"
	"berth/node/profile"
	"berth/node/snapshot"
)

// LazyConfig says how the process for missing files runs.
type LazyConfig struct {
	Root, State string // as the node's
	LogLevel    string
	LogFormat   string
	Log         io.Writer
}

// RunLazy runs the lazy role: it serves files of images that are not here yet.
func RunLazy(ctx context.Context, c LazyConfig) error {
	log, err := newLogger(c.Log, c.LogLevel, c.LogFormat)
	if err != nil {
		return err
	}
	state := cmp.Or(c.State, DefaultState)
	return lazy.Serve(ctx, lazy.ServeConfig{
		Socket:  filepath.Join(state, "lazy.sock"),
		PidFile: filepath.Join(state, "lazy.pid"),
		Objects: filepath.Join(cmp.Or(c.Root, DefaultRoot), "objects"),
		Log:     log,
	})
}

// lacking is a driver whose layers may lack bodies.
type lacking interface {
	image.Lacking
	// Missing tells it who brings missing bodies. False: this kernel cannot
	// mount such layers.
	Missing(source func(context.Context) (int, error)) bool
	// Bodies are the digests of the files at paths, of those that have one.
	Bodies(ctx context.Context, key snapshot.Key, paths []string) ([]tree.Digest, error)
}

// imageFiles is what containers ask about the files of their images.
type imageFiles struct {
	images   *image.Set
	profiles *profile.Set
}

func (f imageFiles) Whole(ctx context.Context, imageID string) error {
	return f.images.Whole(ctx, imageID)
}

func (f imageFiles) Watch(ctx context.Context, imageID, root string) {
	f.profiles.Watch(ctx, imageID, root)
}

// openLazy prepares for images that are not whole, where the driver and the
// kernel can. If the configuration forbids them, those that are there come to
// their end.
func (n *node) openLazy(ctx context.Context) error {
	store, ok := any(n.snapshots).(lacking)
	if !ok {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	missing, err := lazy.Open(ctx, lazy.Config{
		Socket:  filepath.Join(n.config.State, "lazy.sock"),
		PidFile: filepath.Join(n.config.State, "lazy.pid"),
		Command: []string{self, "lazy", "--root", n.config.Root, "--state", n.config.State, "--log-level", n.config.LogLevel, "--log-format", n.config.LogFormat},
		Bodies:  store, Log: n.log.With("room", "lazy"),
	})
	if err != nil {
		return err
	}
	n.onClose("missing files", missing.Close)
	if _, err := os.Stat("/dev/fuse"); err != nil || !store.Missing(missing.Dir) {
		n.log.DebugContext(ctx, "images must be whole before containers start", "err", err)
		return nil
	}
	tables, err := toc.Open(toc.Config{Dir: filepath.Join(n.config.Root, "indexes", "noted")})
	if err != nil {
		return err
	}
	given, err := toc.Open(toc.Config{Dir: filepath.Join(n.config.Root, "indexes", "given")})
	if err != nil {
		return err
	}
	n.profiles = profile.Open(ctx, profile.Config{
		DB: n.db, Log: n.log.With("room", "profile"),
		Bodies: func(ctx context.Context, imageID string, paths []string) ([]tree.Digest, error) {
			top, err := n.images.Chain(ctx, imageID)
			if err != nil {
				return nil, err
			}
			return store.Bodies(ctx, top, paths)
		},
	})
	n.onClose("profiles", n.profiles.Close)
	n.lazily = &image.Lazily{When: n.config.Registry.Lazy, Store: store, Missing: missing, Tables: tables, Given: given, First: n.profiles.First}
	return nil
}

// files is nil where images are always whole.
func (n *node) files() container.Files {
	if n.lazily == nil {
		return nil
	}
	return imageFiles{n.images, n.profiles}
}
