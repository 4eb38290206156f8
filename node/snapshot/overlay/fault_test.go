package overlay_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/overlay"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
}

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

// folders lists layers/ but for the empty ones.
func folders(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "layers"))
	must(t, err)
	var names []string
	for _, e := range entries {
		if e.Name() != "empty" {
			names = append(names, e.Name())
		}
	}
	return names
}

// wantFolders waits until the sweeper has left n folders.
func wantFolders(t testing.TB, dir string, n int) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for range 2500 {
		if len(folders(t, dir)) == n {
			return
		}
		<-tick.C
	}
	t.Errorf("folders %v, want %d", folders(t, dir), n)
}

// What a crash leaves is swept when the store opens: folders that no record
// names, and what a deletion had put aside.
func TestLeftovers(t *testing.T) {
	needRoot(t)
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
	wantFolders(t, dir, 2)
	layer(t, s, "next", "base", map[string]string{"g": "y"}) // a new id meets no old folder
	must(t, s.Close())
}

// A Prepare whose record did not become durable leaves a folder that is swept;
// the one whose record did keeps it.
func TestCrashBeforeRecord(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	db, err := kv.Open(filepath.Join(dir, "db"))
	must(t, err)
	config := overlay.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler)}
	s, err := overlay.Open(t.Context(), config)
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
	wantFolders(t, dir, 1)
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

// A layer that was not synced when the machine lost power is absent after it,
// and can be ingested again under the containers that stand on it.
func TestPowerLoss(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	s := open(t, dir)
	layer(t, s, "safe", "", map[string]string{"f": "x"})
	must(t, s.Sync(t.Context()))
	layer(t, s, "unsafe", "safe", map[string]string{"g": "y"})
	_, err := s.Prepare(t.Context(), "work", "unsafe", nil)
	must(t, err)
	must(t, s.Store.Close())
	// Another boot: the records of unsynced layers name one that is over.
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	must(t, err)
	must(t, s.db.Update(t.Context(), func(tx *kv.Tx) error {
		records := map[string][]byte{}
		err := tx.Each("snapshot", "", func(id string, value []byte) error {
			records[id] = bytes.ReplaceAll(value, bytes.TrimSpace(boot), []byte("another-boot"))
			return nil
		})
		for id, value := range records {
			err = errors.Join(err, tx.Put("snapshot", id, value))
		}
		return err
	}))
	must(t, s.db.Close())

	s = open(t, dir)
	if _, err := s.Stat(t.Context(), "safe"); err != nil {
		t.Error(err)
	}
	if _, err := s.Stat(t.Context(), "unsafe"); !errors.Is(err, errs.NotFound) {
		t.Errorf("stat of the lost layer: %v", err)
	}
	target := t.TempDir()
	if err := s.Mount(t.Context(), "work", target); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "unsafe was lost") {
		t.Errorf("mount on a lost layer: %v", err)
	}
	layer(t, s, "unsafe", "safe", map[string]string{"g": "y"})
	must(t, s.Mount(t.Context(), "work", target))
	if _, err := os.Stat(filepath.Join(target, "g")); err != nil {
		t.Error(err)
	}
	must(t, s.Unmount(t.Context(), target))
	if err := s.Remove(t.Context(), "unsafe"); !errors.Is(err, errs.Conflict) {
		t.Errorf("remove of the layer that came back under its child: %v", err)
	}
	must(t, s.Close())
}

// A full disk in the middle of a layer is Exhausted and leaves nothing.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	dir, dbDir := t.TempDir(), t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,nr_inodes=200"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	db, err := kv.Open(filepath.Join(dbDir, "db"))
	must(t, err)
	s, err := overlay.Open(t.Context(), overlay.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	big := map[string]string{"big": strings.Repeat("x", 8<<20)}
	many := map[string]string{}
	for i := range 500 {
		many[fmt.Sprintf("d/%d", i)] = "x"
	}
	for what, files := range map[string]map[string]string{"bytes": big, "inodes": many} {
		if _, err := s.Ingest(t.Context(), pack(t, files)); !errors.Is(err, errs.Exhausted) {
			t.Errorf("no more %s: got error %v, want it exhausted", what, err)
		}
		if left := folders(t, dir); len(left) != 0 {
			t.Errorf("no more %s: folders %v were left", what, left)
		}
	}
	layer(t, s, "small", "", map[string]string{"f": "x"}) // there is room again
	must(t, s.Close())
	must(t, db.Close())
}

