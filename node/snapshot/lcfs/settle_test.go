package lcfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
	"berth/node/snapshot/lcfs"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pack(t testing.TB, files map[string]string) *bytes.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, body := range files {
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body)), Mode: 0o644}))
		_, err := w.Write([]byte(body))
		must(t, err)
	}
	must(t, w.Close())
	return bytes.NewReader(buf.Bytes())
}

func layer(t testing.TB, s snapshot.Store, name, parent snapshot.Key, files map[string]string) {
	t.Helper()
	in, err := s.Ingest(t.Context(), pack(t, files))
	must(t, err)
	_, err = in.Commit(t.Context(), name, parent, nil)
	must(t, err)
}

// eventually waits for what is done in the background.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 2000 {
		if done() {
			return
		}
		<-tick.C
	}
	t.Errorf("after 10 s still not: %s", what)
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var found []string
	for _, e := range entries {
		if e.Name() != "empty" {
			found = append(found, e.Name())
		}
	}
	return found
}

// objects lists the bodies that the store in dir keeps.
func objects(t testing.TB, dir string) []string {
	t.Helper()
	var found []string
	must(t, filepath.WalkDir(filepath.Join(dir, "objects"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = append(found, path)
		}
		return err
	}))
	return found
}

func change(t testing.TB, s snapshot.Store, key snapshot.Key, fn func(root string)) {
	t.Helper()
	target := t.TempDir()
	must(t, s.Mount(t.Context(), key, target))
	fn(target)
	must(t, s.Unmount(t.Context(), target))
}

func diff(t testing.TB, s snapshot.Store, key snapshot.Key) string {
	t.Helper()
	var buf bytes.Buffer
	must(t, s.Diff(t.Context(), key, &buf))
	return buf.String()
}

// read returns what a mount of key shows: paths, looks and bodies.
func read(t testing.TB, s snapshot.Store, parent snapshot.Key) []string {
	t.Helper()
	_, err := s.View(t.Context(), "read", parent, nil)
	must(t, err)
	var seen []string
	change(t, s, "read", func(root string) { seen = list(t, root) })
	must(t, s.Remove(t.Context(), "read"))
	return seen
}

func list(t testing.TB, root string) []string {
	t.Helper()
	var seen []string
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		must(t, err)
		line := fmt.Sprint(strings.TrimPrefix(path, root), " ", info.Mode(), " ", info.Sys().(*syscall.Stat_t).Uid)
		if info.Mode().IsRegular() {
			body, err := os.ReadFile(path)
			must(t, err)
			line += " " + string(body[:min(20, len(body))]) + fmt.Sprint(" ", len(body))
		}
		seen = append(seen, line)
		return nil
	}))
	return seen
}

// scene is a layer with every kind of change on a base.
func scene(t testing.TB, s snapshot.Store) {
	t.Helper()
	layer(t, s, "base", "", map[string]string{
		"etc/small": "s", "etc/big": strings.Repeat("b", 5000), "etc/mode": strings.Repeat("m", 5000), "gone": "x",
		"dir/sub/f": strings.Repeat("f", 5000), "dir/g": "g", "dir/h": strings.Repeat("h", 9000), "keep/k": strings.Repeat("k", 700),
	})
	_, err := s.Prepare(t.Context(), "work", "base", nil)
	must(t, err)
	change(t, s, "work", func(root string) {
		at := func(name string) string { return filepath.Join(root, name) }
		must(t, os.WriteFile(at("etc/small"), []byte("changed"), 0o644))
		must(t, os.WriteFile(at("new"), bytes.Repeat([]byte("n"), 100_000), 0o4755))
		must(t, os.Chown(at("new"), 1000, 1000))
		must(t, unix.Lsetxattr(at("new"), "user.k", []byte("v"), 0))
		must(t, os.Link(at("new"), at("hard")))
		must(t, os.Chmod(at("etc/mode"), 0o600))
		must(t, os.Remove(at("gone")))
		must(t, os.Symlink("new", at("soft")))
		// Older ways of overlayfs leave these in the layers below.
		if err := os.Rename(at("dir"), at("moved")); errors.Is(err, unix.EXDEV) {
			must(t, os.CopyFS(at("moved"), os.DirFS(at("dir"))))
			must(t, os.RemoveAll(at("dir")))
		}
		must(t, os.Rename(at("moved/h"), at("etc/h")))
		must(t, os.WriteFile(at("moved/sub/new"), bytes.Repeat([]byte("2"), 3000), 0o644))
		must(t, os.Remove(at("moved/g")))
	})
}

