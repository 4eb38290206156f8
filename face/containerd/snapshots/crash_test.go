package snapshots_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"berth/base/errs"
	"berth/node/snapshot"
)

// A failing store leaves names as they were, and nothing behind.
func TestFailingStore(t *testing.T) {
	b := newBench(t)
	s := b.one(t)
	layer(t, s, "base", "")
	prepare(t, s, "active", "base")
	prepare(t, s, "loose", "")
	before := names(t, s)
	full := errs.New(errs.Exhausted, "the disk is full")
	for _, operation := range []string{"Prepare", "View", "Commit", "Diff", "Ingest"} {
		b.store.Fail = func(o string) error {
			if o == operation {
				return full
			}
			return nil
		}
		var err error
		switch operation {
		case "Prepare":
			_, err = s.Prepare(t.Context(), "new", "base")
		case "View":
			_, err = s.View(t.Context(), "new", "base")
		case "Commit":
			err = s.Commit(t.Context(), "new", "active")
		default:
			err = s.Commit(t.Context(), "new", "loose", snapshots.WithParent("base"))
		}
		b.store.Fail = nil
		if !errdefs.IsResourceExhausted(err) {
			t.Errorf("%s: %v", operation, err)
		}
		if after := names(t, s); !slices.Equal(before, after) {
			t.Errorf("%s: there are %q, before %q", operation, after, before)
		}
	}
	must(t, s.Commit(t.Context(), "new", "active"))
	if n := len(b.keys(t, snapshot.KindActive)); n != 1 {
		t.Errorf("%d active ones are left in the store", n)
	}
}

// A snapshot that the store would not let go is removed by Cleanup.
func TestCleanup(t *testing.T) {
	b := newBench(t)
	s := b.one(t)
	prepare(t, s, "active", "")
	b.store.Fail = func(o string) error {
		if o == "Remove" {
			return errors.New("not now")
		}
		return nil
	}
	must(t, s.Remove(t.Context(), "active"))
	b.store.Fail = nil
	if n := len(b.keys(t, snapshot.KindActive)); n != 1 {
		t.Fatalf("%d left", n)
	}
	must(t, s.(snapshots.Cleaner).Cleanup(t.Context()))
	if n := len(b.keys(t, snapshot.KindActive)); n != 0 {
		t.Errorf("%d left", n)
	}
}

// crash copies the records as they are on disk now.
func (b *bench) crash(t *testing.T) {
	t.Helper()
	body, err := os.ReadFile(b.path)
	must(t, err)
	b.path += ".crashed"
	must(t, os.WriteFile(b.path, body, 0o600))
}

// A commit that was written down is done after a crash that came before it was
// done; one that was not is not.
func TestCrashInCommit(t *testing.T) {
	b := newBench(t)
	clients, end := b.start(t, "berth")
	layer(t, clients[0], "base", "")
	prepare(t, clients[0], "active", "base")
	body, err := os.ReadFile(b.path)
	must(t, err)
	before := *b
	before.path += ".before"
	must(t, os.WriteFile(before.path, body, 0o600))
	b.store.Fail = func(o string) error {
		if o == "Commit" {
			crashed := *b
			crashed.crash(t)
			return errs.New(errs.Unavailable, "the machine is on fire")
		}
		return nil
	}
	if err := clients[0].Commit(t.Context(), "layer", "active"); !errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
	b.store.Fail = nil
	if got := names(t, clients[0]); !slices.Equal(got, []string{"active", "base"}) {
		t.Errorf("after a commit that failed: %q", got)
	}
	end()

	s := before.one(t)
	if got := names(t, s); !slices.Equal(got, []string{"active", "base"}) {
		t.Errorf("after a crash before: %q", got)
	}
	b.path += ".crashed"
	s = b.one(t)
	info, err := s.Stat(t.Context(), "layer")
	if got := names(t, s); err != nil || info.Parent != "base" || !slices.Equal(got, []string{"base", "layer"}) {
		t.Errorf("after a crash within: %q, %v, %v", got, info, err)
	}
	prepare(t, s, "container", "layer")
}

// Open removes what no name stands for, leaves alone what is not its own, and
// forgets the names of what was lost.
func TestLeftovers(t *testing.T) {
	b := newBench(t)
	clients, end := b.start(t, "berth")
	s := clients[0]
	layer(t, s, "lost", "")
	lost := b.keys(t, snapshot.KindCommitted)[0]
	layer(t, s, "kept", "")
	end()
	must(t, b.store.Remove(t.Context(), lost))
	for _, key := range []snapshot.Key{"containerd-base", "foreign"} {
		_, err := b.store.Prepare(t.Context(), "work", "", nil)
		must(t, err)
		_, err = b.store.Commit(t.Context(), key, "work", nil)
		must(t, err)
	}
	_, err := b.store.View(t.Context(), "containerd-view", "containerd-base", nil)
	must(t, err)
	s = b.one(t)
	if got := names(t, s); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("there are %q", got)
	}
	if keys := b.keys(t, snapshot.KindCommitted); len(keys) != 2 || keys[1] != "foreign" {
		t.Errorf("the store has %v", keys)
	}
	layer(t, s, "lost", "")
}

// Many at once: of those who want one name one gets it, and what is left in
// the store is what has a name.
func TestMany(t *testing.T) {
	b := newBench(t)
	s := b.one(t)
	layer(t, s, "base", "")
	var all sync.WaitGroup
	var mu sync.Mutex
	won := map[string]int{}
	for worker := range 8 {
		all.Go(func() {
			for i := range 20 {
				name := fmt.Sprint("name ", i)
				if _, err := s.Prepare(t.Context(), name, "base"); err == nil {
					mu.Lock()
					won[name]++
					mu.Unlock()
				} else if !errdefs.IsAlreadyExists(err) {
					t.Error(err)
				}
				key := fmt.Sprint(worker, "/", i)
				if _, err := s.Prepare(t.Context(), key, "base", ref(i%3)); err != nil && !errdefs.IsAlreadyExists(err) {
					t.Error(err)
				} else if err == nil {
					if err := s.Commit(t.Context(), key+"/"+chain(i%3), key, ref(i%3)); err != nil {
						t.Error(err)
					}
				}
				if err := s.Remove(t.Context(), "base"); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("removed a parent: %v", err)
				}
				_, _ = s.Update(t.Context(), snapshots.Info{Name: name, Labels: map[string]string{"by": fmt.Sprint(worker)}}, "labels.by")
			}
		})
	}
	all.Wait()
	for name, n := range won {
		if n != 1 {
			t.Errorf("%s was made %d times", name, n)
		}
	}
	held := len(b.keys(t, snapshot.KindActive)) + len(b.keys(t, snapshot.KindCommitted))
	must(t, s.(snapshots.Cleaner).Cleanup(t.Context()))
	if now := len(b.keys(t, snapshot.KindActive)) + len(b.keys(t, snapshot.KindCommitted)); now != held || len(won) != 20 {
		t.Errorf("the store held %d snapshots, of which %d have a name; %d names", held, now, len(won))
	}
}
