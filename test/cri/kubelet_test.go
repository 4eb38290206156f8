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
)

// cluster is a whole Kubernetes of one machine, whose runtime is a node of ours.
// The control plane is no pods: there is nothing of Kubernetes but its programs.
type cluster struct {
	*node
	programs string
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
	must(t, err)
	c := &cluster{node: newNode(t, cni, ""), programs: programs}
	for _, line := range []string{
		"ip link add kube0 type bridge", "ip addr add " + address + "/24 dev kube0", "ip link set kube0 up", "ip route add default dev kube0",
		"mkdir -p /var/log/containers", "mount -t tmpfs logs /var/log/containers",
		"openssl genrsa -out " + c.dir + "/sa.key 2048",
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
	c.kubelet(t)
	return c
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

// run starts a program of Kubernetes; it ends with the test.
func (c *cluster) run(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	log, err := os.Create(c.path(name + ".log"))
	must(t, err)
	defer log.Close()
	cmd := exec.Command(filepath.Join(c.programs, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, cmd.Start())
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
	must(t, os.WriteFile(c.path("tokens"), []byte("secret,admin,admin,system:masters\n"), 0o600))
	must(t, os.WriteFile(c.path("kubeconfig"), []byte(`apiVersion: v1
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
		"--kubelet-preferred-address-types=InternalIP", "--allow-privileged=true")
	patient(t, "the API answers", func() error { _, err := c.kubectl("get", "--raw=/readyz"); return err })
	c.run(t, "kube-controller-manager", "--kubeconfig="+c.path("kubeconfig"), "--service-account-private-key-file="+c.path("sa.key"),
		"--root-ca-file="+c.path("certs/apiserver.crt"), "--leader-elect=false", "--use-service-account-credentials=false")
	c.run(t, "kube-scheduler", "--kubeconfig="+c.path("kubeconfig"), "--leader-elect=false")
}

func (c *cluster) kubelet(t *testing.T) {
	t.Helper()
	must(t, os.WriteFile(c.path("kubelet.yaml"), []byte(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://`+c.socket+`
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
podLogsDir: `+c.path("podlogs")+`
evictionHard: {memory.available: 50Mi, nodefs.available: 1Mi, imagefs.available: 1Mi}
imageGCHighThresholdPercent: 100
featureGates: {EventedPLEG: true, PodAndContainerStatsFromCRI: true, CRIListStreaming: true}
`), 0o600))
	c.run(t, "kubelet", "--config="+c.path("kubelet.yaml"), "--kubeconfig="+c.path("kubeconfig"), "--root-dir="+c.path("kubelet"),
		"--node-ip="+address, "--hostname-override=one", "--v=2")
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
	must(t, err)
	return out
}

// patient is until with the patience that a cluster takes.
func patient(t *testing.T, what string, objection func() error) {
	t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	late := time.After(2 * time.Minute)
	for {
		err := objection()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within two minutes: %v", what, err)
		}
	}
}

// web is a Deployment with every kind of probe.
const web = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {greeting: hello from a volume}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      initContainers:
      - {name: first, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sh, -c, "echo made > /shared/file"], volumeMounts: [{name: shared, mountPath: /shared}]}
      containers:
      - name: nginx
        image: registry.k8s.io/e2e-test-images/nginx:1.14-2
        env: [{name: ROUND, value: "ONE"}]
        ports: [{containerPort: 80}]
        resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
        startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
        livenessProbe: {exec: {command: [cat, /shared/file]}, periodSeconds: 1, timeoutSeconds: 5}
        volumeMounts: [{name: shared, mountPath: /shared}, {name: settings, mountPath: /settings}]
      volumes: [{name: shared, emptyDir: {}}, {name: settings, configMap: {name: settings}}]
`

// other is pods for the rest of what kubelet asks of a runtime.
const other = `
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sh, -c, "echo last words > /dev/termination-log; exit 3"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: mapped}
spec:
  hostUsers: false
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sleep, "1000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: several}
spec:
  shareProcessNamespace: true
  securityContext: {runAsUser: 1000, runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
  - {name: a, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sleep, "1234"], lifecycle: {postStart: {exec: {command: [touch, /tmp/began]}}}, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}
  - {name: b, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sleep, "1000"], volumeMounts: [{name: i, mountPath: /image}]}
  volumes: [{name: i, image: {reference: "gcr.io/k8s-staging-cri-tools/test-image-1:latest"}}]
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  hostNetwork: true
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sleep, "1000"]}]
`

// A real kubelet runs its pods on Berth.
func TestKubelet(t *testing.T) {
	c := newCluster(t, bridge)
	patient(t, "the node is ready", func() error {
		_, err := c.kubectl("wait", "--for=condition=Ready", "node/one", "--timeout=1s")
		return err
	})
	patient(t, "there is a service account", func() error { _, err := c.kubectl("get", "serviceaccount", "default"); return err })
	c.mustKubectl(t, web, "apply", "-f", "-")
	c.mustKubectl(t, other, "apply", "-f", "-")
	c.mustKubectl(t, "", "rollout", "status", "deployment/web", "--timeout=120s")
	t.Run("commands", c.commands)
	t.Run("other pods", c.otherPods)
	t.Run("numbers", c.numbers)
	t.Run("the runtime restarts", c.restarts)
	c.mustKubectl(t, "", "set", "env", "deployment/web", "ROUND=TWO")
	c.mustKubectl(t, "", "rollout", "status", "deployment/web", "--timeout=120s")
	c.mustKubectl(t, "", "delete", "deployment,pod", "--all", "--timeout=60s")
	patient(t, "nothing of the pods is left", c.left)
}

// commands are what people do to pods.
func (c *cluster) commands(t *testing.T) {
	if out := c.mustKubectl(t, "", "exec", "deploy/web", "-c", "nginx", "--", "sh", "-c", "cat /settings/greeting /shared/file; echo $ROUND"); out != "hello from a volumemade\nONE" {
		t.Errorf("exec said %q", out)
	}
	if out := c.mustKubectl(t, "some words", "exec", "-i", "deploy/web", "-c", "nginx", "--", "tr", "a-z", "A-Z"); out != "SOME WORDS" {
		t.Errorf("exec said %q", out)
	}
	if _, err := c.kubectl("exec", "deploy/web", "-c", "nginx", "--", "sh", "-c", "exit 7"); err == nil || !strings.Contains(err.Error(), "exit code 7") {
		t.Errorf("exec that fails: %v", err)
	}
	if out := c.mustKubectl(t, "", "logs", "deploy/web", "-c", "nginx"); !strings.Contains(out, "answers on port 80") {
		t.Errorf("logs are %q", out)
	}
	forward := c.run(t, "kubectl", "--kubeconfig", c.path("kubeconfig"), "port-forward", "deploy/web", "18080:80")
	patient(t, "the port answers", func() error {
		out, err := exec.Command("curl", "-fsS", "http://127.0.0.1:18080/").Output()
		if err == nil && !strings.Contains(string(out), "It works!") {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
	_ = forward.Process.Signal(os.Interrupt)
}

func (c *cluster) otherPods(t *testing.T) {
	patient(t, "a pod that crashes is started again", func() error {
		out, err := c.kubectl("get", "pod", "crash", "-o", "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].lastState.terminated.exitCode} {.status.containerStatuses[0].lastState.terminated.reason} {.status.containerStatuses[0].lastState.terminated.message}")
		if err == nil && !regexp.MustCompile(`^[1-9]\d* 3 Error last words`).MatchString(out) {
			err = errors.New(out)
		}
		return err
	})
	c.mustKubectl(t, "", "wait", "--for=condition=Ready", "pod/mapped", "pod/several", "pod/host", "--timeout=60s")
	if out := c.mustKubectl(t, "", "exec", "mapped", "--", "cat", "/proc/self/uid_map"); strings.Fields(out)[1] == "0" {
		t.Errorf("the users of a pod of its own are %s", out)
	}
	if out := c.mustKubectl(t, "", "exec", "several", "-c", "b", "--", "sh", "-c", "id -u; pgrep -f '^sleep 1234'; cat /image/name"); !regexp.MustCompile(`^1000\n\d+\n1$`).MatchString(out) {
		t.Errorf("containers that share processes see %q", out)
	}
	if out := c.mustKubectl(t, "", "exec", "several", "-c", "a", "--", "ls", "/tmp/began"); out != "/tmp/began" {
		t.Errorf("after the start: %q", out)
	}
	if out := c.mustKubectl(t, "", "get", "pod", "host", "-o", "jsonpath={.status.podIP}"); out != address {
		t.Errorf("a pod on the host's network is at %s", out)
	}
}

// numbers are what kubelet tells of pods by the runtime alone, without cAdvisor.
func (c *cluster) numbers(t *testing.T) {
	patient(t, "statistics of a pod", func() error {
		out, err := c.kubectl("get", "--raw", "/api/v1/nodes/one/proxy/stats/summary")
		if err != nil {
			return err
		}
		var summary struct {
			Pods []struct {
				PodRef  struct{ Name string }
				CPU     struct{ UsageCoreNanoSeconds uint64 }
				Memory  struct{ WorkingSetBytes uint64 }
				Network struct{ RxBytes uint64 }
			}
		}
		if err := json.Unmarshal([]byte(out), &summary); err != nil {
			return err
		}
		for _, p := range summary.Pods {
			if strings.HasPrefix(p.PodRef.Name, "web-") && p.CPU.UsageCoreNanoSeconds > 0 && p.Memory.WorkingSetBytes > 0 && p.Network.RxBytes > 0 {
				return nil
			}
		}
		return errors.New(out)
	})
	for path, want := range map[string]string{
		"/metrics/cadvisor": `container_memory_working_set_bytes\{container="nginx",.*pod="web-`,
		"/metrics":          `kubelet_evented_pleg_connection_success_count(\{\})? [1-9]`,
	} {
		patient(t, path, func() error {
			out, err := c.kubectl("get", "--raw", "/api/v1/nodes/one/proxy"+path)
			if err == nil && !regexp.MustCompile(want).MatchString(out) {
				err = fmt.Errorf("there is no %s in %d bytes", want, len(out))
			}
			return err
		})
	}
}

// restarts kills the node: nobody but it is disturbed.
func (c *cluster) restarts(t *testing.T) {
	before := c.mustKubectl(t, "", "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name} {.items[*].status.containerStatuses[*].restartCount}")
	c.killNode()
	c.start(t)
	patient(t, "commands run again", func() error { _, err := c.kubectl("exec", "deploy/web", "--", "true"); return err })
	c.mustKubectl(t, "", "wait", "--for=condition=Ready", "pod", "-l", "app=web", "--timeout=60s")
	after := c.mustKubectl(t, "", "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name} {.items[*].status.containerStatuses[*].restartCount}")
	if before != after {
		t.Errorf("pods were %s, are %s", before, after)
	}
}
