package overlay_test

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

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/overlay"
)

const (
	killDir      = "BERTH_TEST_KILL_DIR"
	filesOfLayer = 40
)

// TestKill kills a process in the middle of its work, again and again: every
// snapshot is then whole or absent, and no folder is left that none names.
func TestKill(t *testing.T) {
	needRoot(t)
	if dir := os.Getenv(killDir); dir != "" {
		workUntilKilled(t, dir)
		return
	}
	dir := t.TempDir()
	for round := range 12 {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$")
		child.Env = append(os.Environ(), fmt.Sprint(killDir, "=", dir))
		ready, err := child.StdoutPipe()
		must(t, err)
		must(t, child.Start())
		buf := make([]byte, 1)
		if _, err := ready.Read(buf); err != nil {
			t.Fatalf("the child did not begin: %v", err)
		}
		<-time.After(time.Duration(rand.IntN(60)) * time.Millisecond)
		must(t, child.Process.Kill())
		_ = child.Wait()
		if !checkWhole(t, dir) {
			t.Fatalf("after round %d", round)
		}
	}
	s := open(t, dir)
	removeAll(t, s)
	wantFolders(t, dir, 0)
	wantKept(t, dir, 0)
	must(t, s.Close())
}

// removeAll removes all snapshots, from the top down.
func removeAll(t *testing.T, s snapshot.Store) {
	t.Helper()
	for left := true; left; {
		left = false
		must(t, s.Walk(t.Context(), func(info snapshot.Info) error {
			err := s.Remove(t.Context(), info.Key)
			if errors.Is(err, errs.Conflict) {
				left = true // it has children
				return nil
			}
			return err
		}))
	}
}

// workUntilKilled makes, commits and removes layers in several goroutines.
func workUntilKilled(t *testing.T, dir string) {
	db, err := kv.Open(filepath.Join(dir, "db"))
	must(t, err)
	s, err := overlay.Open(t.Context(), overlay.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	fmt.Println("ready")
	var wg sync.WaitGroup
	for worker := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				base, top := snapshot.Key(fmt.Sprintf("%d-%d-base-%d", os.Getpid(), worker, i)), snapshot.Key(fmt.Sprintf("%d-%d-top-%d", os.Getpid(), worker, i))
				work := base + "-work"
				if err := oneLife(t.Context(), t, s, base, top, work); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func oneLife(ctx context.Context, t *testing.T, s *overlay.Store, base, top, work snapshot.Key) error {
	in, err := s.Ingest(ctx, pack(t, wholeFiles(base)))
	if err != nil {
		return err
	}
	if _, err := in.Commit(ctx, base, "", nil); err != nil {
		return err
	}
	if _, err := s.Prepare(ctx, work, base, nil); err != nil {
		return err
	}
	if rand.IntN(2) == 0 {
		if _, err := s.Commit(ctx, top, work, nil); err != nil {
			return err
		}
		if rand.IntN(2) == 0 {
			return nil
		}
		if err := s.Remove(ctx, top); err != nil {
			return err
		}
	} else if err := s.Remove(ctx, work); err != nil {
		return err
	}
	return s.Remove(ctx, base)
}

// wholeFiles are what a layer of that name holds when it is whole.
func wholeFiles(name snapshot.Key) map[string]string {
	files := map[string]string{}
	for i := range filesOfLayer {
		files[fmt.Sprintf("d%d/f%d", i%5, i)] = string(name)
	}
	return files
}

func checkWhole(t *testing.T, dir string) bool {
	s := open(t, dir)
	layers := 0
	err := s.Walk(t.Context(), func(info snapshot.Info) error {
		if info.Kind == snapshot.KindCommitted || info.Kind == snapshot.KindActive {
			layers++
		}
		if info.Kind != snapshot.KindCommitted || !strings.Contains(string(info.Key), "-base-") {
			return nil
		}
		return checkLayer(t, s, info.Key)
	})
	if err != nil {
		t.Error(err)
	}
	wantFolders(t, dir, layers)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return !t.Failed()
}

func checkLayer(t *testing.T, s snapshot.Store, name snapshot.Key) error {
	if _, err := s.View(t.Context(), "look", name, nil); err != nil {
		return err
	}
	target := t.TempDir()
	if err := s.Mount(t.Context(), "look", target); err != nil {
		return err
	}
	var failed error
	for path, body := range wholeFiles(name) {
		got, err := os.ReadFile(filepath.Join(target, path))
		if err != nil || string(got) != body {
			failed = errors.Join(failed, errs.New(errs.Internal, "%s of %s is %q, %w", path, name, got, err))
		}
	}
	return errors.Join(failed, s.Unmount(t.Context(), target), s.Remove(t.Context(), "look"))
}
