package overlay_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot/overlay"
)

func TestProbe(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	must(t, overlay.Probe(t.Context(), dir))
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	// No writable overlay lies on an overlay.
	for _, name := range []string{"lower", "upper", "work", "mnt"} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	at := filepath.Join(dir, "mnt")
	must(t, unix.Mount("overlay", at, "overlay", 0, "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work"))
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	if err := overlay.Probe(t.Context(), at); !errors.Is(err, errs.Unsupported) {
		t.Errorf("on an overlay: %v", err)
	}
	if left, _ := os.ReadDir(at); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}
