package lcfs_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/object"
	"berth/node/snapshot"
	"berth/node/snapshot/lcfs"
)

// diskOf mounts a file system of its own on dir and returns its file.
func diskOf(t *testing.T, dir string, mkfs ...string) (image string) {
	t.Helper()
	image = filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(image)
	must(t, err)
	must(t, f.Truncate(64<<20))
	must(t, f.Close())
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", append(mkfs, "-q", image)...).CombinedOutput(); err != nil {
		t.Skipf("needs mkfs.ext4: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("needs loop devices, and a kernel that mounts this: %v: %s", err, out)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return image
}

// onDisk opens a store in dir whose records are elsewhere.
func onDisk(t *testing.T, dir string) opened {
	t.Helper()
	db, err := kv.Open(filepath.Join(t.TempDir(), "db"))
	must(t, err)
	s, err := lcfs.Open(t.Context(), lcfs.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler), Features: features(t), Quiet: time.Millisecond})
	must(t, err)
	return opened{s, db}
}

// rot flips a bit of a file where it lies on the disk, behind the back of the
// file system, which goes on to show what it has in memory.
func rot(t *testing.T, file, disk string) {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	must(t, f.Sync())
	var fs unix.Statfs_t
	must(t, unix.Statfs(file, &fs))
	const fibmap = 1
	block := int32(0)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fibmap, uintptr(unsafe.Pointer(&block))); errno != 0 || block == 0 {
		t.Skipf("needs to know where %s lies: %v", file, errno)
	}
	d, err := os.OpenFile(disk, os.O_RDWR, 0)
	must(t, err)
	defer d.Close()
	at := int64(block)*fs.Bsize + 100
	b := make([]byte, 1)
	_, err = d.ReadAt(b, at)
	must(t, err)
	b[0] ^= 1
	_, err = d.WriteAt(b, at)
	must(t, err)
	must(t, d.Sync())
}

// TestScrubSeesTheDisk: what rots on the disk is found although the kernel has
// it whole in memory.
func TestScrubSeesTheDisk(t *testing.T) {
	dir := t.TempDir()
	disk := diskOf(t, dir)
	s := onDisk(t, dir)
	body := strings.Repeat("a body that rots ", 600)
	files := pack(t, map[string]string{"f": body})
	raw := make([]byte, files.Len())
	_, _ = files.Read(raw)
	in, err := s.Ingest(t.Context(), bytes.NewReader(raw))
	must(t, err)
	_, err = in.Commit(t.Context(), "layer", "", nil)
	must(t, err)
	must(t, s.Sync(t.Context()))
	if _, damaged := scrub(t, s); len(damaged) > 0 {
		t.Fatalf("found %+v", damaged)
	}
	kept := objects(t, dir)[0]
	rot(t, kept, disk)
	if got, err := os.ReadFile(kept); err != nil || string(got) != body {
		t.Skip("needs a file system that keeps what it wrote in memory")
	}
	_, damaged := scrub(t, s)
	if len(damaged) != 1 || damaged[0].Part != snapshot.PartObject {
		t.Errorf("found %+v", damaged)
	}
	must(t, s.Heal(t.Context(), "layer", bytes.NewReader(raw)))
	if _, damaged := scrub(t, s); len(damaged) > 0 {
		t.Errorf("after healing there is %+v", damaged)
	}
	must(t, s.Close())
}

