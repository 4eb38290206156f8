package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The columns of pods.
const (
	cniColumn = "berth with CNI"
	ownColumn = "berth's own network"
)

// cluster is a runtime that serves pods: its daemon, how to talk to it, and
// what belongs to it.
type cluster struct {
	column string
	*kubelet
	*daemon
	socket string
	group  accounts
	// helpers are the processes beside the daemon, keeper or shims and pauses.
	helpers func() []int
	// end ends what the daemon leaves behind.
	end func(ctx context.Context)
}

// accounts are the cgroups whose CPU time is a cluster's.
type accounts struct{ dirs []string }

// cgroupRoot is where CPU time is counted: of version 1, else of version 2.
func cgroupRoot() string {
	for _, dir := range []string{"/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct"} {
		if _, err := os.Stat(filepath.Join(dir, "cpuacct.usage")); err == nil {
			return dir
		}
	}
	return "/sys/fs/cgroup"
}

// cpu is the time of all processes that are or were in the cgroups.
func (a accounts) cpu() (total time.Duration, err error) {
	for _, dir := range a.dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage"))
		unit := time.Nanosecond
		if errors.Is(err, os.ErrNotExist) {
			text, err = os.ReadFile(filepath.Join(dir, "cpu.stat"))
			line, _, _ := strings.Cut(string(text), "\n")
			text, unit = []byte(strings.TrimPrefix(line, "usage_usec ")), time.Microsecond
		}
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(n) * unit
	}
	return total, nil
}

// within has the daemon start in a cgroup below the cluster's.
func (c *cluster) within(name string) error {
	top := filepath.Join(cgroupRoot(), fmt.Sprintf("bench-%d-%s", os.Getpid(), name))
	inside := filepath.Join(top, "daemon")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		return err
	}
	c.group.dirs = []string{top}
	c.argv = append([]string{"/bin/sh", "-c", `echo $$ > "$0/cgroup.procs" && exec "$@"`, inside}, c.argv...)
	return nil
}

// bridgePods is the configuration of Debian's plugins.
func bridgePods(link, subnet string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"bench-%[1]s","plugins":[
{"type":"bridge","bridge":%[1]q,"isGateway":true,"ipMasq":true,"hairpinMode":true,"ipam":{"type":"host-local","ranges":[[{"subnet":%[2]q}]],"routes":[{"dst":"0.0.0.0/0"}]}},
{"type":"portmap","capabilities":{"portMappings":true}}]}`, link, subnet)
}

// networking writes a CNI configuration, or none where link is "".
func (p *place) networking(name, link, subnet string) (dir string, err error) {
	dir = p.run(name + "-cni")
	if err := os.Mkdir(dir, 0o755); err != nil || link == "" {
		return dir, err
	}
	return dir, os.WriteFile(filepath.Join(dir, "10-bench.conflist"), []byte(bridgePods(link, subnet)), 0o600)
}

// containerdPods is containerd with its CRI.
func (b *bench) containerdPods(ctx context.Context) (_ *cluster, err error) {
	peer, err := newContainerd(b.place, b.settings, "pods", 4)
	if err != nil {
		return nil, err
	}
	const link = "benchcni0"
	conf, err := b.place.networking("pods", link, "10.251.0.0/16")
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf(`version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "docker.io/bench/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = %q
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = %q
`, b.podRuntime, conf)
	if err := os.WriteFile(b.place.run("pods.toml"), []byte(text), 0o600); err != nil {
		return nil, err
	}
	c := &cluster{column: peerColumn, daemon: &peer.daemon, socket: peer.socket}
	c.helpers = func() []int { return append(peer.shims(), processes("pause")...) }
	c.end = func(ctx context.Context) { peer.close(ctx); removeLink(ctx, link) }
	if err := c.within("containerd"); err != nil {
		return nil, err
	}
	pause, err := b.pauseImage()
	if err != nil {
		return nil, err
	}
	return c, b.openPods(ctx, c, pause)
}

// berthPods is a node whose pods are on a network of CNI's plugins, or on its
// own where link is "".
func (b *bench) berthPods(ctx context.Context, column, link string) (_ *cluster, err error) {
	name := "pods-own"
	if link != "" {
		name = "pods-cni"
	}
	conf, err := b.place.networking(name, link, "10.252.0.0/16")
	if err != nil {
		return nil, err
	}
	node, err := newNode(b.place, b.settings, name, fmt.Sprintf(`runtime = "runc"
