package fault

import (
	"archive/tar"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/image/registrytest"
	"berth/test/machine"
)

// newSmallNode is a node whose root is a disk of some megabytes.
func newSmallNode(t *testing.T, megabytes string) *node {
	t.Helper()
	n := prepare(t)
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		machine.Lacks(t, "mkfs.ext4")
	}
	disk := filepath.Join(n.Dir, "disk")
	machine.Must(t, os.Mkdir(n.Root, 0o700))
	for _, line := range []string{
		"truncate -s " + megabytes + "M " + disk, "mkfs.ext4 -q -m 0 " + disk, "mount -o loop " + disk + " " + n.Root,
	} {
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", line).CombinedOutput(); err != nil {
			machine.Lacks(t, "a disk on a file ("+line+": "+string(out)+")")
		}
	}
	n.Start(t)
	n.ok(t, "load", "-i", archive)
	return n
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	n := newSmallNode(t, "96")
	before := n.inventory(t)
	reg := registrytest.New(t)
	layer := func(seed uint64) registrytest.Layer {
		return registrytest.Gzip(t, registrytest.Tar(t, registrytest.File{Header: tar.Header{Name: "noise"}, Body: string(registrytest.Noise(seed, 4<<20))}))
	}
	reg.Push(t, "large", "1", registrytest.Make(t, []registrytest.Layer{layer(1), layer(2)}, here))
	ref := reg.Host() + "/large:1"

	t.Run("pull", func(t *testing.T) {
		for _, leave := range []int64{0, 1 << 20, 6 << 20, 13 << 20} {
			free := machine.Fill(t, n.Root, leave)
			n.fails(t, 1, "no space", "pull", ref)
			free()
			n.pruned(t, before)
		}
		n.ok(t, "pull", ref)
		n.ok(t, "rmi", ref)
		n.pruned(t, before)
	})
	t.Run("load", func(t *testing.T) {
		path := filepath.Join(n.Dir, "large.tar")
		n.ok(t, "pull", ref)
		n.ok(t, "save", "-o", path, ref)
		n.ok(t, "rmi", ref)
		n.pruned(t, before) // what was removed goes in the background otherwise
		free := machine.Fill(t, n.Root, 5<<20)
		n.fails(t, 1, "no space", "load", "-i", path)
		free()
		n.ok(t, "load", "-i", path)
		n.ok(t, "rmi", ref)
		n.pruned(t, before)
	})
	t.Run("containers", func(t *testing.T) {
		n.sleeper(t, "old")
		free := machine.Fill(t, n.Root, 0)
		made := 0
		for range 20 { // some may fit where files are freed
			r := n.berth(t, "run", "--rm", "-v", "/bin", image, "true")
			if r.code == 0 {
				made++
			} else if r.code != 125 || !strings.Contains(r.err, "no space") {
				t.Errorf("run on a full disk: %s", r)
			}
		}
		t.Logf("%d of 20 containers ran on a full disk", made)
		n.ok(t, "exec", "old", "true")
		n.ok(t, "ps", "-a")
		free()
		n.ok(t, "rm", "-f", "old")
		n.works(t)
		n.pruned(t, before)
	})
	t.Run("log", func(t *testing.T) {
		n.ok(t, "run", "-d", "--name", "c", image, "sh", "-c", "while :; do echo a line of some length that fills the disk; done")
		free := machine.Fill(t, n.Root, 0)
		n.ok(t, "exec", "c", "true")
		if got := n.ok(t, "inspect", "--format", "{{.State.Status}}", "c"); got != "running" {
			t.Errorf("it is %s", got)
		}
		free()
		n.ok(t, "exec", "c", "true")
		n.ok(t, "logs", "--tail", "5", "c")
		n.ok(t, "rm", "-f", "c")
		n.works(t)
		n.pruned(t, before)
	})
	t.Run("removal and restart", func(t *testing.T) {
		n.sleeper(t, "c")
		free := machine.Fill(t, n.Root, 0)
		n.again(t)
		if r := n.berth(t, "rm", "-f", "c"); r.code != 0 && !strings.Contains(r.err, "no space") {
			t.Errorf("rm -f on a full disk: %s", r)
		}
		free()
		n.forRemoval(t, "c")
	})
	n.works(t)
	n.pruned(t, before)
}
