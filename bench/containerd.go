package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const (
	firstImage = "bench/busybox:1"
	shim       = "containerd-shim-runc-v2"
)

// containerd is the peer: a daemon of its own root, state and socket, driven
// by the program peer (containerd's client) and ctr.
type containerd struct {
	daemon
	tools, runtime, socket string
}

// newContainerd writes the configuration: no CRI, and unpacks layers
// concurrently where tuned.
func newContainerd(p *place, s settings, name string, unpacks int) (*containerd, error) {
	tools, err := filepath.Abs(s.peerDir)
	if err != nil {
		return nil, err
	}
	root, config := p.disk(name), p.run(name+".toml")
	text := fmt.Sprintf(`version = 3
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[plugins.'io.containerd.transfer.v1.local']
  max_concurrent_unpacks = %d
`, unpacks)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	socket := p.run(name + ".sock")
	return &containerd{
		tools: tools, runtime: s.runtime, socket: socket,
		daemon: daemon{
			argv: []string{filepath.Join(tools, "containerd"), "--config", config, "--address", socket, "--root", root, "--state", p.run(name)},
			env:  []string{"PATH=" + tools + ":" + os.Getenv("PATH")},
			log:  filepath.Join(p.dir, name+".log"),
		},
	}, nil
}

func (c *containerd) open(ctx context.Context, first string) error {
	if err := c.start(); err != nil {
		return err
	}
	err := c.poll(ctx, "containerd", func(ctx context.Context) error {
		_, err := os.Stat(c.socket)
		return err
	})
	if err != nil || first == "" {
		return err
	}
	if err := c.ctr(ctx, "images", "import", "--snapshotter", "overlayfs", first); err != nil {
		return err
	}
	_, err = c.peer(ctx, "once", 3) // warm
	return err
}

// close ends every container, shim and the daemon.
func (c *containerd) close(ctx context.Context) {
	if c.cmd == nil {
		return
	}
	if left := c.shims(); len(left) > 0 {
		_, _ = c.peer(ctx, "clear", len(left), 10)
	}
	for _, pid := range c.shims() {
		endTree(pid)
	}
	c.stop(ctx)
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/bench")
	for _, group := range append(groups, "/sys/fs/cgroup/bench") {
		_ = os.Remove(group) // what crun leaves of a namespace; stays while in use
	}
}

func (c *containerd) shims() []int { return processes(shim, c.socket) }

func (c *containerd) ctr(ctx context.Context, args ...string) error {
	return c.ctrIn(ctx, "bench", args...)
}

func (c *containerd) ctrIn(ctx context.Context, namespace string, args ...string) error {
	_, err := output(ctx, nil, append([]string{filepath.Join(c.tools, "ctr"), "--address", c.socket, "--namespace", namespace}, args...)...)
	return err
}

func (c *containerd) peer(ctx context.Context, verb string, numbers ...int) (map[string][]float64, error) {
	argv := []string{filepath.Join(c.tools, "peer"), c.socket, "docker.io/" + firstImage, c.runtime, verb}
	for _, n := range numbers {
		argv = append(argv, strconv.Itoa(n))
	}
	out, err := output(ctx, nil, argv...)
	if err != nil {
		return nil, err
	}
	var times map[string][]float64
	return times, json.Unmarshal(out, &times)
}

func (c *containerd) once(ctx context.Context, n int) ([]float64, error) {
	times, err := c.peer(ctx, "once", n)
	return times["once"], err
}

func (c *containerd) burst(ctx context.Context, n, atOnce int) (float64, error) {
	times, err := c.peer(ctx, "burst", n, atOnce)
	if err != nil {
		return 0, err
	}
	return times["burst"][0], nil
}

func (c *containerd) clear(ctx context.Context, n, atOnce int) error {
	_, err := c.peer(ctx, "clear", n, atOnce)
	return err
}

func (c *containerd) lists(ctx context.Context, n int) (list, stats []float64, err error) {
	times, err := c.peer(ctx, "lists", n)
	return times["list"], times["stats"], err
}

// restart kills the daemon and tells how long a new one takes to list n
// running containers.
func (c *containerd) restart(ctx context.Context, n int) (float64, error) {
	c.kill()
	if err := os.Remove(c.socket); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := c.start(); err != nil {
		return 0, err
	}
	times, err := c.peer(ctx, "ready", n)
	if err != nil {
		return 0, fmt.Errorf("%w\n%s", err, tail(c.log))
	}
	return times["ready"][0] - float64(began.UnixMicro())/1000, nil
}

func (c *containerd) memory() (daemon, others int64, err error) {
	if daemon, err = pss(c.pid()); err != nil {
		return 0, 0, err
	}
	others, err = pss(c.shims()...)
	return daemon, others, err
}

func (c *containerd) pids() []int { return append(c.shims(), c.pid()) }

func (c *containerd) pull(ctx context.Context, ref string) error {
	return c.ctr(ctx, "images", "pull", "--plain-http", "--snapshotter", "overlayfs", ref)
}

func (c *containerd) drop(ctx context.Context, ref string) error {
	return c.ctr(ctx, "images", "rm", "--sync", ref)
}
