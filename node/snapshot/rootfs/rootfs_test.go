package rootfs_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
	"berth/node/snapshot/rootfs"
)

// store mounts a tmpfs that holds a file with the key, for each of kinds.
type store struct {
	kinds  map[snapshot.Key]snapshot.Kind
	fail   error
	mounts atomic.Int64
}

func (s *store) Stat(_ context.Context, key snapshot.Key) (snapshot.Info, error) {
	kind, ok := s.kinds[key]
	if !ok {
		return snapshot.Info{}, errs.New(errs.NotFound, "no snapshot %s", key)
	}
	return snapshot.Info{Key: key, Kind: kind}, nil
}

func (s *store) Mount(_ context.Context, key snapshot.Key, target string) error {
	if s.fail != nil {
		return s.fail
	}
	s.mounts.Add(1)
	if err := unix.Mount("tmpfs", target, "tmpfs", 0, "size=64k"); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(target, "key"), []byte(key), 0o600)
}

func (s *store) Unmount(_ context.Context, target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newTrees(t *testing.T, s *store) (dir string, trees *rootfs.Trees) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir = filepath.Join(t.TempDir(), "trees")
	trees, err := rootfs.Open(t.Context(), dir, s)
	must(t, err)
	t.Cleanup(func() {
		for key := range s.kinds {
			must(t, trees.Remove(context.Background(), key))
		}
	})
	return dir, trees
}

func left(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A tree is mounted once, however many ask, and again after its mount was lost.
func TestMounts(t *testing.T) {
	s := &store{kinds: map[snapshot.Key]snapshot.Kind{"work": snapshot.KindActive, "look": snapshot.KindView}}
	dir, trees := newTrees(t, s)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			mounts, err := trees.Mounts(t.Context(), "work")
			if err != nil || len(mounts) != 1 || mounts[0].Type != "bind" || mounts[0].Options[1] != "rw" {
				t.Errorf("%v, %v", mounts, err)
				return
			}
			if body, err := os.ReadFile(filepath.Join(mounts[0].Source, "key")); err != nil || string(body) != "work" {
				t.Errorf("the tree shows %q, %v", body, err)
			}
		})
	}
	all.Wait()
	if n := s.mounts.Load(); n != 1 {
		t.Errorf("mounted %d times", n)
	}
	again, err := rootfs.Open(t.Context(), dir, s) // as after a crash
	must(t, err)
	_, err = again.Mounts(t.Context(), "work")
	must(t, err)
	if n := s.mounts.Load(); n != 1 {
		t.Errorf("mounted again after a restart")
	}
	must(t, unix.Unmount(filepath.Join(dir, "work"), 0)) // as a reboot does
	_, err = again.Mounts(t.Context(), "work")
	must(t, err)
	if n := s.mounts.Load(); n != 2 {
		t.Errorf("not mounted again after a reboot")
	}
	mounts, err := trees.Mounts(t.Context(), "look")
	if err != nil || mounts[0].Options[1] != "ro" {
		t.Errorf("a view: %v, %v", mounts, err)
	}
	must(t, trees.Remove(t.Context(), "work"))
	must(t, trees.Remove(t.Context(), "work"))
	if names := left(t, dir); len(names) != 1 {
		t.Errorf("left %q", names)
	}
}

// What cannot be mounted leaves nothing.
func TestFailures(t *testing.T) {
	s := &store{kinds: map[snapshot.Key]snapshot.Kind{"work": snapshot.KindActive}, fail: errs.New(errs.Unavailable, "not now")}
	dir, trees := newTrees(t, s)
	if _, err := trees.Mounts(t.Context(), "work"); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	if _, err := trees.Mounts(t.Context(), "none"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if names := left(t, dir); len(names) != 0 {
		t.Errorf("left %q", names)
	}
}

// Open takes down the trees of snapshots that are gone, or are layers now.
func TestLeftovers(t *testing.T) {
	s := &store{kinds: map[snapshot.Key]snapshot.Kind{"gone": snapshot.KindActive, "committed": snapshot.KindActive, "work": snapshot.KindActive}}
	dir, trees := newTrees(t, s)
	for key := range s.kinds {
		_, err := trees.Mounts(t.Context(), key)
		must(t, err)
	}
	delete(s.kinds, "gone")
	s.kinds["committed"] = snapshot.KindCommitted
	_, err := rootfs.Open(t.Context(), dir, s)
	must(t, err)
	if names := left(t, dir); len(names) != 1 || names[0] != "work" {
		t.Errorf("left %q", names)
	}
}
