package cri

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/cri/images"
	"berth/test/machine"
)

// Pods come and go beside some that stay, with all that kubelet asks meanwhile:
// nothing is more afterwards. `bench/run.sh -run soak -soak 1h` does it for an
// hour.
func TestSoak(t *testing.T) {
	n := newNode(t, "", "")
	c := n.caller(t)
	image := c.pull(images.Busybox)
	for i := range 5 {
		c.up(c.pod(fmt.Sprint("stays-", i)), c.config("app", image))
	}
	churn := func(name string, pods int) {
		t.Helper()
		var wg sync.WaitGroup
		failed := make(chan error, pods)
		turn := make(chan struct{}, 4)
		for i := range pods {
			turn <- struct{}{}
			wg.Go(func() {
				failed <- c.life(fmt.Sprint(name, "-", i), image, i)
				<-turn
			})
		}
		wg.Wait()
		close(failed)
		for err := range failed {
			machine.Must(t, err)
		}
	}
	churn("first", 20)
	<-time.After(2 * time.Second) // what ends in the background is not to hide what grows
	before := c.footprint()
	churn("then", 80)
	// What goes on in the background comes to its end.
	machine.Until(t, "there is no more than before", func() error {
		var grown error
		after := c.footprint()
		for what, b := range before {
			if after[what].n > b.n+b.slack {
				grown = errors.Join(grown, fmt.Errorf("%s: %d, and %d before", what, after[what].n, b.n))
			}
		}
		return grown
	})
	t.Logf("before %v\nafter  %v", before, c.footprint())
}

// life is that of a pod.
func (c *caller) life(name, image string, turn int) (err error) {
	ctx := c.Context()
	pod := c.podConfig(name)
	pod.LogDirectory = filepath.Join(pod.GetLogDirectory(), name)
	if turn%2 == 0 { // its containers have a process that they share
		pod.Linux.SecurityContext = &api.LinuxSandboxSecurityContext{NamespaceOptions: &api.NamespaceOption{Pid: api.NamespaceMode_POD}}
	}
	if turn%4 == 1 {
		pod.PortMappings = []*api.PortMapping{{ContainerPort: 80, HostPort: int32(20000 + turn)}} //nolint:gosec // a small number
	}
	made, err := c.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return err
	}
	id := made.GetPodSandboxId()
	defer func() {
		if turn%3 > 0 { // else it is removed while it runs
			_, e := c.StopPodSandbox(ctx, &api.StopPodSandboxRequest{PodSandboxId: id})
			err = errors.Join(err, e)
		}
		_, e := c.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{PodSandboxId: id})
		err = errors.Join(err, e, os.RemoveAll(pod.GetLogDirectory())) // as kubelet does
	}()
	app, err := c.create(id, c.config("app", image))
	if err != nil {
		return err
	}
	if _, err := c.StartContainer(ctx, &api.StartContainerRequest{ContainerId: app}); err != nil {
		return err
	}
	for _, ask := range []func() error{
		func() error {
			_, err := c.ExecSync(ctx, &api.ExecSyncRequest{ContainerId: app, Cmd: []string{"sh", "-c", "echo a; echo b > /file"}, Timeout: 20})
			return err
		},
		func() error {
			_, err := c.ReopenContainerLog(ctx, &api.ReopenContainerLogRequest{ContainerId: app})
			return err
		},
		func() error { _, err := c.ListContainerStats(ctx, &api.ListContainerStatsRequest{}); return err },
		func() error { _, err := c.ListPodSandboxStats(ctx, &api.ListPodSandboxStatsRequest{}); return err },
		func() error {
			_, err := c.ListPodSandboxMetrics(ctx, &api.ListPodSandboxMetricsRequest{})
			return err
		},
		func() error {
			_, err := c.UpdateContainerResources(ctx, &api.UpdateContainerResourcesRequest{ContainerId: app, Linux: &api.LinuxContainerResources{CpuShares: 64}})
			return err
		},
		func() error {
			_, err := c.StopContainer(ctx, &api.StopContainerRequest{ContainerId: app, Timeout: int64(turn % 2)})
			return err
		},
	} {
		if err := ask(); err != nil {
			return err
		}
	}
	if turn%2 > 0 { // else it goes with its pod
		_, err = c.RemoveContainer(ctx, &api.RemoveContainerRequest{ContainerId: app})
	}
	return err
}

// amount is how much there is of something, and how much more of it does no
// harm.
type amount struct{ n, slack int }

// footprint is what a node takes of the machine.
func (c *caller) footprint() map[string]amount {
	c.Helper()
	n := c.node
	of := func(role, kind string) int {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", n.Helper(role), kind))
		machine.Must(c, err)
		return len(list)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	machine.Must(c, err)
	links, err := net.Interfaces()
	machine.Must(c, err)
	routines, heap := c.ofGo()
	return map[string]amount{
		"descriptors of the node": {of("node", "fd"), 6}, "descriptors of the keeper": {of("keeper", "fd"), 4},
		"threads of the keeper": {of("keeper", "task"), 6}, "goroutines": {routines, 8},
		"mounts": {strings.Count(string(mounts), n.Dir+"/"), 0}, "links": {len(links), 0}, "cgroups": {len(n.Cgroups()), 0},
		"files of the state": {countFiles(n.State), 4}, "files of the root": {countFiles(n.Root), 4},
		"KiB of live heap": {heap >> 10, 6 << 10}, "KiB of the keeper": {n.proportional(c.T, "keeper"), 6 << 10},
	}
}

// countFiles counts those below a folder, but for what is in a container.
func countFiles(dir string) (n int) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what goes while it is counted is gone
		}
		n++
		if d.IsDir() && d.Name() == "rootfs" {
			return fs.SkipDir
		}
		return nil
	})
	return n
}

// ofGo asks the node's metrics for its goroutines, and for the bytes that were
// in use when its collector had run last: it runs again at twice of them.
func (c *caller) ofGo() (routines, heap int) {
	c.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.node.Socket)
		},
	}}
	req, err := http.NewRequestWithContext(c.Context(), http.MethodGet, "http://berth/metrics", nil)
	machine.Must(c, err)
	r, err := client.Do(req)
	machine.Must(c, err)
	defer r.Body.Close()
	for lines := bufio.NewScanner(r.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		number, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "go_goroutines":
			routines = int(number)
		case "go_memstats_next_gc_bytes":
			heap = int(number / 2)
		}
	}
	if routines == 0 || heap == 0 {
		c.Fatal("the node's metrics say nothing of Go")
	}
	return routines, heap
}
