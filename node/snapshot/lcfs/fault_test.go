package lcfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/lcfs"
)

func folders(t testing.TB, dir string) []string { return names(t, filepath.Join(dir, "layers")) }

func wantFolders(t testing.TB, dir string, n int) {
	t.Helper()
	eventually(t, fmt.Sprint(n, " folders in layers/"), func() bool { return len(folders(t, dir)) == n })
}

// What a crash leaves is swept when the store opens: folders that no record
// names, and what a deletion had put aside.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	layer(t, s, "base", "", map[string]string{"f": "x"})
	_, err := s.Prepare(t.Context(), "work", "base", nil)
	must(t, err)
	_, err = s.Ingest(t.Context(), pack(t, map[string]string{"left": "over"}))
	must(t, err)
	must(t, s.Close())
	for _, name := range []string{"zzz/fs/a/b", "aside-5-1/x", "half"} {
		must(t, os.MkdirAll(filepath.Join(dir, "layers", name), 0o755))
	}
	s = open(t, dir)
	wantFolders(t, dir, 1)
	layer(t, s, "next", "base", map[string]string{"g": "y"}) // a new id meets no old folder
	must(t, s.Close())
}

// A Prepare whose record did not become durable leaves a folder that is swept;
// the one whose record did keeps it.
func TestCrashBeforeRecord(t *testing.T) {
	dir := t.TempDir()
	db, err := kv.Open(filepath.Join(dir, "db"))
	must(t, err)
	config := lcfs.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler), Features: features(t)}
	s, err := lcfs.Open(t.Context(), config)
	must(t, err)
	layer(t, s, "base", "", map[string]string{"f": "x"})
	must(t, s.Sync(t.Context()))
	// The crash: the records as they are on disk now, without what is waiting.
	_, err = s.Prepare(t.Context(), "lost", "base", nil)
	must(t, err)
	crashed := copyDB(t, filepath.Join(dir, "db"))
	must(t, s.Close())
	must(t, db.Close())
	must(t, os.Rename(crashed, filepath.Join(dir, "db")))

	again := open(t, dir)
	_, err = again.Stat(t.Context(), "lost")
	if !errors.Is(err, errs.NotFound) {
		t.Errorf("stat of what was not durable: %v", err)
	}
	wantFolders(t, dir, 0)
	_, err = again.Prepare(t.Context(), "lost", "base", nil)
	must(t, err)
	must(t, again.Close())
}

func copyDB(t *testing.T, path string) string {
	t.Helper()
	body, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path+".crash", body, 0o600))
	return path + ".crash"
}

// Layers have a limit, so that a bomb does not fill the disk.
func TestLimit(t *testing.T) {
	dir := t.TempDir()
	db, err := kv.Open(filepath.Join(dir, "db"))
	must(t, err)
	s, err := lcfs.Open(t.Context(), lcfs.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler), Features: features(t), MaxLayer: 1 << 20})
	must(t, err)
	bomb := io.MultiReader(pack(t, map[string]string{"f": "x"}), io.LimitReader(zeroReader{}, 1<<40))
	for what, r := range map[string]io.Reader{
		"a big file":     pack(t, map[string]string{"big": strings.Repeat("\x00", 2<<20)}),
		"an endless end": bomb,
	} {
		if _, err := s.Ingest(t.Context(), r); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: got error %v, want it invalid", what, err)
		}
	}
	empty(t, dir)
	must(t, s.Close())
	must(t, db.Close())
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Trees deeper than there are descriptors can be deleted, and are no trap for
// Usage, Diff and Changes.
func TestDeepTree(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	_, err := s.Prepare(t.Context(), "work", "", nil)
	must(t, err)
	at, err := unix.Open(filepath.Join(dir, "layers", folders(t, dir)[0], "fs"), unix.O_DIRECTORY|unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	for range 5000 {
		must(t, unix.Mkdirat(at, "d", 0o755))
		next, err := unix.Openat(at, "d", unix.O_DIRECTORY|unix.O_PATH|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(at))
		at = next
	}
	must(t, unix.Close(at))
	_, usageErr := s.Usage(t.Context(), "work")
	_, changesErr := s.Changes(t.Context(), "work")
	for what, err := range map[string]error{"usage": usageErr, "changes": changesErr, "diff": s.Diff(t.Context(), "work", io.Discard)} {
		if !errors.Is(err, errs.Unsupported) {
			t.Errorf("%s of 5,000 folders in each other: %v", what, err)
		}
	}
	must(t, s.Remove(t.Context(), "work"))
	wantFolders(t, dir, 0)
	must(t, s.Close())
}

// A container may replace folders by links while its layer is walked: what
// is outside must not come into a diff.
func TestDiffFollowsNoLink(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("s3cret"), 0o600))
	s := open(t, dir)
	_, err := s.Prepare(t.Context(), "work", "", nil)
	must(t, err)
	fs := filepath.Join(dir, "layers", folders(t, dir)[0], "fs")
	must(t, os.Symlink(outside, filepath.Join(fs, "link")))
	must(t, os.Mkdir(filepath.Join(fs, "swap"), 0o755))
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.Remove(filepath.Join(fs, "swap"))
				_ = os.Symlink(outside, filepath.Join(fs, "swap"))
				_ = os.Remove(filepath.Join(fs, "swap"))
				_ = os.Mkdir(filepath.Join(fs, "swap"), 0o755)
			}
		}
	}()
	for range 200 {
		var out bytes.Buffer
		_ = s.Diff(t.Context(), "work", &out)
		if bytes.Contains(out.Bytes(), []byte("s3cret")) {
			t.Fatal("the diff holds a file from outside")
		}
	}
	close(stop)
	<-done
	must(t, s.Close())
}

