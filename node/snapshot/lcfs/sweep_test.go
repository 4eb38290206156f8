package lcfs_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/lcfs"
)

// bodies are files that layers of the same numbers share.
func bodies(from, to int) map[string]string {
	files := map[string]string{}
	for i := from; i < to; i++ {
		files[fmt.Sprintf("d%d/f%d", i%7, i)] = string(noise(i, 600+i))
	}
	return files
}

func wantBodies(t testing.TB, s snapshot.Store, key snapshot.Key, from, to int) {
	t.Helper()
	view := "look-" + key
	_, err := s.View(t.Context(), view, key, nil)
	must(t, err)
	change(t, s, view, func(root string) { wantFiles(t, root, bodies(from, to)) })
	must(t, s.Remove(t.Context(), view))
}

func wantFiles(t testing.TB, root string, files map[string]string) {
	t.Helper()
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s is %.20q, %v", name, got, err)
		}
	}
}

// TestSweepKeepsShared: what another layer names stays.
func TestSweepKeepsShared(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	layer(t, s, "one", "", bodies(0, 60))
	layer(t, s, "two", "", bodies(30, 90))
	layer(t, s, "upon", "two", bodies(90, 100))
	must(t, s.Settle(t.Context(), "upon"))
	must(t, s.Remove(t.Context(), "one"))
	eventually(t, "only what is named is left", func() bool { return leftOver(t, s, dir) == "" })
	if n := len(objects(t, dir)); n != 70 {
		t.Errorf("%d objects, want 70", n)
	}
	wantBodies(t, s, "upon", 30, 100)
	must(t, s.Remove(t.Context(), "upon"))
	eventually(t, "only what is named is left", func() bool { return leftOver(t, s, dir) == "" })
	wantBodies(t, s, "two", 30, 90)
	must(t, s.Remove(t.Context(), "two"))
	empty(t, dir)
	must(t, s.Close())
}

// TestSweepRacesIngest: layers of the same bodies come and go in several
// goroutines; each is whole for as long as it is there.
func TestSweepRacesIngest(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for round := range 12 {
				key := snapshot.Key(fmt.Sprintf("%d-%d", worker, round))
				from := (worker + round) % 3 * 10
				layer(t, s, key, "", bodies(from, from+20))
				wantBodies(t, s, key, from, from+20)
				must(t, s.Remove(t.Context(), key))
			}
		})
	}
	wg.Wait()
	empty(t, dir)
	must(t, s.Close())
}

// TestMountOutlivesLayers: a mount shows everything when its snapshot and all
// its layers are removed, and swept; what it stood on goes with it.
func TestMountOutlivesLayers(t *testing.T) {
	for name, settle := range map[string]bool{"Merged": true, "Folder": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, func(c *lcfs.Config) { c.Quiet = 50 * time.Millisecond })
			layer(t, s, "low", "", bodies(0, 50))
			_, err := s.Prepare(t.Context(), "work", "low", nil)
			must(t, err)
			change(t, s, "work", func(root string) {
				must(t, os.WriteFile(filepath.Join(root, "own"), noise(1000, 9000), 0o644))
			})
			_, err = s.Commit(t.Context(), "top", "work", nil)
			must(t, err)
			if settle {
				must(t, s.Settle(t.Context(), "top"))
			}
			_, err = s.Prepare(t.Context(), "c", "top", nil)
			must(t, err)
			target := t.TempDir()
			must(t, s.Mount(t.Context(), "c", target))
			for _, key := range []snapshot.Key{"c", "top", "low"} {
				must(t, s.Remove(t.Context(), key))
			}
			// Something else is swept meanwhile.
			layer(t, s, "other", "", bodies(40, 80))
			must(t, s.Remove(t.Context(), "other"))
			eventually(t, "the other's objects are gone", func() bool { return len(objects(t, dir)) <= 51 })
			files := bodies(0, 50)
			files["own"] = string(noise(1000, 9000))
			wantFiles(t, target, files)
			must(t, s.Unmount(t.Context(), target))
			empty(t, dir)
			must(t, s.Close())
		})
	}
}