[runtimes.runc]
path = %q
[network]
cni_conf_dir = %q
cni_bin_dir = "/usr/lib/cni"
[nri]
enabled = false
`, b.podRuntime, conf))
	if err != nil {
		return nil, err
	}
	c := &cluster{column: column, daemon: &node.daemon, socket: node.socket}
	c.helpers = func() []int {
		keeper, err := node.keeper()
		if err != nil {
			return nil
		}
		return []int{keeper}
	}
	c.end = func(ctx context.Context) {
		node.close(ctx)
		if link != "" {
			removeLink(ctx, link)
		}
	}
	if err := c.within(name); err != nil {
		return nil, err
	}
	if err := b.openPods(ctx, c); err != nil {
		return c, err
	}
	keeper, err := node.keeper()
	if err != nil {
		return c, err
	}
	return c, c.group.follow(keeper)
}

// follow counts the cgroup of a process too, where it has gone to another.
func (a *accounts) follow(pid int) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) < 3 || part[1] != "" && !strings.Contains(part[1], "cpuacct") || part[1] == "" && cgroupRoot() != "/sys/fs/cgroup" {
			continue
		}
		if dir := filepath.Join(cgroupRoot(), part[2]); !strings.HasPrefix(dir, a.dirs[0]) {
			a.dirs = append(a.dirs, dir)
		}
	}
	return nil
}

// openPods starts a cluster, gives it the images and warms it.
func (b *bench) openPods(ctx context.Context, c *cluster, archives ...string) error {
	if err := c.start(); err != nil {
		return err
	}
	var err error
	cgroup := "/" + filepath.Base(c.group.dirs[0]) + "/pods"
	if c.kubelet, err = newKubelet(c.socket, cgroup, filepath.Join(b.place.dir, "pod-logs", c.column)); err != nil {
		return err
	}
	err = c.poll(ctx, c.column, func(ctx context.Context) error {
		_, err := os.Stat(c.socket)
		return err
	})
	if err != nil {
		return err
	}
	for _, archive := range append(archives, b.first) {
		ctr := filepath.Join(b.peerDir, "ctr")
		if _, err := output(ctx, nil, ctr, "--address", c.socket, "--namespace", "k8s.io", "images", "import", "--snapshotter", "overlayfs", archive); err != nil {
			return err
		}
	}
	for range 3 {
		w, err := c.up(ctx)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, tail(c.log))
		}
		if err := errors.Join(c.exec(ctx, w, "true"), c.down(ctx, w)); err != nil {
			return err
		}
	}
	c.taken("", "", results{})
	return nil
}

// closePods ends a cluster with all that is its.
func (c *cluster) close(ctx context.Context) {
	if c.kubelet != nil {
		c.clear(ctx)
		c.kubelet.close()
	}
	c.end(ctx)
	for range 20 { // what was killed has its cgroup for a moment more
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(c.group.dirs[0]))
		for _, part := range []string{"pods", "daemon", ""} {
			for _, group := range append(groups, c.group.dirs[0]) {
				_ = os.Remove(filepath.Join(group, part))
			}
		}
		if _, err := os.Stat(c.group.dirs[0]); err != nil || pause(ctx, 50*time.Millisecond) != nil {
			return
		}
	}
}

func removeLink(ctx context.Context, link string) {
	_, _ = output(ctx, nil, "ip", "link", "delete", link) // there only if a pod was
}

// pauseImage writes an archive of an image that has only the program pause.
func (b *bench) pauseImage() (string, error) {
	program, err := os.ReadFile(filepath.Join(b.peerDir, "pause"))
	if err != nil {
		return "", err
	}
	pack := func(files map[string][]byte, order ...string) ([]byte, error) {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		for _, name := range order {
			header := &tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name])), ModTime: time.Unix(1700000000, 0)}
			if err := w.WriteHeader(header); err != nil {
				return nil, err
			}
			if _, err := w.Write(files[name]); err != nil {
				return nil, err
			}
		}
		return out.Bytes(), w.Close()
	}
	layer, err := pack(map[string][]byte{"pause": program}, "pause")
	if err != nil {
		return "", err
	}
	digest := func(b []byte) string { sum := sha256.Sum256(b); return hex.EncodeToString(sum[:]) }
	config := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/pause"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}`, digest(layer))
	name := digest(config) + ".json"
	manifest := fmt.Appendf(nil, `[{"Config":%q,"RepoTags":["docker.io/bench/pause:1"],"Layers":["layer.tar"]}]`, name)
	image, err := pack(map[string][]byte{"manifest.json": manifest, name: config, "layer.tar": layer}, "manifest.json", name, "layer.tar")
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.place.dir, "pause.tar")
	return path, os.WriteFile(path, image, 0o600)
}
