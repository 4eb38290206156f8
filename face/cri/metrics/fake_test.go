package metrics_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth/base/errs"
	"berth/face/cri/metrics"
	"berth/node/snapshot"
	"berth/node/stats"
	"berth/spec"
)

// fakePods are pods as a node has them in memory.
type fakePods struct {
	pods       []spec.Pod
	containers []spec.PodContainer
}

func (f *fakePods) Pods() []spec.Pod                { return slices.Clone(f.pods) }
func (f *fakePods) Containers() []spec.PodContainer { return slices.Clone(f.containers) }

func (f *fakePods) Pod(id string) (spec.Pod, error) {
	for _, p := range f.pods {
		if strings.HasPrefix(p.ID, id) {
			return p, nil
		}
	}
	return spec.Pod{}, errs.New(errs.NotFound, "no pod %s", id)
}

func (f *fakePods) Container(id string) (spec.PodContainer, error) {
	for _, c := range f.containers {
		if strings.HasPrefix(c.ID, id) {
			return c, nil
		}
	}
	return spec.PodContainer{}, errs.New(errs.NotFound, "no container %s", id)
}

// fakeLayers count at once, or as slowly as the test wants.
type fakeLayers struct {
	size  int64
	slow  chan struct{}
	calls atomic.Int64
}

func (f *fakeLayers) Usage(ctx context.Context, key snapshot.Key) (snapshot.Usage, error) {
	f.calls.Add(1)
	if f.slow != nil {
		select {
		case <-f.slow:
		case <-ctx.Done():
			return snapshot.Usage{}, ctx.Err()
		}
	}
	if key == "c-gone" {
		return snapshot.Usage{}, errs.New(errs.NotFound, "no snapshot")
	}
	return snapshot.Usage{Size: f.size, Inodes: 3}, nil
}

func newService(tb testing.TB, pods *fakePods) *metrics.Service {
	tb.Helper()
	meter, err := stats.Open()
	if err != nil {
		tb.Fatal(err)
	}
	return serviceOf(tb, pods, meter, &fakeLayers{size: 4096})
}

func serviceOf(tb testing.TB, pods *fakePods, meter *stats.Reader, layers metrics.Layers) *metrics.Service {
	tb.Helper()
	return metrics.New(tb.Context(), metrics.Config{
		Pods: pods, Layers: layers, Meter: meter, Root: tb.TempDir(), Log: slog.New(slog.DiscardHandler),
	})
}

// realPods are pods of one process each, in cgroups of this machine.
func realPods(tb testing.TB, n int) *fakePods {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("cgroups need root")
	}
	root := fmt.Sprintf("/berth-metrics-test-%d", os.Getpid())
	f := &fakePods{}
	for i := range n {
		id, pod := fmt.Sprintf("%063dc", i), fmt.Sprintf("%063dd", i)
		cgroup := filepath.Join(root, id)
		process := sleeper(tb, cgroup)
		f.pods = append(f.pods, spec.Pod{
			ID: pod, State: spec.PodReady, NetNS: fmt.Sprintf("/proc/%d/ns/net", process.Pid),
			Config: spec.PodConfig{Name: fmt.Sprint("front-", i), Namespace: "shop", CgroupParent: root},
		})
		f.containers = append(f.containers, spec.PodContainer{
			ID: id, Pod: pod, State: spec.Running, Pid: process.Pid, Cgroup: cgroup, Started: time.Now().Add(-time.Minute),
			Config: spec.PodContainerConfig{Name: "web", Image: "registry.local/front@sha256:" + strings.Repeat("a", 64)},
		})
	}
	for _, c := range f.containers {
		awaitProgram(tb, c.Pid, "sleep")
	}
	return f
}

// sleeper is a process that does nothing, in a cgroup and a network namespace of
// its own.
func sleeper(tb testing.TB, cgroup string) *os.Process {
	tb.Helper()
	out, in, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	defer out.Close()
	defer in.Close() // what it takes from then on is its cgroup's
	process, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "read go; exec sleep 1000"}, &os.ProcAttr{
		Files: []*os.File{out, nil, nil}, Env: os.Environ(), Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = process.Kill(); _, _ = process.Wait(); removeCgroups(cgroup) })
	joinCgroups(tb, cgroup, process.Pid)
	return process
}

func awaitProgram(tb testing.TB, pid int, name string) {
	tb.Helper()
	for range 1000 {
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.TrimSpace(string(comm)) == name {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	tb.Fatalf("process %d is not %s", pid, name)
}

// hierarchies are the mounted trees of cgroups.
func hierarchies() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	found, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	for i, f := range found {
		found[i] = filepath.Dir(f)
	}
	return found
}

func joinCgroups(tb testing.TB, cgroup string, pid int) {
	tb.Helper()
	for _, h := range hierarchies() {
		if strings.HasSuffix(h, "/cpuset") {
			continue // needs to be told its processors
		}
		dir := filepath.Join(h, cgroup)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, pid), 0); err != nil {
			tb.Fatalf("join %s: %v", dir, err)
		}
	}
}

func removeCgroups(cgroup string) {
	for _, h := range hierarchies() {
		_ = os.Remove(filepath.Join(h, cgroup))
		_ = os.Remove(filepath.Dir(filepath.Join(h, cgroup)))
	}
}
