package object

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

func openStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// put stores a body in a batch.
func put(t *testing.T, b *Batch, text string) tree.Digest {
	t.Helper()
	d, err := b.Put(bytes.Repeat([]byte(text), 1000))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A clock that is set back, before a batch or in its middle, leaves no body
// outside of the epoch.
func TestClockSetBack(t *testing.T) {
	s := openStore(t, t.TempDir())
	b, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer b.End()
	within := func(when string) {
		t.Helper()
		s.epoch.mu.Lock()
		defer s.epoch.mu.Unlock()
		if since := s.epoch.since; since.After(time.Now()) || since != since.Round(0) {
			t.Errorf("%s the epoch is since %v", when, since)
		}
	}
	within("at first")
	ahead := func() { // as if it had begun before the clock was set
		s.epoch.mu.Lock()
		defer s.epoch.mu.Unlock()
		if err := s.epoch.write(wallClock().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	ahead()
	put(t, b, "in the middle")
	within("in the middle of a batch")
	ahead()
	other, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.End()
	within("with another batch")
	ahead()
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	within("after a sync")
}

// A body that only cannot be read now is not deleted as damaged, neither after
// a crash nor when it comes again.
func TestUnreadableIsNotDamaged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: gives a file away")
	}
	dir := t.TempDir()
	s := openStore(t, dir)
	b, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := put(t, b, "x")
	b.End()
	path := filepath.Join(s.Dir(), Name(d))
	if err := os.Chown(path, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	withoutOwnership(t, func() {
		if read, damaged, err := s.recheck(t.Context(), time.Unix(0, 0)); read != 1 || damaged != 0 || err != nil {
			t.Errorf("%d read, %d damaged, %v", read, damaged, err)
		}
		if b, err = s.Begin(t.Context()); err != nil {
			t.Error(err)
			return
		}
		defer b.End()
		for _, watched := range []bool{false, true} {
			s.Watched(watched)
			if _, err := b.Put(bytes.Repeat([]byte("x"), 1000)); err == nil {
				t.Error("a body that cannot be read was taken for whole")
			}
		}
		s.Watched(false)
	})
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	if b, err = s.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer b.End()
	if put(t, b, "x") != d || !s.Has(d) {
		t.Error("it is not known again")
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "pending", "epoch")); err != nil {
		t.Errorf("the next process would not look at it: %v", err)
	}
}

// withoutOwnership runs fn without the right to open files of others as an
// owner does (CAP_FOWNER).
func withoutOwnership(t *testing.T, fn func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		t.Fatal(err)
	}
	less := all
	less[0].Effective &^= 1 << unix.CAP_FOWNER
	if err := unix.Capset(&header, &less[0]); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Capset(&header, &all[0]); err != nil {
			t.Error(err)
		}
	}()
	fn()
}

// A disk without room leaves no epoch behind that has the next process read
// everything, and an epoch that is there can be made younger.
func TestEpochOnFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a small disk")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("no small disk: %v", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	fill := func() {
		_ = os.WriteFile(filepath.Join(dir, "full"), make([]byte, 1<<20), 0o600)
	}
	file := filepath.Join(dir, "pending", "epoch")
	s := openStore(t, dir)
	fill()
	if _, err := s.Begin(t.Context()); !errors.Is(err, errs.Exhausted) {
		t.Errorf("begin on a full disk: %v", err)
	}
	if text, err := os.ReadFile(file); !os.IsNotExist(err) {
		t.Errorf("the epoch is %q, %v", text, err)
	}
	if err := os.Remove(filepath.Join(dir, "full")); err != nil {
		t.Fatal(err)
	}
	b, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer b.End()
	fill()
	s.epoch.mu.Lock()
	err = s.epoch.write(wallClock().Add(-time.Hour))
	s.epoch.mu.Unlock()
	if err == nil {
		err = s.Sync(t.Context()) // it is old by now
	}
	if err != nil || time.Since(s.epoch.since) > time.Minute {
		t.Errorf("the epoch is since %v, %v", s.epoch.since, err)
	}
}

// The name of the store's folder is no pattern.
func TestOddFolder(t *testing.T) {
	for _, name := range []string{"a[b]", "a[", `a\*`} {
		dir := filepath.Join(t.TempDir(), name)
		left := filepath.Join(dir, "objects", "tmp-1")
		if err := os.MkdirAll(filepath.Dir(left), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(left, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		openStore(t, dir)
		if _, err := os.Stat(left); !os.IsNotExist(err) {
			t.Errorf("%s: what a crash left is still there: %v", name, err)
		}
	}
}
