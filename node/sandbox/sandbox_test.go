package sandbox

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"berth/base/errs"
	"berth/base/kv"
	"berth/spec"
)

func open(t *testing.T, path, boot string) *Set {
	t.Helper()
	db, err := kv.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s, err := Open(db, boot)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRecords(t *testing.T) {
	path, ctx := filepath.Join(t.TempDir(), "db"), t.Context()
	s := open(t, path, "boot 1")
	made, err := s.Create(ctx, Sandbox{Namespace: "a", ID: "one", Runtime: "r", Spec: &spec.Opaque{Type: "t", Value: []byte("v")}})
	if err != nil || made.Created.IsZero() {
		t.Fatal(made, err)
	}
	if _, err := s.Create(ctx, Sandbox{Namespace: "a", ID: "one"}); !errors.Is(err, errs.Exists) {
		t.Errorf("twice: %v", err)
	}
	if _, err := s.Create(ctx, Sandbox{Namespace: "b", ID: "one"}); err != nil {
		t.Errorf("in another namespace: %v", err)
	}
	changed, err := s.Update(ctx, "a", "one", func(one *Sandbox) error {
		one.ID, one.Labels = "two", map[string]string{"k": "v"}
		return nil
	})
	if err != nil || changed.ID != "one" || changed.Labels["k"] != "v" || changed.Updated.Equal(made.Updated) {
		t.Errorf("%+v, %v", changed, err)
	}
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, "boot 1")
	one, err := s.Get("a", "one")
	if err != nil || one.Labels["k"] != "v" || string(one.Spec.Value) != "v" {
		t.Errorf("opened again: %+v, %v", one, err)
	}
	if all := s.List(""); len(all) != 2 || len(s.List("b")) != 1 || len(s.List("c")) != 0 {
		t.Errorf("there are %v", all)
	}
	if err := s.Delete(ctx, "a", "one"); err != nil {
		t.Error(err)
	}
	if err := s.Delete(ctx, "a", "one"); !errors.Is(err, errs.NotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if _, err := s.Update(ctx, "a", "one", func(*Sandbox) error { return nil }); !errors.Is(err, errs.NotFound) {
		t.Errorf("changed what is gone: %v", err)
	}
}

func TestRun(t *testing.T) {
	path, ctx := filepath.Join(t.TempDir(), "db"), t.Context()
	s := open(t, path, "boot 1")
	if err := s.Make(ctx, "a", "one"); !errors.Is(err, errs.NotFound) {
		t.Errorf("made what is not there: %v", err)
	}
	if _, err := s.Create(ctx, Sandbox{Namespace: "a", ID: "one"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start(ctx, "a", "one"); !errors.Is(err, errs.NotFound) {
		t.Errorf("started before it was made: %v", err)
	}
	if err := s.Make(ctx, "a", "one"); err != nil {
		t.Fatal(err)
	}
	if err := s.Make(ctx, "a", "one"); !errors.Is(err, errs.Exists) {
		t.Errorf("made twice: %v", err)
	}
	started, err := s.Start(ctx, "a", "one")
	if err != nil || !started.State.Runs() {
		t.Fatal(started, err)
	}
	if _, err := s.Start(ctx, "a", "one"); !errors.Is(err, errs.Conflict) {
		t.Errorf("started twice: %v", err)
	}
	ended := make(chan error, 1)
	go func() { _, err := s.Wait(ctx, "a", "one"); ended <- err }()
	if err := s.Stop(ctx, "a", "one"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("waited: %v", err)
	}
	if err := s.Stop(ctx, "a", "one"); err != nil {
		t.Errorf("stopped twice: %v", err)
	}
	if at, err := s.Wait(ctx, "a", "one"); err != nil || at.IsZero() {
		t.Errorf("waited for the end of one that has ended: %v, %v", at, err)
	}
	if err := s.Shutdown(ctx, "a", "one"); err != nil {
		t.Error(err)
	}
	if err := s.Shutdown(ctx, "a", "one"); !errors.Is(err, errs.NotFound) {
		t.Errorf("shut down twice: %v", err)
	}
	if err := s.Make(ctx, "a", "one"); err != nil {
		t.Errorf("made anew: %v", err)
	}
	if _, err := s.Start(ctx, "a", "one"); err != nil {
		t.Error(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Wait(gone, "a", "one"); !errors.Is(err, context.Canceled) {
		t.Errorf("a waiter that goes: %v", err)
	}

	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	if one, _ := open(t, path, "boot 2").Get("a", "one"); one.State.Runs() || one.State.Boot != "" {
		t.Errorf("after a reboot: %+v", one.State)
	}
}