// TestSettle: a layer has the same tree, diff and changes before and after it
// is settled; its folder goes when nothing stands on it, and its bodies are
// objects that only root can read.
func TestSettle(t *testing.T) {
	for name, how := range map[string]func(*lcfs.Config){"Plain": func(*lcfs.Config) {}, "Metacopy": withMetacopy, "ByNames": byNames} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, how, func(c *lcfs.Config) { c.Quiet = 20 * time.Millisecond })
			scene(t, s)
			activeDiff, activeChanges := diff(t, s, "work"), changes(t, s, "work")
			_, err := s.Commit(t.Context(), "top", "work", nil)
			must(t, err)
			if got := diff(t, s, "top"); got != activeDiff {
				t.Error("the diff changed with the commit")
			}
			before := read(t, s, "top")

			// A child stands on the folder meanwhile.
			_, err = s.Prepare(t.Context(), "child", "top", nil)
			must(t, err)
			target := t.TempDir()
			must(t, s.Mount(t.Context(), "child", target))
			must(t, s.Settle(t.Context(), "top"))
			must(t, s.Sync(t.Context()))
			if got := diff(t, s, "top"); got != activeDiff {
				t.Error("the diff changed when the layer was settled")
			}
			if got := changes(t, s, "top"); got != activeChanges {
				t.Errorf("changes are %s, were %s", got, activeChanges)
			}
			if got := read(t, s, "top"); !slices.Equal(got, before) {
				t.Errorf("the tree is\n%s\nwas\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
			}
			if got := list(t, target); !slices.Equal(got, before) {
				t.Errorf("the child's tree is\n%s\nwas\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
			}
			must(t, s.Unmount(t.Context(), target))
			eventually(t, "the layer's folder is gone", func() bool { return len(names(t, filepath.Join(dir, "layers"))) == 1 })
			if got := read(t, s, "top"); !slices.Equal(got, before) {
				t.Errorf("without its folder the tree is\n%s\nwas\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
			}
			for _, path := range objects(t, dir) {
				var st unix.Stat_t
				must(t, unix.Lstat(path, &st))
				if st.Mode != unix.S_IFREG|0o600 || st.Uid != 0 || st.Nlink != 1 {
					t.Errorf("%s has mode %o, owner %d, %d names", path, st.Mode, st.Uid, st.Nlink)
				}
				if n, err := unix.Llistxattr(path, nil); n != 0 || err != nil {
					t.Errorf("%s has xattrs: %d, %v", path, n, err)
				}
			}
			must(t, s.Remove(t.Context(), "child"))
			must(t, s.Remove(t.Context(), "top"))
			must(t, s.Remove(t.Context(), "base"))
			empty(t, dir)
			must(t, s.Close())
		})
	}
}

func changes(t testing.TB, s snapshot.Store, key snapshot.Key) string {
	t.Helper()
	list, err := s.Changes(t.Context(), key)
	must(t, err)
	return fmt.Sprint(list)
}

