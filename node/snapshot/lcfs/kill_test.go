package lcfs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/lcfs"
)

const (
	killDir      = "BERTH_TEST_KILL_DIR"
	filesOfLayer = 24
)

// TestKill kills a process in the middle of its work, again and again: every
// snapshot is then whole or absent, and nothing is left that none names.
func TestKill(t *testing.T) {
	found := features(t)
	if dir := os.Getenv(killDir); dir != "" {
		workUntilKilled(t, dir, found)
		return
	}
	dir := t.TempDir()
	for round := range 12 {
		killSomewhere(t, dir)
		if !checkWhole(t, dir) {
			t.Fatalf("after round %d", round)
		}
	}
}

// killSomewhere lets a process work on the store in dir for a moment. Its
// mounts go with it.
func killSomewhere(t *testing.T, dir string) {
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$")
	child.Env = append(os.Environ(), fmt.Sprint(killDir, "=", dir))
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	ready, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	buf := make([]byte, 1)
	if _, err := ready.Read(buf); err != nil {
		t.Fatalf("the child did not begin: %v", err)
	}
	<-time.After(time.Duration(rand.IntN(150)) * time.Millisecond)
	must(t, child.Process.Kill())
	_ = child.Wait()
}

// workUntilKilled makes, commits, settles and removes layers in several
// goroutines.
func workUntilKilled(t *testing.T, dir string, found *lcfs.Features) {
	db, err := kv.Open(filepath.Join(dir, "db"))
	must(t, err)
	s, err := lcfs.Open(t.Context(), lcfs.Config{
		Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler), Features: found, Quiet: time.Millisecond, Rest: time.Millisecond,
	})
	must(t, err)
	fmt.Println("ready")
	var wg sync.WaitGroup
	for worker := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				name := snapshot.Key(fmt.Sprintf("%d-%d-%d", os.Getpid(), worker, i))
				if err := oneLife(t.Context(), t, s, name); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func oneLife(ctx context.Context, t *testing.T, s *lcfs.Store, name snapshot.Key) error {
	base, top, work := "base-"+name, "top-"+name, "work-"+name
	in, err := s.Ingest(ctx, pack(t, wholeFiles(base)))
	if err != nil {
		return err
	}
	if rand.IntN(8) == 0 {
		return in.Abort(ctx)
	}
	if _, err := in.Commit(ctx, base, "", nil); err != nil {
		return err
	}
	if _, err := s.Prepare(ctx, work, base, nil); err != nil {
		return err
	}
	if rand.IntN(4) == 0 {
		return errors.Join(s.Remove(ctx, work), s.Remove(ctx, base))
	}
	if err := writeWhole(ctx, t, s, work, top); err != nil {
		return err
	}
	if _, err := s.Commit(ctx, top, work, nil); err != nil {
		return err
	}
	switch rand.IntN(4) {
	case 0:
		if err := s.Settle(ctx, top); err != nil {
			return err
		}
	case 1:
		if err := s.Sync(ctx); err != nil {
			return err
		}
	}
	if rand.IntN(3) == 0 {
		return nil
	}
	return errors.Join(s.Remove(ctx, top), s.Remove(ctx, base))
}

func writeWhole(ctx context.Context, t *testing.T, s *lcfs.Store, work, top snapshot.Key) error {
	target := t.TempDir()
	if err := s.Mount(ctx, work, target); err != nil {
		return err
	}
	for path, body := range wholeFiles(top) {
		if err := os.WriteFile(filepath.Join(target, path), []byte(body), 0o640); err != nil {
			return err
		}
	}
	return s.Unmount(ctx, target)
}

// wholeFiles are what a layer of that name holds when it is whole: small
// files, files of its own, and some that many layers have.
func wholeFiles(name snapshot.Key) map[string]string {
	files := map[string]string{}
	for i := range filesOfLayer {
		body := string(name)
		switch i % 3 {
		case 1:
			body = strings.Repeat(body, 50) + fmt.Sprint(i)
		case 2:
			body = strings.Repeat(fmt.Sprint("shared", i), 100)
		}
		files[fmt.Sprintf("d%d/f%d", i%4, i)] = body
	}
	return files
}

