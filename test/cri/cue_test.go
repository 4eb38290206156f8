package cri

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// onCue has pods connected by a plugin that fails or hangs when it is told so.
const onCue = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [
	{"type": "cue", "bridge": "cnicue0", "isGateway": true, "ipMasq": true,
	 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.89.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
	{"type": "portmap", "capabilities": {"portMappings": true}}]}`

// pretender is a program in the place of another one, a plugin or a runtime. It
// does as the file says that cues has of its pod, "cues" besides: to fail
// instead of doing what is named, or to hang before or after; hanging is for
// the first that comes to it, and lasts while the file is in held.
const pretender = `#!/bin/sh
dir=%[1]s real=%[2]s what=$CNI_COMMAND
if [ -n "$what" ]; then
	who=${CNI_ARGS#*K8S_POD_NAME=} who=${who%%%%;*}
	[ -n "$who" ] || exec "$real" "$@"
else
	real=%[3]s
	for arg; do
		case $arg in
		run|create|start|kill|delete|state|ps|exec|update|features|--version) [ -n "$what" ] || what=$arg ;;
		*) [ ${#arg} -ge 64 ] && [ "${arg#/}" = "$arg" ] && id=${arg##*+} ;;
		esac
		case $last in --bundle) bundle=$arg ;; --log) log=$arg ;; esac
		last=$arg
	done
	[ -n "$bundle" ] && sed -n 's/.*"io.kubernetes.cri.sandbox-name": *"\([^"]*\)".*/\1/p' "$bundle/config.json" >"$dir/who.$id"
	[ -e "$dir/who.$id" ] && read -r who <"$dir/who.$id"
fi
read -r cue 2>/dev/null <"$dir/cues/$who" || exec "$real" "$@"
wait() { while [ -e "$dir/held/$who" ]; do sleep 0.02; done; }
case $cue in
"$what fails") echo '{"cniVersion": "1.0.0", "code": 100, "msg": "fails on cue"}'; echo "fails on cue" >&2
	[ -z "$log" ] || echo '{"level":"error","msg":"fails on cue"}' >>"$log"
	exit 1 ;;
