package cri

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/machine"
)

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
