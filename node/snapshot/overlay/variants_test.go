package overlay_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/node/snapshot"
)

// kept lists the files under links/.
func kept(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "links", "*", "*"))
	must(t, err)
	return files
}

func wantKept(t testing.TB, dir string, n int) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for range 2500 {
		if len(kept(t, dir)) == n {
			return
		}
		<-tick.C
	}
	t.Errorf("%d files are kept, want %d", len(kept(t, dir)), n)
}

// inode of a file as a view of the layer shows it.
func inode(t testing.TB, s snapshot.Store, layer snapshot.Key, path string) unix.Stat_t {
	t.Helper()
	_, err := s.View(t.Context(), "inode", layer, nil)
	must(t, err)
	target := t.TempDir()
	must(t, s.Mount(t.Context(), "inode", target))
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(target, path), &st))
	must(t, s.Unmount(context.WithoutCancel(t.Context()), target))
	must(t, s.Remove(t.Context(), "inode"))
	return st
}

// Equal files of two layers are one inode, and so one set of pages in memory;
// what differs in anything is not.
func TestVariantsAreShared(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	s := open(t, dir)
	big := strings.Repeat("0123456789abcdef", 1<<16) // beyond what is held in memory
	files := map[string]string{"d/same": "x", "d/big": big, "d/other": "1", "d/late": big + "1", "moved": "y", "empty": ""}
	layer(t, s, "one", "", files)
	wantKept(t, dir, 5)
	files["d/other"], files["d/late"] = "2", big+"2"
	delete(files, "moved")
	files["d/moved"] = "y"
	layer(t, s, "two", "", files)
	for path, shared := range map[string]bool{"d/same": true, "d/big": true, "d/other": false, "d/late": false, "empty": false} {
		one, two := inode(t, s, "one", path), inode(t, s, "two", path)
		if (one.Ino == two.Ino) != shared {
			t.Errorf("%s: inodes %d and %d, want them shared: %v", path, one.Ino, two.Ino, shared)
		}
	}
	// Not even an equal file elsewhere in the same tree: cp and mv would refuse.
	if one, two := inode(t, s, "one", "moved"), inode(t, s, "two", "d/moved"); one.Ino == two.Ino {
		t.Error("two paths have one inode")
	}
	target := t.TempDir()
	_, err := s.Prepare(t.Context(), "work", "two", nil)
	must(t, err)
	must(t, s.Mount(t.Context(), "work", target))
	for path, want := range files {
		got, err := os.ReadFile(filepath.Join(target, path))
		if err != nil || string(got) != want {
			t.Errorf("%s holds %d bytes, %v, want %d", path, len(got), err, len(want))
		}
	}
	must(t, os.WriteFile(filepath.Join(target, "d/same"), []byte("changed"), 0o644))
	must(t, s.Unmount(t.Context(), target))
	if st := inode(t, s, "one", "d/same"); st.Size != 1 {
		t.Error("a container changed a file of another image")
	}
	must(t, s.Close())
}

func TestVariantsDifferInLooks(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	s := open(t, dir)
	one := func(name snapshot.Key, h tar.Header) {
		h.Typeflag, h.Name, h.Size = tar.TypeReg, "f", 1
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		must(t, w.WriteHeader(&h))
		_, err := w.Write([]byte("x"))
		must(t, err)
		must(t, w.Close())
		in, err := s.Ingest(t.Context(), &buf)
		must(t, err)
		_, err = in.Commit(t.Context(), name, "", nil)
		must(t, err)
	}
	one("plain", tar.Header{Mode: 0o644})
	wantKept(t, dir, 1)
	inodes := map[uint64]snapshot.Key{inode(t, s, "plain", "f").Ino: "plain"}
	for name, h := range map[snapshot.Key]tar.Header{
		"mode": {Mode: 0o755}, "user": {Mode: 0o644, Uid: 1}, "group": {Mode: 0o644, Gid: 1}, "time": {Mode: 0o644, ModTime: time.Unix(5, 0)},
		"nanosecond": {Mode: 0o644, ModTime: time.Unix(0, 1), Format: tar.FormatPAX},
		"xattr":      {Mode: 0o644, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}},
	} {
		one(name, h)
		st := inode(t, s, name, "f")
		if other, met := inodes[st.Ino]; met {
			t.Errorf("%s and %s are one inode", name, other)
		}
		inodes[st.Ino] = name
	}
	must(t, s.Close())
}

// A file that no layer has any more is deleted; one that some layer has stays.
func TestVariantsAreSwept(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	s := open(t, dir)
	layer(t, s, "one", "", map[string]string{"a": "1", "b": "1"})
	wantKept(t, dir, 2)
	layer(t, s, "two", "", map[string]string{"a": "1", "c": "1"})
	wantKept(t, dir, 3)
	must(t, s.Remove(t.Context(), "one"))
	wantKept(t, dir, 2)
	in, err := s.Ingest(t.Context(), pack(t, map[string]string{"a": "1"}))
	must(t, err)
	must(t, s.Remove(t.Context(), "two"))
	wantKept(t, dir, 1) // the layer to come has it
	must(t, in.Abort(t.Context()))
	wantKept(t, dir, 0)
	must(t, s.Close())
}