"$what always hangs") sleep 600 & wait $!; while :; do sleep 600; done ;;
"$what hangs") mv "$dir/cues/$who" "$dir/held/$who" && wait ;;
"$what hangs late") mv "$dir/cues/$who" "$dir/held/$who" && { "$real" "$@"; code=$?; wait; exit $code; } ;;
esac
exec "$real" "$@"
`

// cued starts a node whose plugin and whose runtimes wait for cues: "cue", and
// "alien", which is left to look after its containers itself.
func cued(t *testing.T, settings string) *node {
	t.Helper()
	for _, plugin := range []string{"bridge", "host-local", "portmap"} {
		if _, err := os.Stat("/usr/lib/cni/" + plugin); err != nil {
			t.Skipf("skipped: CNI's plugin %s is not installed", plugin)
		}
	}
	n := newNode(t, onCue, "", func(n *node) {
		program := filepath.Join(n.dir, "runtime")
		n.plugins = filepath.Join(n.dir, "plugins") + ":/usr/lib/cni"
		for _, dir := range []string{"plugins", "cues", "held"} {
			must(t, os.Mkdir(filepath.Join(n.dir, dir), 0o700))
		}
		text := fmt.Appendf(nil, pretender, n.dir, "/usr/lib/cni/bridge", filepath.Join(tools, "runc"))
		must(t, os.WriteFile(program, text, 0o700)) //nolint:gosec // it is run
		must(t, os.Symlink(program, filepath.Join(n.dir, "plugins", "cue")))
		n.settings = fmt.Sprintf("%s\n[runtimes.cue]\npath = %q\n[runtimes.alien]\npath = %q\nforeign = true\n", settings, program, program)
	})
	n.must(t, "crictl", "pull", busybox)
	return n
}

// cue tells the programs of a pod what to do; "" for what they usually do.
func (n *node) cue(t testing.TB, who, what string) {
	t.Helper()
	file := filepath.Join(n.dir, "cues", who)
	if what == "" {
		if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
			must(t, err)
		}
		return
	}
	must(t, os.WriteFile(file+"~", []byte(what+"\n"), 0o600))
	must(t, os.Rename(file+"~", file))
}

// held says whether one of a pod's programs hangs as it was told to.
func (n *node) held(who string) error {
	_, err := os.Stat(filepath.Join(n.dir, "held", who))
	return err
}

// release has all go on that hang.
func (n *node) release(t testing.TB) {
	t.Helper()
	for _, dir := range []string{"cues", "held"} {
		files, err := filepath.Glob(filepath.Join(n.dir, dir, "*"))
		must(t, err)
		for _, file := range files {
			must(t, os.Remove(file))
		}
	}
}

// app is a pod with a container that says a number ten times a second, and does
// not heed TERM.
type app struct {
	name, handler string
	shared        bool // its containers share a PID namespace
	port          int  // of the host; 0 for none
	pod, id       string
}

const counting = `trap "echo asked" TERM; n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done`

// files writes what crictl reads of it.
func (a *app) files(t testing.TB, n *node) (pod, container string) {
	t.Helper()
	pid := 1 // of each container its own
	if a.shared {
		pid = 0
	}
	namespaces := map[string]any{"security_context": map[string]any{"namespace_options": map[string]any{"pid": pid}}}
	config := map[string]any{
		"metadata":      map[string]any{"name": a.name, "namespace": "shop", "uid": a.name + "-uid", "attempt": 1},
		"log_directory": filepath.Join(n.dir, "logs", a.name), "linux": maps.Clone(namespaces),
	}
	if a.port > 0 {
		config["port_mappings"] = []map[string]any{{"protocol": 0, "container_port": 80, "host_port": a.port}}
	}
	return n.file(t, a.name+".pod.json", config), n.file(t, a.name+".app.json", map[string]any{
		"metadata": map[string]any{"name": "app"}, "image": map[string]any{"image": busybox},
		"command": []string{"sh", "-c", counting}, "log_path": "app.log", "linux": namespaces,
	})
}

// patience is how long clients wait for an answer.
const patience = "90s"

func (n *node) runp(t testing.TB, a *app) (err error) {
	pod, _ := a.files(t, n)
	a.pod, err = n.try("crictl", "--timeout", patience, "runp", "--runtime", a.handler, pod)
	return err
}

func (n *node) create(t testing.TB, a *app) (err error) {
	pod, container := a.files(t, n)
	a.id, err = n.try("crictl", "--timeout", patience, "create", a.pod, container, pod)
	return err
}

func (n *node) launch(a *app) error {
	_, err := n.try("crictl", "--timeout", patience, "start", a.id)
	return err
}

// rmp removes a pod. crictl asks for its status before, which may come too late.
func (n *node) rmp(pod string) error {
	_, err := n.try("crictl", "--timeout", patience, "rmp", "-f", pod)
	if err != nil && strings.Contains(err.Error(), "NotFound") {
		return nil
	}
	return err
}

// up makes the pod and runs its container.
func (n *node) up(t testing.TB, a *app) error {
	for _, do := range []func() error{
		func() error { return n.runp(t, a) }, func() error { return n.create(t, a) }, func() error { return n.launch(a) },
	} {
		if err := do(); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
	}
	return nil
}

// works says whether one can get into the container.
func (n *node) works(a *app) error {
	out, err := n.try("crictl", "--timeout", patience, "exec", "-s", a.id, "echo", "well")
	if err == nil && out != "well" {
		err = fmt.Errorf("exec in %s says %q", a.name, out)
	}
	return err
}

// all does something to all of them at once.
func all[T any](list []T, do func(T) error) error {
	failed := make([]error, len(list))
	var wg sync.WaitGroup
	for i, one := range list {
		wg.Go(func() { failed[i] = do(one) })
	}
	wg.Wait()
	return errors.Join(failed...)
}

// inventory is what there is of pods on the machine, one line a thing.
func (n *node) inventory(t testing.TB) []string {
	t.Helper()
	var all []string
	add := func(kind string, things []string) {
		for _, thing := range things {
			all = append(all, kind+" "+thing)
		}
	}
	for _, pattern := range []string{
		n.state + "/pods/*", n.state + "/pods/*/*", n.state + "/kernelns/[0-9a-f]*", n.state + "/containers/*", n.state + "/tasks/*",
		n.state + "/podnet/*", n.state + "/cni/results/*", n.state + "/runtime/*/*", n.state + "/runtime/.launch/*",
		n.root + "/layers/*", n.root + "/logs/*", "/var/lib/cni/networks/*/[0-9]*",
	} {
		found, err := filepath.Glob(pattern)
		must(t, err)
		add("file", found)
	}
	add("mount", n.mounts(t))
	for _, dir := range n.cgroups() {
		if filepath.Base(dir) != n.instance() {
			add("cgroup", []string{dir})
		}
	}
	add("link", slices.DeleteFunc(lines("ip", "-br", "link", "show", "type", "veth"), func(line string) bool {
		return strings.HasPrefix(line, "bv") // of the node's own network; some wait for pods
	}))
	add("rule", slices.DeleteFunc(lines("iptables-save"), func(line string) bool { return strings.HasPrefix(line, "#") || strings.HasPrefix(line, ":") }))
	add("process", n.processes(t))
	pods, err := n.try("crictl", "pods", "-q")
	must(t, err)
	add("pod", strings.Fields(pods))
	containers, err := n.try("crictl", "ps", "-a", "-q")
	must(t, err)
	add("container", strings.Fields(containers))
	slices.Sort(all)
	return all
}

// mounts are those below the node's folders, but for what waits for pods.
func (n *node) mounts(t testing.TB) (targets []string) {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(table)) {
		if target := strings.Fields(line)[4]; strings.HasPrefix(target, n.dir+"/") && !strings.Contains(target, "/.new-") {
			targets = append(targets, target)
		}
	}
	return targets
}

// processes are those that know of the node's folders, or are in one of its
// cgroups, but for the node, its keeper and its registry.
func (n *node) processes(t testing.TB) (found []string) {
	t.Helper()
	folders, err := filepath.Glob("/proc/[0-9]*")
	must(t, err)
	for _, dir := range folders {
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		groups, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		text := strings.ReplaceAll(string(line), "\x00", " ")
		switch {
		case strings.HasPrefix(text, program+" ") || strings.HasPrefix(text, "crictl") || text == "":
		case text == "sleep 0.1 " || strings.Contains(text, counting): // an app's; it has a cgroup if it is left
		case strings.Contains(text, n.dir+"/"), strings.Contains(string(environ), n.dir+"/"), strings.Contains(string(groups), "/"+n.instance()+"/"):
			found = append(found, filepath.Base(dir)+" "+text)
		}
	}
	return found
}

func lines(name string, args ...string) (all []string) {
	out, _ := exec.Command(name, args...).Output()
	for line := range strings.Lines(string(out)) {
		all = append(all, strings.Join(strings.Fields(line), " "))
	}
	return all
}

// same waits until there is what there was before.
func (n *node) same(t *testing.T, before []string) {
	t.Helper()
	until(t, "what there is of pods is what there was before", func() error {
		return changes(before, n.inventory(t))
	})
}

func changes(before, now []string) error {
	var diff strings.Builder
	for _, line := range now {
		if !slices.Contains(before, line) {
			diff.WriteString("\n  left: " + line)
		}
	}
	for _, line := range before {
		if !slices.Contains(now, line) {
			diff.WriteString("\n  gone: " + line)
		}
	}
	if diff.Len() == 0 {
		return nil
	}
	return fmt.Errorf("it is not as before:%s", diff.String())
}

// soon fails the test if what began then has taken too long.
func soon(t *testing.T, what string, began time.Time, atMost time.Duration) {
	t.Helper()
	if took := time.Since(began); took > atMost {
		t.Errorf("%s took %v, want %v at most", what, took.Round(time.Millisecond), atMost)
	}
}

// kill ends a process of a list that n.processes gave.
func kill(line string) {
	number, _, _ := strings.Cut(line, " ")
	if pid, err := strconv.Atoi(number); err == nil && pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have gone by itself
	}
}

// unmountAll takes away what is mounted below a folder, and there.
func (n *node) unmountAll(t testing.TB, dir string) {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for _, line := range slices.Backward(slices.Collect(strings.Lines(string(table)))) {
		if target := strings.Fields(line)[4]; target == dir || strings.HasPrefix(target, dir+"/") {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", target, err)
			}
		}
	}
}
