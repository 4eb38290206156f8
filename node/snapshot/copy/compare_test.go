package copy_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/copy"
)

var moment = time.Unix(1_700_000_000, 5)

func layer(t testing.TB, s snapshot.Store, name, parent snapshot.Key, files ...string) {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		path, body, _ := strings.Cut(f, "=")
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Size: int64(len(body)), Mode: 0o644, ModTime: moment, Format: tar.FormatPAX}))
		_, err := w.Write([]byte(body))
		must(t, err)
	}
	must(t, w.Close())
	in, err := s.Ingest(t.Context(), &buf)
	must(t, err)
	_, err = in.Commit(t.Context(), name, parent, nil)
	must(t, err)
}

func mount(t testing.TB, s snapshot.Store, key snapshot.Key) string {
	t.Helper()
	target := t.TempDir()
	must(t, s.Mount(t.Context(), key, target))
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	return target
}

func prepare(t testing.TB, s snapshot.Store, key, parent snapshot.Key, labels map[string]string) {
	t.Helper()
	_, err := s.Prepare(t.Context(), key, parent, labels)
	must(t, err)
}

// Changes are found that neither size nor times show: another body under the
// same looks, and a folder moved to where another one was.
func TestChangesThatHide(t *testing.T) {
	rungs(t, func(t *testing.T, method copy.Method, root func(*testing.T) string) {
		s := open(t, root(t), method)
		layer(t, s, "base", "", "a/f=1", "b/f=2", "same=3", "other=4", "links=5", "stays=6")
		prepare(t, s, "work", "base", nil)
		at := mount(t, s, "work")
		path := func(name string) string { return filepath.Join(at, name) }
		before := map[string]os.FileInfo{}
		for _, name := range []string{"a", "b", "same", "other"} {
			info, err := os.Lstat(path(name))
			must(t, err)
			before[name] = info
		}
		must(t, os.RemoveAll(path("b")))
		must(t, os.Rename(path("a"), path("b")))
		must(t, os.WriteFile(path("same"), []byte("9"), 0))
		must(t, os.Chmod(path("other"), 0o600)) // there and back: nothing changed
		must(t, os.Chmod(path("other"), 0o644))
		must(t, os.Link(path("links"), path("new")))
		for name, from := range map[string]string{"b": "b", "same": "same"} {
			must(t, os.Chtimes(path(name), before[from].ModTime(), before[from].ModTime()))
		}
		changes, err := s.Changes(t.Context(), "work")
		must(t, err)
		want := "[{D /a} {C /b} {C /b/f} {C /links} {A /new} {C /same}]"
		if got := fmt.Sprint(changes); got != want {
			t.Errorf("changes\n got %s\nwant %s", got, want)
		}
		var diff bytes.Buffer
		must(t, s.Diff(t.Context(), "work", &diff))
		in, err := s.Ingest(t.Context(), &diff)
		must(t, err)
		_, err = in.Commit(t.Context(), "again", "base", nil)
		must(t, err)
		prepare(t, s, "copy", "again", nil)
		got := mount(t, s, "copy")
		for name, want := range map[string]string{"b/f": "1", "same": "9", "new": "5", "stays": "6"} {
			body, err := os.ReadFile(filepath.Join(got, name))
			if err != nil || string(body) != want {
				t.Errorf("%s is %q, %v, want %q", name, body, err, want)
			}
		}
		var one, two unix.Stat_t
		must(t, unix.Stat(filepath.Join(got, "new"), &one))
		must(t, unix.Stat(filepath.Join(got, "links"), &two))
		if one.Ino != two.Ino {
			t.Error("the diff lost that two names are one file")
		}
		must(t, s.Close())
	})
}

// A tree is the snapshot's own: what is written to one shows in no other.
func TestTreesAreApart(t *testing.T) {
	rungs(t, func(t *testing.T, method copy.Method, root func(*testing.T) string) {
		s := open(t, root(t), method)
		layer(t, s, "base", "", "f=base", "d/g=base")
		layer(t, s, "top", "base", "h=top")
		prepare(t, s, "one", "top", nil)
		prepare(t, s, "two", "top", nil)
		one := mount(t, s, "one")
		must(t, os.WriteFile(filepath.Join(one, "f"), []byte("one"), 0))
		must(t, os.WriteFile(filepath.Join(one, "d/g"), []byte("one"), 0))
		_, err := s.Commit(t.Context(), "over", "one", nil)
		must(t, err)
		prepare(t, s, "three", "over", nil)
		must(t, os.WriteFile(filepath.Join(mount(t, s, "three"), "f"), []byte("three"), 0))
		_, err = s.View(t.Context(), "view", "base", nil)
		must(t, err)
		_, err = s.View(t.Context(), "over-view", "over", nil)
		must(t, err)
		for key, want := range map[snapshot.Key]string{"two": "base", "view": "base", "over-view": "one", "three": "three"} {
			got, err := os.ReadFile(filepath.Join(mount(t, s, key), "f"))
			if err != nil || string(got) != want {
				t.Errorf("%s: f is %q, %v, want %q", key, got, err, want)
			}
		}
		if err := os.WriteFile(filepath.Join(mount(t, s, "view"), "f"), nil, 0); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to a view: %v", err)
		}
		must(t, s.Close())
	})
}

