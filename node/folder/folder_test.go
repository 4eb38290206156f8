package folder_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/folder"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes devices and trusted xattrs")
	}
}

// descriptor opens a folder until the test ends.
func descriptor(t testing.TB, dir string) int {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func write(t testing.TB, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		at := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(at), 0o755))
		if !strings.HasSuffix(name, "/") {
			must(t, os.WriteFile(at, []byte(name), 0o644))
		} else {
			must(t, os.MkdirAll(at, 0o755))
		}
	}
}

func names(t testing.TB, archive []byte) []string {
	t.Helper()
	var all []string
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		must(t, err)
		all = append(all, h.Name)
	}
}

func TestWalkSkipsAndOrders(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a/x", "a-b", "a.c/", "b/y/z", "b0")
	var seen []string
	must(t, folder.Walk(t.Context(), descriptor(t, dir), func(e *folder.Entry) error {
		seen = append(seen, e.Path)
		if e.Path == "b/y" {
			return folder.ErrSkip
		}
		return nil
	}))
	if want := "a a/x a-b a.c b b/y b0"; strings.Join(seen, " ") != want {
		t.Errorf("walked %q, want %q", seen, want)
	}
}

// Remove takes away trees deeper than there are descriptors, be they full of
// names that it would use itself.
func TestRemoveDeep(t *testing.T) {
	top := t.TempDir()
	at, err := unix.Open(top, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for range 3000 {
		must(t, unix.Mkdirat(at, "d", 0o755))
		next, err := unix.Openat(at, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(at))
		at = next
	}
	must(t, unix.Close(at))
	write(t, top, "aside-d-1", "stays")
	fd := descriptor(t, top)
	must(t, folder.Remove(t.Context(), fd, "d"))
	must(t, folder.Remove(t.Context(), fd, "none"))
	left, err := folder.Names(fd)
	must(t, err)
	if !slices.Equal(left, []string{"aside-d-1", "stays"}) {
		t.Errorf("left %q", left)
	}
}

// A layer shows the same bytes whatever the order in which it was made, and
// says what overlayfs spells in devices and xattrs.
func TestWriteTar(t *testing.T) {
	needRoot(t)
	var archives [2]bytes.Buffer
	for i := range archives {
		dir := t.TempDir()
		paths := []string{"d/f", "d-e", "o/new", ".wh.odd", "z"}
		if i == 1 {
			slices.Reverse(paths)
		}
		write(t, dir, paths...)
		must(t, unix.Mknod(filepath.Join(dir, "d/gone"), unix.S_IFCHR, 0))
		must(t, unix.Lsetxattr(filepath.Join(dir, "o"), "trusted.overlay.opaque", []byte("y"), 0))
		must(t, unix.Lsetxattr(filepath.Join(dir, "z"), "trusted.overlay.overlay.opaque", []byte("n"), 0))
		for _, name := range []string{"d/f", "d", "d-e", "o/new", "o", "z"} {
			times := []unix.Timespec{{Sec: 7, Nsec: 9}, {Sec: 7, Nsec: 9}}
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, name), times, 0))
		}
		must(t, folder.WriteTar(t.Context(), &archives[i], descriptor(t, dir), i < 2))
	}
	if !bytes.Equal(archives[0].Bytes(), archives[1].Bytes()) {
		t.Error("the same folder gave two archives")
	}
	want := ".wh..wh..opq d/ d/f d/.wh.gone d-e o/ o/.wh..wh..opq o/new z"
	if got := strings.Join(names(t, archives[0].Bytes()), " "); got != want {
		t.Errorf("entries %q, want %q", got, want)
	}
	if !bytes.Contains(archives[0].Bytes(), []byte("SCHILY.xattr.trusted.overlay.opaque=n")) {
		t.Error("an xattr of the tree's owner is not as he set it")
	}
}

