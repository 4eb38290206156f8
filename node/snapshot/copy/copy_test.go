package copy_test

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/copy"
	"berth/node/snapshot/fakesnapshot"
	"berth/node/snapshot/snapshottest"
)

// opened closes the records together with the store.
type opened struct {
	*copy.Store
	db *kv.DB
}

func (o opened) Close() error {
	if err := o.Store.Close(); err != nil {
		return err
	}
	return o.db.Close()
}

func open(t testing.TB, dir string, method copy.Method) opened {
	t.Helper()
	db, err := kv.Open(filepath.Join(dir, "db"))
	must(t, err)
	s, err := copy.Open(t.Context(), copy.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler), Method: method})
	must(t, err)
	return opened{s, db}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
}

// disk is a file system of its own in a file.
func disk(t testing.TB, mkfs ...string) string {
	t.Helper()
	needRoot(t)
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skipf("needs %s", mkfs[0])
	}
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 4<<30)) // sparse
	for _, command := range [][]string{append(mkfs, image), {"mount", "-o", "loop", image, dir}} {
		var said bytes.Buffer
		cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Run(); err != nil {
			if command[0] == "mount" {
				t.Skipf("no loop mount of %s here: %s", mkfs[0], &said)
			}
			t.Fatalf("%v: %v: %s", command, err, &said)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// rungs are the methods, each on a file system that carries it.
func rungs(t *testing.T, test func(t *testing.T, method copy.Method, root func(t *testing.T) string)) {
	for _, rung := range []struct {
		name   string
		method copy.Method
		mkfs   []string
	}{
		{"btrfs", copy.Btrfs, []string{"mkfs.btrfs", "-q"}},
		{"xfs", copy.Reflink, []string{"mkfs.xfs", "-q", "-m", "reflink=1"}},
		{"ext4", copy.Copy, []string{"mkfs.ext4", "-q"}},
		{"tmpfs", copy.Copy, nil},
	} {
		t.Run(rung.name, func(t *testing.T) {
			t.Parallel()
			needRoot(t)
			if rung.mkfs == nil {
				test(t, rung.method, func(t *testing.T) string { return tmpfs(t) })
				return
			}
			root := t.TempDir()
			if _, err := exec.LookPath(rung.mkfs[0]); err == nil || rung.method != copy.Copy { // that works anywhere
				root = disk(t, rung.mkfs...)
			}
			test(t, rung.method, func(t *testing.T) string {
				dir, err := os.MkdirTemp(root, "store")
				must(t, err)
				return dir
			})
		})
	}
}

func tmpfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1g"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestSuite(t *testing.T) {
	rungs(t, func(t *testing.T, method copy.Method, root func(*testing.T) string) {
		dirs := map[string]string{} // the suite's folders are elsewhere
		snapshottest.Suite(t, func(t *testing.T, dir string) snapshot.Store {
			if dirs[dir] == "" {
				dirs[dir] = root(t)
			}
			return open(t, dirs[dir], method)
		})
	})
}

func TestRandomHistory(t *testing.T) {
	rungs(t, func(t *testing.T, method copy.Method, root func(*testing.T) string) {
		dirs := map[string]string{}
		snapshottest.RandomHistory(t, fakesnapshot.Keeping(), func(t *testing.T, dir string) snapshot.Store {
			if dirs[dir] == "" {
				dirs[dir] = root(t)
			}
			return open(t, dirs[dir], method)
		})
	})
}
