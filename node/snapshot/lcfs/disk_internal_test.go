package lcfs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Each file system that the store lies on is synced once.
func TestDisks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	s := &Store{dir: t.TempDir(), dirfd: -1, metafd: -1}
	for _, name := range []string{"objects", "layers", "meta", "recipes"} {
		if err := os.Mkdir(filepath.Join(s.dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	open := func() int {
		t.Helper()
		if err := s.openDisks(); err != nil {
			t.Fatal(err)
		}
		n := len(s.disks)
		s.closeFolders()
		s.disks = nil
		return n
	}
	if n := open(); n != 0 {
		t.Errorf("%d disks beside that of the objects", n)
	}
	for i, name := range []string{"meta", "recipes"} {
		target := filepath.Join(s.dir, name)
		if err := unix.Mount("tmpfs", target, "tmpfs", 0, "size=64k"); err != nil {
			t.Skipf("no other file system: %v", err)
		}
		defer func() { _ = unix.Unmount(target, unix.MNT_DETACH) }()
		if n := open(); n != i+1 {
			t.Errorf("%d disks with one on %s", n, name)
		}
	}
}

// Only a clear answer says that nothing is mounted any more.
func TestIsUnmounted(t *testing.T) {
	dir := t.TempDir()
	long := make([]byte, 300) // no file system takes such a name
	for i := range long {
		long[i] = 'x'
	}
	for target, want := range map[string]bool{
		dir: true, filepath.Join(dir, "gone"): true, filepath.Join(dir, "gone/in"): true, "/proc": false, filepath.Join(dir, string(long)): false,
	} {
		if got := isUnmounted(target); got != want {
			t.Errorf("%.60s: %v", target, got)
		}
	}
}