func checkWhole(t *testing.T, dir string) bool {
	s := open(t, dir)
	var named []snapshot.Key
	must(t, s.Walk(t.Context(), func(info snapshot.Info) error {
		if info.Kind == snapshot.KindCommitted {
			named = append(named, info.Key)
		}
		return nil
	}))
	for _, key := range named {
		if err := checkLayer(t, s, key); err != nil {
			t.Error(err)
		}
	}
	checkObjects(t, s, dir)
	must(t, s.Close())
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
			failed = errors.Join(failed, errs.New(errs.Internal, "%s of %s is %.40q, %w", path, name, got, err))
		}
	}
	return errors.Join(failed, s.Unmount(t.Context(), target), s.Remove(t.Context(), "look"))
}

// checkObjects checks that each body is what its name says, and that in the
// end there are just the bodies, folders and images that records name.
func checkObjects(t *testing.T, s opened, dir string) {
	eventually(t, "all objects are what they are called", func() bool { return damaged(t, dir) == "" })
	if name := damaged(t, dir); name != "" {
		t.Errorf("object %s has another body", name)
	}
	var left string
	eventually(t, "only what is named is left", func() bool { left = leftOver(t, s, dir); return left == "" })
	if left != "" {
		t.Error(left)
	}
}

// damaged finds an object that has another body than its name says.
func damaged(t *testing.T, dir string) string {
	for _, path := range objects(t, dir) {
		body, err := os.ReadFile(path)
		if errors.Is(err, unix.ENOENT) {
			continue // swept
		}
		must(t, err)
		sum := sha256.Sum256(body)
		if name := filepath.Base(filepath.Dir(path)) + filepath.Base(path); name != hex.EncodeToString(sum[:]) {
			return name
		}
	}
	return ""
}

// leftOver says what is in the store that no record names.
func leftOver(t *testing.T, s opened, dir string) string {
	want := map[string]bool{}
	for _, rec := range records(t, s) {
		for _, image := range []string{rec.Delta, rec.Merged} {
			if image == "" {
				continue
			}
			want["meta/"+image+".erofs"] = true
			list, err := os.ReadFile(filepath.Join(dir, "meta", image+".objs"))
			if err != nil && image == rec.Merged {
				continue // its layers have lists
			}
			if err != nil {
				return err.Error()
			}
			want["meta/"+image+".objs"] = true
			for d := range bytesOf(list, sha256.Size) {
				want["objects/"+hex.EncodeToString(d[:1])+"/"+hex.EncodeToString(d[1:])] = true
			}
		}
		if rec.Upper {
			want["layers/"+rec.ID] = true
		}
		if rec.Recipe {
			want["recipes/"+rec.ID] = true
		}
	}
	have := map[string]bool{}
	for _, path := range objects(t, dir) {
		have[strings.TrimPrefix(path, dir+"/")] = true
	}
	for _, folder := range []string{"meta", "layers", "recipes"} {
		for _, name := range names(t, filepath.Join(dir, folder)) {
			have[folder+"/"+strings.TrimSuffix(name, ".zst")] = true
		}
	}
	var differ []string
	for name := range have {
		if !want[name] {
			differ = append(differ, "left over: "+name)
		}
	}
	for name := range want {
		if !have[name] {
			differ = append(differ, "missing: "+name)
		}
	}
	return strings.Join(differ, "\n")
}

func bytesOf(list []byte, size int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(list) >= size && yield(list[:size]) {
			list = list[size:]
		}
	}
}

// kept is what a record says of files.
type kept struct {
	snapshot.Info
	ID, Delta, Merged, Boot, Fresh string
	Upper, Recipe                  bool
}