// empty waits until nothing is left of what was removed.
func empty(t testing.TB, dir string) {
	t.Helper()
	eventually(t, "nothing is left", func() bool {
		return len(objects(t, dir))+len(names(t, filepath.Join(dir, "layers")))+len(names(t, filepath.Join(dir, "meta")))+
			len(names(t, filepath.Join(dir, "recipes")))+len(names(t, filepath.Join(dir, "mnt"))) == 0
	})
	if t.Failed() {
		t.Log(objects(t, dir), names(t, filepath.Join(dir, "layers")), names(t, filepath.Join(dir, "meta")), names(t, filepath.Join(dir, "recipes")))
	}
}

// TestWriter: while somebody can still write to a file of a committed layer,
// it is not settled, and after that it has what was written.
func TestWriter(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	_, err := s.Prepare(t.Context(), "work", "", nil)
	must(t, err)
	target := t.TempDir()
	must(t, s.Mount(t.Context(), "work", target))
	f, err := os.Create(filepath.Join(target, "log"))
	must(t, err)
	_, err = f.WriteString(strings.Repeat("1", 1000))
	must(t, err)
	must(t, s.Unmount(t.Context(), target))
	_, err = s.Commit(t.Context(), "top", "work", nil)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := s.Settle(ctx, "top"); !errors.Is(err, errs.Unavailable) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("settle while a file is open: %v", err)
	}
	_, err = f.WriteString(strings.Repeat("2", 1000))
	must(t, err)
	must(t, f.Close())
	must(t, s.Settle(t.Context(), "top"))
	eventually(t, "the layer's folder is gone", func() bool { return len(names(t, filepath.Join(dir, "layers"))) == 0 })
	_, err = s.View(t.Context(), "view", "top", nil)
	must(t, err)
	change(t, s, "view", func(root string) {
		body, err := os.ReadFile(filepath.Join(root, "log"))
		must(t, err)
		if want := strings.Repeat("1", 1000) + strings.Repeat("2", 1000); string(body) != want {
			t.Errorf("the settled file has %d bytes, want what was written to the end", len(body))
		}
	})
	must(t, s.Close())
}

// TestForeignWriter: so it is where another process has the mount.
func TestForeignWriter(t *testing.T) {
	s := open(t, t.TempDir())
	_, err := s.Prepare(t.Context(), "work", "", nil)
	must(t, err)
	mounts, err := s.Mounts(t.Context(), "work")
	must(t, err)
	target := t.TempDir()
	for _, m := range mounts {
		must(t, unix.Mount(m.Source, target, m.Type, 0, strings.Join(m.Options, ",")))
	}
	must(t, os.WriteFile(filepath.Join(target, "f"), []byte(strings.Repeat("1", 1000)), 0o600))
	_, err = s.Commit(t.Context(), "top", "work", nil)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := s.Settle(ctx, "top"); err == nil {
		t.Error("settled a layer that is mounted for writing")
	}
	must(t, os.WriteFile(filepath.Join(target, "f"), []byte("late"), 0o600))
	must(t, unix.Unmount(target, 0))
	must(t, s.Settle(t.Context(), "top"))
	if got := read(t, s, "top"); !slices.Contains(got, "/f -rw------- 0 late 4") {
		t.Errorf("the settled tree is %q", got)
	}
	must(t, s.Close())
}

// TestLongChain: there are never more than some unsettled layers in a chain,
// and a chain of many commits has all of them.
func TestLongChain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, func(c *lcfs.Config) { c.Quiet = time.Hour })
	var parent snapshot.Key
	const layers = 130
	for i := range layers {
		_, err := s.Prepare(t.Context(), "work", parent, nil)
		must(t, err)
		change(t, s, "work", func(root string) {
			must(t, os.WriteFile(filepath.Join(root, fmt.Sprint(i)), []byte(strings.Repeat(fmt.Sprint(i), 300)), 0o644))
			must(t, os.WriteFile(filepath.Join(root, "who"), []byte(fmt.Sprint(i)), 0o644))
		})
		parent = snapshot.Key(fmt.Sprint("layer", i))
		_, err = s.Commit(t.Context(), parent, "work", nil)
		must(t, err)
	}
	if got := read(t, s, parent); len(got) != layers+2 || !slices.Contains(got, "/who -rw-r--r-- 0 129 3") {
		t.Errorf("%d names in the tree", len(got))
	}
	must(t, s.Settle(t.Context(), parent))
	if got := read(t, s, parent); len(got) != layers+2 || !slices.Contains(got, "/who -rw-r--r-- 0 129 3") {
		t.Errorf("%d names in the settled tree", len(got))
	}
	must(t, s.Close())
}

