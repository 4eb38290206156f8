package lcfs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
	"berth/node/snapshot/lcfs"
)

func TestViewIsReadOnly(t *testing.T) {
	s := open(t, t.TempDir())
	layer(t, s, "base", "", map[string]string{"f": "x"})
	_, err := s.View(t.Context(), "view", "base", nil)
	must(t, err)
	target := t.TempDir()
	must(t, s.Mount(t.Context(), "view", target))
	if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write into a view: %v", err)
	}
	must(t, s.Unmount(t.Context(), target))
	must(t, s.Close())
}

// A container with a user namespace sees the image's owners shifted, and what
// it writes is shifted back on disk.
func TestShiftedOwners(t *testing.T) {
	t.Run("detached", func(t *testing.T) { shiftedOwners(t, func(*lcfs.Config) {}) })
	t.Run("by names", func(t *testing.T) { shiftedOwners(t, byNames) })
}

func shiftedOwners(t *testing.T, how func(*lcfs.Config)) {
	dir := t.TempDir()
	s := open(t, dir, how)
	layer(t, s, "one", "", map[string]string{"f": "x"})
	layer(t, s, "two", "one", map[string]string{"g": "y"})
	maps := []snapshot.IDMap{{Container: 0, Host: 100_000, Size: 65_536}}
	_, err := s.Prepare(t.Context(), "work", "two", snapshot.IDMapLabels(maps, maps))
	must(t, err)
	target := t.TempDir()
	err = s.Mount(t.Context(), "work", target)
	if errors.Is(err, errs.Unsupported) {
		t.Skipf("this kernel cannot shift owners here: %v", err)
	}
	must(t, err)
	t.Cleanup(func() { _ = s.Unmount(context.Background(), target) })
	owner := func(path string) uint32 {
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		return st.Uid
	}
	for _, name := range []string{"f", "g", "."} {
		if got := owner(filepath.Join(target, name)); got != 100_000 {
			t.Errorf("%s belongs to %d, want 100000", name, got)
		}
	}
	must(t, os.WriteFile(filepath.Join(target, "f"), []byte("changed"), 0o644))
	must(t, os.Chmod(filepath.Dir(target), 0o755))
	// Only who is in the map can make something, as the container's root is.
	touch := exec.CommandContext(t.Context(), "touch", filepath.Join(target, "new"))
	touch.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 100_000, Gid: 100_000}}
	if out, err := touch.CombinedOutput(); err != nil {
		t.Errorf("touch as the container's root: %v: %s", err, out)
	}
	must(t, os.Remove(filepath.Join(target, "g"))) // overlayfs makes the whiteout
	must(t, os.Chown(filepath.Join(target, "new"), 100_007, 100_008))
	if _, err := s.Mounts(t.Context(), "work"); !errors.Is(err, errs.Unsupported) {
		t.Errorf("mounts of a shifted tree: %v", err)
	}
	must(t, s.Unmount(t.Context(), target))
	_, err = s.Commit(t.Context(), "top", "work", map[string]string{snapshot.UIDMap: "", snapshot.GIDMap: ""})
	must(t, err)
	_, err = s.View(t.Context(), "view", "top", nil)
	must(t, err)
	must(t, s.Mount(t.Context(), "view", target))
	for name, want := range map[string]uint32{"f": 0, "new": 7} {
		if got := owner(filepath.Join(target, name)); got != want {
			t.Errorf("%s belongs to %d on disk, want %d", name, got, want)
		}
	}
	must(t, s.Unmount(t.Context(), target))
	must(t, s.Close())
}

// A volatile tree can be mounted again, which overlayfs by itself refuses.
func TestVolatile(t *testing.T) {
	s := open(t, t.TempDir())
	layer(t, s, "base", "", map[string]string{"f": "x"})
	_, err := s.Prepare(t.Context(), "work", "base", map[string]string{snapshot.Volatile: "1"})
	must(t, err)
	target := t.TempDir()
	for i := range 3 {
		must(t, s.Mount(t.Context(), "work", target))
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, target) && !strings.Contains(line, "volatile") {
				t.Errorf("mounted without volatile: %s", line)
			}
		}
		must(t, os.WriteFile(filepath.Join(target, fmt.Sprint(i)), nil, 0o644))
		must(t, s.Unmount(t.Context(), target))
	}
	changes, err := s.Changes(t.Context(), "work")
	must(t, err)
	if len(changes) != 3 {
		t.Errorf("changes %v", changes)
	}
	must(t, s.Close())
}

