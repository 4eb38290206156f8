package cri

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

const packaging = "../../packaging"

// door is where everything in packaging looks for the node.
const door = "unix:///run/berth/berth.sock"

// Each configuration of a node in packaging is one that a node starts with; it
// tells systemd when it answers.
func TestPackagedNodes(t *testing.T) {
	need(t, "crictl", "runc")
	for _, kind := range []string{"kubeadm", "k3s"} {
		t.Run(kind, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "bp-")
			must(t, err)
			defer os.RemoveAll(dir)
			notified, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify")})
			must(t, err)
			defer notified.Close()
			n := &node{dir: dir, state: filepath.Join(dir, "state"), socket: filepath.Join(dir, "s")}
			unit := settingsOf(t, filepath.Join(packaging, "kubeadm", "berth.service"))
			args := strings.Fields(unit["ExecStart"])
			if filepath.Base(args[0]) != "berth" || unit["Type"] != "notify" || unit["KillMode"] != "process" {
				t.Fatalf("the unit says %v", unit)
			}
			args = append(args[1:], "--root", filepath.Join(dir, "root"), "--state", n.state, "--socket", n.socket, "--config", filepath.Join(packaging, kind, "config.toml"))
			n.process = exec.Command(program, args...)
			var says bytes.Buffer
			n.process.Stderr = &says
			n.process.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
			n.process.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			must(t, n.process.Start())
			n.ended = make(chan struct{})
			go func() { _ = n.process.Wait(); close(n.ended) }()
			defer n.end(t)
			must(t, notified.SetReadDeadline(time.Now().Add(20*time.Second)))
			text := make([]byte, 64)
			if read, err := notified.Read(text); err != nil || string(text[:read]) != "READY=1" {
				t.Fatalf("systemd was told %q, %v", text[:read], err)
			}
			// There is no plugin's configuration yet, and pods wait for one.
			if out := n.must(t, "crictl", "info"); !strings.Contains(out, "NetworkPluginNotReady") {
				t.Error(out)
			}
		})
	}
}

// settingsOf reads a file of systemd's.
func settingsOf(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	all := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, set := strings.Cut(strings.TrimSpace(line), "="); set && !strings.HasPrefix(line, "#") {
			all[key] = value
		}
	}
	return all
}

// Whatever asks for a runtime in packaging is led to the node.
func TestPackagedClients(t *testing.T) {
	for file, keys := range map[string][]string{
		"kubeadm/kubeadm.yaml": {"criSocket", "containerRuntimeEndpoint"}, "kubeadm/join.yaml": {"criSocket"},
		"kubeadm/crictl.yaml": {"runtime-endpoint", "image-endpoint"}, "k3s/config.yaml": {"container-runtime-endpoint"},
	} {
		text, err := os.ReadFile(filepath.Join(packaging, file))
		must(t, err)
		found := map[string]any{}
		for part := range strings.SplitSeq(string(text), "\n---\n") {
			var document map[string]any
			must(t, yaml.Unmarshal([]byte(part), &document))
			flatten(document, found)
		}
		for _, key := range keys {
			if found[key] != door {
				t.Errorf("%s: %s is %v", file, key, found[key])
			}
		}
	}
	need(t, "crictl")
	out, err := exec.Command(filepath.Join(tools, "crictl"), "--config", filepath.Join(packaging, "kubeadm", "crictl.yaml"), "config", "--get", "runtime-endpoint").Output()
	if err != nil || strings.TrimSpace(string(out)) != door {
		t.Errorf("crictl reads %q: %v", out, err)
	}
	for _, kind := range []string{"kubeadm", "k3s"} {
		if unit := settingsOf(t, filepath.Join(packaging, kind, "10-berth.conf")); unit["After"] != "berth.service" {
			t.Errorf("%s: %v", kind, unit)
		}
	}
}

// flatten puts what is in nested maps into one.
func flatten(from, to map[string]any) {
	for key, value := range from {
		if inner, nested := value.(map[string]any); nested {
			flatten(inner, to)
			continue
		}
		to[key] = value
	}
}

// kubeadm takes its configuration, and finds nothing wrong with the runtime.
func TestKubeadm(t *testing.T) {
	if os.Getenv("KUBELET") == "" {
		t.Skip("skipped: kubeadm runs when test/kubelet/run.sh says so")
	}
	kubeadm, err := filepath.Abs("../../.cache/kubelet/kubeadm")
	must(t, err)
	for _, file := range []string{"kubeadm.yaml", "join.yaml"} {
		if out, err := exec.Command(kubeadm, "config", "validate", "--config", filepath.Join(packaging, "kubeadm", file)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
	for _, line := range []string{"ip link add kube0 type bridge", "ip addr add " + address + "/24 dev kube0", "ip link set kube0 up", "ip route add default dev kube0"} {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	defer func() { _ = exec.Command("ip", "link", "del", "kube0").Run() }()
	n := newNode(t, "", "")
	text, err := os.ReadFile(filepath.Join(packaging, "kubeadm", "kubeadm.yaml"))
	must(t, err)
	config := filepath.Join(n.dir, "kubeadm.yaml")
	must(t, os.WriteFile(config, bytes.ReplaceAll(text, []byte(door), []byte("unix://"+n.socket)), 0o600))
	cmd := exec.Command(kubeadm, "init", "phase", "preflight", "--config", config, "--ignore-preflight-errors=all")
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(kubeadm)+":"+tools+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "[WARNING CRI]") || strings.Contains(line, "ContainerRuntimeVersion") || strings.Contains(line, "[ERROR CRI]") {
			t.Error(line)
		}
	}
}
