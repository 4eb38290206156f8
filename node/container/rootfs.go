package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"berth/base/errs"
	"berth/node/snapshot"
)

// rootfs counts who needs a container's root mounted: its process, and whoever
// reads or writes files of a container that does not run.
type rootfs struct {
	mu    sync.Mutex
	users int
}

// rootDir is where a container's root is mounted while somebody needs it.
func (s *Set) rootDir(id string) string { return filepath.Join(s.bundleDir(id), "rootfs") }

// mountRoot mounts the container's root, if it is not, until unmountRoot.
func (s *Set) mountRoot(ctx context.Context, c *container) (dir string, err error) {
	c.root.mu.Lock()
	defer c.root.mu.Unlock()
	dir = s.rootDir(c.id)
	if c.root.users == 0 {
		if err := makeBundle(s.bundleDir(c.id)); err != nil {
			return "", fmt.Errorf("make the folder for the root: %w", err)
		}
		key, err := s.rootKey(ctx, c)
		if err != nil {
			return "", errors.Join(err, s.clearBundle(c.id))
		}
		if err := s.Snapshots.Mount(ctx, key, dir); err != nil {
			return "", errors.Join(fmt.Errorf("mount the root: %w", err), s.clearBundle(c.id))
		}
	}
	c.root.users++
	return dir, nil
}

// unmountRoot ends one need of the root; with the last one the mount goes, and
// the bundle with it.
func (s *Set) unmountRoot(ctx context.Context, c *container) error {
	c.root.mu.Lock()
	defer c.root.mu.Unlock()
	c.root.users--
	if c.root.users > 0 {
		return nil
	}
	c.root.users = 0
	return s.dropRoot(ctx, c.id)
}

// dropRoot unmounts the root and removes the bundle, whoever mounted it.
func (s *Set) dropRoot(ctx context.Context, id string) error {
	if err := s.Snapshots.Unmount(ctx, s.rootDir(id)); err != nil {
		return fmt.Errorf("unmount the root: %w", err)
	}
	return s.clearBundle(id)
}

// clearBundle removes what is in the bundle's folder, but never goes down into
// a folder: the root may still be mounted there.
func (s *Set) clearBundle(id string) error {
	return clearDir(s.bundleDir(id))
}

// clearDir removes a folder of files and empty folders.
func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	failed := err
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil {
		return failed
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// rootKey is the snapshot that is the container's root. errs.Unsupported: only
// the client knows it that made the container.
func (s *Set) rootKey(ctx context.Context, c *container) (snapshot.Key, error) {
	g := c.given.Load()
	switch {
	case g == nil:
		return snapshot.Key(c.id), nil
	case g.Owned && g.SnapshotKey != "":
		return snapshot.Key(g.SnapshotKey), nil
	case g.SnapshotKey == "" || s.Layers == nil:
		return "", errs.New(errs.Unsupported, "container %s was made by another client, which keeps its files", c.name())
	}
	return s.Layers(ctx, g.Namespace, g.Snapshotter, g.SnapshotKey)
}

// withRoot runs fn with the container's root mounted, whether it runs or not.
func (s *Set) withRoot(ctx context.Context, c *container, fn func(dir string) error) (err error) {
	if c.given.Load() != nil {
		if t := c.task.Load(); t.live() {
			return fn(t.Root)
		}
		// A task that is made meanwhile would mount its root above ours.
		if err := c.op.Lock(ctx); err != nil {
			return fmt.Errorf("container %s is busy: %w", c.name(), err)
		}
		defer c.op.Unlock()
		if t := c.task.Load(); t.live() {
			return fn(t.Root)
		}
		if s.isMounted(c.id) {
			return fn(s.rootDir(c.id))
		}
	}
	dir, err := s.mountRoot(ctx, c)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.name(), err)
	}
	defer func() { err = errors.Join(err, s.unmountRoot(context.WithoutCancel(ctx), c)) }()
	return fn(dir)
}
