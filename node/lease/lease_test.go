package lease_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/lease"
)

func openDB(t *testing.T, path string) *kv.DB {
	t.Helper()
	db, err := kv.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func open(t *testing.T, db *kv.DB, owners ...lease.Owner) *lease.Set {
	t.Helper()
	s, err := lease.Open(lease.Config{DB: db})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range owners {
		s.Own(o)
	}
	return s
}

func inAnHour() map[string]string {
	return map[string]string{"containerd.io/gc.expire": time.Now().Add(time.Hour).Format(time.RFC3339)}
}

func kinds(t *testing.T, err error, want errs.Kind) {
	t.Helper()
	if errs.KindOf(err) != want {
		t.Errorf("error %v is %q, want %q", err, errs.KindOf(err), want)
	}
}

var blobID = "sha256:" + strings.Repeat("a", 64)

func TestLeases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := openDB(t, path)
	s := open(t, db)
	ctx := t.Context()
	if _, err := s.Create(ctx, "a", "l", map[string]string{"k": "v", "empty": ""}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, "b", "l", inAnHour()); err != nil {
		t.Fatal(err)
	}
	_, err := s.Create(ctx, "a", "l", nil)
	kinds(t, err, errs.Exists)
	_, err = s.Create(ctx, "a", "", nil)
	kinds(t, err, errs.Invalid)
	_, err = s.Create(ctx, "a", "m", map[string]string{"k": strings.Repeat("v", 4096)})
	kinds(t, err, errs.Invalid)

	hostile := strings.Repeat("../\x00/:", 800)
	for _, r := range []lease.Resource{
		{Kind: lease.Content, ID: blobID},
		{Kind: lease.Ingests, ID: hostile},
		{Kind: lease.Images, ID: "docker.io/x:1"},
		{Kind: lease.Snapshots("overlayfs"), ID: "k/1"},
	} {
		for _, namespace := range []string{"a", "b"} {
			if err := s.Add(ctx, namespace, "l", r); err != nil {
				t.Error(err)
			}
		}
	}
	kinds(t, s.Add(ctx, "c", "l", lease.Resource{Kind: lease.Images, ID: "x"}), errs.NotFound)
	kinds(t, s.Add(ctx, "a", "l", lease.Resource{Kind: lease.Content, ID: "sha256:short"}), errs.Invalid)
	kinds(t, s.Add(ctx, "a", "l", lease.Resource{Kind: "content/x", ID: blobID}), errs.Invalid)
	kinds(t, s.Add(ctx, "a", "l", lease.Resource{Kind: "snapshots", ID: "x"}), errs.Invalid)
	kinds(t, s.Add(ctx, "a", "l", lease.Resource{Kind: "containers", ID: "x"}), errs.Unsupported)
	kinds(t, s.Drop(ctx, "a", "none", lease.Resource{Kind: lease.Images, ID: "x"}), errs.NotFound)
	if err := s.Drop(ctx, "a", "l", lease.Resource{Kind: lease.Images, ID: "docker.io/x:1"}); err != nil {
		t.Error(err)
	}
	if err := s.Drop(ctx, "a", "l", lease.Resource{Kind: lease.Images, ID: "never"}); err != nil {
		t.Error(err)
	}

	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, openDB(t, path))
	l, err := s.Get("a", "l")
	if err != nil || len(l.Labels) != 1 || l.Labels["k"] != "v" || l.Created.IsZero() {
		t.Error(l, err)
	}
	all, err := s.Resources("a", "l")
	if err != nil || len(all) != 3 || all[1].ID != hostile {
		t.Error("after opening again:", len(all), err)
	}
	if all, err := s.Resources("b", "l"); err != nil || len(all) != 4 {
		t.Error("after opening again:", len(all), err)
	}
	if err := s.Delete(ctx, "a", "l"); err != nil {
		t.Fatal(err)
	}
	kinds(t, s.Delete(ctx, "a", "l"), errs.NotFound)
	if got := s.List("a"); len(got) != 0 {
		t.Error(got)
	}
	if _, err := s.Create(ctx, "a", "l", nil); err != nil {
		t.Fatal(err)
	}
	if all, err := s.Resources("a", "l"); err != nil || len(all) != 0 {
		t.Error("a new lease holds what an old one held:", all, err)
	}
}

// A lease whose ID is the beginning of another's takes nothing of it along.
func TestDeleteBesideLongerID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := openDB(t, path)
	s := open(t, db)
	for _, id := range []string{"a", "a/b", "a/images"} {
		if _, err := s.Create(t.Context(), "n", id, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Add(t.Context(), "n", id, lease.Resource{Kind: lease.Images, ID: "of " + id}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(t.Context(), "n", "a"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, openDB(t, path))
	for _, id := range []string{"a/b", "a/images"} {
		if all, err := s.Resources("n", id); err != nil || len(all) != 1 || all[0].ID != "of "+id {
			t.Error(id, all, err)
		}
	}
}

// What cannot be written down has not happened.
func TestFailedWrite(t *testing.T) {
	db := openDB(t, filepath.Join(t.TempDir(), "db"))
	s := open(t, db)
	if _, err := s.Create(t.Context(), "n", "l", nil); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := s.Create(t.Context(), "n", "m", nil)
	kinds(t, err, errs.Unavailable)
	kinds(t, s.Add(t.Context(), "n", "l", lease.Resource{Kind: lease.Images, ID: "i"}), errs.Unavailable)
	kinds(t, s.Delete(t.Context(), "n", "l"), errs.Unavailable)
	if all := s.List("n"); len(all) != 1 {
		t.Error(all)
	}
	if all, err := s.Resources("n", "l"); err != nil || len(all) != 0 {
		t.Error(all, err)
	}
}

// Leases that are made and ended from many sides.
func TestConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := openDB(t, path)
	s := open(t, db)
	done := make(chan error)
	const many = 8
	for n := range many {
		go func() {
			ctx, id := context.Background(), fmt.Sprint("l", n)
			var failed error
			for round := range 20 {
				_, err := s.Create(ctx, "n", id, inAnHour())
				failed = errors.Join(failed, err)
				for r := range 5 {
					failed = errors.Join(failed, s.Add(ctx, "n", id, lease.Resource{Kind: lease.Images, ID: fmt.Sprint(round, r)}))
				}
				if round < 19 {
					failed = errors.Join(failed, s.Delete(ctx, "n", id))
				}
			}
			done <- failed
		}()
	}
	for range many {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	want := s.List("n")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, openDB(t, path))
	got := s.List("n")
	if len(got) != many || !slices.EqualFunc(got, want, func(a, b lease.Lease) bool { return a.ID == b.ID && a.Created.Equal(b.Created) }) {
		t.Errorf("%d leases, want %d", len(got), many)
	}
	for _, l := range got {
		if all, err := s.Resources("n", l.ID); err != nil || len(all) != 5 || !strings.HasPrefix(all[0].ID, "19") {
			t.Error(l.ID, all, err)
		}
	}
}
