package cri

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/test/cri/images"
)

// node is a berth node in folders of its own, a registry with the images
// beside it.
type node struct {
	dir, root, state, socket string
	nri                      string   // its socket
	settings                 string   // further lines of its configuration
	runtime                  string   // the program; runc when empty
	plugins                  string   // folder of CNI's programs; Debian's when empty
	disks                    []string // what is mounted for the test

	process, registry *exec.Cmd
	ended             chan struct{}
}

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
	// Not t.TempDir: the names of tests are too long for a socket.
	dir, err := os.MkdirTemp("", "bk-")
	must(t, err)
	must(t, os.Chmod(dir, 0o711)) //nolint:gosec // containers with shifted owners reach their files through it
	n := &node{dir: dir, root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state"), nri: filepath.Join(dir, "nri.sock"), settings: settings}
	n.socket = filepath.Join(n.state, "berth.sock")
	t.Cleanup(func() { n.discard(t) })
	n.mirror(t, n.serveImages(t))
	must(t, os.MkdirAll(filepath.Join(dir, "cni"), 0o700))
	if cni != "" {
		must(t, os.WriteFile(filepath.Join(dir, "cni", "10-pods.conflist"), []byte(cni), 0o600))
	}
	for _, f := range furnish {
		f(n)
	}
	n.start(t)
	return n
}