// TestSeal: where the file system can, the kernel checks objects and images
// soon after a layer is durable, and after a scrub; sealed ones can be healed
// and removed.
func TestSeal(t *testing.T) {
	dir, disk := t.TempDir(), ""
	if !seals(t, dir) {
		disk = diskOf(t, dir, "-O", "verity")
		if !seals(t, dir) {
			t.Skip("needs a kernel with fs-verity")
		}
	}
	s := onDisk(t, dir)
	body := strings.Repeat("a sealed body ", 6000)
	files := pack(t, map[string]string{"f": body, "g": "small"})
	raw := make([]byte, files.Len())
	_, _ = files.Read(raw)
	in, err := s.Ingest(t.Context(), bytes.NewReader(raw))
	must(t, err)
	_, err = in.Commit(t.Context(), "layer", "", nil)
	must(t, err)
	must(t, s.Sync(t.Context()))
	kept, image := objects(t, dir)[0], filepath.Join(dir, "meta", records(t, s)[0].Delta+".erofs")
	eventually(t, "object and image are sealed", func() bool { return isSealed(t, kept) && isSealed(t, image) })
	if _, damaged := scrub(t, s); len(damaged) > 0 {
		t.Errorf("found %+v", damaged)
	}
	must(t, os.Remove(kept))
	if disk == "" {
		must(t, os.Remove(image))
	} else {
		rot(t, image, disk)
		must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0o200)) // which the kernel has checked
	}
	_, damaged := scrub(t, s)
	if len(damaged) != 2 {
		t.Errorf("found %+v", damaged)
	}
	must(t, s.Heal(t.Context(), "layer", bytes.NewReader(raw)))
	if _, damaged := scrub(t, s); len(damaged) > 0 {
		t.Errorf("after healing there is %+v", damaged)
	}
	if !isSealed(t, kept) || !isSealed(t, image) {
		t.Error("what was healed is not sealed by the scrub")
	}
	if got := read(t, s, "layer"); len(got) != 3 || !strings.Contains(got[1], "a sealed body") {
		t.Errorf("the tree is %q", got)
	}
	must(t, s.Remove(t.Context(), "layer"))
	empty(t, dir)
	must(t, s.Close())
}

// seals says whether files in dir can be sealed.
func seals(t *testing.T, dir string) bool {
	t.Helper()
	probe := filepath.Join(dir, "probe")
	must(t, os.WriteFile(probe, []byte("x"), 0o600))
	f, err := os.Open(probe)
	must(t, err)
	defer f.Close()
	sealed, err := object.SealFile(f)
	must(t, errors.Join(err, os.Remove(probe)))
	return sealed
}

func isSealed(t testing.TB, file string) bool {
	t.Helper()
	var st unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, file, 0, unix.STATX_BASIC_STATS, &st))
	return st.Attributes&unix.STATX_ATTR_VERITY != 0
}

// TestHealOnFullDisk: without room nothing is healed and nothing is lost.
func TestHealOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	smallDisk(t, dir)
	s := onDisk(t, dir)
	files := pack(t, map[string]string{"big": string(noise(1, 3<<20)), "f": string(noise(2, 9000))})
	raw := make([]byte, files.Len())
	_, _ = files.Read(raw)
	in, err := s.Ingest(t.Context(), bytes.NewReader(raw))
	must(t, err)
	_, err = in.Commit(t.Context(), "layer", "", nil)
	must(t, err)
	must(t, s.Sync(t.Context()))
	want := read(t, s, "layer")
	for _, path := range objects(t, dir) {
		flip(t, path)
	}
	flip(t, filepath.Join(dir, "meta", records(t, s)[0].Delta+".erofs"))
	fill := filepath.Join(dir, "fill")
	full, err := os.Create(fill)
	must(t, err)
	for body := make([]byte, 1024); err == nil; {
		_, err = full.Write(body)
	}
	must(t, full.Close())
	_, before := scrub(t, s)
	if err := s.Heal(t.Context(), "layer", bytes.NewReader(raw)); !errors.Is(err, errs.Exhausted) {
		t.Errorf("healed on a full disk: %v", err)
	}
	if _, after := scrub(t, s); len(before) != 3 || len(after) != 3 {
		t.Errorf("found %+v, then %+v", before, after)
	}
	must(t, os.Remove(fill))
	must(t, s.Heal(t.Context(), "layer", bytes.NewReader(raw)))
	if _, damaged := scrub(t, s); len(damaged) > 0 {
		t.Errorf("after healing there is %+v", damaged)
	}
	if got := read(t, s, "layer"); !slices.Equal(got, want) {
		t.Errorf("the tree is %q, was %q", got, want)
	}
	eventually(t, "only what is named is left", func() bool { return leftOver(t, s, dir) == "" })
	must(t, s.Close())
}
