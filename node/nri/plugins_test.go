package nri_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/node/nri"
	"berth/spec"
)

// A plugin that joins late hears of what is there, of what is being made, and
// of what comes while it is still looking.
func TestLateJoiner(t *testing.T) {
	ended := aPod("old")
	ended.State = spec.PodNotReady
	n := start(t, nri.Config{}, &rooms{pods: []spec.Pod{ended}})
	ctx, pod := t.Context(), aPod("p1")
	if err := n.RunPod(ctx, pod); err != nil { // not listed yet
		t.Fatal(err)
	}
	listed := aContainer("c0", "p0")
	if err := errors.Join(n.RunPod(ctx, aPod("p0")), n.CreateContainer(ctx, aPod("p0"), listed, aSpec())); err != nil {
		t.Fatal(err)
	}
	n.rooms.list(aPod("p0"), listed)
	n.rooms.specs["c0"] = aSpec()

	p := &plugin{hold: make(chan struct{}), reached: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() { n.dial(t, "10", p) })
	<-p.reached
	for i := range 3 {
		wg.Go(func() {
			if err := n.CreateContainer(ctx, pod, aContainer(fmt.Sprint("new", i), "p1"), aSpec()); err != nil {
				t.Error(err)
			}
		})
	}
	p.mu.Lock()
	if slices.Sort(p.pods); !slices.Equal(p.pods, []string{"old", "p0", "p1"}) || len(p.containers) != 1 || p.containers[0].Args[0] != "sh" {
		t.Errorf("synchronized with pods %v, containers %v", p.pods, p.containers)
	}
	p.mu.Unlock()
	time.AfterFunc(50*time.Millisecond, func() { close(p.hold) })
	wg.Wait()
	for i := range 3 {
		if id := fmt.Sprint("new", i); !p.knows(id) {
			t.Errorf("the plugin never heard of %s", id)
		}
	}
}

// What has gone, or never came, is not told to a new plugin.
func TestLateJoinerHearsNothingOfTheDead(t *testing.T) {
	n := start(t, nri.Config{}, &rooms{})
	ctx, pod, c := t.Context(), aPod("p1"), aContainer("c1", "p1")
	if err := errors.Join(n.RunPod(ctx, pod), n.CreateContainer(ctx, pod, c, aSpec()),
		n.RemoveContainer(ctx, pod, c), n.StopPod(ctx, pod), n.RemovePod(ctx, pod)); err != nil {
		t.Fatal(err)
	}
	n.rooms.list(pod, c) // as if its room had not caught up
	p := &plugin{}
	n.connect(t, "10", p)
	if len(p.pods)+len(p.containers) != 0 {
		t.Errorf("told of %v and %v", p.pods, p.containers)
	}
}

func TestPluginThatHangsIsDropped(t *testing.T) {
	n := start(t, nri.Config{Request: time.Second}, &rooms{})
	good, bad := &plugin{}, &plugin{}
	n.connect(t, "10", good)
	hang := make(chan struct{})
	defer close(hang)
	bad.pod = func(string) error { <-hang; return nil }
	n.connect(t, "20", bad)

	begun := time.Now()
	if err := n.RunPod(t.Context(), aPod("p1")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("RunPod took %v", took)
	}
	if n.Count() != 1 {
		t.Errorf("%d plugins: the one that hangs is asked again", n.Count())
	}
	if err := n.RunPod(t.Context(), aPod("p2")); err != nil {
		t.Fatal(err)
	}
	if n.Count() != 1 || !slices.Equal(good.told(), []string{"run p1", "run p2"}) {
		t.Errorf("%d plugins; the other was told %v", n.Count(), good.told())
	}
}

// One that hangs in Synchronize holds pods up until the deadline, not longer.
func TestPluginThatHangsWhileJoining(t *testing.T) {
	n := start(t, nri.Config{Request: 200 * time.Millisecond}, &rooms{})
	p := &plugin{hold: make(chan struct{}), reached: make(chan struct{})}
	n.dial(t, "10", p)
	<-p.reached
	begun := time.Now()
	if err := n.RunPod(t.Context(), aPod("p1")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("RunPod took %v", took)
	}
	close(p.hold)
	if n.Count() != 0 || len(p.told()) != 0 {
		t.Errorf("%d plugins, told %v", n.Count(), p.told())
	}
}

func TestPluginThatGoesAway(t *testing.T) {
	n := start(t, nri.Config{}, &rooms{})
	p := &plugin{}
	s := n.connect(t, "10", p)
	s.Stop()
	s.Wait()
	if err := n.RunPod(t.Context(), aPod("p1")); err != nil {
		t.Errorf("RunPod = %v", err)
	}
	eventually(t, "no plugin", func() bool { _ = n.PostUpdatePod(t.Context(), aPod("p1")); return n.Count() == 0 })
}

func update(id string, shares uint64) *api.ContainerUpdate {
	u := &api.ContainerUpdate{}
	u.SetContainerId(id)
	u.SetLinuxCPUShares(shares)
	return u
}

