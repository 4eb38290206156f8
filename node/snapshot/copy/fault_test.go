package copy_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/copy"
)

// trees lists trees/ but for the empty one.
func trees(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "trees"))
	must(t, err)
	var names []string
	for _, e := range entries {
		if e.Name() != "empty" {
			names = append(names, e.Name())
		}
	}
	return names
}

func wantTrees(t testing.TB, dir string, n int) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for range 5000 {
		if len(trees(t, dir)) == n {
			return
		}
		<-tick.C
	}
	t.Errorf("trees %v, want %d", trees(t, dir), n)
}

// No room for a clone is Exhausted, and leaves nothing.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	dir, dbDir := t.TempDir(), t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	db, err := kv.Open(filepath.Join(dbDir, "db"))
	must(t, err)
	s, err := copy.Open(t.Context(), copy.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler), Method: copy.Copy})
	must(t, err)
	layer(t, s, "base", "", "big="+strings.Repeat("x", 3<<20))
	prepare(t, s, "fits", "base", nil)
	if _, err := s.Prepare(t.Context(), "more", "base", nil); !errors.Is(err, errs.Exhausted) {
		t.Errorf("no room for a clone: %v", err)
	}
	if _, err := s.Stat(t.Context(), "more"); !errors.Is(err, errs.NotFound) {
		t.Errorf("what could not be made is there: %v", err)
	}
	wantTrees(t, dir, 2)
	must(t, s.Remove(t.Context(), "fits"))
	wantTrees(t, dir, 1)
	prepare(t, s, "more", "base", nil)
	must(t, s.Close())
	must(t, db.Close())
}

// Many who want the tree of one layer at once get one.
func TestOneTree(t *testing.T) {
	rungs(t, func(t *testing.T, method copy.Method, root func(*testing.T) string) {
		dir := root(t)
		s := open(t, dir, method)
		var files []string
		for i := range 200 {
			files = append(files, fmt.Sprintf("d%d/f%d=%d", i%7, i, i))
		}
		layer(t, s, "base", "", files...)
		layer(t, s, "top", "base", "g=1")
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if i%3 == 0 {
					cancel()
				}
				_, err := s.Prepare(ctx, snapshot.Key(fmt.Sprint("work", i)), "top", nil)
				if err != nil && i%3 != 0 {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for i := range 6 {
			key := snapshot.Key(fmt.Sprint("work", i))
			if _, err := s.Stat(t.Context(), key); err != nil {
				continue
			}
			found, err := filepath.Glob(filepath.Join(mount(t, s, key), "d*/f*"))
			if err != nil || len(found) != len(files) {
				t.Errorf("%s has %d files, %v", key, len(found), err)
			}
		}
		made, err := filepath.Glob(filepath.Join(dir, "trees/*/tree-*"))
		must(t, err)
		if len(made) != 1 {
			t.Errorf("trees %v, want one", made)
		}
		must(t, s.Close())
	})
}

const killDir, killMethod = "BERTH_TEST_KILL_DIR", "BERTH_TEST_KILL_METHOD"

// TestKill kills a process in the middle of its work, again and again: every
// snapshot is then whole or absent, and nothing is left that none names.
func TestKill(t *testing.T) {
	needRoot(t)
	if dir := os.Getenv(killDir); dir != "" {
		workUntilKilled(t, dir, copy.Method(os.Getenv(killMethod)))
		return
	}
	rungs(t, func(t *testing.T, method copy.Method, root func(*testing.T) string) {
		dir := root(t)
		for round := range 6 {
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$")
			child.Env = append(os.Environ(), killDir+"="+dir, killMethod+"="+string(method))
			ready, err := child.StdoutPipe()
			must(t, err)
			must(t, child.Start())
			if _, err := ready.Read(make([]byte, 1)); err != nil {
				t.Fatalf("the child did not begin: %v", err)
			}
			<-time.After(time.Duration(rand.IntN(80)) * time.Millisecond) //nolint:gosec // no secret
			must(t, child.Process.Kill())
			_ = child.Wait()
			checkWhole(t, dir, method)
			if t.Failed() {
				t.Fatalf("after round %d", round)
			}
		}
	})
}

func workUntilKilled(t *testing.T, dir string, method copy.Method) {
	s := open(t, dir, method)
	fmt.Println("ready")
	var wg sync.WaitGroup
	for worker := range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				name := func(what string) snapshot.Key {
					return snapshot.Key(fmt.Sprintf("%d-%d-%s-%d", os.Getpid(), worker, what, i))
				}
				layer(t, s, name("base"), "", wholeFiles(name("base"))...)
				prepare(t, s, name("work"), name("base"), nil)
				if i%2 == 0 {
					_, err := s.Commit(t.Context(), name("top"), name("work"), nil)
					must(t, err)
					continue
				}
				must(t, s.Remove(t.Context(), name("work")))
				must(t, s.Remove(t.Context(), name("base")))
			}
		})
	}
	wg.Wait()
}

func wholeFiles(name snapshot.Key) []string {
	var files []string
	for i := range 30 {
		files = append(files, fmt.Sprintf("d%d/f%d=%s", i%5, i, name))
	}
	return files
}

func checkWhole(t *testing.T, dir string, method copy.Method) {
	s := open(t, dir, method)
	n := 0
	must(t, s.Walk(t.Context(), func(info snapshot.Info) error {
		n++
		base := snapshot.Key(strings.NewReplacer("work", "base", "top", "base").Replace(string(info.Key)))
		key := info.Key
		if info.Kind == snapshot.KindCommitted {
			_, err := s.View(t.Context(), "look", key, nil)
			must(t, err)
			defer func() { must(t, s.Remove(t.Context(), "look")) }()
			key = "look"
		}
		at := mount(t, s, key)
		for _, f := range wholeFiles(base) {
			path, want, _ := strings.Cut(f, "=")
			if got, err := os.ReadFile(filepath.Join(at, path)); err != nil || string(got) != want {
				t.Errorf("%s of %s is %q, %v", path, info.Key, got, err)
			}
		}
		return s.Unmount(t.Context(), at)
	}))
	wantTrees(t, dir, n)
	left, err := filepath.Glob(filepath.Join(dir, "trees/*/new"))
	must(t, err)
	if len(left) != 0 && !t.Failed() {
		tick := time.After(time.Minute)
		for len(left) != 0 {
			select {
			case <-tick:
				t.Fatalf("left: %v", left)
			default:
				left, _ = filepath.Glob(filepath.Join(dir, "trees/*/new"))
			}
		}
	}
	must(t, s.Close())
}
