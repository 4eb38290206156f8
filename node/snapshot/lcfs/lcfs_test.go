package lcfs_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/fakesnapshot"
	"berth/node/snapshot/lcfs"
	"berth/node/snapshot/snapshottest"
)

// opened closes the records together with the store.
type opened struct {
	*lcfs.Store
	db *kv.DB
}

func (o opened) Close() error {
	return errors.Join(o.Store.Close(), o.db.Close())
}

// open opens the store in dir as a test wants it: the work in the background
// begins almost at once.
func open(t testing.TB, dir string, how ...func(*lcfs.Config)) opened {
	t.Helper()
	db, err := kv.Open(filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	config := lcfs.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler), Quiet: time.Millisecond, Features: features(t)}
	for _, change := range how {
		change(&config)
	}
	s, err := lcfs.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hideImages(t, dir) })
	return opened{s, db}
}

// hideImages takes down what the store shows to other processes.
func hideImages(t testing.TB, dir string) {
	t.Helper()
	shown, err := filepath.Glob(filepath.Join(dir, "mnt", "*"))
	if err != nil {
		t.Error(err)
	}
	for _, name := range shown {
		if err := unix.Unmount(name, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Error(err)
		}
	}
}

// features probes once for all tests.
func features(t testing.TB) *lcfs.Features {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	found, err := lcfs.Probe(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if !found.Usable(false) && !found.Usable(true) {
		t.Skipf("this machine cannot: %s", found.Why())
	}
	return &found
}

func onLoop(c *lcfs.Config)       { c.Loop = true }
func withMetacopy(c *lcfs.Config) { c.Metacopy = true }

// byNames is how kernels before 6.15 mount.
func byNames(c *lcfs.Config) {
	older := *c.Features
	older.Descriptors = false
	c.Features, c.Metacopy = &older, true
}

// ways are those in which the driver mounts and works.
func ways() map[string]func(*lcfs.Config) {
	return map[string]func(*lcfs.Config){
		"File": func(*lcfs.Config) {}, "Loop": onLoop, "Metacopy": withMetacopy, "ByNames": byNames,
		"Resting": func(c *lcfs.Config) { c.Rest = time.Millisecond }, // images are put away at once
		"Busy":    func(c *lcfs.Config) { c.Quiet = time.Hour },       // nothing is done in the background
	}
}

func TestSuite(t *testing.T) {
	for name, how := range ways() {
		t.Run(name, func(t *testing.T) {
			snapshottest.Suite(t, func(t *testing.T, dir string) snapshot.Store { return open(t, dir, how) })
		})
	}
}

func TestRandomHistory(t *testing.T) {
	features(t)
	for name, how := range ways() {
		t.Run(name, func(t *testing.T) {
			snapshottest.RandomHistory(t, fakesnapshot.Keeping(), func(t *testing.T, dir string) snapshot.Store { return open(t, dir, how) })
		})
	}
}
