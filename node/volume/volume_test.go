package volume_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/volume"
	"berth/spec"
)

func open(t *testing.T, dir string) (*volume.Set, func()) {
	t.Helper()
	db, err := kv.Open(filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := volume.Open(t.Context(), filepath.Join(dir, "volumes"), db, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	shut := func() {
		if !closed {
			closed = true
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(shut)
	return s, shut
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A user of the machine gets at no volume, though he knows its name.
func TestOnlyRootGetsIntoVolumes(t *testing.T) {
	dir := t.TempDir()
	check(t, os.Mkdir(filepath.Join(dir, "volumes"), 0o711))
	open(t, dir)
	info := must[os.FileInfo](t)(os.Stat(filepath.Join(dir, "volumes")))
	if info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestLife(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s, shut := open(t, dir)
	vol := must[spec.Volume](t)
	v := vol(s.Create(ctx, spec.VolumeConfig{Name: "data", Labels: map[string]string{"a": "b"}}))
	if v.Driver != "local" || v.Anonymous || v.Path != filepath.Join(dir, "volumes/data/data") {
		t.Errorf("%+v", v)
	}
	anonymous := vol(s.Create(ctx, spec.VolumeConfig{}))
	if len(anonymous.Name) != 64 || !anonymous.Anonymous {
		t.Errorf("%+v", anonymous)
	}
	if again := vol(s.Create(ctx, spec.VolumeConfig{Name: "data"})); again.Labels["a"] != "b" {
		t.Errorf("%+v", again)
	}
	check(t, s.Reserve(ctx, "data", "c1"))
	path := must[string](t)(s.Acquire(ctx, "data", "c2"))
	check(t, os.WriteFile(filepath.Join(path, "file"), []byte("kept"), 0o600))
	if err := s.Remove(ctx, "data", true); !errors.Is(err, errs.Conflict) {
		t.Errorf("removing a volume in use: %v", err)
	}

	shut()
	s, _ = open(t, dir)
	if v = vol(s.Get(ctx, "data")); !slices.Equal(v.UsedBy, []string{"c1", "c2"}) || v.Labels["a"] != "b" {
		t.Errorf("after a restart: %+v", v)
	}
	list := must[[]spec.Volume](t)(s.List(ctx, spec.Filter{"dangling": {"true"}}))
	if len(list) != 1 || list[0].Name != anonymous.Name {
		t.Errorf("dangling: %+v", list)
	}
	pruned := must[spec.Pruned](t)(s.Prune(ctx, false, nil))
	if !slices.Equal(pruned.Removed, []string{anonymous.Name}) {
		t.Errorf("pruned %v", pruned)
	}
	check(t, s.Release(ctx, "data", "c1"))
	check(t, s.Release(ctx, "data", "c2"))
	check(t, s.Release(ctx, "data", "c2"))
	check(t, s.Release(ctx, "nothere", "c2"))
	if pruned = must[spec.Pruned](t)(s.Prune(ctx, false, nil)); len(pruned.Removed) != 0 {
		t.Errorf("pruned a named volume: %v", pruned)
	}
	if use := must[spec.DiskShare](t)(s.Usage(ctx)); use.Total != 1 || use.Size < 4096 || use.Reclaimable != use.Size {
		t.Errorf("usage %+v", use)
	}
	if pruned = must[spec.Pruned](t)(s.Prune(ctx, true, spec.Filter{"label!": {"a=b"}})); len(pruned.Removed) != 0 {
		t.Errorf("pruned what the filter keeps: %v", pruned)
	}
	if pruned = must[spec.Pruned](t)(s.Prune(ctx, true, spec.Filter{"label": {"a"}})); pruned.Reclaimed < 4096 {
		t.Errorf("pruned %v", pruned)
	}
	if err := s.Remove(ctx, "data", false); !errors.Is(err, errs.NotFound) {
		t.Errorf("removing what is gone: %v", err)
	}
	check(t, s.Remove(ctx, "data", true))
	if left, _ := os.ReadDir(filepath.Join(dir, "volumes")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestBadRequests(t *testing.T) {
	s, _ := open(t, t.TempDir())
	for _, name := range []string{"..", ".", "a/b", "/etc", "-x", ".hidden", "a b", "ü", "x\x00", strings.Repeat("x", 129)} {
		if _, err := s.Create(t.Context(), spec.VolumeConfig{Name: name}); !errors.Is(err, errs.Invalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	for what, config := range map[string]spec.VolumeConfig{
		"unknown option":   {Name: "a", Options: map[string]string{"size": "1g"}},
		"no device":        {Name: "a", Options: map[string]string{"type": "tmpfs"}},
		"no type":          {Name: "a", Options: map[string]string{"device": "/dev/sda"}},
		"relative binding": {Name: "a", Options: map[string]string{"o": "bind", "device": "etc"}},
	} {
		if _, err := s.Create(t.Context(), config); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := s.Create(t.Context(), spec.VolumeConfig{Name: "a", Driver: "nfs"}); !errors.Is(err, errs.Unsupported) {
		t.Errorf("driver: %v", err)
	}
	if _, err := s.List(t.Context(), spec.Filter{"colour": {"red"}}); !errors.Is(err, errs.Invalid) {
		t.Errorf("filter: %v", err)
	}
	if err := s.Reserve(t.Context(), "a", "c"); !errors.Is(err, errs.NotFound) {
		t.Errorf("reserve: %v", err)
	}
}

func TestUnwritable(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	check(t, os.RemoveAll(filepath.Join(dir, "volumes")))
	check(t, os.WriteFile(filepath.Join(dir, "volumes"), nil, 0o600))
	if _, err := s.Create(t.Context(), spec.VolumeConfig{Name: "a"}); err == nil {
		t.Error("made a volume where there is no folder")
	}
	if list, _ := s.List(t.Context(), nil); len(list) != 0 {
		t.Errorf("listed: %+v", list)
	}
}

// What a crash leaves, Open puts right.
func TestCrash(t *testing.T) {
	dir := t.TempDir()
	s, shut := open(t, dir)
	for _, name := range []string{"half", "kept"} {
		must[spec.Volume](t)(s.Create(t.Context(), spec.VolumeConfig{Name: name}))
	}
	shut()
	root := filepath.Join(dir, "volumes")
	check(t, os.Rename(filepath.Join(root, "half"), filepath.Join(root, ".removing-half")))
	check(t, os.MkdirAll(filepath.Join(root, "unmade/data"), 0o755))
	check(t, os.MkdirAll(filepath.Join(root, "lost/data/precious"), 0o755))
	s, _ = open(t, dir)
	var names []string
	for _, v := range must[[]spec.Volume](t)(s.List(t.Context(), nil)) {
		names = append(names, v.Name)
	}
	if !slices.Equal(names, []string{"kept", "lost"}) {
		t.Errorf("volumes %v", names)
	}
	if left, _ := filepath.Glob(root + "/.removing*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts and owners need root")
	}
}

func TestDevices(t *testing.T) {
	needRoot(t)
	dir, ctx := t.TempDir(), t.Context()
	s, _ := open(t, dir)
	host := filepath.Join(dir, "host")
	check(t, os.Mkdir(host, 0o755))
	check(t, os.WriteFile(filepath.Join(host, "file"), nil, 0o600))
	for name, options := range map[string]map[string]string{
		"tmp":  {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,nodev,mode=0700"},
		"bind": {"type": "none", "device": host, "o": "bind,ro"},
	} {
		must[spec.Volume](t)(s.Create(ctx, spec.VolumeConfig{Name: name, Options: options}))
		t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "volumes", name, "data"), unix.MNT_DETACH) })
		path := must[string](t)(s.Acquire(ctx, name, "c1"))
		must[string](t)(s.Acquire(ctx, name, "c2"))
		must[string](t)(s.Acquire(ctx, name, "c2"))
		if name == "bind" {
			if err := os.WriteFile(filepath.Join(path, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("write to a read-only bind: %v", err)
			}
		} else {
			if err := os.WriteFile(filepath.Join(path, "big"), make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("write beyond the size: %v", err)
			}
		}
		check(t, s.Unmount(ctx, name, "c1"))
		if !mounted(t, path) {
			t.Errorf("%s: unmounted while c2 holds it", name)
		}
		check(t, s.Release(ctx, name, "c2"))
		if mounted(t, path) {
			t.Errorf("%s: still mounted", name)
		}
		check(t, s.Release(ctx, name, "c1"))
		check(t, s.Remove(ctx, name, false))
	}
	if _, err := os.Stat(filepath.Join(host, "file")); err != nil {
		t.Errorf("removing the volume took the host's file: %v", err)
	}
	must[spec.Volume](t)(s.Create(ctx, spec.VolumeConfig{Name: "bad", Options: map[string]string{"type": "none", "o": "bind", "device": filepath.Join(dir, "nothere")}}))
	if _, err := s.Acquire(ctx, "bad", "c"); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "nothere") {
		t.Errorf("missing device: %v", err)
	}
}

// A mount that somebody else made in the volume is not deleted through.
func TestRemoveStopsAtMounts(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	s, _ := open(t, dir)
	v := must[spec.Volume](t)(s.Create(t.Context(), spec.VolumeConfig{Name: "v"}))
	host, in := filepath.Join(dir, "host"), filepath.Join(v.Path, "in")
	check(t, os.Mkdir(host, 0o755))
	check(t, os.WriteFile(filepath.Join(host, "file"), nil, 0o600))
	check(t, os.Mkdir(in, 0o755))
	check(t, unix.Mount(host, in, "", unix.MS_BIND, ""))
	err := s.Remove(t.Context(), "v", false)
	check(t, unix.Unmount(in, 0))
	if !errors.Is(err, errs.Conflict) {
		t.Errorf("removed: %v", err)
	}
	if _, err := os.Stat(filepath.Join(host, "file")); err != nil {
		t.Error(err)
	}
	check(t, s.Remove(t.Context(), "v", false))
}

func mounted(t *testing.T, path string) bool {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	check(t, err)
	return bytes.Contains(data, []byte(" "+path+" "))
}

func TestFill(t *testing.T) {
	needRoot(t)
	dir, ctx := t.TempDir(), t.Context()
	s, _ := open(t, dir)
	root := filepath.Join(dir, "rootfs")
	src := filepath.Join(root, "srv/data")
	check(t, os.MkdirAll(filepath.Join(src, "sub"), 0o755))
	check(t, os.WriteFile(filepath.Join(src, "a"), []byte("text"), 0o640))
	check(t, os.Link(filepath.Join(src, "a"), filepath.Join(src, "sub/b")))
	check(t, os.Symlink("/etc/passwd", filepath.Join(src, "link")))
	check(t, unix.Mkfifo(filepath.Join(src, "pipe"), 0o600))
	check(t, unix.Mknod(filepath.Join(src, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(t, os.Chown(filepath.Join(src, "a"), 1000, 1001))
	check(t, unix.Chmod(filepath.Join(src, "a"), 0o4750))
	check(t, os.Lchown(filepath.Join(src, "link"), 7, 8))
	check(t, unix.Setxattr(filepath.Join(src, "a"), "user.colour", []byte("red"), 0))
	hole, err := os.Create(filepath.Join(src, "hole"))
	check(t, err)
	_, err = hole.WriteAt([]byte("end"), 8<<20)
	check(t, errors.Join(err, hole.Close()))
	old := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	check(t, os.Chtimes(filepath.Join(src, "a"), old, old))
	check(t, os.Chown(src, 33, 34))
	check(t, os.Chmod(src, 0o700|os.ModeSticky))
	check(t, os.Chtimes(src, old, old))
	check(t, os.Symlink("/srv/data", filepath.Join(root, "alias"))) // absolute: within root

	must[spec.Volume](t)(s.Create(ctx, spec.VolumeConfig{Name: "v"}))
	to := must[string](t)(s.Acquire(ctx, "v", "c"))
	check(t, s.Fill(ctx, "v", root, "/alias"))

	stat := func(path string) (st unix.Stat_t) {
		t.Helper()
		check(t, unix.Lstat(path, &st))
		return st
	}
	for _, name := range []string{"", "a", "link", "pipe", "null", "hole", "sub", "sub/b"} {
		from, got := stat(filepath.Join(src, name)), stat(filepath.Join(to, name))
		if from.Mode != got.Mode || from.Uid != got.Uid || from.Gid != got.Gid || from.Mtim != got.Mtim || from.Rdev != got.Rdev ||
			from.Size != got.Size && from.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Errorf("%q: %+v became %+v", name, from, got)
		}
	}
	if stat(filepath.Join(to, "a")).Ino != stat(filepath.Join(to, "sub/b")).Ino {
		t.Error("the hard link became two files")
	}
	if got := stat(filepath.Join(to, "hole")); got.Blocks*512 > 1<<20 {
		t.Errorf("the hole was filled: %d blocks", got.Blocks)
	}
	value := make([]byte, 10)
	if n, err := unix.Getxattr(filepath.Join(to, "a"), "user.colour", value); err != nil || string(value[:n]) != "red" {
		t.Errorf("attribute %q, %v", value[:max(n, 0)], err)
	}
	if target, _ := os.Readlink(filepath.Join(to, "link")); target != "/etc/passwd" {
		t.Errorf("link to %q", target)
	}

	// A volume with content stays as it is.
	check(t, os.Remove(filepath.Join(to, "a")))
	check(t, s.Fill(ctx, "v", root, "/srv/data"))
	if _, err := os.Lstat(filepath.Join(to, "a")); err == nil {
		t.Error("filled a volume that was not empty")
	}
	// One whose filling was cut short starts again.
	check(t, os.WriteFile(filepath.Join(dir, "volumes/v/filling"), nil, 0o600))
	check(t, s.Fill(ctx, "v", root, "/srv/data"))
	if text, _ := os.ReadFile(filepath.Join(to, "a")); string(text) != "text" {
		t.Error("a cut-short filling was not done again")
	}
	if _, err := os.Lstat(filepath.Join(dir, "volumes/v/filling")); err == nil {
		t.Error("still marked as filling")
	}
}

// Where a container has users of its own, they can write to what is made for it.
func TestFreshVolumesHaveTheOwnerOfTheRoot(t *testing.T) {
	needRoot(t)
	dir, ctx := t.TempDir(), t.Context()
	s, _ := open(t, dir)
	root, host := filepath.Join(dir, "root"), filepath.Join(dir, "host")
	check(t, errors.Join(os.Mkdir(root, 0o755), os.Chown(root, 200000, 200001), os.Mkdir(host, 0o755)))
	device := map[string]string{"type": "none", "o": "bind", "device": host}
	for name, want := range map[string]uint32{"fresh": 200000, "used": 0, "device": 0} {
		config := spec.VolumeConfig{Name: name}
		if name == "device" {
			config.Options = device
			t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "volumes", name, "data"), unix.MNT_DETACH) })
		}
		must[spec.Volume](t)(s.Create(ctx, config))
		path := must[string](t)(s.Acquire(ctx, name, "c"))
		if name == "used" {
			check(t, os.WriteFile(filepath.Join(path, "file"), nil, 0o600))
		}
		check(t, s.Fill(ctx, name, root, "/none/such"))
		var st unix.Stat_t
		check(t, unix.Stat(path, &st))
		if st.Uid != want || st.Gid != want+want/200000 {
			t.Errorf("%s belongs to %d:%d", name, st.Uid, st.Gid)
		}
	}
}

func TestFillStaysInRoot(t *testing.T) {
	needRoot(t)
	dir, ctx := t.TempDir(), t.Context()
	s, _ := open(t, dir)
	root := filepath.Join(dir, "rootfs")
	secret := filepath.Join(dir, "secret")
	check(t, os.MkdirAll(filepath.Join(root, "d"), 0o755))
	check(t, os.Mkdir(secret, 0o755))
	check(t, os.WriteFile(filepath.Join(secret, "key"), nil, 0o600))
	check(t, os.Symlink("../../../../../../.."+secret, filepath.Join(root, "up")))
	check(t, os.Symlink(secret, filepath.Join(root, "abs")))
	check(t, os.Symlink(secret, filepath.Join(root, "d/inner")))
	for _, from := range []string{"/up", "/abs", "/../../secret", "/nothere"} {
		v := must[spec.Volume](t)(s.Create(ctx, spec.VolumeConfig{}))
		must[string](t)(s.Acquire(ctx, v.Name, "c"))
		check(t, s.Fill(ctx, v.Name, root, from))
		if left, _ := os.ReadDir(v.Path); len(left) > 0 {
			t.Errorf("%s led out of the root: %v", from, left)
		}
	}
	v := must[spec.Volume](t)(s.Create(ctx, spec.VolumeConfig{}))
	check(t, s.Fill(ctx, v.Name, root, "/d"))
	if info, err := os.Lstat(filepath.Join(v.Path, "inner")); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("a link in the folder was followed: %v, %v", info, err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	v = must[spec.Volume](t)(s.Create(ctx, spec.VolumeConfig{}))
	if err := s.Fill(canceled, v.Name, root, "/d"); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if left, _ := os.ReadDir(v.Path); len(left) > 0 {
		t.Errorf("a canceled filling left %v", left)
	}
}