// Long folders: paths beyond what fsconfig takes still mount.
func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long-name/", 30))
	must(t, os.MkdirAll(dir, 0o755))
	s := open(t, dir)
	layer(t, s, "base", "", map[string]string{"f": "x"})
	_, err := s.Prepare(t.Context(), "work", "base", nil)
	must(t, err)
	target := t.TempDir()
	must(t, s.Mount(t.Context(), "work", target))
	if _, err := os.Stat(filepath.Join(target, "f")); err != nil {
		t.Error(err)
	}
	must(t, s.Unmount(t.Context(), target))
	must(t, s.Close())
}

// An image may hold the layers of an overlay of its own: through the mount
// their xattrs are as in the image.
func TestNestedXattr(t *testing.T) {
	s := open(t, t.TempDir())
	layer(t, s, "base", "", map[string]string{"d/f": "x"})
	_, err := s.Prepare(t.Context(), "work", "base", nil)
	must(t, err)
	target := t.TempDir()
	must(t, s.Mount(t.Context(), "work", target))
	inner := filepath.Join(target, "inner")
	must(t, os.Mkdir(inner, 0o755))
	err = unix.Lsetxattr(inner, "trusted.overlay.opaque", []byte("y"), 0)
	must(t, s.Unmount(t.Context(), target))
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
		t.Skipf("this kernel does not escape: %v", err)
	}
	must(t, err)
	var out bytes.Buffer
	must(t, s.Diff(t.Context(), "work", &out))
	if !strings.Contains(out.String(), "SCHILY.xattr.trusted.overlay.opaque=y") || strings.Contains(out.String(), "overlay.overlay") {
		t.Error("the diff does not hold the xattr as the container set it")
	}
	must(t, s.Close())
}

// Nothing is leaked: descriptors and mounts are as many as before.
func TestLeaks(t *testing.T) {
	dir := t.TempDir()
	count := func() (fds, mounts int) {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		table, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		return len(entries), strings.Count(string(table), filepath.Dir(dir)) // others mount here too
	}
	round := func() {
		s := open(t, dir)
		in, err := s.Ingest(t.Context(), pack(t, map[string]string{"a/b/c/d": "x", "e/f": "y"}))
		must(t, err)
		must(t, in.Abort(t.Context()))
		if _, err := s.Ingest(t.Context(), pack(t, map[string]string{"a/b": "x", "../e": "y"})); err == nil {
			t.Error("a hostile layer was taken")
		}
		maps := []snapshot.IDMap{{Container: 0, Host: 100_000, Size: 1}}
		_, err = s.Prepare(t.Context(), "work", "", snapshot.IDMapLabels(maps, maps))
		must(t, err)
		target := t.TempDir()
		if err := s.Mount(t.Context(), "work", target); err == nil {
			must(t, s.Unmount(t.Context(), target))
		}
		must(t, s.Mount(t.Context(), "work", filepath.Join(target)))
		must(t, s.Unmount(t.Context(), target))
		if err := s.Mount(t.Context(), "work", filepath.Join(target, "none")); err == nil {
			t.Error("mounted on nothing")
		}
		must(t, s.Remove(t.Context(), "work"))
		must(t, s.Close())
	}
	round()
	fds, mounts := count()
	for range 5 {
		round()
	}
	if f, m := count(); f > fds+3 || m != mounts { // the runtime opens some of its own
		t.Errorf("%d descriptors and %d mounts before, %d and %d after", fds, mounts, f, m)
	}
}