// TestRoomComesBack: after images of many kinds came and went the file system
// has no less room than before.
func TestRoomComesBack(t *testing.T) {
	found := features(t)
	dir := t.TempDir()
	smallDisk(t, dir)
	db, err := kv.Open(filepath.Join(t.TempDir(), "db"))
	must(t, err)
	s, err := lcfs.Open(t.Context(), lcfs.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler), Features: found, Quiet: time.Millisecond})
	must(t, err)
	var before unix.Statfs_t
	for round := range 3 { // the first makes the folders of the objects
		layer(t, s, "low", "", bodies(0, 250))
		layer(t, s, "high", "low", bodies(200, 300))
		_, err := s.Prepare(t.Context(), "work", "high", nil)
		must(t, err)
		change(t, s, "work", func(root string) {
			must(t, os.WriteFile(filepath.Join(root, "own"), noise(1000, 1<<20), 0o644))
			must(t, os.RemoveAll(filepath.Join(root, "d1")))
		})
		_, err = s.Commit(t.Context(), "own", "work", nil)
		must(t, err)
		if round != 1 {
			must(t, s.Settle(t.Context(), "own"))
		}
		for _, key := range []snapshot.Key{"own", "high", "low"} {
			must(t, s.Remove(t.Context(), key))
		}
		empty(t, dir)
		var after unix.Statfs_t
		same := func() bool {
			must(t, s.Sync(t.Context()))
			must(t, unix.Statfs(dir, &after))
			if _, err := os.Stat(filepath.Join(dir, "pending", "epoch")); err == nil { // it takes one of both
				after.Bfree++
				after.Ffree++
			}
			return round == 0 || after.Bfree >= before.Bfree && after.Ffree >= before.Ffree
		}
		eventually(t, "there is as much room as before", same)
		if !same() {
			t.Errorf("round %d: %d blocks and %d inodes free, were %d and %d", round, after.Bfree, after.Ffree, before.Bfree, before.Ffree)
		}
		before = after
	}
	must(t, s.Close())
	must(t, db.Close())
}

// TestRemoveIsQuick: removing an image of many files is answered at once.
func TestRemoveIsQuick(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	least := time.Hour
	for i := 0; i < 20 && least > 10*time.Millisecond; i++ { // a busy machine is given time
		ingestImage(t, s, "image", i, 1000, 1000)
		must(t, s.Settle(t.Context(), "image"))
		start := time.Now()
		must(t, s.Remove(t.Context(), "image"))
		least = min(least, time.Since(start))
	}
	if least > 10*time.Millisecond {
		t.Errorf("the quickest of twenty took %v", least)
	}
	must(t, s.Close())
}

// BenchmarkRemove removes images of 20,000 files and waits for the sweep.
func BenchmarkRemove(b *testing.B) {
	dir := benchDir(b)
	s := openAsIs(b, dir)
	var took, swept, cpu []time.Duration
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		ingestImage(b, s, "image", n, 20_000, 1000)
		must(b, s.Settle(b.Context(), "image"))
		must(b, s.Sync(b.Context()))
		b.StartTimer()
		start, before := time.Now(), cpuTime()
		must(b, s.Remove(b.Context(), "image"))
		took = append(took, time.Since(start))
		for tick := time.NewTicker(100 * time.Millisecond); len(names(b, filepath.Join(dir, "meta"))) > 0; <-tick.C {
		}
		swept, cpu = append(swept, time.Since(start)), append(cpu, cpuTime()-before)
	}
	median(b, "remove", took)
	median(b, "sweep", swept)
	median(b, "cpu", cpu)
	must(b, s.Close())
}

const sweepDir = "BERTH_TEST_SWEEP_DIR"

// TestKilledSweep kills a process in the middle of a sweep: what is named is
// whole, and the rest is swept by the next.
func TestKilledSweep(t *testing.T) {
	found := features(t)
	if dir := os.Getenv(sweepDir); dir != "" {
		s := openBare(t, dir, found)
		layer(t, s, "kept", "", bodies(500, 700))
		layer(t, s, "dead", "", bodies(0, 600))
		must(t, s.Settle(t.Context(), "dead"))
		must(t, s.Remove(t.Context(), "dead"))
		fmt.Println("ready")
		<-t.Context().Done()
		return
	}
	for range 2 {
		dir := t.TempDir()
		killWhen(t, "TestKilledSweep", dir, func() bool { return len(objects(t, dir)) < 600 })
		if n := len(objects(t, dir)); n == 200 {
			t.Log("the sweep was over before the kill")
		}
		s := open(t, dir)
		eventually(t, "only what is named is left", func() bool { return leftOver(t, s, dir) == "" })
		if n := len(objects(t, dir)); n != 200 {
			t.Errorf("%d objects, want 200: %s", n, leftOver(t, s, dir))
		}
		wantBodies(t, s, "kept", 500, 700)
		if _, damaged := scrub(t, s); len(damaged) > 0 {
			t.Errorf("found %+v", damaged)
		}
		must(t, s.Close())
	}
}

const strayDir = "BERTH_TEST_STRAY_DIR"

