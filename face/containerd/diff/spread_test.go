package diff_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/node/snapshot"
)

// applied prepares a snapshot and applies a layer of one file to it.
func (w *world) applied(name string) {
	w.Helper()
	s := w.snapshotter("overlayfs")
	mounts, err := s.Prepare(w.in("test"), name, "")
	w.must(err)
	layer := w.put(ocispec.MediaTypeImageLayer, w.layerTar(map[string]string{"file": "body"}))
	_, err = w.applier().Apply(w.in("test"), layer, mounts)
	w.must(err)
}

// mounted looks for the file in what Mounts answers.
func (w *world) mounted(name string) error {
	mounts, err := w.snapshotter("overlayfs").Mounts(w.in("test"), name)
	if err != nil {
		return err
	}
	body, err := os.ReadFile(filepath.Join(mounts[0].Source, "file"))
	if err == nil && string(body) != "body" {
		err = errors.New("the file has another body")
	}
	return err
}

// What was applied is not lost where it could not be shown: it is shown the
// next time, or committed.
func TestShownInVain(t *testing.T) {
	broken := errors.New("the disk is broken")
	for _, commit := range []bool{false, true} {
		w := newWorld(t)
		w.applied("a")
		w.store.diff = func(context.Context, snapshot.Key, io.Writer) error { return broken }
		if err := w.mounted("a"); err == nil {
			t.Error("what could not be shown is shown")
		}
		w.store.diff = nil
		if _, err := w.snapshotter("overlayfs").Stat(w.in("test"), "a"); err != nil {
			t.Error(err)
		}
		if commit {
			w.must(w.snapshotter("overlayfs").Commit(w.in("test"), "c", "a"))
			w.shows("test", "c", map[string]string{"file": "body"})
			w.must(w.snapshotter("overlayfs").Remove(w.in("test"), "c"))
		} else {
			w.must(w.mounted("a"))
			w.must(w.snapshotter("overlayfs").Remove(w.in("test"), "a"))
		}
		w.empty()
	}
}

// empty: the store has nothing.
func (w *world) empty() {
	w.Helper()
	w.must(w.store.Walk(w.Context(), func(info snapshot.Info) error {
		w.Errorf("%s %s stays in the store", info.Kind, info.Key)
		return nil
	}))
}

// Nobody sees, or commits, the half of what was applied.
func TestShownToSeveral(t *testing.T) {
	w := newWorld(t)
	s := w.snapshotter("overlayfs")
	w.applied("a")
	begun, begin := make(chan struct{}), sync.Once{}
	w.store.diff = func(ctx context.Context, key snapshot.Key, to io.Writer) error {
		begin.Do(func() { close(begun) })
		snapshot.Rest(ctx, 50*time.Millisecond)
		return w.store.Store.Diff(ctx, key, to)
	}
	var all sync.WaitGroup
	all.Go(func() {
		if err := w.mounted("a"); err != nil {
			t.Errorf("the first: %v", err)
		}
	})
	<-begun
	if err := w.mounted("a"); err != nil {
		t.Errorf("the second: %v", err)
	}
	all.Wait()

	w.applied("b")
	begun, begin = make(chan struct{}), sync.Once{}
	all.Go(func() { _, _ = s.Mounts(w.in("test"), "b") })
	<-begun
	w.must(s.Commit(w.in("test"), "c", "b"))
	all.Wait()
	w.store.diff = nil
	w.shows("test", "c", map[string]string{"file": "body"})

	w.applied("d")
	begun, begin = make(chan struct{}), sync.Once{}
	w.store.diff = func(ctx context.Context, key snapshot.Key, to io.Writer) error {
		begin.Do(func() { close(begun) })
		snapshot.Rest(ctx, 50*time.Millisecond)
		return w.store.Store.Diff(ctx, key, to)
	}
	all.Go(func() { _, _ = s.Mounts(w.in("test"), "d") })
	<-begun
	w.must(s.Remove(w.in("test"), "d"))
	all.Wait()
	w.must(s.Remove(w.in("test"), "a"))
	w.must(s.Remove(w.in("test"), "c"))
	w.empty()
}

// A snapshot to which nothing could be applied is used otherwise, and stays.
func TestAppliedInVain(t *testing.T) {
	w := newWorld(t)
	s := w.snapshotter("overlayfs")
	mounts, err := s.Prepare(w.in("test"), "a", "")
	w.must(err)
	bad := w.put(ocispec.MediaTypeImageLayer, []byte("this is no tar at all, but has to be as long as the header of one would be"))
	if _, err := w.applier().Apply(w.in("test"), bad, mounts); err == nil {
		t.Fatal("what is no tar was applied")
	}
	w.must(os.WriteFile(filepath.Join(mounts[0].Source, "file"), []byte("body"), 0o600))
	w.end()
	w.open()
	if err := w.mounted("a"); err != nil {
		t.Error(err)
	}
}