// A container can mount an overlay of its own on folders of its tree.
func TestNested(t *testing.T) {
	for name, how := range map[string]func(*lcfs.Config){"File": func(*lcfs.Config) {}, "Loop": onLoop} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir(), how)
			layer(t, s, "base", "", map[string]string{"image/f": strings.Repeat("x", 5000)})
			_, err := s.Prepare(t.Context(), "work", "base", nil)
			must(t, err)
			target, inner, scratch := t.TempDir(), t.TempDir(), t.TempDir()
			must(t, s.Mount(t.Context(), "work", target))
			must(t, os.Mkdir(filepath.Join(scratch, "u"), 0o755))
			must(t, os.Mkdir(filepath.Join(scratch, "w"), 0o755))
			must(t, unix.Mount("overlay", inner, "overlay", 0, fmt.Sprintf("lowerdir=%s/image,upperdir=%s/u,workdir=%s/w", target, scratch, scratch)))
			body, err := os.ReadFile(filepath.Join(inner, "f"))
			must(t, err)
			if len(body) != 5000 {
				t.Errorf("read %d bytes", len(body))
			}
			must(t, unix.Unmount(inner, 0))
			must(t, s.Unmount(t.Context(), target))
			must(t, s.Close())
		})
	}
}

// All mounts of all images share the pages of a body that they have in common.
func TestOnePageCache(t *testing.T) {
	s := open(t, t.TempDir())
	body := strings.Repeat("shared by two images ", 50_000)
	layer(t, s, "one", "", map[string]string{"a": body, "b": "1"})
	layer(t, s, "two", "", map[string]string{"c/d": body, "e": "2"})
	var files []*os.File
	for i, parent := range []snapshot.Key{"one", "two"} {
		key := snapshot.Key(fmt.Sprint("work", i))
		_, err := s.Prepare(t.Context(), key, parent, nil)
		must(t, err)
		target := t.TempDir()
		must(t, s.Mount(t.Context(), key, target))
		t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
		f, err := os.Open(filepath.Join(target, []string{"a", "c/d"}[i]))
		must(t, err)
		t.Cleanup(func() { _ = f.Close() })
		files = append(files, f)
	}
	must(t, unix.Fsync(int(files[0].Fd())))
	must(t, unix.Fadvise(int(files[0].Fd()), 0, 0, unix.FADV_DONTNEED))
	if n := cached(t, files[1]); n != 0 {
		t.Skipf("%d pages stay in the cache here", n)
	}
	_, err := io.ReadAll(files[0])
	must(t, err)
	if a, b := cached(t, files[0]), cached(t, files[1]); a != b || a == 0 {
		t.Errorf("%d pages are cached through the one mount, %d through the other", a, b)
	}
	for _, f := range files {
		must(t, f.Close())
	}
	must(t, s.Close())
}

// cached counts the pages of a file that are in memory.
func cached(t *testing.T, f *os.File) (n int) {
	info, err := f.Stat()
	must(t, err)
	mapped, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	defer func() { must(t, unix.Munmap(mapped)) }()
	pages := make([]byte, (len(mapped)+4095)/4096)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(len(mapped)), uintptr(unsafe.Pointer(&pages[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	for _, p := range pages {
		n += int(p & 1)
	}
	return n
}

// What other processes need stays mounted while a snapshot may use it, beyond
// the end of the process, and goes after.
func TestShown(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	layer(t, s, "one", "", map[string]string{"f": strings.Repeat("x", 5000)})
	layer(t, s, "two", "one", map[string]string{"g": "y"})
	_, err := s.Prepare(t.Context(), "work", "two", nil)
	must(t, err)
	mounts, err := s.Mounts(t.Context(), "work")
	must(t, err)
	must(t, s.Close())
	s = open(t, dir)
	layer(t, s, "other", "", map[string]string{"f": "z"}) // something to tidy up after
	must(t, s.Remove(t.Context(), "other"))
	eventually(t, "what was removed is gone", func() bool { return len(names(t, filepath.Join(dir, "meta"))) == 5 })
	target := t.TempDir()
	for _, m := range mounts {
		data := strings.Join(m.Options, ",")
		if len(data) >= 4096 {
			t.Errorf("options of %d bytes", len(data))
		}
		must(t, unix.Mount(m.Source, target, m.Type, 0, data))
	}
	if _, err := os.Stat(filepath.Join(target, "f")); err != nil {
		t.Error(err)
	}
	must(t, unix.Unmount(target, 0))
	must(t, s.Remove(t.Context(), "work"))
	eventually(t, "nothing is shown", func() bool { return len(names(t, filepath.Join(dir, "mnt"))) == 0 })
	must(t, s.Close())
}