// TestStraysAfterKill kills a process in the middle of an ingest: the objects
// that no record names are swept, also where the records are lost.
func TestStraysAfterKill(t *testing.T) {
	found := features(t)
	if dir := os.Getenv(strayDir); dir != "" {
		s := openBare(t, dir, found)
		layer(t, s, "kept", "", bodies(0, 50))
		must(t, s.Sync(t.Context()))
		r, w := io.Pipe()
		go func() {
			_, err := io.Copy(w, io.LimitReader(pack(t, map[string]string{"one": string(noise(1, 3<<20)), "two": string(noise(2, 3<<20)), "three": string(noise(3, 3<<20))}), 7<<20))
			must(t, err)
			fmt.Println("ready")
		}()
		_, err := s.Ingest(t.Context(), r)
		t.Fatal("the ingest ended", err)
	}
	for _, lost := range []bool{false, true} {
		dir := t.TempDir()
		killWhen(t, "TestStraysAfterKill", dir, func() bool { return len(objects(t, dir)) > 51 })
		if n := len(objects(t, dir)); n <= 50 {
			t.Fatalf("%d objects before the next start", n)
		}
		want := 50
		if lost {
			must(t, os.Remove(filepath.Join(dir, "db")))
			want = 0
		}
		s := open(t, dir)
		eventually(t, "only what is named is left", func() bool { return len(objects(t, dir)) == want && leftOver(t, s, dir) == "" })
		if n := len(objects(t, dir)); n != want {
			t.Errorf("records lost %v: %d objects, want %d", lost, n, want)
		}
		if !lost {
			wantBodies(t, s, "kept", 0, 50)
		}
		must(t, s.Close())
	}
}

func openBare(t *testing.T, dir string, found *lcfs.Features) *lcfs.Store {
	t.Helper()
	db, err := kv.Open(filepath.Join(dir, "db"))
	must(t, err)
	s, err := lcfs.Open(t.Context(), lcfs.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler), Features: found, Quiet: time.Millisecond})
	must(t, err)
	return s
}

// killWhen runs a test in a process of its own until there is something to
// kill it for.
func killWhen(t *testing.T, test, dir string, now func() bool) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+test+"$")
	child.Env = append(os.Environ(), sweepDir+"="+dir, strayDir+"="+dir)
	ready, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		t.Errorf("the child did not begin: %v", err)
	}
	eventually(t, "the moment to kill", now)
	must(t, child.Process.Kill())
	_ = child.Wait()
}

// TestSweepWaitsForRecords: while records cannot be made durable nothing that
// they name is deleted.
func TestSweepWaitsForRecords(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	layer(t, s, "one", "", bodies(0, 20))
	must(t, s.Sync(t.Context()))
	must(t, s.db.Close())
	if err := s.Remove(t.Context(), "one"); err != nil && !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	stay := time.NewTimer(100 * time.Millisecond)
	<-stay.C
	if n := len(objects(t, dir)); n != 20 {
		t.Errorf("%d objects are left of 20", n)
	}
	must(t, s.Store.Close())

	s = open(t, dir)
	wantBodies(t, s, "one", 0, 20)
	must(t, s.Close())
}

// TestSweepOfTornLists: a list of objects that a loss of power has torn costs
// no object that is named, and no room for ever.
func TestSweepOfTornLists(t *testing.T) {
	tear := map[string]func(path string) error{
		"Cut":   func(path string) error { return os.Truncate(path, 100) },
		"Empty": func(path string) error { return os.Truncate(path, 0) },
		"Zeros": func(path string) error { return os.WriteFile(path, make([]byte, 640), 0o600) },
		"Gone":  os.Remove,
	}
	for name, tear := range tear {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, func(c *lcfs.Config) { c.Quiet = 20 * time.Millisecond })
			layer(t, s, "dead", "", bodies(0, 30))
			layer(t, s, "alive", "", bodies(20, 50))
			must(t, s.Sync(t.Context()))
			for _, rec := range records(t, s) {
				if name != "Empty" || rec.Key == "dead" { // of a whole one nobody can tell
					must(t, tear(filepath.Join(dir, "meta", rec.Delta+".objs")))
				}
			}
			must(t, s.Remove(t.Context(), "dead"))
			if name == "Empty" {
				must(t, s.Close())
				s = open(t, dir)
				if _, damaged := scrub(t, s); len(damaged) > 0 { // finds what nothing names
					t.Errorf("found %+v", damaged)
				}
			}
			eventually(t, "only what is named is left", func() bool { return leftOver(t, s, dir) == "" && len(objects(t, dir)) == 30 })
			if n := len(objects(t, dir)); n != 30 {
				t.Errorf("%d objects, want 30; %s", n, leftOver(t, s, dir))
			}
			wantBodies(t, s, "alive", 20, 50)
			must(t, s.Close())
		})
	}
}

// TestSweepOfDeepFolder: a layer that is too deep to be settled goes all the
// same.
func TestSweepOfDeepFolder(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	_, err := s.Prepare(t.Context(), "work", "", nil)
	must(t, err)
	at, err := unix.Open(filepath.Join(dir, "layers", folders(t, dir)[0], "fs"), unix.O_DIRECTORY|unix.O_PATH, 0)
	must(t, err)
	for range 2100 {
		must(t, unix.Mkdirat(at, "d", 0o755))
		next, err := unix.Openat(at, "d", unix.O_DIRECTORY|unix.O_PATH, 0)
		must(t, errors.Join(err, unix.Close(at)))
		at = next
	}
	must(t, unix.Close(at))
	_, err = s.Commit(t.Context(), "top", "work", nil)
	must(t, err)
	must(t, s.Remove(t.Context(), "top"))
	empty(t, dir)
	must(t, s.Close())
}
