package cri

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/test/machine"
)

// cluster is a whole Kubernetes of one machine, whose runtime is a node of ours.
// The control plane is no pods: there is nothing of Kubernetes but its programs.
type cluster struct {
	*node
	programs string
	kubelet  *exec.Cmd
	spans    *spans
}

// address is what the machine is called by.
const address = "10.77.0.1"

// newCluster starts it; test/kubelet/build.sh makes the programs.
func newCluster(t *testing.T, cni string) *cluster {
	t.Helper()
	if os.Getenv("KUBELET") == "" {
		t.Skip("skipped: a whole Kubernetes runs when test/kubelet/run.sh says so")
	}
	programs, err := filepath.Abs("../../.cache/kubelet")
	machine.Must(t, err)
	spans := newSpans(t)
	c := &cluster{programs: programs, spans: spans}
	c.node = newNode(t, cni, fmt.Sprintf("otlp = %q\n[cri]\npinned_images = [\"gcr.io/k8s-staging-cri-tools/test-image-3*\"]\n", spans.url))
	for _, line := range []string{
		"ip link add kube0 type bridge", "ip addr add " + address + "/24 dev kube0", "ip link set kube0 up", "ip route add default dev kube0",
		"mkdir -p /var/log/containers", "mount -t tmpfs logs /var/log/containers", "mkdir " + c.path("static"),
		"openssl genrsa -out " + c.path("sa.key") + " 2048",
	} {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	t.Cleanup(func() {
		_ = exec.Command("ip", "link", "del", "kube0").Run()
		_ = syscall.Unmount("/var/log/containers", 0)
	})
	c.controlPlane(t)
	c.startKubelet(t)
	return c
}

func (c *cluster) path(name string) string { return filepath.Join(c.Dir, name) }

// run starts a program of Kubernetes; it ends with the test.
func (c *cluster) run(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	log, err := os.OpenFile(c.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	machine.Must(t, err)
	defer log.Close()
	cmd := exec.Command(filepath.Join(c.programs, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	machine.Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s:\n%s", name, text[max(0, len(text)-6000):])
		}
	})
	return cmd
}

func (c *cluster) controlPlane(t *testing.T) {
	t.Helper()
	machine.Must(t, os.WriteFile(c.path("tokens"), []byte("secret,admin,admin,system:masters\n"), 0o600))
	machine.Must(t, os.WriteFile(c.path("kubeconfig"), []byte(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: secret}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`), 0o600))
	c.run(t, "etcd", "--data-dir", c.path("etcd"), "--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync")
	c.run(t, "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--cert-dir="+c.path("certs"), "--advertise-address="+address,
		"--service-cluster-ip-range=10.96.0.0/16", "--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+c.path("sa.key"),
		"--service-account-signing-key-file="+c.path("sa.key"), "--token-auth-file="+c.path("tokens"), "--authorization-mode=Node,RBAC",
		"--kubelet-preferred-address-types=InternalIP", "--allow-privileged=true", "--feature-gates=ContainerStopSignals=true")
	machine.UntilFor(t, patience, "the API answers", func() error { _, err := c.kubectl("get", "--raw=/readyz"); return err })
	c.run(t, "kube-controller-manager", "--kubeconfig="+c.path("kubeconfig"), "--service-account-private-key-file="+c.path("sa.key"),
		"--root-ca-file="+c.path("certs/apiserver.crt"), "--leader-elect=false", "--use-service-account-credentials=false")
	c.run(t, "kube-scheduler", "--kubeconfig="+c.path("kubeconfig"), "--leader-elect=false")
}

// startKubelet starts it, or starts it anew after a kill.
func (c *cluster) startKubelet(t *testing.T) {
	t.Helper()
	if c.kubelet != nil {
		_ = c.kubelet.Process.Kill()
		_ = c.kubelet.Wait()
	}
	machine.Must(t, os.WriteFile(c.path("kubelet.yaml"), []byte(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://`+c.Socket+`
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
podLogsDir: `+c.path("podlogs")+`
staticPodPath: `+c.path("static")+`
fileCheckFrequency: 1s
evictionHard: {memory.available: 50Mi, nodefs.available: 1Mi, imagefs.available: 1Mi}
tracing: {endpoint: "127.0.0.1:4317", samplingRatePerMillion: 1000000}
featureGates: {EventedPLEG: true, PodAndContainerStatsFromCRI: true, CRIListStreaming: true, ContainerStopSignals: true}
imageGCHighThresholdPercent: 2
imageGCLowThresholdPercent: 1
imageMinimumGCAge: 1ms
`), 0o600))
	c.kubelet = c.run(t, "kubelet", "--config="+c.path("kubelet.yaml"), "--kubeconfig="+c.path("kubeconfig"), "--root-dir="+c.path("kubelet"),
		"--node-ip="+address, "--hostname-override=one", "--v=4")
	machine.UntilFor(t, patience, "the node is ready", func() error {
		_, err := c.kubectl("wait", "--for=condition=Ready", "node/one", "--timeout=1s")
		return err
	})
}

