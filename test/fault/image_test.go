package fault

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/image/registrytest"
	"berth/test/machine"
)

// TestNodeKilledWithImages kills the node some milliseconds into each thing
// that moves an image, whatever is kept of compressed layers. Afterwards an
// image is whole, with the digests that it had, or there is none; nothing is
// damaged, and nothing is left.
func TestNodeKilledWithImages(t *testing.T) {
	for _, policy := range []string{"keep", "until-pushed", "drop"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, "[registry]", `blobs = "`+policy+`"`)
			reg := registrytest.New(t)
			base := reg.Host() + "/base:1" // what is pushed need not be kept
			n.ok(t, "tag", image, base)
			n.ok(t, "push", base)
			n.ok(t, "rmi", base)
			n.ok(t, "image", "prune", "-f")
			before := n.inventory(t)
			reg.Push(t, "app", "1", noisy(t))
			ref, mine := reg.Host()+"/app:1", reg.Host()+"/mine:1"
			n.ok(t, "run", "--name", "c", image, "sh", "-c", "head -c 2000000 /dev/urandom > /noise; mkdir /many; for i in $(seq 500); do echo $i > /many/$i; done")
			for round := range 6 {
				delay := time.Duration(round*round) * 5 * time.Millisecond
				for _, line := range []string{"pull " + ref, "commit c " + mine, "push " + mine, "save -o " + filepath.Join(n.Dir, "saved.tar") + " " + mine, "rmi " + mine, "system scrub", "rmi " + ref} {
					n.prepareFor(t, line, ref, mine)
					cmd := n.cli(t, strings.Fields(line)...)
					machine.Must(t, cmd.Start())
					<-time.After(delay)
					n.kill()
					n.Start(t)
					_ = cmd.Wait() // it may have come through, or not
					n.wholeOrAbsent(t, ref)
					n.wholeOrAbsent(t, mine)
				}
			}
			if out := n.ok(t, "system", "scrub"); !strings.Contains(out, "nothing is damaged") {
				t.Error(out)
			}
			n.ok(t, "rm", "c")
			for _, name := range []string{ref, mine} {
				n.berth(t, "rmi", name) // it may be gone
			}
			n.works(t)
			n.pruned(t, before)
		})
	}
}

// TestBlobThatANodeHasLeft is of a node that was killed between an image and its
// blobs: the next one takes them away, though nothing else goes.
func TestBlobThatANodeHasLeft(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.kill()
	body := []byte("nobody names it")
	blob := filepath.Join(n.Root, "blobs", "sha256", digest.FromBytes(body).Encoded())
	machine.Must(t, os.WriteFile(blob, body, 0o600))
	n.Start(t)
	machine.Await(t, "the blob is gone", func() bool {
		_, err := os.Stat(blob)
		return errors.Is(err, os.ErrNotExist)
	})
	n.works(t)
}

// noisy is an image of some layers that take a while.
func noisy(t *testing.T) registrytest.Image {
	var layers []registrytest.Layer
	for n := range 3 {
		var files []registrytest.File
		for i := range 40 {
			files = append(files, registrytest.File{
				Header: tar.Header{Name: fmt.Sprintf("layer%d/%d", n, i)}, Body: string(registrytest.Noise(uint64(n*1000+i), 50_000)),
			})
		}
		layers = append(layers, registrytest.Gzip(t, registrytest.Tar(t, files...)))
	}
	return registrytest.Make(t, layers, here)
}

// prepareFor has what the line needs there.
func (n *node) prepareFor(t *testing.T, line, ref, mine string) {
	t.Helper()
	has := func(name string) bool { return n.berth(t, "inspect", name).code == 0 }
	switch {
	case strings.HasPrefix(line, "rmi "+ref) && !has(ref):
		n.ok(t, "pull", ref)
	case (strings.HasPrefix(line, "push") || strings.HasPrefix(line, "save") || strings.HasPrefix(line, "rmi "+mine)) && !has(mine):
		n.ok(t, "commit", "c", mine)
	}
}

// wholeOrAbsent writes the image to an archive, for which every layer has to
// give the very bytes of its digest.
func (n *node) wholeOrAbsent(t *testing.T, name string) {
	t.Helper()
	if n.berth(t, "inspect", name).code != 0 {
		return
	}
	saved := exec.CommandContext(t.Context(), "sh", "-c", program+" save "+name+" | tar -t > /dev/null")
	saved.Env = n.cli(t).Env
	if out, err := saved.CombinedOutput(); err != nil {
		t.Errorf("%s is not whole: %v\n%s", name, err, out)
	}
	n.ok(t, "save", "-o", filepath.Join(n.Dir, "whole.tar"), name)
}
