package cri

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/test/cri/images"
	"berth/test/machine"
)

// node is a berth node in folders of its own, a registry with the images
// beside it.
type node struct {
	*machine.Node
	nri      string   // its socket
	settings string   // further lines of its configuration
	runtime  string   // the program; runc when empty
	plugins  string   // folder of CNI's programs; Debian's when empty
	disks    []string // what is mounted for the test
	registry machine.Daemon
}

// busybox is an image of those that critest names.
const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"

// bridge has pods connected by CNI's plugins, as Debian has them.
const bridge = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [
	{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
	 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
	{"type": "portmap", "capabilities": {"portMappings": true}}]}`

// newNode starts a node that takes the images that critest names from a
// registry of ours. cni is its configuration of CNI; with "" pods are on the
// node's own network. settings are further lines of its configuration file.
// What furnish does to it is done before it starts.
func newNode(t testing.TB, cni, settings string, furnish ...func(*node)) *node {
	t.Helper()
	need(t, "crictl", "critest", "runc", "busybox", "actor")
	n := &node{Node: machine.NewNode(t, program), settings: settings}
	n.nri = filepath.Join(n.Dir, "nri.sock")
	n.Ready = func() error { _, err := n.try("crictl", "version"); return err }
	t.Cleanup(func() { n.discard(t) })
	n.mirror(t, n.serveImages(t))
	machine.Must(t, os.MkdirAll(filepath.Join(n.Dir, "cni"), 0o700))
	if cni != "" {
		machine.Must(t, os.WriteFile(filepath.Join(n.Dir, "cni", "10-pods.conflist"), []byte(cni), 0o600))
	}
	for _, f := range furnish {
		f(n)
	}
	n.Configure(t, n.config())
	n.Start(t)
	return n
}

// serveImages runs a registry that has all images and returns its URL.
func (n *node) serveImages(t testing.TB) string {
	t.Helper()
	made, err := images.Make(t.Context(), tools)
	machine.Must(t, err)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	machine.Must(t, err)
	addr := free.Addr().String()
	machine.Must(t, free.Close())
	n.registry = machine.Daemon{
		Argv: []string{program, "registry", "--addr", addr, "--dir", filepath.Join(n.Dir, "registry")}, Log: filepath.Join(n.Dir, "registry.log"),
		Ready: func() error {
			conn, err := net.Dial("tcp", addr)
			if err == nil {
				err = conn.Close()
			}
			return err
		},
	}
	n.registry.Start(t)
	machine.Must(t, images.Push(t.Context(), "http://"+addr, made))
	return "http://" + addr
}

// mirror leads the names of the images to a registry.
func (n *node) mirror(t testing.TB, url string) {
	t.Helper()
	for _, host := range images.Hosts() {
		dir := filepath.Join(n.Dir, "certs.d", host)
		machine.Must(t, os.MkdirAll(dir, 0o700))
		machine.Must(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), fmt.Appendf(nil, "server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", url, url), 0o600))
	}
}

// config is the node's configuration file.
func (n *node) config() string {
	return fmt.Sprintf(`
runtime = "runc"
certs_dirs = [%[1]q]
%[2]s
[runtimes.runc]
path = %[3]q
[network]
cni_conf_dir = %[4]q
cni_bin_dir = %[6]q
cni_timeout = 5
[nri]
socket = %[5]q
`, filepath.Join(n.Dir, "certs.d"), n.settings, cmp.Or(n.runtime, filepath.Join(tools, "runc")), filepath.Join(n.Dir, "cni"), n.nri, cmp.Or(n.plugins, "/usr/lib/cni"))
}

// try runs a client and returns what it prints.
func (n *node) try(name string, args ...string) (string, error) {
	path := filepath.Join(tools, name)
	if name == "berth" {
		path = program
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "CONTAINER_RUNTIME_ENDPOINT=unix://"+n.Socket, "IMAGE_SERVICE_ENDPOINT=unix://"+n.Socket, "BERTH_SOCKET="+n.Socket)
	var says bytes.Buffer
	cmd.Stderr = &says
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out, says.Bytes())
	}
	return strings.TrimSpace(string(out)), err
}

// must runs a client that has to succeed and returns what it prints.
func (n *node) must(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := n.try(name, args...)
	machine.Must(t, err)
	return out
}

// file writes a value as JSON for crictl and returns its name.
func (n *node) file(t testing.TB, name string, value any) string {
	t.Helper()
	body, err := json.Marshal(value)
	machine.Must(t, err)
	path := filepath.Join(n.Dir, name)
	machine.Must(t, os.WriteFile(path, body, 0o600))
	return path
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

// discard removes the pods, ends the node and its keeper and looks for what is
// left of them.
func (n *node) discard(t testing.TB) {
	if t.Failed() {
		t.Logf("log of the node:\n%s", n.Says())
	}
	if n.Runs() {
		if out, err := n.try("crictl", "rmp", "--force", "--all"); err != nil {
			t.Errorf("remove the pods: %v\n%s", err, out)
		}
		machine.Until(t, "nothing of the pods is left", func() error { return n.left(t) })
		n.End(t)
		n.KillHelper(t, "keeper")
	}
	n.registry.Kill()
	for _, dir := range n.disks {
		machine.Unmount(t, dir)
	}
	if os.Getenv("KEEP") == "" {
		if err := os.RemoveAll(n.Dir); err != nil {
			t.Error(err)
		}
	}
}

// Mounts are those below the node's folder, but for what waits for pods and the
// disks that it was given.
func (n *node) Mounts(t testing.TB) []string {
	t.Helper()
	return slices.DeleteFunc(n.Node.Mounts(t), func(target string) bool { return slices.Contains(n.disks, target) })
}

// left says what there still is of pods.
func (n *node) left(t testing.TB) error {
	var all []string
	for _, pattern := range []string{n.State + "/pods/*", n.State + "/netns/*", n.State + "/containers/*", n.State + "/runtime/*/*"} {
		found, _ := filepath.Glob(pattern)
		all = append(all, found...)
	}
	all = append(append(all, n.Mounts(t)...), n.Cgroups()...)
	ready, _ := filepath.Glob(n.State + "/kernelns/.new-*") // kept for pods to come
	if links := machine.Lines("ip", "-o", "link", "show", "type", "veth"); len(links) > len(ready) {
		all = append(all, links...)
	}
	if netns, _ := filepath.Glob("/run/netns/*"); len(netns) > len(ready) {
		all = append(all, netns...)
	}
	if leases, _ := filepath.Glob("/var/lib/cni/networks/*/[0-9]*"); len(leases) > 0 {
		all = append(all, leases...)
	}
	if len(all) > 0 {
		return fmt.Errorf("left:\n%s", strings.Join(all, "\n"))
	}
	return nil
}
