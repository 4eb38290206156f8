package snapshotter

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"

	"berth/test/machine"
)

// engine is a containerd that keeps its snapshots in a berth snapshotter.
type engine struct {
	dir         string // holds everything
	snapshotter *machine.Daemon
	containerd  *machine.Daemon
	backend     snapshots.Snapshotter // the snapshotter as containerd sees it
}

func newEngine(t *testing.T, driver string) *engine {
	t.Helper()
	machine.Need(t)
	dir := machine.Folder(t)
	e := &engine{dir: dir}
	t.Cleanup(func() {
		if left := machine.Mounts(t, dir); len(left) != 0 {
			t.Errorf("left mounted: %q", left)
			machine.Unmount(t, dir)
		}
		machine.Must(t, os.RemoveAll(dir))
	})
	machine.Must(t, os.Mkdir(e.root(), 0o700))
	e.snapshotter = newSnapshotter(t, e.root(), driver)
	backend, conn := dial(t, e.snapshotter.Socket)
	t.Cleanup(func() { _ = conn.Close() })
	e.backend = backend

	config := filepath.Join(dir, "config.toml")
	e.configure(t, fmt.Sprintf(ours, e.snapshotter.Socket))
	socket := filepath.Join(dir, "c.sock")
	e.containerd = &machine.Daemon{
		Socket: socket, Log: filepath.Join(dir, "containerd.log"), Env: []string{"PATH=" + peers + ":" + os.Getenv("PATH")},
		Argv: []string{filepath.Join(peers, "containerd"), "--config", config, "--address", socket, "--root", filepath.Join(dir, "c"), "--state", filepath.Join(dir, "cs")},
	}
	e.containerd.Start(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("containerd says:\n%s", e.containerd.Says())
		}
		e.endShims(t)
		e.containerd.End(t)
	})
	return e
}

// ours is what docs/snapshotter.md tells people to add to a configuration.
const ours = `
[proxy_plugins.berth]
  type = "snapshot"
  address = %q

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "berth"
`

// configure writes containerd's configuration; it counts from the next start.
func (e *engine) configure(t *testing.T, more string) {
	t.Helper()
	const disabled = `["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]`
	machine.Must(t, os.WriteFile(filepath.Join(e.dir, "config.toml"), []byte("version = 3\ndisabled_plugins = "+disabled+"\n"+more), 0o600))
}

func (e *engine) root() string { return filepath.Join(e.dir, "root") }

// namespace is one that nobody else has: cgroups bear its name, and what runc
// keeps of its containers.
func (e *engine) namespace(name string) string {
	return name + "-" + machine.Name() + "-" + filepath.Base(e.dir)
}

// endShims ends what a failed test left running, with its containers.
func (e *engine) endShims(t *testing.T) {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	machine.Must(t, err)
	for _, path := range processes {
		line, _ := os.ReadFile(path)
		if !strings.Contains(string(line), "containerd-shim-runc-v2\x00") || !strings.Contains(string(line), e.containerd.Socket+"\x00") {
			continue
		}
		t.Errorf("left running: %s", strings.ReplaceAll(string(line), "\x00", " "))
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)); err == nil {
			for child := range strings.FieldsSeq(string(children)) {
				if n, err := strconv.Atoi(child); err == nil {
					_ = syscall.Kill(n, syscall.SIGKILL)
				}
			}
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// ctr runs containerd's command line in a namespace and returns what it says.
func (e *engine) ctr(t *testing.T, namespace string, args ...string) string {
	t.Helper()
	out, err := e.try(namespace, args...)
	machine.Must(t, err)
	return out
}

func (e *engine) try(namespace string, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(peers, "ctr"), append([]string{"--address", e.containerd.Socket, "--namespace", e.namespace(namespace)}, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1")
	var says strings.Builder
	cmd.Stderr = &says
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("ctr %s: %w\n%s%s", strings.Join(args, " "), err, out, says.String())
	}
	return string(out), err
}

// run wants a container of the image to say something.
func (e *engine) run(t *testing.T, namespace, id, command, want string) {
	t.Helper()
	if got := e.ctr(t, namespace, "run", "--rm", "--snapshotter", "berth", imageName, id, "sh", "-c", command); got != want {
		t.Errorf("%s: a container sees\n%s\nwant\n%s", id, got, want)
	}
}

// kept lists what the snapshotter holds for containerd, of one kind.
func (e *engine) kept(t *testing.T, kind string) (names []string) {
	t.Helper()
	machine.Must(t, e.backend.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		names = append(names, info.Name)
		return nil
	}, "kind=="+kind))
	return names
}

// bytes is what the snapshotter's root takes on disk, its records left out.
func (e *engine) bytes(t *testing.T) (sum int64) {
	t.Helper()
	_ = filepath.WalkDir(e.root(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // removed meanwhile
		}
		if entry.Name() == "db" || entry.Name() == "mnt" {
			return fs.SkipDir
		}
		var st syscall.Stat_t
		if syscall.Lstat(path, &st) == nil && !entry.IsDir() {
			sum += st.Blocks * 512 / int64(max(1, st.Nlink))
		}
		return nil
	})
	return sum
}
