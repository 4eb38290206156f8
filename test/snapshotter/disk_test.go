package snapshotter

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"berth/test/machine"
)

// fill takes all room of a disk, to the last block, until free is called.
func fill(t *testing.T, disk string) (free func()) {
	t.Helper()
	var files []string
	for size := int64(1 << 30); size >= 4096; size /= 2 {
		for n := 0; ; n++ {
			path := filepath.Join(disk, fmt.Sprint("filler", size, "-", n))
			file, err := os.Create(path)
			if err != nil {
				break // no room for the name
			}
			err = syscall.Fallocate(int(file.Fd()), 0, 0, size)
			machine.Must(t, file.Close())
			if err != nil {
				machine.Must(t, os.Remove(path))
				break
			}
			files = append(files, path)
		}
	}
	return func() {
		t.Helper()
		for _, path := range files {
			machine.Must(t, os.Remove(path))
		}
	}
}

// TestFullDisk: what has no room is refused as such and leaves nothing; what
// there is stays, can be removed, and is all that a restart finds; and with
// room everything works again.
func TestFullDisk(t *testing.T) {
	machine.Need(t)
	for _, rung := range rungs {
		t.Run(rung, func(t *testing.T) {
			disk := newDisk(t, "mkfs.ext4", "-q")
			root := filepath.Join(disk, "root")
			d := newSnapshotter(t, root, rung)
			s, conn := dial(t, d.Socket)
			defer conn.Close()
			h := &history{now: told{}}
			prepare := func(name, parent string) error {
				_, err := s.Prepare(t.Context(), name, parent)
				if err == nil {
					h.now[name] = snapshots.Info{Kind: snapshots.KindActive, Name: name, Parent: parent}
				}
				return err
			}
			machine.Must(t, prepare("base being made", ""))
			machine.Must(t, s.Commit(t.Context(), "base", "base being made"))
			h.now = told{"base": {Kind: snapshots.KindCommitted, Name: "base"}}

			machine.Must(t, prepare("active", "base"))

			free := fill(t, disk)
			var err error
			for i := 0; err == nil; i++ {
				if i == 5000 {
					t.Fatal("the disk does not get full")
				}
				err = prepare(fmt.Sprint("more", i), "base")
			}
			if !errdefs.IsResourceExhausted(err) {
				t.Errorf("on a full disk: %v", err)
			}
			h.check(t, s, 0)
			for _, name := range h.now.leaves() {
				machine.Must(t, s.Remove(t.Context(), name))
				delete(h.now, name)
				break
			}
			h.check(t, s, 1)
			free()
			machine.Must(t, prepare("with room", "base"))
			end(t, d)
			d.Start(t)
			again, conn := dial(t, d.Socket)
			defer conn.Close()
			h.check(t, again, 2)
			for len(h.now) > 0 {
				for _, name := range h.now.leaves() {
					machine.Must(t, again.Remove(t.Context(), name))
					delete(h.now, name)
				}
			}
			end(t, d)
			if left := machine.Mounts(t, disk); len(left) != 0 {
				t.Errorf("left mounted: %q", left)
			}
		})
	}
}