// records reads those that are durable.
func records(t *testing.T, s opened) []kept {
	t.Helper()
	must(t, s.db.Update(t.Context(), func(*kv.Tx) error { return nil }))
	var all []kept
	must(t, s.db.View(func(tx *kv.Tx) error {
		return kv.EachJSON(tx, "lcfs", "", func(_ string, rec kept) error { all = append(all, rec); return nil })
	}))
	return all
}

// anotherBoot rewrites the records as if the machine had booted since.
func anotherBoot(t *testing.T, db *kv.DB) {
	t.Helper()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	must(t, err)
	must(t, db.Update(t.Context(), func(tx *kv.Tx) error {
		var failed error
		for _, bucket := range []string{"lcfs", "lcfs-state"} {
			changed := map[string][]byte{}
			failed = errors.Join(failed, tx.Each(bucket, "", func(id string, value []byte) error {
				changed[id] = bytes.ReplaceAll(value, bytes.TrimSpace(boot), []byte("another-boot"))
				return nil
			}))
			for id, value := range changed {
				failed = errors.Join(failed, tx.Put(bucket, id, value))
			}
		}
		return failed
	}))
}

// TestPowerCuts does the same, and each time takes from the disk what nobody
// had synced.
func TestPowerCuts(t *testing.T) {
	features(t)
	dir := t.TempDir()
	for round := range 6 {
		killSomewhere(t, dir)
		cutPower(t, dir)
		if !checkWhole(t, dir) {
			t.Fatalf("after round %d", round)
		}
	}
}

// cutPower empties all files that no record calls safe.
func cutPower(t *testing.T, dir string) {
	db, err := kv.Open(filepath.Join(dir, "db"))
	must(t, err)
	safe := map[string]bool{}
	for _, rec := range records(t, opened{db: db}) {
		if rec.Boot != "" {
			continue
		}
		if rec.Upper {
			safe["layers/"+rec.ID] = true
		}
		safe["recipes/"+rec.ID] = rec.Recipe
		for _, image := range []string{rec.Delta, rec.Merged} {
			if image == "" || rec.Fresh != "" && (rec.Upper || image == rec.Merged) {
				continue
			}
			safe["meta/"+image+".objs"] = true
			// What was made of one that rests is not synced.
			_, resting := os.Stat(filepath.Join(dir, "meta", image+".erofs.zst"))
			safe["meta/"+image+".erofs"], safe["meta/"+image+".erofs.zst"] = resting != nil, true
			list, err := os.ReadFile(filepath.Join(dir, "meta", image+".objs"))
			if err != nil && image == rec.Merged {
				continue // its layers have lists
			}
			must(t, err)
			for d := range bytesOf(list, sha256.Size) {
				safe["objects/"+hex.EncodeToString(d[:1])+"/"+hex.EncodeToString(d[1:])] = true
			}
		}
	}
	// Where no epoch is open all objects were synced.
	if _, err := os.Stat(filepath.Join(dir, "pending", "epoch")); os.IsNotExist(err) {
		safe["objects"] = true
	}
	anotherBoot(t, db)
	must(t, db.Close())
	// A file may be an object and in a folder: safe as the one, it is safe.
	isSafe := func(name string) bool {
		if name == "db" || strings.HasPrefix(name, "pending") || safe[name] {
			return true
		}
		parts := strings.SplitN(name, "/", 3)
		return len(parts) == 3 && (safe[parts[0]] || safe[parts[0]+"/"+parts[1]])
	}
	inodes := map[uint64]bool{}
	each := func(fn func(path string, inode uint64, safe bool)) {
		must(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err == nil && info.Mode().IsRegular() {
				fn(path, info.Sys().(*syscall.Stat_t).Ino, isSafe(strings.TrimPrefix(path, dir+"/")))
			}
			return err
		}))
	}
	each(func(_ string, inode uint64, safe bool) { inodes[inode] = inodes[inode] || safe })
	each(func(path string, inode uint64, _ bool) {
		if !inodes[inode] {
			must(t, os.Truncate(path, 0))
		}
	})
}