// A whole tree may hold anything: nothing in it is taken for overlayfs's.
func TestWholeTrees(t *testing.T) {
	needRoot(t)
	from, to := t.TempDir(), t.TempDir()
	write(t, from, "a", "d/f")
	must(t, unix.Mknod(filepath.Join(from, "zero"), unix.S_IFCHR|0o600, 0))
	must(t, unix.Lsetxattr(filepath.Join(from, "d"), "trusted.overlay.opaque", []byte("y"), 0))
	must(t, os.Link(filepath.Join(from, "a"), filepath.Join(from, "d/a")))
	fd, tofd := descriptor(t, from), descriptor(t, to)
	cloned, err := folder.Clone(t.Context(), fd, tofd, folder.Copy)
	must(t, err)
	for _, known := range []folder.Cloned{cloned, {}} {
		changes, err := folder.Compare(t.Context(), tofd, fd, known)
		must(t, err)
		if len(changes) != 0 {
			t.Errorf("a clone differs: %v", changes)
		}
	}
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(to, "zero"), &st))
	if st.Mode != unix.S_IFCHR|0o600 || st.Rdev != 0 {
		t.Errorf("a device came over as %o %d", st.Mode, st.Rdev)
	}
	var opaque [2]byte
	if n, err := unix.Lgetxattr(filepath.Join(to, "d"), "trusted.overlay.opaque", opaque[:]); err != nil || string(opaque[:n]) != "y" {
		t.Errorf("an xattr did not come over: %q, %v", opaque, err)
	}
	must(t, unix.Lstat(filepath.Join(to, "a"), &st))
	if st.Nlink != 2 {
		t.Errorf("a has %d names, want 2", st.Nlink)
	}
	write(t, to, "d/f", "new")
	must(t, os.Remove(filepath.Join(to, "zero")))
	changes, err := folder.Compare(t.Context(), tofd, fd, cloned)
	must(t, err)
	if got := fmt.Sprint(changes); got != "[{C /d} {C /d/f} {A /new} {D /zero}]" {
		t.Errorf("changes %s", got)
	}
}

// keeping is Links in one folder.
type keeping struct{ dir string }

func (k keeping) Open(v folder.Variant) *os.File {
	f, err := os.Open(filepath.Join(k.dir, fmt.Sprintf("%x", v)))
	if err != nil {
		return nil
	}
	return f
}

func archive(t testing.TB, files map[string]string) *bytes.Reader {
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

// What Unpack says is fresh, Keep links, and the next Unpack finds.
func TestUnpackWithLinks(t *testing.T) {
	needRoot(t)
	links := keeping{t.TempDir()}
	// Beyond what is held in memory, and different only at the end.
	big := strings.Repeat("0123456789abcdef", 1<<16)
	unpack := func(files map[string]string) (string, folder.Unpacked) {
		dir := t.TempDir()
		in, err := folder.Unpack(t.Context(), descriptor(t, dir), archive(t, files), folder.Unpacking{Limit: 1 << 30, Links: links})
		must(t, err)
		for name, want := range files {
			got, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || string(got) != want {
				t.Errorf("%s holds %d bytes, %v, want %d", name, len(got), err, len(want))
			}
		}
		return dir, in
	}
	first := map[string]string{"small": "x", "d/big": big, "d/late": big + "1", "d/early": "1" + big, "empty": ""}
	dir, in := unpack(first)
	if len(in.Fresh) != 4 || len(in.Linked) != 0 {
		t.Fatalf("fresh %v, linked %v", in.Fresh, in.Linked)
	}
	must(t, folder.Keep(t.Context(), descriptor(t, dir), in.Fresh, func(v folder.Variant, dirfd int, base string) error {
		return unix.Linkat(dirfd, base, unix.AT_FDCWD, filepath.Join(links.dir, fmt.Sprintf("%x", v)), 0)
	}))
	_, again := unpack(map[string]string{"small": "x", "d/big": big, "d/late": big + "2", "d/early": "2" + big, "empty": ""})
	if len(again.Linked) != 2 || len(again.Fresh) != 0 {
		t.Errorf("linked %v, fresh %v: want small and big linked, and no second file under one name", again.Linked, again.Fresh)
	}
	if again.Usage != in.Usage {
		t.Errorf("usage %+v with links, %+v without", again.Usage, in.Usage)
	}
	if _, err := folder.Unpack(t.Context(), descriptor(t, t.TempDir()), archive(t, first), folder.Unpacking{Limit: 1 << 20, Links: links}); !errors.Is(err, errs.Invalid) {
		t.Errorf("beyond the limit: %v", err)
	}
}