func TestUpdates(t *testing.T) {
	r := &rooms{pods: []spec.Pod{aPod("p1")}, containers: []spec.PodContainer{aContainer("c1", "p1"), aContainer("c2", "p1")}}
	n := start(t, nri.Config{}, r)
	p := &plugin{syncUpdate: []*api.ContainerUpdate{update("c1", 11)}}
	s := n.connect(t, "10", p)
	eventually(t, "the update of Synchronize", func() bool { return r.shares("c1") == 11 })

	p.create = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return nil, []*api.ContainerUpdate{update("c1", 12), update("nobody", 1)}, nil
	}
	if err := n.CreateContainer(t.Context(), aPod("p1"), aContainer("c3", "p1"), aSpec()); err != nil || r.shares("c1") != 12 {
		t.Errorf("another's creation: %v, shares %d", err, r.shares("c1"))
	}

	p.update = func(r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
		if r.GetMemory().GetLimit().GetValue() != 5000 {
			return nil, fmt.Errorf("asked to see %v", r)
		}
		return []*api.ContainerUpdate{update("c1", 13), update("c2", 14)}, nil
	}
	limit, burst := int64(5000), uint64(9)
	limits := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Burst: &burst, Cpus: "0"}}
	if err := n.UpdateContainer(t.Context(), aPod("p1"), r.containers[1], limits); err != nil {
		t.Fatal(err)
	}
	if *limits.CPU.Shares != 14 || *limits.CPU.Burst != 9 || limits.CPU.Cpus != "0" || *limits.Memory.Limit != 5000 || r.shares("c1") != 13 || r.shares("c2") != 0 {
		t.Errorf("limits %+v %+v, the other's shares %d", limits.CPU, limits.Memory, r.shares("c1"))
	}

	failed, err := s.UpdateContainers([]*api.ContainerUpdate{update("c1", 15)})
	if err != nil || len(failed) != 0 || r.shares("c1") != 15 {
		t.Errorf("unsolicited: %v, failed %v, shares %d", err, failed, r.shares("c1"))
	}
	r.mu.Lock()
	r.fail = errs.New(errs.Internal, "no")
	r.mu.Unlock()
	if failed, err := s.UpdateContainers([]*api.ContainerUpdate{update("c1", 16)}); err != nil || len(failed) != 1 {
		t.Errorf("unsolicited that fails: %v, failed %v", err, failed)
	}
}

func TestValidator(t *testing.T) {
	n := start(t, nri.Config{Validator: &nri.Validator{RejectSysctls: true}}, &rooms{})
	p := &plugin{}
	n.connect(t, "10", p)
	p.create = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.SetLinuxSysctl("net.b", "2")
		return a, nil, nil
	}
	oci := aSpec()
	if err := n.CreateContainer(t.Context(), aPod("p1"), aContainer("c1", "p1"), oci); errs.KindOf(err) != errs.Denied || oci.Linux.Sysctl["net.b"] != "" {
		t.Errorf("a sysctl: %v", err)
	}
	p.create = nil
	if err := n.CreateContainer(t.Context(), aPod("p1"), aContainer("c2", "p1"), oci); err != nil {
		t.Errorf("no sysctl: %v", err)
	}
}

func TestRequiredPlugin(t *testing.T) {
	n := start(t, nri.Config{Validator: &nri.Validator{Required: []string{"test"}}}, &rooms{})
	eventually(t, "the validator", func() bool { return n.Count() == 1 })
	err := n.CreateContainer(t.Context(), aPod("p1"), aContainer("c1", "p1"), aSpec())
	if errs.KindOf(err) != errs.Denied {
		t.Errorf("without it: %v", err)
	}
	n.connect(t, "10", &plugin{})
	if err := n.CreateContainer(t.Context(), aPod("p1"), aContainer("c2", "p1"), aSpec()); err != nil {
		t.Errorf("with it: %v", err)
	}
}

func TestPluginsOfTheFolder(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	plugins, configs := filepath.Join(dir, "plugins"), filepath.Join(dir, "conf")
	for name, text := range map[string]string{
		filepath.Join(plugins, "10-own"):   "#!/bin/sh\nNRI_TEST_OUT=" + out + " exec " + os.Args[0] + "\n",
		filepath.Join(plugins, "20-wrong"): "#!/bin/sh\nexit 1\n",
		filepath.Join(configs, "own.conf"): "hello",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	n := start(t, nri.Config{PluginDir: plugins, ConfigDir: configs}, &rooms{})
	eventually(t, "the plugin", func() bool { return n.Count() == 1 })
	if text, err := os.ReadFile(out); err != nil || string(text) != "hello berth v1" {
		t.Errorf("the plugin was configured with %q, %v", text, err)
	}
}

// A folder with something else in it costs only its own plugins.
func TestFolderOfSomethingElse(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "README"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	n := start(t, nri.Config{PluginDir: dir}, &rooms{})
	p := &plugin{}
	n.connect(t, "10", p)
	if err := n.RunPod(context.Background(), aPod("p1")); err != nil || len(p.told()) != 1 {
		t.Errorf("RunPod: %v, told %v", err, p.told())
	}
}
