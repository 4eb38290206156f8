package collect_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/node/collect"
)

func TestSweep(t *testing.T) {
	things := map[string][]string{"a": {"claimed", "lost", "stuck"}, "b": {"lost", "claimed"}}
	room := func(name string) collect.Room {
		return collect.Room{
			Name:  name,
			Found: func(context.Context) ([]string, error) { return slices.Clone(things[name]), nil },
			Discard: func(_ context.Context, id string) error {
				if id == "stuck" {
					return errors.New("it does not move")
				}
				things[name] = slices.DeleteFunc(things[name], func(s string) bool { return s == id })
				return nil
			},
		}
	}
	blind := collect.Room{Name: "c", Found: func(context.Context) ([]string, error) { return nil, errors.New("nothing seen") }}
	n, err := collect.Sweep(t.Context(), func(id string) bool { return id == "claimed" }, slog.New(slog.DiscardHandler), room("a"), blind, room("b"))
	if n != 2 || err == nil || !strings.Contains(err.Error(), "does not move") || !strings.Contains(err.Error(), "nothing seen") {
		t.Errorf("swept %d, %v", n, err)
	}
	if got := slices.Concat(things["a"], things["b"]); !slices.Equal(got, []string{"claimed", "stuck", "claimed"}) {
		t.Errorf("left %v", got)
	}
}

func TestNames(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "one"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := collect.Names(dir)(t.Context()); err != nil || !slices.Equal(got, []string{"one"}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := collect.Names(filepath.Join(dir, "none"))(t.Context()); err != nil || got != nil {
		t.Errorf("%v, %v", got, err)
	}
}

func TestMounts(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"kept/rootfs", "lost/rootfs", "lost/shm"} {
		target := filepath.Join(dir, name)
		if err := os.MkdirAll(target, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", target, "tmpfs", 0, "size=64k"); err != nil {
			t.Skip("mounting needs root:", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	}
	room := collect.Mounts(dir)
	if n, err := collect.Sweep(t.Context(), func(id string) bool { return id == "kept" }, slog.New(slog.DiscardHandler), room); n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if got, err := room.Found(t.Context()); err != nil || !slices.Equal(got, []string{"kept"}) {
		t.Errorf("left %v, %v", got, err)
	}
}

func TestCgroups(t *testing.T) {
	const parent = "/berth-collect-test"
	id := strings.Repeat("ab", 32)
	made := false
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	for _, root := range append(roots, "/sys/fs/cgroup/cgroup.procs") {
		dir := filepath.Join(filepath.Dir(root), parent)
		if err := os.MkdirAll(filepath.Join(dir, id, "below"), 0o755); err == nil {
			made = true
			t.Cleanup(func() { _ = os.Remove(dir) })
			if err := os.MkdirAll(filepath.Join(dir, "not-a-container"), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Remove(filepath.Join(dir, "not-a-container")) })
			break
		}
	}
	if !made {
		t.Skip("no cgroup can be made here")
	}
	room := collect.Cgroups(parent)
	if got, err := room.Found(t.Context()); err != nil || !slices.Equal(got, []string{id}) {
		t.Errorf("found %v, %v", got, err)
	}
	if n, err := collect.Sweep(t.Context(), func(string) bool { return false }, slog.New(slog.DiscardHandler), room); n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if got, err := room.Found(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("left %v, %v", got, err)
	}
}
