package cri

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"berth/test/machine"
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
			n := &node{Node: machine.NewNode(t, program)}
			told := &net.UnixAddr{Name: filepath.Join(n.Dir, "notify")}
			notified, err := net.ListenUnixgram("unixgram", told)
			machine.Must(t, err)
			defer notified.Close()
			unit := settingsOf(t, filepath.Join(packaging, "kubeadm", "berth.service"))
			args := strings.Fields(unit["ExecStart"])
			if filepath.Base(args[0]) != "berth" || unit["Type"] != "notify" || unit["KillMode"] != "process" {
				t.Fatalf("the unit says %v", unit)
			}
			n.Argv = append(append([]string{program}, args[1:]...), "--root", n.Root, "--state", n.State, "--socket", n.Socket, "--config", filepath.Join(packaging, kind, "config.toml"))
			n.Env = append(n.Env, "NOTIFY_SOCKET="+told.Name)
			n.Ready = func() error {
				machine.Must(t, notified.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
				text := make([]byte, 64)
				read, err := notified.Read(text)
				if err == nil && string(text[:read]) != "READY=1" {
					t.Fatalf("systemd was told %q", text[:read])
				}
				return err
			}
			n.Start(t)
			t.Cleanup(func() { n.discard(t) })
			// There is no plugin's configuration yet, and pods wait for one.
			if out := n.must(t, "crictl", "info"); !strings.Contains(out, "NetworkPluginNotReady") {
				t.Error(out)
			}
		})
	}
}

// A node takes the socket that systemd listens on, which is systemd's before and
// after it.
func TestPackagedSocket(t *testing.T) {
	need(t)
	unit := settingsOf(t, filepath.Join(packaging, "kubeadm", "berth.socket"))
	if "unix://"+unit["ListenStream"] != door {
		t.Fatalf("the unit says %v", unit)
	}
	n := machine.NewNode(t, program)
	n.Socket = filepath.Join(n.Dir, "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: n.Socket})
	machine.Must(t, err)
	defer listener.Close()
	file, err := listener.File()
	machine.Must(t, err)
	defer file.Close()
	n.Files = []*os.File{file}
	argv := append(slices.Clip(n.Argv), "--socket", n.Socket)
	for range 2 {
		n.Argv = append([]string{"sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh"}, argv...)
		var says bytes.Buffer
		asks := exec.Command(program, "--socket", n.Socket, "ps") // perhaps before it starts
		asks.Stderr = &says
		machine.Must(t, asks.Start())
		n.Start(t)
		n.Argv = argv
		if err := asks.Wait(); err != nil {
			t.Errorf("%v: %s", err, says.String())
		}
		n.End(t)
		info, err := os.Lstat(n.Socket)
		if err != nil || info.Mode().Perm()&0o020 != 0 {
			t.Errorf("the node has changed what is systemd's: %v, %v", info, err)
		}
	}
	n.KillHelper(t, "keeper")
}

// settingsOf reads a file of systemd's.
func settingsOf(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	machine.Must(t, err)
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
		machine.Must(t, err)
		found := map[string]any{}
		for part := range strings.SplitSeq(string(text), "\n---\n") {
			var document map[string]any
			machine.Must(t, yaml.Unmarshal([]byte(part), &document))
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
	machine.Must(t, err)
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
	machine.Must(t, err)
	config := filepath.Join(n.Dir, "kubeadm.yaml")
	machine.Must(t, os.WriteFile(config, bytes.ReplaceAll(text, []byte(door), []byte("unix://"+n.Socket)), 0o600))
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
