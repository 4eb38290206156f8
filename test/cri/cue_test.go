package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/machine"
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
		program := filepath.Join(n.Dir, "runtime")
		n.plugins = filepath.Join(n.Dir, "plugins") + ":/usr/lib/cni"
		for _, dir := range []string{"plugins", "cues", "held"} {
			machine.Must(t, os.Mkdir(filepath.Join(n.Dir, dir), 0o700))
		}
		text := fmt.Appendf(nil, pretender, n.Dir, "/usr/lib/cni/bridge", filepath.Join(tools, "runc"))
		machine.Must(t, os.WriteFile(program, text, 0o700)) //nolint:gosec // it is run
		machine.Must(t, os.Symlink(program, filepath.Join(n.Dir, "plugins", "cue")))
		n.settings = fmt.Sprintf("%s\n[runtimes.cue]\npath = %q\n[runtimes.alien]\npath = %q\nforeign = true\n", settings, program, program)
	})
	n.must(t, "crictl", "pull", busybox)
	return n
}

// cue tells the programs of a pod what to do; "" for what they usually do.
func (n *node) cue(t testing.TB, who, what string) {
	t.Helper()
	file := filepath.Join(n.Dir, "cues", who)
	if what == "" {
		if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
			machine.Must(t, err)
		}
		return
	}
	machine.Must(t, os.WriteFile(file+"~", []byte(what+"\n"), 0o600))
	machine.Must(t, os.Rename(file+"~", file))
}

// held says whether one of a pod's programs hangs as it was told to.
func (n *node) held(who string) error {
	_, err := os.Stat(filepath.Join(n.Dir, "held", who))
	return err
}

