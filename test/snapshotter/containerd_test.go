package snapshotter

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"berth/test/machine"
)

func TestContainerd(t *testing.T) {
	for _, rung := range rungs {
		t.Run(rung, func(t *testing.T) { tryContainerd(t, newEngine(t, rung)) })
	}
}

// tryContainerd is a life with containerd, from the first import to the last
// removal.
func tryContainerd(t *testing.T, e *engine) {
	archive := ociArchive(t, layered(t))
	e.ctr(t, "one", "images", "import", "--snapshotter", "berth", archive)
	layers := e.kept(t, "committed")
	if len(layers) != 3 {
		t.Fatalf("three layers became %q", layers)
	}
	e.run(t, "one", "first", look, shown)

	// The same image in another namespace: known; and by way of the client,
	// which does not say what it unpacks: unpacked, and kept once.
	before := e.bytes(t)
	e.ctr(t, "two", "images", "import", "--snapshotter", "berth", archive)
	if got := e.kept(t, "committed"); len(got) != 3 {
		t.Errorf("in a second namespace three layers became %q", got)
	}
	e.ctr(t, "three", "images", "import", "--local", "--snapshotter", "berth", archive)
	machine.Await(t, "one copy on disk", func() bool { return e.bytes(t) < before+before/10 })
	for _, namespace := range []string{"two", "three"} {
		e.run(t, namespace, "other", look, shown)
	}
	usage := e.ctr(t, "one", "snapshots", "--snapshotter", "berth", "usage")
	if !regexp.MustCompile(`(?m)^sha256:\S+ +1\.9 MiB|^sha256:\S+ +2\.\d MiB`).MatchString(usage) {
		t.Errorf("no layer is as big as busybox:\n%s", usage)
	}

	kills(t, e)
	commits(t, e)

	// containerd shifts the owners itself, on a copy of the layer.
	shifted := e.ctr(t, "one", "run", "--rm", "--snapshotter", "berth", "--uidmap", "0:100000:1000", "--gidmap", "0:200000:1000",
		imageName, "shifted", "sh", "-c", look+"; cat /proc/self/uid_map")
	alone := strings.Replace(shown, "4750 2", "4750 1", 1) // a copy has no other links
	if fields := strings.Fields(strings.TrimPrefix(shifted, alone)); !strings.HasPrefix(shifted, alone) || len(fields) != 3 || fields[1] != "100000" {
		t.Errorf("a container with shifted owners sees\n%s", shifted)
	}

	grows(t, e)

	// Collection: with the images go the layers, and their disk.
	for i, namespace := range []string{"two", "three", "one"} {
		e.ctr(t, namespace, "images", "rm", "--sync", imageName)
		if i < 2 {
			e.run(t, "one", "still", look, shown)
		}
	}
	if all := append(e.kept(t, "committed"), append(e.kept(t, "active"), e.kept(t, "view")...)...); len(all) != 0 {
		t.Errorf("after the last image there are %q", all)
	}
	machine.Await(t, "the disk is free", func() bool { return e.bytes(t) < 100<<10 })
}

// An image that was there before, and a container, go on beside the new
// snapshotter; and without the lines everything is as it was.
func TestSwitch(t *testing.T) {
	e := newEngine(t, "")
	archive := ociArchive(t, layered(t))
	restart := func(more string) {
		t.Helper()
		end(t, e.containerd)
		e.configure(t, more)
		e.containerd.Start(t)
	}
	sees := func(snapshotter, id string) {
		t.Helper()
		if got := e.ctr(t, "one", "run", "--rm", "--snapshotter", snapshotter, imageName, id, "sh", "-c", look); got != shown {
			t.Errorf("a container on %s sees\n%s\nwant\n%s", snapshotter, got, shown)
		}
	}
	restart("")
	e.ctr(t, "one", "images", "import", "--snapshotter", "overlayfs", archive)
	e.ctr(t, "one", "run", "-d", "--snapshotter", "overlayfs", imageName, "old", "sleep", "1000")

	restart(fmt.Sprintf(ours, e.snapshotter.Socket))
	e.ctr(t, "one", "images", "import", "--snapshotter", "berth", archive)
	sees("berth", "new")
	sees("overlayfs", "beside")
	if got := e.ctr(t, "one", "task", "exec", "--exec-id", "e", "old", "cat", "/etc/kept"); got != "kept\n" {
		t.Errorf("in the old container: %q", got)
	}

	restart("")
	sees("overlayfs", "back")
	e.ctr(t, "one", "task", "kill", "-s", "KILL", "old")
	machine.Await(t, "the container ends", func() bool { return strings.Contains(e.ctr(t, "one", "task", "ls"), "STOPPED") })
	e.ctr(t, "one", "task", "rm", "old")
	e.ctr(t, "one", "containers", "rm", "old")
	e.ctr(t, "one", "images", "rm", "--sync", imageName)
	if left := e.ctr(t, "one", "snapshots", "--snapshotter", "overlayfs", "ls"); strings.Contains(left, "sha256:") {
		t.Errorf("after the image there is\n%s", left)
	}
	end(t, e.snapshotter)
	for _, target := range machine.Mounts(t, e.dir) {
		machine.Must(t, syscall.Unmount(target, 0)) // as the document says
	}
}

