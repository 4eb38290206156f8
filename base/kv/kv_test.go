package kv_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
)

func open(t *testing.T, path string) *kv.DB {
	t.Helper()
	db, err := kv.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func get(t *testing.T, db *kv.DB, key string) string {
	t.Helper()
	var got string
	if err := db.View(func(tx *kv.Tx) error { got = string(tx.Get("b", key)); return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

func put(key, value string) func(*kv.Tx) error {
	return func(tx *kv.Tx) error { return tx.Put("b", key, []byte(value)) }
}

func TestUpdateSurvivesReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := open(t, path)
	if err := db.Update(t.Context(), put("k", "v")); err != nil {
		t.Fatal(err)
	}
	db.Later(put("l", "w"))
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, path)
	if get(t, db, "k") != "v" || get(t, db, "l") != "w" {
		t.Errorf("k=%q l=%q after reopen", get(t, db, "k"), get(t, db, "l"))
	}
}

func TestSecondOpenIsConflict(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	open(t, path)
	if _, err := kv.Open(path); !errors.Is(err, errs.Conflict) {
		t.Errorf("second Open: %v, want a conflict", err)
	}
}

func TestAFailureTakesNobodyDown(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	boom := errors.New("boom")
	var wg sync.WaitGroup
	failed := make([]error, 50)
	for i := range failed {
		wg.Go(func() {
			failed[i] = db.Update(t.Context(), func(tx *kv.Tx) error {
				if err := tx.Put("b", fmt.Sprint(i), []byte("x")); err != nil {
					return err
				}
				if i%5 == 0 {
					return boom
				}
				return nil
			})
		})
	}
	wg.Wait()
	for i, err := range failed {
		want := i%5 == 0
		if errors.Is(err, boom) != want {
			t.Errorf("writer %d: %v", i, err)
		}
		if (get(t, db, fmt.Sprint(i)) == "") != want {
			t.Errorf("writer %d left %q", i, get(t, db, fmt.Sprint(i)))
		}
	}
}

func TestLaterIsCommittedByItself(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	db.Later(put("k", "v"))
	for deadline := time.Now().Add(time.Minute); get(t, db, "k") != "v"; {
		if time.Now().After(deadline) {
			t.Fatal("not committed after a minute")
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestLaterRunsBeforeTheNextUpdate(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	db.Later(put("k", "later"))
	err := db.Update(t.Context(), func(tx *kv.Tx) error {
		if got := string(tx.Get("b", "k")); got != "later" {
			return fmt.Errorf("k = %q", got)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestEachStaysInPrefix(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	err := db.Update(t.Context(), func(tx *kv.Tx) error {
		return errors.Join(kv.PutJSON(tx, "b", "a1", 1), kv.PutJSON(tx, "b", "b1", 2), kv.PutJSON(tx, "b", "b2", 3), kv.PutJSON(tx, "b", "c", 4))
	})
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	err = db.View(func(tx *kv.Tx) error {
		return kv.EachJSON(tx, "b", "b", func(_ string, v int) error { sum += v; return nil })
	})
	if err != nil || sum != 5 {
		t.Errorf("sum %d, %v", sum, err)
	}
}

func TestUpdateAfterClose(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Update(t.Context(), put("k", "v")); !errors.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkUpdateParallel(b *testing.B) {
	db, err := kv.Open(filepath.Join(b.TempDir(), "db"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := db.Update(b.Context(), put("k", "v")); err != nil {
				b.Error(err)
			}
		}
	})
}

// What changes nothing writes nothing.
func TestUnchangedIsNotWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := open(t, path)
	if err := db.Update(t.Context(), put("k", "v")); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, fn := range []func(*kv.Tx) error{
		put("k", "v"),
		func(tx *kv.Tx) error { return tx.Delete("b", "none") },
		func(tx *kv.Tx) error { return tx.Delete("nosuch", "k") },
		func(tx *kv.Tx) error { _ = tx.Get("b", "k"); return nil },
	} {
		if err := db.Update(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file changed, %v", err)
	}
	if err := db.Update(t.Context(), put("k", "w")); err != nil || get(t, db, "k") != "w" {
		t.Errorf("k=%q, %v after a change", get(t, db, "k"), err)
	}
}

func TestLaterThenTellsOnceItIsDurable(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	seen := make(chan string, 1)
	db.LaterThen(put("k", "v"), func() { seen <- get(t, db, "k") })
	if got := <-seen; got != "v" {
		t.Errorf("told while k is %q", got)
	}
}

func TestLaterThenDoesNotTellOfWhatFailed(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	db.LaterThen(func(*kv.Tx) error { return errors.New("no") }, func() { t.Error("told of what failed") })
	if err := db.Update(t.Context(), put("k", "v")); err != nil {
		t.Error(err)
	}
}

// What cannot be written at the end is told, and what could not be written for a
// while is written when there is room.
func TestAFullDisk(t *testing.T) {
	dir, fill := smallDisk(t)
	big, path := filepath.Join(dir, "big"), filepath.Join(dir, "db")
	db := open(t, path)
	if err := db.Update(t.Context(), put("k", "old")); err != nil {
		t.Fatal(err)
	}
	fill()
	told := make(chan bool)
	db.LaterThen(put("k", string(bytes.Repeat([]byte("new"), 30_000))), func() { close(told) })
	if err := db.Update(t.Context(), put("l", "l")); !errors.Is(err, errs.Exhausted) {
		t.Errorf("update on a full disk: %v", err)
	}
	if got := get(t, db, "k"); got != "old" {
		t.Errorf("k is %d bytes", len(got))
	}
	if err := os.Remove(big); err != nil {
		t.Fatal(err)
	}
	select {
	case <-told:
	case <-time.After(time.Minute):
		t.Fatal("what was postponed is not written when there is room")
	}
	fill()
	db.Later(put("m", string(bytes.Repeat([]byte("more"), 100_000))))
	if err := db.Close(); !errors.Is(err, errs.Exhausted) {
		t.Errorf("closed on a full disk: %v", err)
	}
	if err := os.Remove(big); err != nil {
		t.Fatal(err)
	}
	if got := get(t, open(t, path), "k"); len(got) != 90_000 {
		t.Errorf("afterwards k is %d bytes", len(got))
	}
}

// A full disk is tried again by and by only, but at once when somebody asks.
func TestAFullDiskIsLeftAlone(t *testing.T) {
	dir, fill := smallDisk(t)
	synctest.Test(t, func(t *testing.T) {
		db := open(t, filepath.Join(dir, "db"))
		fill()
		tries := 0
		value := bytes.Repeat([]byte("new"), 30_000)
		db.Later(func(tx *kv.Tx) error { tries++; return tx.Put("b", "k", value) })
		<-time.After(time.Minute)
		synctest.Wait()
		if tries < 5 || tries > 15 {
			t.Errorf("%d tries in a minute", tries)
		}
		if err := os.Remove(filepath.Join(dir, "big")); err != nil {
			t.Fatal(err)
		}
		if err := db.Update(t.Context(), put("l", "l")); err != nil {
			t.Fatal(err)
		}
		if got := get(t, db, "k"); len(got) != len(value) {
			t.Errorf("k is %d bytes", len(got))
		}
		db.Later(put("m", "m")) // as soon as ever
		<-time.After(100 * time.Millisecond)
		synctest.Wait()
		if got := get(t, db, "m"); got != "m" {
			t.Errorf("m is %q after the time that it may take", got)
		}
	})
}

// smallDisk is a folder that fill leaves no room in, by the file big.
func smallDisk(t *testing.T) (dir string, fill func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: it takes root to mount a small disk")
	}
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatal("mount a small disk:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir, func() {
		t.Helper()
		file, err := os.Create(filepath.Join(dir, "big"))
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = file.Write(make([]byte, 4096))
		}
		if !errors.Is(err, unix.ENOSPC) || file.Close() != nil {
			t.Fatal(err)
		}
	}
}