// TestPowerLoss: a layer that was not synced when the machine lost power is
// absent after it, and can be made again under the containers that stand on
// it. One that was synced but not settled is there.
func TestPowerLoss(t *testing.T) {
	dir := t.TempDir()
	quiet := func(c *lcfs.Config) { c.Quiet = time.Hour }
	s := open(t, dir, quiet)
	layer(t, s, "safe", "", map[string]string{"f": strings.Repeat("x", 1000)})
	_, err := s.Prepare(t.Context(), "first", "safe", nil)
	must(t, err)
	change(t, s, "first", func(root string) { must(t, os.WriteFile(filepath.Join(root, "g"), []byte("y"), 0o644)) })
	_, err = s.Commit(t.Context(), "durable", "first", nil)
	must(t, err)
	must(t, s.Sync(t.Context()))
	_, err = s.Prepare(t.Context(), "second", "durable", nil)
	must(t, err)
	_, err = s.Commit(t.Context(), "unsettled", "second", nil)
	must(t, err)
	layer(t, s, "unsafe", "durable", map[string]string{"h": "z"})
	_, err = s.Prepare(t.Context(), "work", "unsafe", nil)
	must(t, err)
	must(t, s.Store.Close())
	anotherBoot(t, s.db)
	must(t, s.db.Close())

	s = open(t, dir, quiet)
	for _, key := range []snapshot.Key{"safe", "durable", "work"} {
		if _, err := s.Stat(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	for _, key := range []snapshot.Key{"unsafe", "unsettled"} {
		if _, err := s.Stat(t.Context(), key); !errors.Is(err, errs.NotFound) {
			t.Errorf("stat of the lost layer %s: %v", key, err)
		}
	}
	target := t.TempDir()
	if err := s.Mount(t.Context(), "work", target); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "unsafe was lost") {
		t.Errorf("mount on a lost layer: %v", err)
	}
	layer(t, s, "unsafe", "durable", map[string]string{"h": "z"})
	must(t, s.Mount(t.Context(), "work", target))
	for _, name := range []string{"f", "g", "h"} {
		if _, err := os.Stat(filepath.Join(target, name)); err != nil {
			t.Error(err)
		}
	}
	must(t, s.Unmount(t.Context(), target))
	if err := s.Remove(t.Context(), "unsafe"); !errors.Is(err, errs.Conflict) {
		t.Errorf("remove of the layer that came back under its child: %v", err)
	}
	must(t, s.Close())
}

// TestPowerLossWhileSettling: images that were not synced are made again from
// the layer's folder.
func TestPowerLossWhileSettling(t *testing.T) {
	dir := t.TempDir()
	quiet := func(c *lcfs.Config) { c.Quiet = time.Hour }
	s := open(t, dir, quiet)
	scene(t, s)
	_, err := s.Commit(t.Context(), "top", "work", nil)
	must(t, err)
	must(t, s.Sync(t.Context()))
	before := read(t, s, "top")
	must(t, s.Settle(t.Context(), "top"))
	must(t, s.Store.Close())
	anotherBoot(t, s.db)
	for _, rec := range records(t, s) {
		if rec.Key != "top" {
			continue
		}
		if rec.Delta == "" || rec.Fresh == "" || !rec.Upper {
			t.Fatalf("record of what was settled: %+v", rec)
		}
		for _, name := range []string{rec.Delta, rec.Merged} {
			must(t, os.Truncate(filepath.Join(dir, "meta", name+".erofs"), 0))
			if err := os.Truncate(filepath.Join(dir, "meta", name+".objs"), 0); !errors.Is(err, os.ErrNotExist) { // a chain's has none
				must(t, err)
			}
		}
	}
	must(t, s.db.Close())
	s = open(t, dir)
	if got := read(t, s, "top"); !slices.Equal(got, before) {
		t.Errorf("the tree is\n%s\nwas\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
	}
	must(t, s.Settle(t.Context(), "top"))
	if got := read(t, s, "top"); !slices.Equal(got, before) {
		t.Errorf("settled again the tree is\n%s\nwas\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
	}
	checkObjects(t, s, dir)
	must(t, s.Close())
}

// smallDisk mounts a file system of 16 MiB and few inodes on dir.
func smallDisk(t *testing.T, dir string) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(image)
	must(t, err)
	must(t, f.Truncate(16<<20))
	must(t, f.Close())
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-N", "1200", image).CombinedOutput(); err != nil {
		t.Skipf("needs mkfs.ext4: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("needs loop devices: %v: %s", err, out)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}

// A full disk is Exhausted and leaves nothing; a layer that cannot be settled
// for it stays what it is until there is room.
func TestFullDisk(t *testing.T) {
	found := features(t)
	dir, dbDir := t.TempDir(), t.TempDir()
	smallDisk(t, dir)
	db, err := kv.Open(filepath.Join(dbDir, "db"))
	must(t, err)
	s, err := lcfs.Open(t.Context(), lcfs.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler), Features: found, Quiet: time.Millisecond})
	must(t, err)
	big, many := map[string]string{}, map[string]string{}
	for i := range 10 {
		big[fmt.Sprint(i)] = strings.Repeat(fmt.Sprint(i), 2<<20)
	}
	for i := range 2000 {
		many[fmt.Sprintf("d/%d", i)] = strings.Repeat(fmt.Sprint(i), 300)
	}
	for what, files := range map[string]map[string]string{"bytes": big, "inodes": many} {
		if _, err := s.Ingest(t.Context(), pack(t, files)); !errors.Is(err, errs.Exhausted) {
			t.Errorf("no more %s: got error %v, want it exhausted", what, err)
		}
		empty(t, dir)
	}
	layer(t, s, "base", "", map[string]string{"f": strings.Repeat("x", 1000)}) // there is room again
	_, err = s.Prepare(t.Context(), "work", "base", nil)
	must(t, err)
	change(t, s, "work", func(root string) {
		must(t, os.WriteFile(filepath.Join(root, "g"), []byte(strings.Repeat("y", 1000)), 0o644))
	})
	fill := filepath.Join(dir, "fill")
	body := make([]byte, 4096)
	f, err := os.Create(fill)
	must(t, err)
	for err == nil {
		_, err = f.Write(body)
	}
	for i := 0; ; i++ { // and no more folders or names in full ones
		if err := os.Mkdir(fmt.Sprint(fill, i), 0o755); err != nil {
			break
		}
	}
	must(t, f.Close())
	_, err = s.Commit(t.Context(), "top", "work", nil)
	must(t, err)
	if err := s.Settle(t.Context(), "top"); !errors.Is(err, errs.Exhausted) {
		t.Errorf("settle on a full disk: %v", err)
	}
	if got := read(t, s, "top"); len(got) != 3 {
		t.Errorf("the layer is %q", got)
	}
	fills, err := filepath.Glob(fill + "*")
	must(t, err)
	for _, name := range fills {
		must(t, os.Remove(name))
	}
	must(t, s.Settle(t.Context(), "top"))
	if got := read(t, s, "top"); len(got) != 3 {
		t.Errorf("the settled layer is %q", got)
	}
	must(t, s.Close())
	must(t, db.Close())
}
