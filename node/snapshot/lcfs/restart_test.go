package lcfs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/node/snapshot"
	"berth/node/snapshot/lcfs"
)

// TestOddPath: where the store's path has characters that mean something to
// overlayfs, a layer is settled when its writer is gone all the same.
func TestOddPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), `a:b,c\d[e]`)
	must(t, os.Mkdir(dir, 0o755))
	s := open(t, dir)
	_, err := s.Prepare(t.Context(), "work", "", nil)
	must(t, err)
	target := t.TempDir()
	must(t, s.Mount(t.Context(), "work", target))
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	must(t, os.WriteFile(filepath.Join(target, "f"), bytes.Repeat([]byte("x"), 5000), 0o644))
	must(t, s.Close()) // the mount outlives the store
	s = open(t, dir)
	_, err = s.Commit(t.Context(), "top", "work", nil)
	must(t, err)
	ctx, stop := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer stop()
	if err := s.Settle(ctx, "top"); err == nil {
		t.Error("settled while a mount writes to it")
	}
	must(t, os.WriteFile(filepath.Join(target, "f"), bytes.Repeat([]byte("y"), 5000), 0o644))
	must(t, unix.Unmount(target, 0))
	must(t, s.Settle(t.Context(), "top"))
	if left := damaged(t, dir); left != "" {
		t.Errorf("object %s has other bytes than its name", left)
	}
	must(t, s.Close())
}

// TestWorkLost: what overlayfs needs beside an upper can be made again; what a
// container wrote stays.
func TestWorkLost(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	_, err := s.Prepare(t.Context(), "work", "", nil)
	must(t, err)
	change(t, s, "work", func(root string) { must(t, os.WriteFile(filepath.Join(root, "f"), []byte("x"), 0o644)) })
	must(t, s.Close())
	for _, id := range folders(t, dir) {
		must(t, os.RemoveAll(filepath.Join(dir, "layers", id, "work")))
	}
	s = open(t, dir)
	change(t, s, "work", func(root string) {
		if _, err := os.Stat(filepath.Join(root, "f")); err != nil {
			t.Error(err)
		}
	})
	must(t, s.Close())
}

// TestCommitAfterRestart: a mount that was made before a restart keeps what it
// stands on when its snapshot is committed under it, until it is gone.
func TestCommitAfterRestart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, func(c *lcfs.Config) { c.Quiet = time.Hour })
	_, err := s.Prepare(t.Context(), "w0", "", nil)
	must(t, err)
	change(t, s, "w0", func(root string) {
		must(t, os.WriteFile(filepath.Join(root, "f"), bytes.Repeat([]byte("x"), 5000), 0o644))
	})
	_, err = s.Commit(t.Context(), "base", "w0", nil)
	must(t, err)
	_, err = s.Prepare(t.Context(), "work", "base", nil)
	must(t, err)
	target := t.TempDir()
	must(t, s.Mount(t.Context(), "work", target))
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	must(t, s.Close())
	s = open(t, dir)
	_, err = s.Commit(t.Context(), "top", "work", nil)
	must(t, err)
	must(t, s.Settle(t.Context(), "base"))
	must(t, s.Sync(t.Context()))
	<-time.After(100 * time.Millisecond) // for what must not happen
	if body, err := os.ReadFile(filepath.Join(target, "f")); err != nil || len(body) != 5000 {
		t.Errorf("the mount reads %d bytes, %v", len(body), err)
	}
	must(t, s.Close())
	s = open(t, dir) // and again
	must(t, s.Settle(t.Context(), "base"))
	must(t, s.Sync(t.Context()))
	<-time.After(100 * time.Millisecond)
	if body, err := os.ReadFile(filepath.Join(target, "f")); err != nil || len(body) != 5000 {
		t.Errorf("after another restart the mount reads %d bytes, %v", len(body), err)
	}
	must(t, unix.Unmount(target, 0))
	must(t, s.Settle(t.Context(), "top"))
	eventually(t, "the layers' folders are gone", func() bool { return len(folders(t, dir)) == 0 })
	must(t, s.Close())
}

// TestCloseWithIngest: a layer that was under way when the store was closed
// leaves nothing.
func TestCloseWithIngest(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	_, err := s.Ingest(t.Context(), pack(t, map[string]string{"f": strings.Repeat("x", 5000)}))
	must(t, err)
	must(t, s.Close())
	s = open(t, dir)
	empty(t, dir)
	must(t, s.Close())
}

// TestKnownBesideWhole: a layer that lacks bodies is mounted with what brings
// them, though another one became whole while it was under way.
func TestKnownBesideWhole(t *testing.T) {
	first := open(t, t.TempDir())
	body := []byte(strings.Repeat("x", 5000))
	layer(t, first, "big", "", map[string]string{"f": string(body)})
	root, err := first.Delta(t.Context(), "big")
	must(t, err)
	must(t, first.Close())

	s := open(t, t.TempDir())
	from := brought{t.TempDir()}
	if !s.Missing(from.open) {
		t.Skip("this kernel cannot mount such layers")
	}
	from.put(t, sha256.Sum256(body), body)
	layer(t, s, "other", "", map[string]string{"y": "y"})
	must(t, s.SetLabels(t.Context(), "other", map[string]string{snapshot.Missing: "z"}))
	in, err := s.IngestKnown(t.Context(), root, nil)
	must(t, err)
	must(t, s.Whole(t.Context(), "other"))
	_, err = in.Commit(t.Context(), "lazy", "", map[string]string{snapshot.Missing: "z"})
	must(t, err)
	if got := read(t, s, "lazy"); !slices.ContainsFunc(got, func(line string) bool { return strings.HasSuffix(line, "xxx 5000") }) {
		t.Errorf("the tree is %q", got)
	}
	must(t, s.Close())
}
