package profile_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/tree"
	"berth/node/profile"
)

func digestOf(path string) tree.Digest { return sha256.Sum256([]byte(path)) }

// overlay mounts a root with files below and an upper.
func overlay(t *testing.T, files ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	for _, name := range []string{"lower", "upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range files {
		path := filepath.Join(dir, "lower", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\ntrue\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(dir, "root")
	if err := unix.Mount("overlay", root, "overlay", 0, "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work"); err != nil {
		t.Skipf("needs overlay: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	return root
}

type resolver struct {
	mu    sync.Mutex
	asked [][]string
	err   error
}

func (r *resolver) bodies(_ context.Context, _ string, paths []string) ([]tree.Digest, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, paths)
	var found []tree.Digest
	for _, p := range paths {
		if !strings.HasSuffix(p, ".none") {
			found = append(found, digestOf(p))
		}
	}
	return found, r.err
}

func open(t *testing.T, r *resolver, window time.Duration) *profile.Set {
	t.Helper()
	db, err := kv.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s := profile.Open(t.Context(), profile.Config{DB: db, Bodies: r.bodies, Window: window, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	t.Cleanup(func() { s.Close() })
	return s
}

// What is opened, by read or by exec, in a namespace of its own or not, is
// noted once and in order.
func TestWatch(t *testing.T) {
	root := overlay(t, "etc/conf", "bin/tool", "var/data.none", "never")
	r := &resolver{}
	s := open(t, r, time.Minute)
	if first := s.First(t.Context(), "i"); first != nil {
		t.Errorf("before any start: %v", first)
	}
	s.Watch(t.Context(), "i", root)
	for _, name := range []string{"etc/conf", "var/data.none", "etc/conf"} {
		if _, err := os.ReadFile(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), filepath.Join(root, "bin/tool")).CombinedOutput(); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	if err := os.WriteFile(filepath.Join(root, "written"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	s.Close()
	want := []tree.Digest{digestOf("etc/conf"), digestOf("bin/tool"), digestOf("written")}
	for deadline := time.Now().Add(time.Minute); !slices.Equal(s.First(t.Context(), "i"), want); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) { // it joins the next commit of the records
			t.Fatalf("asked for %q", r.asked)
		}
	}
	if err := unix.Unmount(root, 0); err != nil {
		t.Errorf("the root is still held: %v", err)
	}
}

// One start is enough, and the time is bounded.
func TestWindow(t *testing.T) {
	root := overlay(t, "file")
	r := &resolver{}
	s := open(t, r, 100*time.Millisecond)
	read := func() {
		if _, err := os.ReadFile(filepath.Join(root, "file")); err != nil {
			t.Fatal(err)
		}
	}
	s.Watch(t.Context(), "i", root)
	s.Watch(t.Context(), "i", root) // is recorded already
	read()
	for deadline := time.Now().Add(time.Minute); s.First(t.Context(), "i") == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no profile")
		}
	}
	s.Watch(t.Context(), "i", root) // has one
	read()
	time.Sleep(200 * time.Millisecond)
	if len(r.asked) != 1 {
		t.Errorf("asked %d times", len(r.asked))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// The end of the root is the end of its recording.
func TestUnmount(t *testing.T) {
	root := overlay(t, "file")
	r := &resolver{}
	s := open(t, r, time.Hour)
	s.Watch(t.Context(), "i", root)
	if _, err := os.ReadFile(filepath.Join(root, "file")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); s.First(t.Context(), "i") == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no profile")
		}
	}
}

func TestGone(t *testing.T) {
	root := overlay(t, "file")
	r := &resolver{}
	s := open(t, r, 100*time.Millisecond)
	read := func() {
		if _, err := os.ReadFile(filepath.Join(root, "file")); err != nil {
			t.Fatal(err)
		}
	}
	r.err = errs.New(errs.NotFound, "gone")
	s.Watch(t.Context(), "gone", root)
	read()
	time.Sleep(300 * time.Millisecond)
	if s.First(t.Context(), "gone") != nil {
		t.Error("a profile of an image that is gone")
	}
	s.Watch(t.Context(), "j", filepath.Join(root, "not there"))
	if s.First(t.Context(), "j") != nil || errors.Is(r.err, os.ErrNotExist) {
		t.Error("a profile of nothing")
	}
}
