package cri

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/machine"
)

// busybox is an image of those that critest names.
const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"

// plugin of NRI that notes what it is told, and does what hook says first.
type plugin struct {
	stub stub.Stub

	mu                      sync.Mutex
	told                    []string // "run <pod's name>", "create <container's name>", …
	ids                     map[string]string
	done                    bool // what there is was told
	syncedPods, syncedNames []string
	hook                    func(event string) error
	adjust                  func() (*api.ContainerAdjustment, []*api.ContainerUpdate)
}

// connect adds a plugin to a node, and returns when it has been told what there
// is.
func (n *node) connect(t *testing.T, index string, p *plugin) *plugin {
	t.Helper()
	n.dial(t, index, p)
	machine.Until(t, "the plugin is one of them", func() error {
		if !p.synced() {
			return errors.New("not yet")
		}
		return nil
	})
	return p
}

func (p *plugin) synced() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

func (n *node) dial(t *testing.T, index string, p *plugin) {
	t.Helper()
	p.ids = map[string]string{}
	var err error
	p.stub, err = stub.New(p, stub.WithPluginName("cri-test"), stub.WithPluginIdx(index), stub.WithSocketPath(n.nri), stub.WithOnClose(func() {}), stub.WithLogger(quiet{}))
	machine.Must(t, err)
	machine.Must(t, p.stub.Start(t.Context()))
	t.Cleanup(p.stub.Stop)
}

func (p *plugin) note(event, name, id string) error {
	p.mu.Lock()
	p.told = append(p.told, event+" "+name)
	p.ids[name] = id
	hook := p.hook
	p.mu.Unlock()
	if hook != nil {
		return hook(event)
	}
	return nil
}

// heard waits until the plugin has been told all of want, in that order and
// without anything between.
func (p *plugin) heard(t *testing.T, want ...string) {
	t.Helper()
	machine.Until(t, "the plugin hears "+strings.Join(want, ", "), func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !slices.Equal(p.told, want) {
			return fmt.Errorf("it heard %q", p.told)
		}
		return nil
	})
}

func (p *plugin) set(hook func(event string) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = hook
}

func (p *plugin) id(name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ids[name]
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.mu.Lock()
	for _, pod := range pods {
		p.syncedPods = append(p.syncedPods, pod.GetName())
	}
	for _, c := range containers {
		p.syncedNames = append(p.syncedNames, c.GetName())
	}
	hook := p.hook
	p.done = true
	p.mu.Unlock()
	if hook != nil {
		return nil, hook("synchronize")
	}
	return nil, nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("run", pod.GetName(), pod.GetId())
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.note("update", pod.GetName(), pod.GetId())
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("stop", pod.GetName(), pod.GetId())
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("remove", pod.GetName(), pod.GetId())
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	err := p.note("create", c.GetName(), c.GetId())
	if err == nil && p.adjust != nil {
		adjustment, updates := p.adjust()
		return adjustment, updates, nil
	}
	return nil, nil, err
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("start", c.GetName(), c.GetId())
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	return nil, p.note("update", c.GetName(), c.GetId())
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.note("stop", c.GetName(), c.GetId())
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("remove", c.GetName(), c.GetId())
}

// quiet is the log of plugins.
type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}

// blocker is a hook that waits in one event, once, until it is released.
type blocker struct {
	reached, release chan struct{}
	once             sync.Once
}

func block(p *plugin, event string) *blocker {
	b := &blocker{reached: make(chan struct{}), release: make(chan struct{})}
	p.set(func(e string) error {
		if e == event {
			b.once.Do(func() { close(b.reached); <-b.release })
		}
		return nil
	})
	return b
}

// fail is a hook that fails in one event, once.
func fail(p *plugin, event string) {
	var once sync.Once
	p.set(func(e string) (err error) {
		if e == event {
			once.Do(func() { err = errors.New("not today") })
		}
		return err
	})
}

