package cri

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/test/machine"
)

// nginx is an image of some megabytes.
const nginx = "registry.k8s.io/e2e-test-images/nginx:1.14-2"

// small has a node's root, state and logs on disks of some megabytes each.
func small(t *testing.T) *node {
	t.Helper()
	n := newNode(t, "", "", func(n *node) {
		disk, logs := filepath.Join(n.Dir, "disk"), filepath.Join(n.Dir, "logs")
		for _, dir := range []string{n.Root, n.State, logs} {
			machine.Must(t, os.Mkdir(dir, 0o711)) //nolint:gosec // as the node makes it
		}
		for _, line := range []string{
			"truncate -s 64M " + disk, "mkfs.ext4 -q -m 0 " + disk, "mount -o loop " + disk + " " + n.Root,
			"mount -t tmpfs -o size=8m,mode=711 state " + n.State, "mount -t tmpfs -o size=1m logs " + logs,
		} {
			if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
				t.Skipf("skipped: this takes a disk on a file: %s: %v\n%s", line, err, out)
			}
		}
		n.disks = []string{logs, n.Root, n.State}
	})
	n.must(t, "crictl", "pull", busybox)
	return n
}

// spaceless is what a call on a full disk ends with, if it fails.
func spaceless(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil && (!strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "ResourceExhausted")) {
		t.Errorf("%s: %v", what, err)
	}
	if err == nil {
		t.Logf("%s went through", what)
	}
}

// Disks that are full: calls say so, what runs goes on, and when there is space
// again everything works. Nothing is left.
func TestDisksAreFull(t *testing.T) {
	n := small(t)
	witness := &app{name: "witness", handler: "runc"}
	machine.Must(t, n.up(witness))
	n.complete(t, witness) // its program runs, and not the runtime any more
	before := n.inventory(t)
	works := func(t *testing.T) {
		t.Helper()
		a := &app{name: "after", handler: "runc", shared: true}
		machine.Must(t, n.up(a))
		machine.Must(t, n.works(a))
		machine.Must(t, n.rmp(a))
		machine.Must(t, n.works(witness))
		n.same(t, before)
	}
	for _, disk := range []string{"root", "state"} {
		t.Run(disk, func(t *testing.T) {
			ready, old := &app{name: "ready", handler: "runc"}, &app{name: "old", handler: "runc"}
			machine.Must(t, n.runp(ready))
			machine.Must(t, n.create(ready))
			machine.Must(t, n.up(old))
			free := machine.Fill(t, filepath.Join(n.Dir, disk), 0)
			spaceless(t, "start", n.launch(ready))
			for i := range 4 {
				fresh := &app{name: fmt.Sprint("fresh", i), handler: "runc", shared: i%2 > 0}
				err := n.runp(fresh)
				spaceless(t, "runp", err)
				if err == nil {
					if err = n.create(fresh); err == nil {
						err = n.launch(fresh)
					}
					spaceless(t, "create and start", err)
				}
			}
			if disk == "root" {
				_, err := n.try("crictl", "--timeout", patience.String(), "pull", nginx)
				spaceless(t, "pull", err)
				if err == nil {
					t.Error("there was space for an image")
				}
			}
			if _, err := n.try("crictl", "ps"); err != nil {
				t.Error(err)
			}
			if disk == "root" { // exec needs some bytes of the state folder
				if err := n.works(witness); err != nil {
					t.Errorf("the witness suffers: %v", err)
				}
			}
			machine.Must(t, n.rmp(old))
			n.complete(t, witness)
			n.Kill()
			if disk == "root" {
				n.Start(t) // on a full disk
			}
			free()
			if disk == "state" {
				n.Start(t)
			}
			for id := range strings.FieldsSeq(n.must(t, "crictl", "pods", "-q")) {
				if id != witness.pod {
					machine.Must(t, n.rmp(&app{pod: id}))
				}
			}
			works(t)
		})
	}
	t.Run("image", func(t *testing.T) {
		n.must(t, "crictl", "pull", nginx)
		n.must(t, "crictl", "rmi", nginx)
	})
	t.Run("logs", func(t *testing.T) {
		free := machine.Fill(t, filepath.Join(n.Dir, "logs"), 0)
		a := &app{name: "silent", handler: "runc"}
		err := n.up(a)
		spaceless(t, "up", err)
		if err == nil {
			err = n.works(a)
		}
		machine.Must(t, errors.Join(err, n.works(witness)))
		free()
		machine.Must(t, n.rmp(a))
		works(t)
	})
	machine.Must(t, n.rmp(witness))
}
