package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/fakesnapshot"
)

// probed makes a ladder of which only the rungs in works can be used.
func probed(works string, tried *[]string) ladder {
	l := newLadder(nil)
	for i := range l {
		name := l[i].name
		l[i].probe = func(context.Context, string, bool) error {
			*tried = append(*tried, name)
			if strings.Contains(" "+works+" ", " "+name+" ") {
				return nil
			}
			return errs.New(errs.Unsupported, "no %s on this machine", name)
		}
		l[i].open = func(context.Context, storeConfig) (snapshot.Store, error) { return fakesnapshot.New(), nil }
	}
	return l
}

func TestLadder(t *testing.T) {
	for _, test := range []struct {
		works, named, held string
		want               string
		fails              errs.Kind
		says               string
		tried              string
	}{
		{works: "lcfs lcfs-loop overlay btrfs reflink copy", want: "lcfs", tried: "lcfs"},
		{works: "lcfs-loop overlay copy", named: "auto", want: "lcfs-loop", tried: "lcfs lcfs-loop"},
		{works: "overlay copy", want: "overlay", tried: "lcfs lcfs-loop overlay"},
		{works: "btrfs reflink copy", want: "btrfs", tried: "lcfs lcfs-loop overlay btrfs"},
		{works: "reflink copy", want: "reflink", tried: "lcfs lcfs-loop overlay btrfs reflink"},
		{works: "copy", want: "copy", tried: "lcfs lcfs-loop overlay btrfs reflink copy"},
		{works: "", fails: errs.Unsupported, says: "no storage driver works here: lcfs: no lcfs on this machine\nlcfs-loop", tried: "lcfs lcfs-loop overlay btrfs reflink copy"},

		{works: "lcfs overlay copy", named: "overlay", want: "overlay", tried: "overlay"},
		{works: "lcfs overlay copy", named: "copy", want: "copy", tried: "copy"},
		{works: "lcfs overlay copy", named: "btrfs", fails: errs.Unsupported, says: "storage driver btrfs: no btrfs on this machine", tried: "btrfs"},
		{works: "lcfs overlay copy", named: "zfs", fails: errs.Invalid, says: `no storage driver "zfs": want one of auto, lcfs,`},

		{works: "lcfs overlay copy", held: "snapshot", want: "overlay", tried: "overlay"},
		{works: "overlay copy", held: "lcfs", fails: errs.Unsupported, says: "layers that are there need a storage driver that does not work here any more", tried: "lcfs lcfs-loop"},
		{works: "lcfs-loop overlay", held: "lcfs", want: "lcfs-loop", tried: "lcfs lcfs-loop"},
		{works: "lcfs reflink copy", held: "copy", want: "reflink", tried: "btrfs reflink"},
		{works: "lcfs reflink copy", held: "copy", named: "copy", want: "copy", tried: "copy"},
		{works: "lcfs overlay copy", held: "snapshot", named: "lcfs", want: "overlay", says: "not of lcfs", tried: "overlay"},
	} {
		name := strings.Join([]string{test.works, test.named, test.held}, "/")
		var tried []string
		c, err := probed(test.works, &tried).choose(t.Context(), t.TempDir(), test.named, test.held)
		if got := strings.Join(tried, " "); got != test.tried {
			t.Errorf("%s: tried %q, want %q", name, got, test.tried)
		}
		if test.fails != "" {
			if !errors.Is(err, test.fails) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%s: error %v, want %s saying %q", name, err, test.fails, test.says)
			}
			continue
		}
		if err != nil || c.name != test.want || !strings.Contains(c.note, test.says) || test.says == "" && c.note != "" {
			t.Errorf("%s: chose %q with note %q, %v; want %q", name, c.name, c.note, err, test.want)
			continue
		}
		for i, found := range c.ladder {
			if last := i == len(c.ladder)-1; (found.Why == "") != last || last && found.Name != test.want {
				t.Errorf("%s: ladder %+v", name, c.ladder)
			}
		}
	}
}

func openDB(t *testing.T, dir string) *kv.DB {
	t.Helper()
	db, err := kv.Open(filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// A node goes on with the driver of the layers it has, and is free again when
// it has none.
func TestLadderGoesOn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	config := storeConfig{Dir: dir, DB: openDB(t, dir), Log: slog.New(slog.DiscardHandler)}
	run := func(named, want, noted string, fn func(snapshot.Store)) {
		t.Helper()
		store, c, err := newLadder(config.DB).openStore(t.Context(), named, config)
		if err != nil {
			t.Fatal(err)
		}
		if c.name != want || !strings.Contains(c.note, noted) || noted == "" && c.note != "" {
			t.Errorf("asked for %q: got %q with note %q, want %q", named, c.name, c.note, want)
		}
		fn(store)
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}
	add := func(s snapshot.Store) {
		if _, err := s.Prepare(t.Context(), "work", "", nil); err != nil {
			t.Error(err)
		}
	}
	remove := func(s snapshot.Store) {
		if err := s.Remove(t.Context(), "work"); err != nil {
			t.Error(err)
		}
	}
	nothing := func(snapshot.Store) {}
	for _, name := range []string{"copy", "overlay"} {
		other := map[string]string{"copy": "overlay", "overlay": "copy"}[name]
		run(name, name, "", nothing)
		run(other, other, "", nothing)
		run(name, name, "", add)
		run(other, name, "not of "+other, nothing)
		run("", name, "", nothing)
		run("auto", name, "", remove)
	}
	// Each driver's records are found where the ladder looks for them.
	for _, r := range newLadder(config.DB) {
		if r.probe(t.Context(), dir, true) != nil {
			continue
		}
		run(r.name, r.name, "", add)
		if held, err := newLadder(config.DB).held(t.Context(), config.DB); err != nil || held != r.bucket {
			t.Errorf("%s: layers are held in %q, %v, want %q", r.name, held, err, r.bucket)
		}
		run(r.name, r.name, "", remove)
	}
}

// In a container whose own tree is an overlay nothing but copying works, and
// the ladder says why.
func TestLadderOnOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	for _, name := range []string{"lower", "upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(dir, "root")
	if err := unix.Mount("overlay", root, "overlay", 0, "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work"); err != nil {
		t.Skipf("no overlay here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	config := storeConfig{Dir: root, DB: openDB(t, dir), Log: slog.New(slog.DiscardHandler)}
	store, c, err := newLadder(config.DB).openStore(t.Context(), "", config)
	if err != nil {
		t.Fatal(err)
	}
	if c.name != "copy" {
		t.Errorf("chose %s", c.name)
	}
	for _, missed := range c.ladder[:len(c.ladder)-1] {
		t.Logf("not %s: %s", missed.Name, missed.Why)
		if missed.Why == "" {
			t.Errorf("nothing says why not %s", missed.Name)
		}
	}
	if _, err := store.Prepare(t.Context(), "work", "", nil); err != nil {
		t.Error(err)
	}
	target := t.TempDir()
	if err := store.Mount(t.Context(), "work", target); err != nil {
		t.Error(err)
	}
	if err := store.Unmount(t.Context(), target); err != nil {
		t.Error(err)
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(root, "probe-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("probes left %v, %v", left, err)
	}
}