// serveImages runs a registry that has all images and returns its URL.
func (n *node) serveImages(t testing.TB) string {
	t.Helper()
	made, err := images.Make(t.Context(), tools)
	must(t, err)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := free.Addr().String()
	must(t, free.Close())
	n.registry = exec.Command(program, "registry", "--addr", addr, "--dir", filepath.Join(n.dir, "registry"))
	n.registry.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, n.registry.Start())
	until(t, "the registry answers", func() error {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	must(t, images.Push(t.Context(), "http://"+addr, made))
	return "http://" + addr
}

// mirror leads the names of the images to a registry.
func (n *node) mirror(t testing.TB, url string) {
	t.Helper()
	for _, host := range images.Hosts() {
		dir := filepath.Join(n.dir, "certs.d", host)
		must(t, os.MkdirAll(dir, 0o700))
		must(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), fmt.Appendf(nil, "server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", url, url), 0o600))
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
`, filepath.Join(n.dir, "certs.d"), n.settings, cmp.Or(n.runtime, filepath.Join(tools, "runc")), filepath.Join(n.dir, "cni"), n.nri, cmp.Or(n.plugins, "/usr/lib/cni"))
}

// start runs the node until it answers.
func (n *node) start(t testing.TB) {
	t.Helper()
	config := filepath.Join(n.dir, "config.toml")
	must(t, os.WriteFile(config, []byte(n.config()), 0o600))
	log, err := os.OpenFile(filepath.Join(n.dir, "node.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer log.Close()
	n.process = exec.Command(program, "node", "--root", n.root, "--state", n.state, "--socket", n.socket, "--config", config)
	n.process.Stdout, n.process.Stderr = log, log
	n.process.Env = append(os.Environ(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	n.process.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	must(t, n.process.Start())
	ended := make(chan struct{})
	n.ended = ended
	process := n.process
	go func() { _ = process.Wait(); close(ended) }()
	until(t, "the node answers", func() error {
		select {
		case <-ended:
			t.Fatalf("the node ended: %s\n%s", process.ProcessState, n.log())
		default:
		}
		_, err := n.try("crictl", "version")
		return err
	})
}

// killNode ends the node without giving it a chance.
func (n *node) killNode() {
	_ = n.process.Process.Kill()
	<-n.ended
}

// killKeeper does so with its keeper.
func (n *node) killKeeper(t testing.TB) {
	t.Helper()
	pid := n.pid("keeper")
	if pid <= 1 {
		t.Fatal("there is no keeper")
	}
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	until(t, "the keeper has gone", func() error {
		if n.pid("keeper") == pid && syscall.Kill(pid, 0) == nil {
			return errors.New("it is there")
		}
		return nil
	})
}

func (n *node) pid(role string) int {
	text, _ := os.ReadFile(filepath.Join(n.state, role+".pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// try runs a client and returns what it prints.
func (n *node) try(name string, args ...string) (string, error) {
	path := filepath.Join(tools, name)
	if name == "berth" {
		path = program
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "CONTAINER_RUNTIME_ENDPOINT=unix://"+n.socket, "IMAGE_SERVICE_ENDPOINT=unix://"+n.socket, "BERTH_SOCKET="+n.socket)
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
	must(t, err)
	return out
}

// file writes a value as JSON for crictl and returns its name.
func (n *node) file(t testing.TB, name string, value any) string {
	t.Helper()
	body, err := json.Marshal(value)
	must(t, err)
	path := filepath.Join(n.dir, name)
	must(t, os.WriteFile(path, body, 0o600))
	return path
}

func (n *node) log() string {
	text, _ := os.ReadFile(filepath.Join(n.dir, "node.log"))
	keeper, _ := os.ReadFile(filepath.Join(n.state, "keeper.log"))
	return string(text[max(0, len(text)-8000):]) + "keeper:\n" + string(keeper[max(0, len(keeper)-4000):])
}

// discard removes the pods, ends the node and its keeper and looks for what is
// left of them.
func (n *node) discard(t testing.TB) {
	if t.Failed() {
		t.Logf("log of the node:\n%s", n.log())
	}
	if n.process != nil {
		if out, err := n.try("crictl", "rmp", "--force", "--all"); err != nil {
			t.Errorf("remove the pods: %v\n%s", err, out)
		}
		until(t, "nothing of the pods is left", n.left)
		n.end(t)
	}
	if n.registry != nil {
		_ = n.registry.Process.Kill()
		_ = n.registry.Wait()
	}
	for _, dir := range n.cgroups() {
		_ = os.Remove(dir)
	}
	for _, dir := range n.disks {
		n.unmountAll(t, dir)
	}
	if os.Getenv("KEEP") == "" {
		if err := os.RemoveAll(n.dir); err != nil {
			t.Error(err)
		}
	}
}

func (n *node) end(t testing.TB) {
	_ = n.process.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.ended:
	case <-time.After(15 * time.Second):
		_ = n.process.Process.Signal(syscall.SIGQUIT) // it says where it hangs
		<-n.ended
		t.Errorf("the node did not end within 15 s of TERM:\n%s", n.log())
	}
	if pid := n.pid("keeper"); pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// instance is what the node calls its bridge, its rules and its cgroup.
func (n *node) instance() string {
	sum := sha256.Sum256([]byte(n.state))
	return "berth-" + hex.EncodeToString(sum[:4])
}

// left says what there still is of pods.
func (n *node) left() error {
	var all []string
	for _, pattern := range []string{n.state + "/pods/*", n.state + "/netns/*", n.state + "/containers/*", n.state + "/runtime/*/*"} {
		found, _ := filepath.Glob(pattern)
		all = append(all, found...)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		target := strings.Fields(line)[4]
		if strings.HasPrefix(target, n.dir+"/") && !strings.Contains(target, "/.new-") && !slices.Contains(n.disks, target) {
			all = append(all, "mount "+target)
		}
	}
	for _, dir := range n.cgroups() {
		if filepath.Base(filepath.Dir(dir)) == n.instance() {
			all = append(all, dir)
		}
	}
	ready, _ := filepath.Glob(n.state + "/kernelns/.new-*") // kept for pods to come
	links, _ := exec.Command("ip", "-o", "link", "show", "type", "veth").Output()
	if strings.Count(string(links), "\n") > len(ready) {
		all = slices.AppendSeq(all, strings.Lines(string(links)))
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

// cgroups are the node's, in every hierarchy, the deepest first.
func (n *node) cgroups() []string {
	var all []string
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + n.instance())
	for _, root := range append(roots, "/sys/fs/cgroup/"+n.instance()) {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
	}
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) })
	return all
}
