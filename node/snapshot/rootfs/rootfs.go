// Package rootfs keeps the trees of snapshots mounted for other processes.
//
// Not every tree can be put together by whoever knows the options of a mount:
// some programs look into the layers by themselves, and would not find the
// bodies of files there. Such a program gets a tree that is mounted already, at
// <dir>/<key>, to bind where it wants it.
//
// The mounts outlive the process that made them. After a reboot they are made
// again when somebody asks for them; what is there of snapshots that are gone,
// Open takes down.
package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Store is what trees are mounted from.
type Store interface {
	Stat(ctx context.Context, key snapshot.Key) (snapshot.Info, error)
	Mount(ctx context.Context, key snapshot.Key, target string) error
	Unmount(ctx context.Context, target string) error
}

// Trees are the mounts below one folder.
type Trees struct {
	dir   string
	store Store

	mu   sync.Mutex
	busy map[snapshot.Key]*turn
}

// turn lets one at a time work on a tree.
type turn struct {
	sync.Mutex
	waiting int
}

// Open makes the folder if need be.
func Open(ctx context.Context, dir string, store Store) (*Trees, error) {
	t := &Trees{dir: dir, store: store, busy: map[snapshot.Key]*turn{}}
	if err := t.open(ctx); err != nil {
		return nil, fmt.Errorf("open mounted trees: %w", err)
	}
	return t, nil
}

func (t *Trees) open(ctx context.Context) error {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		key := snapshot.Key(e.Name())
		info, err := t.store.Stat(ctx, key)
		switch {
		case errs.KindOf(err) == errs.NotFound, err == nil && info.Kind == snapshot.KindCommitted:
			if err := t.Remove(ctx, key); err != nil {
				return err
			}
		case err != nil:
			return err
		}
	}
	return nil
}

// Mounts mounts the tree of an Active snapshot or a View, if it is not yet, and
// says how to bind it. Errors are those of the store's Mount.
func (t *Trees) Mounts(ctx context.Context, key snapshot.Key) ([]snapshot.Mount, error) {
	defer t.take(key)()
	info, err := t.store.Stat(ctx, key)
	if err != nil {
		return nil, err
	}
	target := t.target(key)
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("mount snapshot %s: %w", key, err)
	}
	mounted, err := t.mounted(target)
	if err == nil && !mounted {
		err = t.store.Mount(ctx, key, target)
	}
	if err != nil {
		_ = os.Remove(target)
		return nil, err
	}
	access := "rw"
	if info.Kind == snapshot.KindView {
		access = "ro"
	}
	return []snapshot.Mount{{Type: "bind", Source: target, Options: []string{"rbind", access}}}, nil
}

// Remove takes the tree down; none is no error. Where it is bound it stays.
func (t *Trees) Remove(ctx context.Context, key snapshot.Key) error {
	defer t.take(key)()
	target := t.target(key)
	if err := t.store.Unmount(ctx, target); err != nil {
		return err
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take down snapshot %s: %w", key, err)
	}
	return nil
}

func (t *Trees) target(key snapshot.Key) string { return filepath.Join(t.dir, string(key)) }

// mounted says whether something is mounted on target: it is of another file
// system than the folder it is in.
func (t *Trees) mounted(target string) (bool, error) {
	var at, above unix.Stat_t
	for path, st := range map[string]*unix.Stat_t{target: &at, t.dir: &above} {
		if err := unix.Lstat(path, st); err != nil {
			return false, &os.PathError{Op: "stat", Path: path, Err: err}
		}
	}
	return at.Dev != above.Dev, nil
}

// take waits for its turn on a tree and returns what ends it.
func (t *Trees) take(key snapshot.Key) (done func()) {
	t.mu.Lock()
	mine := t.busy[key]
	if mine == nil {
		mine = &turn{}
		t.busy[key] = mine
	}
	mine.waiting++
	t.mu.Unlock()
	mine.Lock()
	return func() {
		mine.Unlock()
		t.mu.Lock()
		defer t.mu.Unlock()
		if mine.waiting--; mine.waiting == 0 {
			delete(t.busy, key)
		}
	}
}
