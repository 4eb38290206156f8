package containerd

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"berth/image/registrytest"
)

// peer says that the tests run on containerd itself.
var peer = os.Getenv("CLIENTS_ENGINE") == "containerd"

// engine is a berth node, or a containerd, in folders of its own, and a
// registry with the image.
type engine struct {
	*daemon
	dir, state string
	registry   *registrytest.Registry
}

func newEngine(t testing.TB) *engine {
	t.Helper()
	need(t, filepath.Join(clients, "ctr"), filepath.Join(clients, "containerd-shim-runc-v2"), filepath.Join(clients, "nerdctl"))
	// Not t.TempDir: the names of tests are too long for a socket.
	dir, err := os.MkdirTemp("", "bc-")
	must(t, err)
	must(t, os.Chmod(dir, 0o711)) //nolint:gosec // containers with shifted owners reach their bundle through it
	e := &engine{dir: dir, state: filepath.Join(dir, "state"), registry: registrytest.New(t)}
	root, config := filepath.Join(dir, "root"), filepath.Join(dir, "config.toml")
	e.daemon = &daemon{log: filepath.Join(dir, "log"), env: []string{"PATH=" + clients + ":" + filepath.Dir(program) + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin"}}
	if peer {
		must(t, os.WriteFile(config, []byte("version = 3\ndisabled_plugins = [\"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\", \"io.containerd.grpc.v1.cri\"]\n"), 0o600))
		e.socket = filepath.Join(e.state, "containerd.sock")
		e.argv = []string{filepath.Join(clients, "containerd"), "--config", config, "--address", e.socket, "--root", root, "--state", e.state}
	} else {
		must(t, os.WriteFile(config, nil, 0o600))
		e.socket = filepath.Join(e.state, "berth.sock")
		e.argv = []string{program, "node", "--root", root, "--state", e.state, "--socket", e.socket, "--config", config}
	}
	t.Cleanup(func() { e.discard(t) })
	pushBusybox(t, e.registry)
	e.start(t)
	return e
}

// environment is what clients find the engine by.
func (e *engine) environment() []string {
	return []string{
		"PATH=" + clients + ":" + filepath.Dir(program) + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" + dockers,
		"CONTAINERD_ADDRESS=" + e.socket, "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1", "CNI_PATH=/usr/lib/cni",
		"BERTH_SOCKET=" + e.socket, "DOCKER_CONFIG=" + e.dir, "HOME=" + e.dir,
		"REGISTRY=" + e.registry.Host(), "IMAGE=" + e.registry.Host() + "/" + busyboxName, "STATE=" + e.state, "ROOT=" + filepath.Join(e.dir, "root"),
	}
}

// namespace is one that no other engine has: cgroups bear its name.
func (e *engine) namespace() string { return "n-" + strings.ToLower(filepath.Base(e.dir)) }

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
	must(t, err)
	return out
}

// discard removes what is left of containers, ends the engine and takes its
// folders away; the test fails if something of containers stays.
func (e *engine) discard(t testing.TB) {
	if t.Failed() {
		t.Logf("the end of the log:\n%s", e.says())
		if text, err := os.ReadFile(filepath.Join(e.state, "keeper.log")); err == nil {
			t.Logf("keeper:\n%s", text[max(0, len(text)-4000):])
		}
	}
	if e.cmd != nil {
		e.clear(t)
		e.end(t, syscall.SIGTERM)
	}
	for _, role := range []string{"keeper", "lazy"} {
		if pid := e.pid(role); pid > 1 && e.serves(role) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	for _, target := range e.mounts(t) {
		if !peer || t.Failed() {
			t.Errorf("left mounted: %s", target)
		}
		_ = syscall.Unmount(target, syscall.MNT_DETACH)
	}
	e.sweep()
	must(t, os.RemoveAll(e.dir))
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

func (e *engine) pid(role string) int {
	text, _ := os.ReadFile(filepath.Join(e.state, role+".pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// serves says whether the pid in the role's file is still that of this node's
// process, by its command line.
func (e *engine) serves(role string) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", e.pid(role)))
	return err == nil && strings.Contains(string(line), "berth")
}

// mounts lists what is mounted below the engine's folder, the last one first.
func (e *engine) mounts(t testing.TB) (targets []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if target := strings.Fields(line)[1]; strings.HasPrefix(target, e.dir+"/") {
			targets = append(targets, target)
		}
	}
	slices.Reverse(targets)
	return targets
}

// instance is what a node calls its bridge, its rules and its cgroup.
func (e *engine) instance() string {
	sum := sha256.Sum256([]byte(e.state))
	return "berth-" + hex.EncodeToString(sum[:4])
}

// sweep takes away the cgroups that bear the names of the engine and its
// namespace, which stay on purpose.
func (e *engine) sweep() {
	for _, name := range []string{e.instance(), e.namespace()} {
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
		for _, group := range append(groups, "/sys/fs/cgroup/"+name) {
			var dirs []string
			_ = filepath.WalkDir(group, func(path string, entry fs.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for _, dir := range slices.Backward(dirs) {
				_ = os.Remove(dir)
			}
		}
	}
}