// release has all go on that hang.
func (n *node) release(t testing.TB) {
	t.Helper()
	for _, dir := range []string{"cues", "held"} {
		files, err := filepath.Glob(filepath.Join(n.Dir, dir, "*"))
		machine.Must(t, err)
		for _, file := range files {
			machine.Must(t, os.Remove(file))
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

// config is what is asked for.
func (a *app) config(n *node) (*api.PodSandboxConfig, *api.ContainerConfig) {
	namespaces := &api.NamespaceOption{Pid: api.NamespaceMode_CONTAINER}
	if a.shared {
		namespaces.Pid = api.NamespaceMode_POD
	}
	pod := &api.PodSandboxConfig{
		Metadata:     &api.PodSandboxMetadata{Name: a.name, Namespace: "shop", Uid: a.name + "-uid", Attempt: 1},
		LogDirectory: filepath.Join(n.Dir, "logs", a.name),
		Linux:        &api.LinuxPodSandboxConfig{SecurityContext: &api.LinuxSandboxSecurityContext{NamespaceOptions: namespaces}},
	}
	if a.port > 0 {
		pod.PortMappings = []*api.PortMapping{{ContainerPort: 80, HostPort: int32(a.port)}}
	}
	return pod, &api.ContainerConfig{
		Metadata: &api.ContainerMetadata{Name: "app"}, Image: &api.ImageSpec{Image: busybox},
		Command: []string{"sh", "-c", counting}, LogPath: "app.log",
		Linux: &api.LinuxContainerConfig{SecurityContext: &api.LinuxContainerSecurityContext{NamespaceOptions: namespaces}},
	}
}

// patience is how long clients wait for an answer, and for what a whole cluster
// comes to.
const patience = 2 * time.Minute

// call asks a node for something, as kubelet does.
func call[Q, A any](n *node, do func(api.RuntimeServiceClient, context.Context, Q, ...grpc.CallOption) (A, error), ask Q) (answer A, err error) {
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return answer, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return do(api.NewRuntimeServiceClient(conn), ctx, ask)
}

func (n *node) runp(a *app) error {
	pod, _ := a.config(n)
	answer, err := call(n, api.RuntimeServiceClient.RunPodSandbox, &api.RunPodSandboxRequest{Config: pod, RuntimeHandler: a.handler})
	a.pod = answer.GetPodSandboxId()
	return err
}

func (n *node) create(a *app) error {
	pod, container := a.config(n)
	answer, err := call(n, api.RuntimeServiceClient.CreateContainer, &api.CreateContainerRequest{PodSandboxId: a.pod, Config: container, SandboxConfig: pod})
	a.id = answer.GetContainerId()
	return err
}

func (n *node) launch(a *app) error {
	_, err := call(n, api.RuntimeServiceClient.StartContainer, &api.StartContainerRequest{ContainerId: a.id})
	return err
}

// stop asks the container to end, and kills it a little later.
func (n *node) stop(a *app) error {
	_, err := call(n, api.RuntimeServiceClient.StopContainer, &api.StopContainerRequest{ContainerId: a.id, Timeout: 6})
	return err
}

func (n *node) stopp(a *app) error {
	_, err := call(n, api.RuntimeServiceClient.StopPodSandbox, &api.StopPodSandboxRequest{PodSandboxId: a.pod})
	return err
}

// rmp stops and removes a pod.
func (n *node) rmp(a *app) error {
	if err := n.stopp(a); err != nil {
		return err
	}
	_, err := call(n, api.RuntimeServiceClient.RemovePodSandbox, &api.RemovePodSandboxRequest{PodSandboxId: a.pod})
	return err
}

// ready are the pods of a name that are ready.
func (n *node) ready(name string) (ids []string, err error) {
	answer, err := call(n, api.RuntimeServiceClient.ListPodSandbox, &api.ListPodSandboxRequest{})
	for _, pod := range answer.GetItems() {
		if pod.GetMetadata().GetName() == name && pod.GetState() == api.PodSandboxState_SANDBOX_READY {
			ids = append(ids, pod.GetId())
		}
	}
	return ids, err
}

// fares is how the pod and its container fare.
func (n *node) fares(a *app) (string, error) {
	pod, err := call(n, api.RuntimeServiceClient.PodSandboxStatus, &api.PodSandboxStatusRequest{PodSandboxId: a.pod})
	if err != nil {
		return "", err
	}
	container, err := call(n, api.RuntimeServiceClient.ContainerStatus, &api.ContainerStatusRequest{ContainerId: a.id})
	return fmt.Sprintf("%s %s %s", pod.GetStatus().GetState(), container.GetStatus().GetState(), container.GetStatus().GetReason()), err
}

// up makes the pod and runs its container.
func (n *node) up(a *app) error {
	for _, do := range []func(*app) error{n.runp, n.create, n.launch} {
		if err := do(a); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
	}
	return nil
}

// works says whether one can get into the container.
func (n *node) works(a *app) error {
	answer, err := call(n, api.RuntimeServiceClient.ExecSync, &api.ExecSyncRequest{ContainerId: a.id, Cmd: []string{"echo", "well"}, Timeout: 60})
	if err == nil && string(answer.GetStdout()) != "well\n" {
		err = fmt.Errorf("exec in %s says %q", a.name, answer)
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
		n.State + "/pods/*", n.State + "/pods/*/*", n.State + "/kernelns/[0-9a-f]*", n.State + "/containers/*", n.State + "/tasks/*",
		n.State + "/podnet/*", n.State + "/cni/results/*", n.State + "/runtime/*/*", n.State + "/runtime/.launch/*",
		n.Root + "/layers/*", n.Root + "/logs/*", "/var/lib/cni/networks/*/[0-9]*",
	} {
		found, err := filepath.Glob(pattern)
		machine.Must(t, err)
		add("file", found)
	}
	add("mount", n.Mounts(t))
	for _, dir := range n.Cgroups() {
		if filepath.Base(dir) != n.Instance() {
			add("cgroup", []string{dir})
		}
	}
	add("link", slices.DeleteFunc(machine.Lines("ip", "-br", "link", "show", "type", "veth"), func(line string) bool {
		return strings.HasPrefix(line, "bv") // of the node's own network; some wait for pods
	}))
	add("rule", slices.DeleteFunc(machine.Lines("iptables-save"), func(line string) bool { return strings.HasPrefix(line, "#") || strings.HasPrefix(line, ":") }))
	add("process", n.processes(t))
	pods, err := call(n, api.RuntimeServiceClient.ListPodSandbox, &api.ListPodSandboxRequest{})
	machine.Must(t, err)
	for _, pod := range pods.GetItems() {
		add("pod", []string{pod.GetId()})
	}
	containers, err := call(n, api.RuntimeServiceClient.ListContainers, &api.ListContainersRequest{})
	machine.Must(t, err)
	for _, c := range containers.GetContainers() {
		add("container", []string{c.GetId()})
	}
	slices.Sort(all)
	return all
}

// processes are those that know of the node's folders, or are in one of its
// cgroups, but for the node, its keeper and its registry.
func (n *node) processes(t testing.TB) (found []string) {
	t.Helper()
	folders, err := filepath.Glob("/proc/[0-9]*")
	machine.Must(t, err)
	for _, dir := range folders {
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		groups, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		text := strings.ReplaceAll(string(line), "\x00", " ")
		switch {
		case strings.HasPrefix(text, program+" ") || strings.HasPrefix(text, "crictl") || text == "":
		case text == "sleep 0.1 " || strings.Contains(text, counting): // an app's; it has a cgroup if it is left
		case strings.Contains(text, n.Dir+"/"), strings.Contains(string(environ), n.Dir+"/"), strings.Contains(string(groups), "/"+n.Instance()+"/"):
			found = append(found, filepath.Base(dir)+" "+text)
		}
	}
	return found
}

// same waits until there is what there was before.
func (n *node) same(t *testing.T, before []string) {
	t.Helper()
	machine.Until(t, "what there is of pods is what there was before", func() error {
		return machine.Changes(before, n.inventory(t))
	})
}

// soon fails the test if what began then has taken too long.
func soon(t *testing.T, what string, began time.Time, atMost time.Duration) {
	t.Helper()
	if took := time.Since(began); took > atMost {
		t.Errorf("%s took %v, want %v at most", what, took.Round(time.Millisecond), atMost)
	}
}

// kill ends a process.
func kill(number string) {
	if pid, err := strconv.Atoi(number); err == nil && pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have gone by itself
	}
}
