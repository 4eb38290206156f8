package containerd

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/image/registrytest"
	"berth/test/machine"
)

// peer says that the tests run on containerd itself.
var peer = os.Getenv("CLIENTS_ENGINE") == "containerd"

// engine is a berth node, or a containerd, in folders of its own, and a
// registry with the image.
type engine struct {
	*machine.Node
	registry *registrytest.Registry
}

func newEngine(t testing.TB) *engine {
	t.Helper()
	machine.Need(t, filepath.Join(clients, "ctr"), filepath.Join(clients, "containerd-shim-runc-v2"), filepath.Join(clients, "nerdctl"))
	e := &engine{Node: machine.NewNode(t, program), registry: registrytest.New(t)}
	e.Env = append(e.Env, "PATH="+clients+":"+filepath.Dir(program)+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if peer {
		e.Configure(t, "version = 3", `disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]`)
		e.Socket, e.Ready = filepath.Join(e.State, "containerd.sock"), nil
		e.Argv = []string{filepath.Join(clients, "containerd"), "--config", e.Config, "--address", e.Socket, "--root", e.Root, "--state", e.State}
	}
	t.Cleanup(func() { e.discard(t) })
	pushBusybox(t, e.registry)
	e.Start(t)
	return e
}

// environment is what clients find the engine by.
func (e *engine) environment() []string {
	return []string{
		"PATH=" + clients + ":" + filepath.Dir(program) + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" + dockers,
		"CONTAINERD_ADDRESS=" + e.Socket, "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1", "CNI_PATH=/usr/lib/cni",
		"BERTH_SOCKET=" + e.Socket, "DOCKER_CONFIG=" + e.Dir, "HOME=" + e.Dir,
		"REGISTRY=" + e.registry.Host(), "IMAGE=" + e.registry.Host() + "/" + busyboxName, "STATE=" + e.State, "ROOT=" + e.Root,
	}
}

// namespace is one that nobody else has: cgroups bear its name.
func (e *engine) namespace() string { return machine.Name() + "-" + filepath.Base(e.Dir) }

// command is a command line for the engine.
func (e *engine) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(e.environment(), "CONTAINERD_NAMESPACE="+e.namespace())
	if found, err := lookIn(cmd.Env[0], name); err == nil {
		cmd.Path, cmd.Err = found, nil
	}
	return cmd
}

// lookIn finds a program in the PATH of an environment's line.
func lookIn(path, name string) (string, error) {
	for _, dir := range filepath.SplitList(strings.TrimPrefix(path, "PATH=")) {
		if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return found, nil
		}
	}
	return "", fs.ErrNotExist
}

// try runs a command and returns what it prints.
func (e *engine) try(name string, args ...string) (string, error) {
	cmd := e.command(name, args...)
	var says strings.Builder
	cmd.Stderr = &says
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out, says.String())
	}
	return string(out), err
}

// must runs a command that has to succeed and returns what it prints.
func (e *engine) must(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := e.try(name, args...)
	machine.Must(t, err)
	return out
}

// discard removes what is left of containers, ends the engine and takes its
// folders away; the test fails if something of containers stays.
func (e *engine) discard(t testing.TB) {
	if t.Failed() {
		t.Logf("the end of the log:\n%s", e.Says())
	}
	if e.Runs() {
		e.clear(t)
		e.End(t)
	}
	e.KillHelper(t, "keeper")
	e.KillHelper(t, "lazy")
	if left := machine.Mounts(t, e.Dir); len(left) > 0 {
		if !peer || t.Failed() {
			t.Errorf("left mounted: %q", left)
		}
		machine.Unmount(t, e.Dir)
	}
	machine.Must(t, os.RemoveAll(e.Dir))
}

// clear removes all containers of all namespaces.
func (e *engine) clear(t testing.TB) {
	t.Helper()
	spaces, err := e.try("ctr", "namespaces", "ls", "-q")
	if err != nil {
		t.Error(err)
		return
	}
	for space := range strings.FieldsSeq(spaces) {
		in := func(args ...string) (string, error) { return e.try("ctr", append([]string{"-n", space}, args...)...) }
		tasks, err := in("tasks", "ls", "-q")
		if err != nil {
			t.Error(err)
		}
		for id := range strings.FieldsSeq(tasks) {
			_, _ = in("tasks", "resume", id)
			if _, err := in("tasks", "rm", "-f", id); err != nil {
				t.Error(err)
			}
		}
		containers, err := in("containers", "ls", "-q")
		if err != nil {
			t.Error(err)
		}
		for id := range strings.FieldsSeq(containers) {
			if _, err := in("containers", "rm", id); err != nil {
				t.Error(err)
			}
		}
		if peer {
			continue
		}
		leases, err := in("leases", "ls", "-q")
		if err != nil {
			t.Error(err)
		}
		for id := range strings.FieldsSeq(leases) {
			if _, err := in("leases", "rm", "--sync", id); err != nil {
				t.Error(err)
			}
		}
		// What is still mounted for a snapshot ends with it.
		for range 100 {
			list, err := in("snapshots", "ls")
			if err != nil {
				t.Error(err)
			}
			gone := 0
			for line := range strings.Lines(list) {
				if fields := strings.Fields(line); len(fields) > 1 && fields[0] != "KEY" {
					if _, err := in("snapshots", "rm", fields[0]); err == nil {
						gone++
					}
				}
			}
			if gone == 0 {
				break
			}
		}
	}
}
