package keeper_test

import (
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"berth/base/errs"
)

// kept is a file that is known by what is in it.
func kept(t *testing.T, text string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	return f
}

// holds fails unless exactly these are held.
func (r *rig) holds(want map[string]string) {
	r.t.Helper()
	held, err := r.Held()
	if err != nil {
		r.t.Fatal(err)
	}
	if len(held) != len(want) {
		r.t.Errorf("held: %v, want %v", held, want)
	}
	for name, files := range held {
		var all []string
		for _, f := range files {
			text, err := io.ReadAll(io.NewSectionReader(f, 0, 1000))
			if err != nil {
				r.t.Error(err)
			}
			all = append(all, string(text))
			f.Close()
		}
		if got := strings.Join(all, ","); got != want[name] {
			r.t.Errorf("held under %s: %q, want %q", name, got, want[name])
		}
	}
}

func TestStore(t *testing.T) {
	r := start(t)
	if err := r.Hold(t.Context(), "none"); errs.KindOf(err) != errs.Invalid {
		t.Errorf("nothing held: %v", err)
	}
	for _, name := range []string{"a", "b", "gone"} {
		if err := r.Hold(t.Context(), name, kept(t, name+"1"), kept(t, name+"2")); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Hold(t.Context(), "b", kept(t, "other")); err != nil { // in the place of what there was
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing
		if err := r.Drop(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{"a": "a1,a2", "b": "other"}
	r.holds(want)

	before := r.Pid()
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return r.Pid() != 0 && r.Pid() != before })
	r.holds(want)

	r.stop() // a node that ends, and the next one
	next := open(t, r.dir)
	next.holds(want)
	if err := next.Upgrade(t.Context()); err != nil {
		t.Fatal(err)
	}
	next.holds(want)
	next.stop()
	third := open(t, r.dir)
	third.holds(want)
	if err := third.Drop(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	third.holds(map[string]string{"b": "other"})
}

// What is held costs as many descriptors as it is, and none when it is dropped.
func TestStoreNoLeaks(t *testing.T) {
	r := start(t)
	file := kept(t, "x")
	count := func() [2]int { return [2]int{countFds(t, r.Pid()), countFds(t, os.Getpid())} }
	if err := r.Hold(t.Context(), "x", file); err != nil {
		t.Fatal(err)
	}
	before := count()
	for range 20 {
		if err := r.Hold(t.Context(), "x", file); err != nil {
			t.Fatal(err)
		}
		if err := r.Hold(t.Context(), "y", file, file); err != nil {
			t.Fatal(err)
		}
		if err := r.Drop(t.Context(), "y"); err != nil {
			t.Fatal(err)
		}
	}
	if after := count(); after != before {
		t.Errorf("descriptors of keeper and node: %v, before %v", after, before)
	}
}
