package pod_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/node/pod"
	"berth/spec"
)

func run(t *testing.T, s *pod.Set, config spec.PodConfig) string {
	t.Helper()
	id, err := s.RunPod(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func create(t *testing.T, s *pod.Set, pod string, config spec.PodContainerConfig) string {
	t.Helper()
	id, err := s.CreateContainer(t.Context(), pod, config)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func check(t *testing.T, errors ...error) {
	t.Helper()
	for _, err := range errors {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func state(t *testing.T, s *pod.Set, id string) spec.PodContainer {
	t.Helper()
	c, err := s.Container(id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantKind(t *testing.T, err error, kind errs.Kind) {
	t.Helper()
	if errs.KindOf(err) != kind {
		t.Errorf("got %v (%s), want %s", err, errs.KindOf(err), kind)
	}
}

// A life from beginning to end leaves nothing.
func TestALifeLeavesNothing(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	config := podConfig("web")
	config.LogDir = t.TempDir()
	id := run(t, s, config)
	p, err := s.Pod(id[:12])
	check(t, err)
	if p.State != spec.PodReady || !slices.Equal(p.IPs, []string{"10.0.0.2"}) || p.NetNS == "" || len(s.Pods()) != 1 {
		t.Errorf("the pod is %+v", p)
	}
	c := containerConfig("c")
	c.LogPath = "c/0.log"
	first := create(t, s, id, c)
	if is := state(t, s, first); is.State != spec.Created || is.LogPath != filepath.Join(config.LogDir, "c/0.log") || is.StopSignal != "SIGQUIT" || is.ImageRef != "registry/busybox@sha256:2" || is.User == nil {
		t.Errorf("created: %+v", is)
	}
	check(t, s.StartContainer(t.Context(), first))
	if is := state(t, s, first[:10]); is.State != spec.Running || is.Pid == 0 {
		t.Errorf("started: %+v", is)
	}
	check(t, s.ReopenLog(t.Context(), first))
	check(t, s.StopContainer(t.Context(), first, time.Second))
	if is := state(t, s, first); is.State != spec.Stopped || is.ExitCode != 137 || is.Reason != "Error" || is.Finished.IsZero() {
		t.Errorf("stopped: %+v", is)
	}
	wantKind(t, s.StartContainer(t.Context(), first), errs.Conflict)
	wantKind(t, s.ReopenLog(t.Context(), first), errs.Conflict)
	check(t, s.RemoveContainer(t.Context(), first))
	second := create(t, s, id, containerConfig("c"))
	check(t, s.StartContainer(t.Context(), second))
	check(t, s.StopPod(t.Context(), id))
	if p, err = s.Pod(id); err != nil || p.State != spec.PodNotReady || len(p.IPs) != 1 {
		t.Errorf("after the stop: %+v, %v", p, err)
	}
	if is := state(t, s, second); is.State != spec.Stopped {
		t.Errorf("the stop of the pod left its container %s", is.State)
	}
	check(t, s.RemovePod(t.Context(), id))
	w.flush()
	check(t, w.empty())
	want := []string{"pod create", "pod start", "pod stop", "pod remove"}
	if got := w.heard(); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	if steps := s.Trace(id); len(steps) < 10 || steps[0].Call != "run pod" || steps[0].Step != "run pod" || steps[0].Duration == 0 {
		t.Errorf("its trace: %+v", steps)
	}
}

// Every call can be made again.
func TestCallsCanBeMadeAgain(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	id := run(t, s, podConfig("web"))
	if again := run(t, s, podConfig("web")); again != id {
		t.Errorf("the same pod again is %s, not %s", again, id)
	}
	other := podConfig("web")
	other.Hostname = "other"
	_, err := s.RunPod(t.Context(), other)
	wantKind(t, err, errs.Exists)

	c := create(t, s, id, containerConfig("c"))
	if again := create(t, s, id, containerConfig("c")); again != c {
		t.Errorf("the same container again is %s, not %s", again, c)
	}
	check(t, s.StartContainer(t.Context(), c), s.StartContainer(t.Context(), c))
	_, err = s.CreateContainer(t.Context(), id, containerConfig("c"))
	wantKind(t, err, errs.Exists)
	check(t, s.StopContainer(t.Context(), c, 0), s.StopContainer(t.Context(), c, 0))
	check(t, s.RemoveContainer(t.Context(), c), s.RemoveContainer(t.Context(), c))
	check(t, s.StopPod(t.Context(), id), s.StopPod(t.Context(), id))
	_, err = s.RunPod(t.Context(), podConfig("web"))
	wantKind(t, err, errs.Exists)
	_, err = s.CreateContainer(t.Context(), id, containerConfig("late"))
	wantKind(t, err, errs.Conflict)
	check(t, s.RemovePod(t.Context(), id), s.RemovePod(t.Context(), id))
	check(t, s.StopPod(t.Context(), id), s.StopContainer(t.Context(), c, 0))
	_, err = s.CreateContainer(t.Context(), id, containerConfig("c"))
	wantKind(t, err, errs.NotFound)
	w.flush()
	check(t, w.empty())
}

// Who asks for what is being made waits for it; many who ask at once have one.
func TestManyAskForOne(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	ids := make([]string, 20)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			id, err := s.RunPod(t.Context(), podConfig("web"))
			if err != nil {
				t.Error(err)
				return
			}
			c, err := s.CreateContainer(t.Context(), id, containerConfig("c"))
			if err == nil {
				err = s.StartContainer(t.Context(), c)
			}
			if err != nil && errs.KindOf(err) != errs.Exists { // another has started it
				t.Error(err)
			}
			ids[i] = id
		})
	}
	wg.Wait()
	if ids = slices.Compact(ids); len(ids) != 1 || len(s.Pods()) != 1 || len(s.Containers()) != 1 {
		t.Errorf("pods %v, %d containers", ids, len(s.Containers()))
	}
}

// A call goes on when its client goes away; the retry has its result.
func TestACallOutlivesItsClient(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	reached, goOn := make(chan struct{}), make(chan struct{})
	w.setCue(func(_ int, name string, after bool) error {
		if name == "attach" && !after {
			close(reached)
			<-goOn
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	given := make(chan error, 1)
	go func() { _, err := s.RunPod(ctx, podConfig("web")); given <- err }()
	<-reached
	if pods := s.Pods(); len(pods) != 0 {
		t.Errorf("a pod in the making is seen: %+v", pods)
	}
	cancel()
	if err := <-given; !errors.Is(err, context.Canceled) {
		t.Errorf("the client that went away got %v", err)
	}
	retried := make(chan string, 1)
	go func() { retried <- run(t, s, podConfig("web")) }()
	close(goOn)
	if id := <-retried; len(s.Pods()) != 1 || s.Pods()[0].ID != id {
		t.Errorf("the retry got %s; pods: %v", id, s.Pods())
	}
}

// Nothing of a pod that hangs holds up another one, nor what is read.
func TestAHangingPodHoldsUpNobody(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	stuck := run(t, s, podConfig("stuck"))
	goOn := make(chan struct{})
	reached := make(chan struct{}, 1)
	w.setCue(func(_ int, name string, after bool) error {
		select {
		case <-goOn:
			return nil
		default:
		}
		if name == "detach" && !after {
			reached <- struct{}{}
			<-goOn
		}
		return nil
	})
	done := make(chan error, 1)
	go func() { done <- s.StopPod(t.Context(), stuck) }()
	<-reached
	if p, err := s.Pod(stuck); err != nil || p.State != spec.PodNotReady {
		t.Errorf("while it stops it is %+v, %v", p, err)
	}
	other := run(t, s, podConfig("other"))
	c := create(t, s, other, containerConfig("c"))
	check(t, s.StartContainer(t.Context(), c))
	_, err := s.CreateContainer(t.Context(), stuck, containerConfig("c"))
	wantKind(t, err, errs.Conflict)
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	wantKind(t, s.RemovePod(short, stuck), errs.Timeout)
	close(goOn)
	check(t, <-done)
	w.until(func() error { // the removal went on without its client
		if _, err := s.Pod(stuck); err == nil {
			return errors.New("the removal did not go on")
		}
		return nil
	})
}

// The containers of a pod are stopped at once, not one after the other, and a
// start that is under way is waited for.
func TestStopOfAPodStopsAllAtOnce(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	id := run(t, s, podConfig("web"))
	for i := range 5 {
		check(t, s.StartContainer(t.Context(), create(t, s, id, containerConfig(fmt.Sprint("c", i)))))
	}
	late := create(t, s, id, containerConfig("late"))
	var together sync.WaitGroup
	together.Add(6)
	starting, goOn := make(chan struct{}), make(chan struct{})
	w.setCue(func(_ int, name string, after bool) error {
		switch {
		case name == "run" && after:
			close(starting)
			<-goOn
		case name == "stop" && !after:
			together.Done()
			together.Wait()
		}
		return nil
	})
	go func() { _ = s.StartContainer(t.Context(), late) }()
	<-starting
	done := make(chan error, 1)
	go func() { done <- s.StopPod(t.Context(), id) }()
	w.until(func() error {
		if p, err := s.Pod(id); err != nil || p.State == spec.PodReady {
			return errors.New("the pod is ready still")
		}
		return nil
	})
	close(goOn)
	check(t, <-done)
	for _, c := range s.ContainersOf(id) {
		if c.State == spec.Running {
			t.Errorf("container %s runs in a stopped pod", c.Config.Name)
		}
	}
}

func TestWhatCannotWorkIsSaid(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	for name, change := range map[string]func(*spec.PodConfig){
		"no name":        func(c *spec.PodConfig) { c.Name = "" },
		"no uid":         func(c *spec.PodConfig) { c.UID = "" },
		"hostname":       func(c *spec.PodConfig) { c.Hostname = strings.Repeat("x", 65) },
		"log":            func(c *spec.PodConfig) { c.LogDir = "logs" },
		"network":        func(c *spec.PodConfig) { c.Security.Namespaces.Network = "target" },
		"user namespace": func(c *spec.PodConfig) { c.Security.Namespaces.User = &spec.PodUserNamespace{Mode: spec.NamespacePod} },
	} {
		config := podConfig("web")
		change(&config)
		if _, err := s.RunPod(t.Context(), config); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	config := podConfig("web")
	config.Handler = "kata"
	_, err := s.RunPod(t.Context(), config)
	wantKind(t, err, errs.NotFound)

	id := run(t, s, podConfig("web"))
	for name, tc := range map[string]struct {
		change func(*spec.PodContainerConfig)
		kind   errs.Kind
	}{
		"no name":       {func(c *spec.PodContainerConfig) { c.Name = "" }, errs.Invalid},
		"no image":      {func(c *spec.PodContainerConfig) { c.Image = "" }, errs.Invalid},
		"unknown image": {func(c *spec.PodContainerConfig) { c.Image = "none" }, errs.NotFound},
		"no pid of pod": {func(c *spec.PodContainerConfig) { c.Security.Namespaces.PID = spec.NamespacePod }, errs.Invalid},
		"target": {func(c *spec.PodContainerConfig) {
			c.Security.Namespaces.PID, c.Security.Namespaces.Target = spec.NamespaceTarget, "none"
		}, errs.NotFound},
		"volume": {func(c *spec.PodContainerConfig) { c.Mounts = []spec.PodMount{{Target: "/v", Image: "none"}} }, errs.NotFound},
	} {
		c := containerConfig("c")
		tc.change(&c)
		_, err := s.CreateContainer(t.Context(), id, c)
		if errs.KindOf(err) != tc.kind {
			t.Errorf("%s: %v (%s)", name, err, errs.KindOf(err))
		}
		if name == "volume" && (err == nil || !strings.HasPrefix(err.Error(), "ImageVolumeMountFailed")) {
			t.Errorf("kubelet does not know %v for what it is", err)
		}
	}
	check(t, s.RemovePod(t.Context(), id))
	w.flush()
	check(t, w.empty())
}

// A container that cannot be started has ended, and says why.
func TestAFailedStartIsAnEnd(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	id := run(t, s, podConfig("web"))
	c := create(t, s, id, containerConfig("c"))
	w.setCue(func(_ int, name string, _ bool) error {
		if name == "run" {
			return errors.New("exec: no such file")
		}
		return nil
	})
	if err := s.StartContainer(t.Context(), c); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("the start says %v", err)
	}
	is := state(t, s, c)
	if is.State != spec.Stopped || is.ExitCode != 128 || is.Reason != "StartError" || !strings.Contains(is.Message, "no such file") || is.Finished.IsZero() {
		t.Errorf("it is %+v", is)
	}
	w.setCue(nil)
	w.flush()
	w.reboot()
	s = w.node()
	if is := state(t, s, c); is.Reason != "StartError" {
		t.Errorf("after a reboot it is %+v", is)
	}
	check(t, s.RemovePod(t.Context(), id))
	w.flush()
	check(t, w.empty())
}

func TestPluginsHearOfEachStep(t *testing.T) {
	w := newWorld(t)
	w.hooks = &hooks{}
	s := w.node()
	id := run(t, s, podConfig("web"))
	c := create(t, s, id, containerConfig("c"))
	oci, err := s.ContainerSpec(t.Context(), c)
	check(t, err)
	if !slices.Contains(oci.Process.Env, "PLUGIN=here") {
		t.Errorf("what the plugin wanted is not in the spec: %v", oci.Process.Env)
	}
	check(t, s.StartContainer(t.Context(), c))
	check(t, s.UpdateContainer(t.Context(), c, spec.PodResources{CPUShares: 5, Memory: 1 << 30}, nil))
	w.mu.Lock()
	var limits specs.LinuxResources
	check(t, json.Unmarshal(w.givens[c].Extensions["limits"].Value, &limits))
	w.mu.Unlock()
	if *limits.CPU.Shares != 7 || state(t, s, c).Resources.Memory != 1<<30 {
		t.Errorf("limits %+v", limits)
	}
	check(t, s.UpdatePod(t.Context(), id, nil, &spec.PodResources{CPUShares: 9}))
	if p, _ := s.Pod(id); p.Config.Resources == nil || p.Config.Resources.CPUShares != 9 {
		t.Errorf("the pod has %+v", p.Config.Resources)
	}
	check(t, s.RemovePod(t.Context(), id))
	want := []string{
		"run pod", "create", "created", "start", "started", "update", "updated", "update pod", "pod updated",
		"stop", "stop pod", "remove", "remove pod",
	}
	if got := w.hooks.all(); !slices.Equal(got, want) {
		t.Errorf("plugins heard %v\nwant %v", got, want)
	}
}

func TestPluginsCanRefuse(t *testing.T) {
	w := newWorld(t)
	w.hooks = &hooks{refuse: map[string]bool{"run pod": true}}
	s := w.node()
	w.hooks.see = func(string) {
		if len(s.Pods())+len(s.Containers()) != 0 {
			t.Error("what a plugin may still refuse is seen")
		}
	}
	_, err := s.RunPod(t.Context(), podConfig("web"))
	wantKind(t, err, errs.Denied)
	w.flush()
	check(t, w.empty())

	w.hooks.see, w.hooks.refuse = nil, map[string]bool{"create": true}
	id := run(t, s, podConfig("web"))
	_, err = s.CreateContainer(t.Context(), id, containerConfig("c"))
	wantKind(t, err, errs.Denied)
	w.hooks.refuse = map[string]bool{"start": true, "update pod": true}
	c := create(t, s, id, containerConfig("c"))
	wantKind(t, s.StartContainer(t.Context(), c), errs.Denied)
	wantKind(t, s.UpdatePod(t.Context(), id, nil, &spec.PodResources{CPUShares: 9}), errs.Denied)
	if p, _ := s.Pod(id); p.Config.Resources != nil {
		t.Errorf("what was refused is applied: %+v", p.Config.Resources)
	}
	check(t, s.RemovePod(t.Context(), id))
	w.flush()
	check(t, w.empty())
}

func TestAContainerIsStoppedForAReason(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	id := run(t, s, podConfig("web"))
	c := create(t, s, id, containerConfig("c"))
	check(t, s.StartContainer(t.Context(), c), s.StopFor(t.Context(), c, "seccomp killed", "Used forbidden syscalls: ptrace (1x)"))
	if is := state(t, s, c); is.State != spec.Stopped || is.Reason != "seccomp killed" || !strings.Contains(is.Message, "ptrace") {
		t.Errorf("it is %+v", is)
	}
}

func TestLimitsOfACreatedContainerAreInItsSpec(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	id := run(t, s, podConfig("web"))
	c := create(t, s, id, containerConfig("c"))
	check(t, s.UpdateContainer(t.Context(), c, spec.PodResources{CPUShares: 512}, nil))
	shares, quota := uint64(99), int64(1000)
	check(t, s.AdjustContainer(t.Context(), c, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota}}))
	oci, err := s.ContainerSpec(t.Context(), c)
	check(t, err)
	if cpu := oci.Linux.Resources.CPU; *cpu.Shares != 512 || *cpu.Quota != 1000 {
		t.Errorf("limits %+v", cpu)
	}
	check(t, s.StartContainer(t.Context(), c), s.AdjustContainer(t.Context(), c, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}))
	check(t, s.StopContainer(t.Context(), c, 0))
	wantKind(t, s.UpdateContainer(t.Context(), c, spec.PodResources{CPUShares: 5}, nil), errs.Conflict)
}

// A pod whose containers share a PID namespace is not ready without the process
// that holds it.
func TestAPodEndsWithItsPauseProcess(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	config := podConfig("web")
	config.Security.Namespaces.PID = spec.NamespacePod
	id := run(t, s, config)
	p, err := s.Pod(id)
	check(t, err)
	if len(s.Containers()) != 0 {
		t.Errorf("containers %v", s.Containers())
	}
	isPinned(t, p.PIDNS)
	c := containerConfig("c")
	c.Security.Namespaces.PID = spec.NamespacePod
	member := create(t, s, id, c)
	oci, err := s.ContainerSpec(t.Context(), member)
	check(t, err)
	if !slices.ContainsFunc(oci.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace && n.Path == p.PIDNS }) {
		t.Errorf("the container does not join it: %v", oci.Linux.Namespaces)
	}
	w.end()
	check(t, s.Close())
	s = w.node() // which finds it again
	w.mu.Lock()
	w.givens[id].end(137)
	w.mu.Unlock()
	w.until(func() error {
		if p, err := s.Pod(id); err != nil || p.State == spec.PodReady {
			return fmt.Errorf("the pod is %s, %w", p.State, err)
		}
		return nil
	})
	check(t, s.RemovePod(t.Context(), id))
	w.flush()
	check(t, w.empty())
}