// After a loss of power the layers that were not synced are gone, and an Active
// snapshot is as it was made.
func TestPowerLoss(t *testing.T) {
	rungs(t, func(t *testing.T, method copy.Method, root func(*testing.T) string) {
		dir := root(t)
		s := open(t, dir, method)
		layer(t, s, "safe", "", "f=safe")
		prepare(t, s, "kept", "safe", nil)
		must(t, os.WriteFile(filepath.Join(mount(t, s, "kept"), "f"), []byte("kept"), 0))
		must(t, s.Sync(t.Context()))
		prepare(t, s, "lost", "safe", nil)
		must(t, os.WriteFile(filepath.Join(mount(t, s, "lost"), "f"), []byte("lost"), 0))
		layer(t, s, "unsafe", "safe", "g=unsafe")
		prepare(t, s, "over", "unsafe", nil)
		must(t, s.Store.Close())
		inAnotherBoot(t, s.db, dir)
		must(t, s.db.Close())

		s = open(t, dir, method)
		for key, want := range map[snapshot.Key]string{"kept": "kept", "lost": "safe"} {
			got, err := os.ReadFile(filepath.Join(mount(t, s, key), "f"))
			if err != nil || string(got) != want {
				t.Errorf("%s: f is %q, %v, want %q", key, got, err, want)
			}
		}
		_, err := s.Stat(t.Context(), "unsafe")
		if !errors.Is(err, errs.NotFound) {
			t.Errorf("stat of the lost layer: %v", err)
		}
		if err := s.Mount(t.Context(), "over", t.TempDir()); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "unsafe was lost") {
			t.Errorf("mount on a lost layer: %v", err)
		}
		layer(t, s, "unsafe", "safe", "g=unsafe")
		got, err := os.ReadFile(filepath.Join(mount(t, s, "over"), "g"))
		if err != nil || string(got) != "unsafe" {
			t.Errorf("g is %q, %v", got, err)
		}
		must(t, s.Close())
	})
}

// inAnotherBoot makes records and trees those of a boot that is over.
func inAnotherBoot(t *testing.T, db *kv.DB, dir string) {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	must(t, err)
	boot, other := bytes.TrimSpace(text), []byte("another-boot")
	must(t, db.Update(t.Context(), func(tx *kv.Tx) error {
		records := map[string][]byte{}
		err := tx.Each("copy", "", func(id string, value []byte) error {
			records[id] = bytes.ReplaceAll(value, boot, other)
			return nil
		})
		for id, value := range records {
			err = errors.Join(err, tx.Put("copy", id, value))
		}
		return err
	}))
	trees, err := filepath.Glob(filepath.Join(dir, "trees", "*", "tree-*"))
	must(t, err)
	if len(trees) == 0 {
		t.Error("no tree of a layer was made")
	}
	for _, tree := range trees {
		must(t, os.Rename(tree, filepath.Join(filepath.Dir(tree), "tree-another-boot")))
	}
}

// Nothing is left of what was removed, be it in use when it was.
func TestSwept(t *testing.T) {
	rungs(t, func(t *testing.T, method copy.Method, root func(*testing.T) string) {
		dir := root(t)
		s := open(t, dir, method)
		layer(t, s, "base", "", "a/b/c=1")
		prepare(t, s, "work", "base", nil)
		open, err := os.Open(filepath.Join(mount(t, s, "work"), "a/b/c"))
		must(t, err)
		defer open.Close()
		in, err := s.Ingest(t.Context(), bytes.NewReader(nil))
		must(t, err)
		must(t, in.Abort(t.Context()))
		must(t, s.Remove(t.Context(), "work"))
		must(t, s.Remove(t.Context(), "base"))
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		var left []os.DirEntry
		for range 2500 {
			left, err = os.ReadDir(filepath.Join(dir, "trees"))
			must(t, err)
			if len(left) == 1 {
				break
			}
			<-tick.C
		}
		if len(left) != 1 {
			t.Errorf("left: %v", left)
		}
		buf := make([]byte, 1)
		if _, err := open.Read(buf); err != nil || buf[0] != '1' {
			t.Errorf("a file still open reads %q, %v", buf, err)
		}
		must(t, s.Close())
	})
}

// Owners are shifted by an idmapped mount, where the file system has it.
func TestShiftedOwners(t *testing.T) {
	rungs(t, func(t *testing.T, method copy.Method, root func(*testing.T) string) {
		s := open(t, root(t), method)
		layer(t, s, "base", "", "f=1")
		maps := []snapshot.IDMap{{Container: 0, Host: 100_000, Size: 65_536}}
		prepare(t, s, "work", "base", snapshot.IDMapLabels(maps, maps))
		target := t.TempDir()
		err := s.Mount(t.Context(), "work", target)
		if errors.Is(err, errs.Unsupported) {
			t.Skipf("no shifted owners here: %v", err)
		}
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(target, "f"), &st))
		if st.Uid != 100_000 || st.Gid != 100_000 {
			t.Errorf("f belongs to %d:%d, want 100000", st.Uid, st.Gid)
		}
		must(t, os.Chown(filepath.Join(target, "f"), 100_007, 100_008))
		must(t, s.Unmount(t.Context(), target))
		must(t, s.SetLabels(t.Context(), "work", map[string]string{snapshot.UIDMap: "", snapshot.GIDMap: ""}))
		must(t, unix.Stat(filepath.Join(mount(t, s, "work"), "f"), &st))
		if st.Uid != 7 || st.Gid != 8 {
			t.Errorf("f belongs to %d:%d on disk, want 7:8", st.Uid, st.Gid)
		}
		must(t, s.Close())
	})
}

func TestProbe(t *testing.T) {
	needRoot(t)
	for method, works := range map[copy.Method]bool{copy.Copy: true, copy.Reflink: false, copy.Btrfs: false, "other": false} {
		dir := tmpfs(t)
		err := copy.Probe(t.Context(), dir, method)
		if (err == nil) != works {
			t.Errorf("%s on tmpfs: %v", method, err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%s: left %v", method, left)
		}
	}
}
