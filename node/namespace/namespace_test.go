package namespace

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"berth/base/errs"
	"berth/base/kv"
)

func open(t *testing.T, path string, held ...string) *Set {
	t.Helper()
	db, err := kv.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s, err := Open(t.Context(), db, func(context.Context, string) ([]string, error) { return held, nil })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func names(s *Set) string {
	var all []string
	for _, n := range s.List() {
		all = append(all, n.Name)
	}
	return strings.Join(all, " ")
}

func TestLife(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	ctx := t.Context()
	if got := names(s); got != "default" {
		t.Errorf("a new node has %q", got)
	}
	if err := s.Create(ctx, Namespace{Name: "moby", Labels: map[string]string{"a": "1", "b": "2"}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(ctx, Namespace{Name: "moby"}); !errors.Is(err, errs.Exists) {
		t.Errorf("twice: %v", err)
	}
	if err := s.Ensure(ctx, "moby"); err != nil {
		t.Error(err)
	}
	_, err := s.SetLabels(ctx, "moby", func(l map[string]string) { l["a"] = "3"; delete(l, "b") })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.SetLabels(ctx, "none", func(map[string]string) {}); !errors.Is(err, errs.NotFound) {
		t.Errorf("labels of none: %v", err)
	}
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, path)
	if n, _ := s.Get("moby"); n.Labels["a"] != "3" || len(n.Labels) != 1 || names(s) != "default moby" {
		t.Errorf("opened again: %+v of %s", n, names(s))
	}
	if err := s.Delete(ctx, "moby"); err != nil {
		t.Error(err)
	}
	if err := s.Delete(ctx, "moby"); !errors.Is(err, errs.NotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if err := s.Delete(ctx, "default"); !errors.Is(err, errs.Conflict) {
		t.Errorf("the node's own: %v", err)
	}
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	if got := names(open(t, path)); got != "default" {
		t.Errorf("after deletion %q", got)
	}
}

func TestOnlyEmptyOnesGo(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "db"), "images", "containers")
	if err := s.Ensure(t.Context(), "full"); err != nil {
		t.Fatal(err)
	}
	err := s.Delete(t.Context(), "full")
	if !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "images, containers") {
		t.Errorf("deleted a full one: %v", err)
	}
}

func TestFirstUseByMany(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "db"))
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if err := s.Ensure(t.Context(), "new"); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if names(s) != "default new" {
		t.Errorf("got %s", names(s))
	}
}