// Layers have a limit, so that a bomb does not fill the disk.
func TestLimit(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	db, err := kv.Open(filepath.Join(dir, "db"))
	must(t, err)
	s, err := overlay.Open(t.Context(), overlay.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler), MaxLayer: 1 << 20})
	must(t, err)
	bomb := io.MultiReader(pack(t, map[string]string{"f": "x"}), io.LimitReader(zeroReader{}, 1<<40))
	for what, r := range map[string]io.Reader{
		"a big file":     pack(t, map[string]string{"big": strings.Repeat("\x00", 2<<20)}),
		"an endless end": bomb,
		"a sparse file":  sparseHeader(t, 1<<50),
	} {
		if _, err := s.Ingest(t.Context(), r); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: got error %v, want it invalid", what, err)
		}
	}
	if left := folders(t, dir); len(left) != 0 {
		t.Errorf("folders %v were left", left)
	}
	must(t, s.Close())
	must(t, db.Close())
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// sparseHeader is an old GNU sparse file of one hole that claims size bytes.
func sparseHeader(t *testing.T, size int64) io.Reader {
	t.Helper()
	block := make([]byte, 512)
	copy(block, "hole")
	copy(block[100:], "0000644\x000000000\x000000000\x00")
	copy(block[124:], "00000000000\x00") // no bytes in the archive
	copy(block[136:], "00000000000\x00")
	block[156] = 'S'
	copy(block[257:], "ustar  \x00")
	put := func(at int, n int64) { // base 256, as GNU tar has it for big numbers
		block[at] = 0x80
		for i := range 8 {
			block[at+11-i] = byte(n >> (8 * i))
		}
	}
	put(386, size) // one entry: 0 bytes at the end
	copy(block[398:], "00000000000\x00")
	put(483, size) // the real size
	copy(block[148:], "        ")
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	return bytes.NewReader(append(block, make([]byte, 1024)...))
}

// GNU and PAX sparse files become files with holes.
func TestSparseHeader(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	s := open(t, dir)
	const size = 1 << 30
	in, err := s.Ingest(t.Context(), sparseHeader(t, size))
	must(t, err)
	_, err = in.Commit(t.Context(), "base", "", nil)
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dir, "layers", folders(t, dir)[0], "fs/hole"), &st))
	if st.Size != size || st.Blocks != 0 {
		t.Errorf("hole has %d bytes in %d blocks, want %d in none", st.Size, st.Blocks, size)
	}
	must(t, s.Close())
}

// Trees deeper than there are descriptors can be deleted, and are no trap for
// Usage, Diff and Changes.
func TestDeepTree(t *testing.T) {
	needRoot(t)
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
	needRoot(t)
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

// A record that reached the disk before the folders it names is not the end of
// its snapshot: it comes back as it was made.
func TestLostUpper(t *testing.T) {
	needRoot(t)
	for _, lost := range []string{"", "fs"} {
		dir := t.TempDir()
		s := open(t, dir)
		layer(t, s, "base", "", map[string]string{"file": "base"})
		was := folders(t, dir)
		_, err := s.Prepare(t.Context(), "work", "base", nil)
		must(t, err)
		must(t, s.Close())
		for _, id := range folders(t, dir) {
			if id != was[0] {
				must(t, os.RemoveAll(filepath.Join(dir, "layers", id, lost)))
			}
		}

		s = open(t, dir)
		target := t.TempDir()
		must(t, s.Mount(t.Context(), "work", target))
		body, err := os.ReadFile(filepath.Join(target, "file"))
		if err != nil || string(body) != "base" {
			t.Errorf("without %q: %q, %v", lost, body, err)
		}
		must(t, os.WriteFile(filepath.Join(target, "new"), nil, 0o600))
		must(t, s.Unmount(t.Context(), target))
		must(t, s.Close())
	}
}