// TestTar: a layer's tar comes back byte for byte.
func TestTar(t *testing.T) {
	s := open(t, t.TempDir())
	files := pack(t, map[string]string{"a/small": "x", "a/big": strings.Repeat("y", 300_000), "b": strings.Repeat("z", 5000)})
	want := make([]byte, files.Size())
	_, err := files.ReadAt(want, 0)
	must(t, err)
	in, err := s.Ingest(t.Context(), files)
	must(t, err)
	_, err = in.Commit(t.Context(), "base", "", nil)
	must(t, err)
	var got bytes.Buffer
	must(t, s.Tar(t.Context(), "base", &got))
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("the tar of %d bytes came back as %d other ones", len(want), got.Len())
	}
	_, err = s.Prepare(t.Context(), "work", "base", nil)
	must(t, err)
	if err := s.Tar(t.Context(), "work", &got); !errors.Is(err, errs.Unsupported) {
		t.Errorf("tar of what came from none: %v", err)
	}
	if err := s.Tar(t.Context(), "none", &got); !errors.Is(err, errs.NotFound) {
		t.Errorf("tar of nothing: %v", err)
	}
	must(t, s.Close())
}

// TestTakenDownByOthers: a mount that somebody else has taken down holds
// nothing back.
func TestTakenDownByOthers(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	_, err := s.Prepare(t.Context(), "work", "", nil)
	must(t, err)
	target := t.TempDir()
	must(t, s.Mount(t.Context(), "work", target))
	must(t, os.WriteFile(filepath.Join(target, "f"), []byte("x"), 0o644))
	must(t, unix.Unmount(target, 0))
	_, err = s.Commit(t.Context(), "top", "work", nil)
	must(t, err)
	eventually(t, "the layer's folder is gone", func() bool { return len(names(t, filepath.Join(dir, "layers"))) == 0 })
	must(t, s.Close())
}

// A layer whose files claim more than could be read stays the folder that it
// is, and keeps nobody else's from being settled.
func TestHugeHole(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, func(c *lcfs.Config) { c.MaxLayer = 1 << 30 })
	for name, size := range map[snapshot.Key]int64{"huge": 1 << 42, "usual": 1 << 20} {
		_, err := s.Prepare(t.Context(), "work", "", nil)
		must(t, err)
		change(t, s, "work", func(root string) {
			must(t, os.WriteFile(filepath.Join(root, "f"), []byte(name), 0o644))
			must(t, os.Truncate(filepath.Join(root, "f"), size))
		})
		_, err = s.Commit(t.Context(), name, "work", nil)
		must(t, err)
	}
	if err := s.Settle(t.Context(), "huge"); !errors.Is(err, errs.Unsupported) {
		t.Errorf("settle: %v", err)
	}
	must(t, s.Settle(t.Context(), "usual"))
	_, err := s.View(t.Context(), "look", "huge", nil)
	must(t, err)
	change(t, s, "look", func(root string) {
		if st, err := os.Stat(filepath.Join(root, "f")); err != nil || st.Size() != 1<<42 {
			t.Errorf("it is %v, %v", st, err)
		}
	})
	must(t, s.Remove(t.Context(), "look"))
	must(t, s.Remove(t.Context(), "huge"))
	must(t, s.Remove(t.Context(), "usual"))
	empty(t, dir)
	must(t, s.Close())
}