// podFile is the configuration of a pod.
func (n *node) podFile(t *testing.T, name string, annotations map[string]string) string {
	t.Helper()
	return n.file(t, name+".pod.json", map[string]any{
		"metadata":    map[string]any{"name": name, "namespace": "shop", "uid": name + "-uid", "attempt": 1},
		"annotations": annotations, "log_directory": filepath.Join(n.Dir, "logs"),
		"linux": map[string]any{},
	})
}

// containerFile is that of a container which runs a shell.
func (n *node) containerFile(t *testing.T, name, script string, more map[string]any) string {
	t.Helper()
	config := map[string]any{
		"metadata": map[string]any{"name": name}, "image": map[string]any{"image": busybox},
		"command": []string{"sh", "-c", script}, "log_path": name + ".log", "linux": map[string]any{},
	}
	maps.Copy(config, more)
	return n.file(t, name+".json", config)
}

const forever = "trap exit TERM; while :; do sleep 0.1; done"

func TestNRI(t *testing.T) {
	n := newNode(t, "", "")
	n.must(t, "crictl", "pull", busybox)
	pod, app := n.podFile(t, "front", nil), n.containerFile(t, "app", forever, nil)
	lost := n.containerFile(t, "lost", "exit 1", nil)

	t.Run("life", func(t *testing.T) {
		p := n.connect(t, "00", &plugin{})
		id := n.must(t, "crictl", "runp", pod)
		c := n.must(t, "crictl", "create", id, app, pod)
		n.must(t, "crictl", "start", c)
		n.must(t, "crictl", "update", "--memory", "67108864", c)
		n.must(t, "crictl", "stop", c)
		n.must(t, "crictl", "rm", c)
		n.must(t, "crictl", "stopp", id)
		n.must(t, "crictl", "stopp", id)
		if _, err := n.try("crictl", "create", id, app, pod); err == nil {
			t.Error("a stopped pod takes a container")
		}
		n.must(t, "crictl", "rmp", id)
		p.heard(t, "run front", "create app", "start app", "update app", "stop app", "remove app", "stop front", "remove front")
	})

	t.Run("container that ends by itself", func(t *testing.T) {
		p := n.connect(t, "00", &plugin{})
		id := n.must(t, "crictl", "runp", pod)
		c := n.must(t, "crictl", "create", id, lost, pod)
		n.must(t, "crictl", "start", c)
		p.heard(t, "run front", "create lost", "start lost", "stop lost")
		n.must(t, "crictl", "rm", c)
		n.must(t, "crictl", "rmp", "-f", id)
		p.heard(t, "run front", "create lost", "start lost", "stop lost", "remove lost", "stop front", "remove front")
	})

	t.Run("pod is not there before plugins agree", func(t *testing.T) {
		p := n.connect(t, "00", &plugin{})
		b := block(p, "run")
		var wg sync.WaitGroup
		wg.Go(func() { n.try("crictl", "runp", pod) })
		<-b.reached
		id := p.id("front")
		if out := n.must(t, "crictl", "pods", "-q", "--no-trunc"); strings.Contains(out, id) {
			t.Errorf("listed: %s", out)
		}
		if out, err := n.try("crictl", "inspectp", id); err == nil {
			t.Errorf("it has a status: %s", out)
		}
		if _, err := n.try("crictl", "create", id, app, pod); err == nil {
			t.Error("it takes a container")
		}
		close(b.release)
		wg.Wait()
		if again := n.must(t, "crictl", "runp", pod); again != id {
			t.Errorf("pod %s, then %s", id, again)
		}
		c := n.must(t, "crictl", "create", id, app, pod)
		n.must(t, "crictl", "rm", c)
		n.must(t, "crictl", "rmp", "-f", id)
	})

	t.Run("pod that a plugin refuses", func(t *testing.T) {
		p := n.connect(t, "00", &plugin{})
		fail(p, "run")
		if out, err := n.try("crictl", "runp", pod); err == nil || !strings.Contains(err.Error(), "not today") {
			t.Errorf("%s, %v", out, err)
		}
		if out := n.must(t, "crictl", "pods", "-q"); out != "" {
			t.Errorf("left: %s", out)
		}
		id := n.must(t, "crictl", "runp", pod)
		n.must(t, "crictl", "rmp", "-f", id)
	})

	t.Run("containers have ended before their pod stops", func(t *testing.T) {
		p := n.connect(t, "00", &plugin{})
		id := n.must(t, "crictl", "runp", pod)
		c := n.must(t, "crictl", "create", id, app, pod)
		n.must(t, "crictl", "start", c)
		b := block(p, "stop")
		p.set(hookOf(b, func(event string) bool { return event == "stop" && slices.Contains(p.lastTold(), "stop front") }))
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := n.try("crictl", "stopp", id); err != nil {
				t.Error(err)
			}
		})
		<-b.reached
		if out := n.must(t, "crictl", "ps", "-a", "-q", "--no-trunc", "--state", "exited", "--pod", id); out != c {
			t.Errorf("ended containers: %s", out)
		}
		n.must(t, "crictl", "inspectp", id)
		close(b.release)
		wg.Wait()
		n.must(t, "crictl", "rmp", id)
	})

	t.Run("container is not there before plugins agree", func(t *testing.T) {
		p := n.connect(t, "00", &plugin{})
		id := n.must(t, "crictl", "runp", pod)
		b := block(p, "create")
		var wg sync.WaitGroup
		var c string
		wg.Go(func() { c, _ = n.try("crictl", "create", id, app, pod) })
		<-b.reached
		if out := n.must(t, "crictl", "ps", "-a", "-q"); out != "" {
			t.Errorf("listed: %s", out)
		}
		if out, err := n.try("crictl", "inspect", p.id("app")); err == nil {
			t.Errorf("it has a status: %s", out)
		}
		close(b.release)
		wg.Wait()
		if out := n.must(t, "crictl", "ps", "-q", "--no-trunc", "--state", "created"); out != c || c == "" {
			t.Errorf("created %q, listed %q", c, out)
		}
		n.must(t, "crictl", "rmp", "-f", id)
	})

	t.Run("container that a plugin refuses", func(t *testing.T) {
		p := n.connect(t, "00", &plugin{})
		id := n.must(t, "crictl", "runp", pod)
		fail(p, "create")
		if out, err := n.try("crictl", "create", id, app, pod); err == nil {
			t.Errorf("created %s", out)
		}
		if out := n.must(t, "crictl", "ps", "-a", "-q"); out != "" {
			t.Errorf("left: %s", out)
		}
		c := n.must(t, "crictl", "create", id, app, pod)
		n.must(t, "crictl", "start", c)
		n.must(t, "crictl", "rmp", "-f", id)
		if slices.Contains(p.lastTold(), "start lost") {
			t.Error("what was refused was started")
		}
	})

	t.Run("change of a pod", func(t *testing.T) {
		p := n.connect(t, "00", &plugin{})
		id, c := n.must(t, "crictl", "runp", pod), n.caller(t)
		change := &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id, Overhead: &cri.LinuxContainerResources{CpuShares: 10}, Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}}
		machine.Must(t, second(c.UpdatePodSandboxResources(t.Context(), change)))
		fail(p, "update")
		if _, err := c.UpdatePodSandboxResources(t.Context(), change); err == nil || !strings.Contains(err.Error(), "not today") {
			t.Errorf("a refused change: %v", err)
		}
		machine.Must(t, second(c.UpdatePodSandboxResources(t.Context(), change)))
		n.must(t, "crictl", "rmp", "-f", id)
		p.heard(t, "run front", "update front", "update front", "update front", "stop front", "remove front")
	})

	t.Run("several, in the order of their numbers", func(t *testing.T) {
		var mu sync.Mutex
		var told []string
		for _, index := range []string{"20", "10", "15"} { // as they come
			n.connect(t, index, &plugin{hook: func(event string) error {
				mu.Lock()
				defer mu.Unlock()
				if event != "synchronize" {
					told = append(told, event+" "+index)
				}
				return nil
			}})
		}
		id := n.must(t, "crictl", "runp", pod)
		c := n.must(t, "crictl", "create", id, app, pod)
		n.must(t, "crictl", "start", c)
		mu.Lock()
		got := slices.Clone(told)
		mu.Unlock()
		want := strings.Split("run 10,run 15,run 20,create 10,create 15,create 20,start 10,start 15,start 20", ",")
		if !slices.Equal(got, want) {
			t.Errorf("they heard %q", got)
		}
		n.must(t, "crictl", "rmp", "-f", id)
	})

	t.Run("late joiner", func(t *testing.T) {
		n.connect(t, "00", &plugin{})
		id := n.must(t, "crictl", "runp", pod)
		c := n.must(t, "crictl", "create", id, app, pod)
		n.must(t, "crictl", "start", c)
		late := &plugin{}
		b := block(late, "synchronize")
		var wg sync.WaitGroup
		wg.Go(func() { n.dial(t, "10", late) })
		<-b.reached
		for i := range 3 {
			wg.Go(func() {
				name := fmt.Sprint("during", i)
				if out, err := n.try("crictl", "create", id, n.containerFile(t, name, forever, nil), pod); err != nil {
					t.Errorf("%s: %v", out, err)
				}
			})
		}
		time.AfterFunc(2*time.Second, func() { close(b.release) }) // as long as critest's
		wg.Wait()
		late.mu.Lock()
		if !slices.Contains(late.syncedPods, "front") || !slices.Contains(late.syncedNames, "app") {
			t.Errorf("it was told of the pods %v and the containers %v", late.syncedPods, late.syncedNames)
		}
		for i := range 3 {
			name := fmt.Sprint("during", i)
			if !slices.Contains(late.told, "create "+name) && !slices.Contains(late.syncedNames, name) {
				t.Errorf("it never heard of %s: %q", name, late.told)
			}
		}
		late.mu.Unlock()
		n.must(t, "crictl", "rmp", "-f", id)
	})

	t.Run("nothing that is no request", func(t *testing.T) {
		p := n.connect(t, "00", &plugin{})
		for _, command := range []string{"start", "inspect", "inspectp"} {
			if _, err := n.try("crictl", command, "nobody"); err == nil {
				t.Errorf("%s of nobody", command)
			}
		}
		for _, command := range []string{"stop", "rm", "stopp", "rmp"} {
			_, _ = n.try("crictl", command, "nobody")
		}
		_, _ = n.try("crictl", "create", "nobody", app, pod)
		id := n.must(t, "crictl", "runp", pod)
		if again := n.must(t, "crictl", "runp", pod); again != id {
			t.Errorf("pod %s, then %s", id, again)
		}
		p.heard(t, "run front")
		n.must(t, "crictl", "rmp", "-f", id)
	})

	t.Run("plugin that hangs", func(t *testing.T) {
		p := n.connect(t, "00", &plugin{})
		hang := make(chan struct{})
		defer close(hang)
		p.set(func(string) error { <-hang; return nil })
		begun := time.Now()
		id := n.must(t, "crictl", "runp", pod)
		c := n.must(t, "crictl", "create", id, app, pod)
		n.must(t, "crictl", "start", c)
		n.must(t, "crictl", "rmp", "-f", id)
		if took := time.Since(begun); took > 16*time.Second {
			t.Errorf("a pod took %v", took)
		}
	})

	t.Run("adjustment", func(t *testing.T) {
		n.connect(t, "10", &plugin{adjust: func() (*api.ContainerAdjustment, []*api.ContainerUpdate) {
			a := &api.ContainerAdjustment{}
			a.AddEnv("GREETING", "moin")
			a.AddMount(&api.Mount{Source: n.Dir, Destination: "/from-plugin", Type: "bind", Options: []string{"rbind", "ro"}})
			a.AddRlimit("RLIMIT_NOFILE", 333, 333)
			a.SetLinuxMemoryLimit(64 << 20)
			a.AddDevice(&api.LinuxDevice{Path: "/dev/mine", Type: "c", Major: 1, Minor: 5, FileMode: api.FileMode(os.FileMode(0o666))})
			a.SetArgs([]string{"sh", "-c", `echo $GREETING; ulimit -n; test -e /from-plugin/config.toml && echo mounted; head -c 3 /dev/mine | od -An -tx1; sleep 1000`})
			return a, nil
		}})
		id := n.must(t, "crictl", "runp", pod)
		c := n.must(t, "crictl", "create", id, app, pod)
		n.must(t, "crictl", "start", c)
		machine.Until(t, "the container has said all", func() error {
			out, err := n.try("crictl", "logs", c)
			if err == nil && !slices.Equal(strings.Fields(out), []string{"moin", "333", "mounted", "00", "00", "00"}) {
				err = fmt.Errorf("it said %q", out)
			}
			return err
		})
		n.must(t, "crictl", "rmp", "-f", id)
	})

	t.Run("change of another", func(t *testing.T) {
		p := n.connect(t, "10", &plugin{})
		id := n.must(t, "crictl", "runp", pod)
		c := n.must(t, "crictl", "create", id, app, pod)
		n.must(t, "crictl", "start", c)
		update := &api.ContainerUpdate{}
		update.SetContainerId(c)
		update.SetLinuxMemoryLimit(96 << 20)
		p.mu.Lock()
		p.adjust = func() (*api.ContainerAdjustment, []*api.ContainerUpdate) { return nil, []*api.ContainerUpdate{update} }
		p.mu.Unlock()
		n.must(t, "crictl", "create", id, n.containerFile(t, "second", forever, nil), pod)
		memory := func(want int) {
			t.Helper()
			machine.Until(t, "the limit is shown", func() error {
				out, err := n.try("crictl", "inspect", "-o", "go-template", "--template", "{{.status.resources.linux.memoryLimitInBytes}}", c)
				if err == nil && out != fmt.Sprint(want) {
					err = fmt.Errorf("memory %s", out)
				}
				return err
			})
			if out := n.must(t, "crictl", "exec", c, "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true"); out != fmt.Sprint(want) {
				t.Errorf("the kernel's limit is %s", out)
			}
		}
		memory(96 << 20)
		update.SetLinuxMemoryLimit(128 << 20)
		if failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{update}); err != nil || len(failed) > 0 {
			t.Errorf("unsolicited: %v, %v", failed, err)
		}
		memory(128 << 20)
		n.must(t, "crictl", "rmp", "-f", id)
	})

	t.Run("after the node was killed", func(t *testing.T) {
		id := n.must(t, "crictl", "runp", pod)
		c := n.must(t, "crictl", "create", id, app, pod)
		n.must(t, "crictl", "start", c)
		n.Kill()
		n.Start(t)
		p := &plugin{}
		machine.Until(t, "the socket", func() error { _, err := os.Stat(n.nri); return err })
		n.connect(t, "00", p)
		n.must(t, "crictl", "rmp", "-f", id)
		p.mu.Lock()
		defer p.mu.Unlock()
		if !slices.Equal(p.syncedPods, []string{"front"}) || !slices.Equal(p.syncedNames, []string{"app"}) ||
			!slices.Equal(p.told, []string{"stop app", "remove app", "stop front", "remove front"}) && !slices.Equal(p.told, []string{"stop app", "stop front", "remove app", "remove front"}) {
			t.Errorf("pods %v, containers %v, then %q", p.syncedPods, p.syncedNames, p.told)
		}
	})
}

func (p *plugin) lastTold() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.told)
}

// hookOf waits as b does where is says so.
func hookOf(b *blocker, is func(event string) bool) func(string) error {
	return func(event string) error {
		if is(event) {
			b.once.Do(func() { close(b.reached); <-b.release })
		}
		return nil
	}
}
