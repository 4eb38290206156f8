package snapshotter

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"berth/test/machine"
)

// program is berth; peers is where containerd's programs lie.
var program, peers string

// rungs are the ways to keep layers that whole engines are tried on.
var rungs = []string{"lcfs", "overlay"}

func TestMain(m *testing.M) {
	os.Exit(machine.Run(m, furnish, "/etc/containerd", "/run/containerd", "/etc/docker", "/run/docker"))
}

func furnish() (err error) {
	if program, err = machine.Berth(); err != nil {
		return err
	}
	if peers, err = filepath.Abs("../../.cache/peer"); err != nil {
		return err
	}
	for _, peer := range []string{"containerd", "ctr", "containerd-shim-runc-v2"} {
		path := filepath.Join(peers, peer)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/containerd/containerd/v2/cmd/"+peer)
		build.Dir, build.Env = "../../bench/peer", append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", peer, err, out)
		}
	}
	return nil
}

// newSnapshotter starts berth snapshotter in folders of its own.
func newSnapshotter(t testing.TB, root, driver string) *machine.Daemon {
	t.Helper()
	dir := machine.Folder(t)
	d := &machine.Daemon{Socket: filepath.Join(dir, "s"), Log: filepath.Join(dir, "log")}
	d.Argv = []string{program, "snapshotter", "--root", root, "--address", d.Socket, "--storage-driver", driver, "--log-level", "debug"}
	d.Start(t)
	t.Cleanup(func() {
		end(t, d)
		if t.Failed() {
			t.Logf("berth snapshotter says:\n%s", d.Says())
		}
		machine.Must(t, os.RemoveAll(dir))
	})
	return d
}

// end ends a snapshotter, which succeeds.
func end(t testing.TB, d *machine.Daemon) {
	t.Helper()
	if state := d.End(t); state != nil && !state.Success() {
		t.Errorf("%s ended with %s", d.Argv[0], state)
	}
}