// kubectl runs it and returns what it prints.
func (c *cluster) kubectl(args ...string) (string, error) { return c.kubectlWith("", args...) }

func (c *cluster) kubectlWith(stdin string, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(c.programs, "kubectl"), append([]string{"--kubeconfig", c.path("kubeconfig")}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var says bytes.Buffer
	cmd.Stderr = &says
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w\n%s%s", strings.Join(args, " "), err, out, says.Bytes())
	}
	return strings.TrimSpace(string(out)), err
}

func (c *cluster) mustKubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := c.kubectlWith(stdin, args...)
	machine.Must(t, err)
	return out
}

// says waits until kubectl prints what fits.
func (c *cluster) says(t *testing.T, what, pattern string, args ...string) {
	t.Helper()
	fits := regexp.MustCompile(pattern)
	machine.UntilFor(t, patience, what, func() error {
		out, err := c.kubectl(args...)
		if err == nil && !fits.MatchString(out) {
			err = fmt.Errorf("kubectl %s said %q, want %s", strings.Join(args, " "), out, pattern)
		}
		return err
	})
}

// field is how kubectl prints something of a pod.
func field(pod, path string) []string {
	return []string{"get", "pod", pod, "-o", "jsonpath={.status." + path + "}"}
}

// complaints are what kubelet's log has against the runtime, but for what it is
// to complain of: that what it asks for has just gone, that an answer of a runtime
// breaks off which was killed, and what pods of the test ask for.
func (c *cluster) complaints() error {
	text, err := os.ReadFile(c.path("kubelet.log"))
	if err != nil {
		return err
	}
	var all []error
	expected := regexp.MustCompile(`code = (NotFound|Unavailable|Canceled)|error reading from server|/nothere`)
	for line := range strings.Lines(string(text)) {
		turnedAway := strings.Contains(line, "dial unix "+c.Socket)
		if turnedAway || regexp.MustCompile(`^[EW].*(rpc error|remote_runtime|remote_image|vented PLEG)`).MatchString(line) && !expected.MatchString(line) {
			all = append(all, errors.New(strings.TrimSpace(line)))
		}
	}
	return errors.Join(all...)
}

// twins are containers that run more than once in a pod.
func (c *cluster) twins() error {
	out, err := c.try("crictl", "ps", "--output", "json")
	if err != nil {
		return err
	}
	var running struct {
		Containers []struct {
			PodSandboxID string
			Metadata     struct{ Name string }
		}
	}
	if err := json.Unmarshal([]byte(out), &running); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, container := range running.Containers {
		name := container.PodSandboxID + " " + container.Metadata.Name
		if seen[name] {
			return fmt.Errorf("two run of %s", name)
		}
		seen[name] = true
	}
	return nil
}

// TestHold keeps a cluster for trying things by hand.
func TestHold(t *testing.T) {
	network := os.Getenv("HOLD")
	if network == "" {
		t.Skip("skipped: a cluster is kept for trying things by hand when HOLD says cni or own")
	}
	c := newCluster(t, map[string]string{"cni": bridge}[network])
	t.Logf("nsenter -n -m -t %d env KUBECONFIG=%s CONTAINER_RUNTIME_ENDPOINT=unix://%s PATH=%s:%s:$PATH bash; it ends when %[2]s is removed",
		os.Getpid(), c.path("kubeconfig"), c.Socket, c.programs, tools)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range tick.C {
		if _, err := os.Stat(c.path("kubeconfig")); err != nil {
			return
		}
	}
}