// kills ends both daemons the hard way under a running container.
func kills(t *testing.T, e *engine) {
	t.Helper()
	e.ctr(t, "one", "run", "-d", "--snapshotter", "berth", imageName, "web", "sleep", "1000")
	inside := func(number int, command, want string) {
		t.Helper()
		if got := e.ctr(t, "one", "task", "exec", "--exec-id", fmt.Sprint("e", number), "web", "sh", "-c", command); got != want {
			t.Errorf("in the running container: %q, want %q", got, want)
		}
	}
	inside(1, "echo written > /etc/kept; rm /etc/replaced; echo more > /hidden/more", "")
	listed := e.ctr(t, "one", "snapshots", "--snapshotter", "berth", "ls")

	e.snapshotter.Kill()
	inside(2, "cat /etc/kept; cat /hidden/c", "written\nc\n")
	e.snapshotter.Start(t)
	// containerd waits a little before it calls again who did not answer.
	var now string
	machine.Await(t, "containerd calls the new snapshotter", func() (ok bool) {
		var err error
		now, err = e.try("one", "snapshots", "--snapshotter", "berth", "ls")
		return err == nil
	})
	if now != listed {
		t.Errorf("after a kill of the snapshotter:\n%s\nbefore:\n%s", now, listed)
	}
	e.run(t, "one", "second", look, shown)

	e.containerd.Kill()
	e.snapshotter.Kill()
	e.snapshotter.Start(t)
	e.containerd.Start(t)
	if now := e.ctr(t, "one", "snapshots", "--snapshotter", "berth", "ls"); now != listed {
		t.Errorf("after a kill of both:\n%s\nbefore:\n%s", now, listed)
	}
	inside(3, "cat /etc/kept /hidden/more; [ ! -e /etc/replaced ] && echo gone", "written\nmore\ngone\n")
	e.run(t, "one", "third", look, shown)
}

// grows waits until the store has put layers where they stay, and has another
// one unpacked on them.
func grows(t *testing.T, e *engine) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(e.root(), "objects")); err == nil {
		machine.Await(t, "bodies are in the store", func() bool {
			bodies, _ := filepath.Glob(filepath.Join(e.root(), "objects/[0-9a-f][0-9a-f]/*"))
			folders, _ := filepath.Glob(filepath.Join(e.root(), "layers/*/fs/bin/busybox"))
			return len(bodies) > 0 && len(folders) == 0
		})
	}
	e.run(t, "one", "settled", look, shown)
	e.ctr(t, "one", "images", "import", "--snapshotter", "berth", ociArchive(t, layered(t, implied(t))))
	e.run(t, "one", "grown", look+"; cat /private/added /root/added; stat -c '%u %a' /private /root", shown+"added\nadded\n33 700\n0 755\n")
}

// commits makes a layer of what the container web changed, looks at it from
// another process, and takes both away.
func commits(t *testing.T, e *engine) {
	t.Helper()
	diff := e.ctr(t, "one", "snapshots", "--snapshotter", "berth", "diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", "web")
	if got := namesIn(t, diff); !strings.Contains(got, " etc/kept etc/.wh.replaced ") && !strings.Contains(got, " etc/.wh.replaced etc/kept ") || !strings.Contains(got, " hidden/more ") {
		t.Errorf("containerd's diff has %q", got)
	}
	e.ctr(t, "one", "task", "kill", "-s", "KILL", "web")
	machine.Await(t, "the container ends", func() bool { return strings.Contains(e.ctr(t, "one", "task", "ls"), "STOPPED") })
	e.ctr(t, "one", "task", "rm", "web")
	snapshotter := []string{"snapshots", "--snapshotter", "berth"}
	e.ctr(t, "one", append(snapshotter, "commit", "web-layer", "web")...)
	target := filepath.Join(e.dir, "target")
	machine.Must(t, os.Mkdir(target, 0o700))
	e.ctr(t, "one", append(snapshotter, "prepare", "on-it", "web-layer")...)
	line := e.ctr(t, "one", append(snapshotter, "mounts", target, "on-it")...)
	if out, err := exec.Command("sh", "-ec", line).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	body, err := os.ReadFile(filepath.Join(target, "etc/kept"))
	if err != nil || string(body) != "written\n" {
		t.Errorf("the layer shows %q, %v", body, err)
	}
	if _, err := os.Stat(filepath.Join(target, "etc/replaced")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the layer shows what was deleted: %v", err)
	}
	machine.Must(t, os.WriteFile(filepath.Join(target, "new"), nil, 0o600))
	machine.Must(t, syscall.Unmount(target, 0))
	e.ctr(t, "one", append(snapshotter, "rm", "on-it")...)

	e.ctr(t, "one", "images", "mount", "--snapshotter", "berth", imageName, target)
	if body, err := os.ReadFile(filepath.Join(target, "etc/replaced")); err != nil || string(body) != "new\n" {
		t.Errorf("the mounted image shows %q, %v", body, err)
	}
	if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("writing to a view: %v", err)
	}
	e.ctr(t, "one", "images", "unmount", "--snapshotter", "berth", "--rm", target)
	e.ctr(t, "one", append(snapshotter, "rm", "web-layer")...)
	e.ctr(t, "one", "containers", "rm", "web")
}

// namesIn lists the names of a tar, each between blanks.
func namesIn(t *testing.T, text string) string {
	t.Helper()
	names := " "
	for r := tar.NewReader(strings.NewReader(text)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		machine.Must(t, err)
		names += h.Name + " "
	}
}
