package lcfs_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"berth/node/snapshot/lcfs"
)

// resting says whether all images rest.
func resting(t *testing.T, dir string) bool {
	plain, err := filepath.Glob(filepath.Join(dir, "meta", "*.erofs"))
	must(t, err)
	put, err := filepath.Glob(filepath.Join(dir, "meta", "*.erofs.zst"))
	must(t, err)
	return len(plain) == 0 && len(put) > 0
}

// TestRest: images that nothing stands on are kept compressed, and are whole
// for whoever wants them again.
func TestRest(t *testing.T) {
	x := newScrubbed(t)
	must(t, x.Close())
	soon := func(c *lcfs.Config) { c.Rest = 20 * time.Millisecond }
	x.opened = open(t, x.dir, soon)
	eventually(t, "all images rest", func() bool { return resting(t, x.dir) })
	if _, damaged := scrub(t, x); len(damaged) > 0 {
		t.Errorf("at rest there is %+v", damaged)
	}
	for key, want := range x.tars {
		if key == "own" && diff(t, x, key) != string(want) {
			t.Error("at rest the layer is another")
		}
	}
	_, err := x.View(t.Context(), "look", "own", nil)
	must(t, err)
	target := t.TempDir()
	must(t, x.Mount(t.Context(), "look", target))
	time.Sleep(100 * time.Millisecond) // longer than an idle one keeps
	body, err := os.ReadFile(filepath.Join(target, "high"))
	must(t, err)
	if string(body) != highBody {
		t.Error("the mount shows another body")
	}
	if _, err := os.Stat(x.image(x.record(t, "own").Merged)); err != nil {
		t.Errorf("the image that is mounted: %v", err)
	}
	must(t, x.Unmount(t.Context(), target))
	must(t, x.Remove(t.Context(), "look"))
	eventually(t, "all images rest again", func() bool { return resting(t, x.dir) })
	if got := read(t, x, "own"); !slices.Equal(got, x.want) {
		t.Errorf("the tree is %v, was %v", got, x.want)
	}
}

// TestRestIsScrubbed: damage of what rests is found, keeps it from being
// mounted, and is healed.
func TestRestIsScrubbed(t *testing.T) {
	x := newScrubbed(t)
	must(t, x.Close())
	x.opened = open(t, x.dir, func(c *lcfs.Config) { c.Rest = 20 * time.Millisecond })
	eventually(t, "all images rest", func() bool { return resting(t, x.dir) })
	flip(t, x.image(x.record(t, "high").Delta)+".zst")
	flip(t, x.image(x.record(t, "own").Merged)+".zst")
	_, err := x.View(t.Context(), "look", "own", nil)
	must(t, err)
	target := t.TempDir()
	if err := x.Mount(t.Context(), "look", target); err == nil {
		must(t, x.Unmount(t.Context(), target))
		t.Error("a damaged image was mounted")
	}
	must(t, x.Remove(t.Context(), "look"))
	_, damaged := scrub(t, x)
	if len(damaged) != 2 {
		t.Errorf("found %+v", damaged)
	}
	x.heal(t, damaged)
}

// TestTornWhenWoken: what was made of an image at rest may be lost with the
// power; the image is not.
func TestTornWhenWoken(t *testing.T) {
	x := newScrubbed(t)
	must(t, x.Close())
	x.opened = open(t, x.dir, func(c *lcfs.Config) { c.Rest = 20 * time.Millisecond })
	eventually(t, "all images rest", func() bool { return resting(t, x.dir) })
	merged := x.image(x.record(t, "own").Merged)
	must(t, x.Close())
	must(t, os.WriteFile(merged, nil, 0o600))
	x.opened = open(t, x.dir)
	anotherBoot(t, x.db)
	must(t, x.Close())
	x.opened = open(t, x.dir)
	if got := read(t, x, "own"); !slices.Equal(got, x.want) {
		t.Errorf("the tree is %v, was %v", got, x.want)
	}
}