// What a crash leaves is found at the next start: an ingest that did not end
// may be the last to have a file.
func TestVariantsAfterCrash(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	s := open(t, dir)
	layer(t, s, "one", "", map[string]string{"a": "1", "b": "1"})
	wantKept(t, dir, 2)
	must(t, s.Sync(t.Context()))
	must(t, s.Close())
	crashed := filepath.Join(dir, "layers", "zz", "fs")
	must(t, os.MkdirAll(crashed, 0o755))
	orphan := filepath.Join(filepath.Dir(kept(t, dir)[0]), "orphan")
	must(t, os.WriteFile(orphan, []byte("x"), 0o600))
	must(t, os.Link(orphan, filepath.Join(crashed, "f")))
	s = open(t, dir)
	wantKept(t, dir, 2)
	wantFolders(t, dir, 1)
	must(t, s.Close())
}

// A loss of power may leave anything in a file that was not synced: it is not
// taken for what its name says.
func TestVariantsAreCompared(t *testing.T) {
	needRoot(t)
	body := strings.Repeat("0123456789abcdef", 1<<16)
	for what, spoil := range map[string]func(name string) error{
		"cut short": func(name string) error { return os.Truncate(name, 10) },
		"zeros": func(name string) error {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			must(t, err)
			defer f.Close()
			_, err = f.WriteAt(make([]byte, 4096), int64(len(body))-4096)
			return err
		},
		"another mode": func(name string) error { return os.Chmod(name, 0o600) },
	} {
		dir := t.TempDir()
		s := open(t, dir)
		layer(t, s, "one", "", map[string]string{"f": body})
		wantKept(t, dir, 1)
		var st unix.Stat_t
		must(t, unix.Stat(kept(t, dir)[0], &st))
		must(t, spoil(kept(t, dir)[0]))
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, kept(t, dir)[0], []unix.Timespec{st.Mtim, st.Mtim}, 0))
		layer(t, s, "two", "", map[string]string{"f": body})
		_, err := s.Prepare(t.Context(), "work", "two", nil)
		must(t, err)
		target := t.TempDir()
		must(t, s.Mount(t.Context(), "work", target))
		got, err := os.ReadFile(filepath.Join(target, "f"))
		if err != nil || string(got) != body {
			t.Errorf("%s: the layer has %d bytes, %v", what, len(got), err)
		}
		must(t, s.Unmount(t.Context(), target))
		must(t, s.Close())
	}
}

// Where hard links do not work, layers are as good without.
func TestVariantsWithoutLinks(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "links"), 0o700))
	must(t, unix.Mount("tmpfs", filepath.Join(dir, "links"), "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "links"), unix.MNT_DETACH) })
	s := open(t, dir)
	layer(t, s, "one", "", map[string]string{"f": "x"})
	layer(t, s, "two", "", map[string]string{"f": "x"})
	if one, two := inode(t, s, "one", "f"), inode(t, s, "two", "f"); one.Ino == two.Ino {
		t.Error("shared, over two file systems")
	}
	must(t, s.Remove(t.Context(), "one"))
	wantFolders(t, dir, 1)
	must(t, s.Close())
}

// A later entry of the same tar replaces an earlier one: what is kept is what
// the layer has in the end.
func TestVariantsOfReplaced(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	s := open(t, dir)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeReg, Name: "d/f", Size: 1, Mode: 0o644},
		{Typeflag: tar.TypeSymlink, Name: "d", Linkname: "/etc"},
		{Typeflag: tar.TypeReg, Name: "g", Size: 1, Mode: 0o644},
		{Typeflag: tar.TypeReg, Name: "g", Size: 1, Mode: 0o4755},
	} {
		must(t, w.WriteHeader(&h))
		if h.Size > 0 {
			_, err := w.Write([]byte("x"))
			must(t, err)
		}
	}
	must(t, w.Close())
	in, err := s.Ingest(t.Context(), &buf)
	must(t, err)
	_, err = in.Commit(t.Context(), "one", "", nil)
	must(t, err)
	wantKept(t, dir, 1)
	var st unix.Stat_t
	must(t, unix.Lstat(kept(t, dir)[0], &st))
	if st.Mode&0o7777 != 0o4755 {
		t.Errorf("kept with mode %o", st.Mode)
	}
	must(t, s.Close())
}

// An inode that has as many names as it can is shared no more; the layer has
// a file of its own.
func TestVariantsWithTooManyNames(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4: other file systems take more names than can be made here")
	}
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 128<<20))
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("no loop mounts here: %s", out)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s := open(t, dir)
	layer(t, s, "one", "", map[string]string{"f": "x"})
	wantKept(t, dir, 1)
	names := filepath.Join(dir, "names")
	must(t, os.Mkdir(names, 0o700))
	var err error
	for i := 0; err == nil; i++ {
		err = os.Link(kept(t, dir)[0], filepath.Join(names, fmt.Sprint(i)))
		if i > 70_000 {
			t.Skip("this file system knows no limit")
		}
	}
	if !errors.Is(err, unix.EMLINK) {
		t.Fatal(err)
	}
	layer(t, s, "two", "", map[string]string{"f": "x"})
	one, two := inode(t, s, "one", "f"), inode(t, s, "two", "f")
	if one.Ino == two.Ino || two.Size != 1 || two.Nlink != 1 {
		t.Errorf("the second layer has inode %d with %d names and %d bytes; the first %d", two.Ino, two.Nlink, two.Size, one.Ino)
	}
	must(t, s.Close())
}
