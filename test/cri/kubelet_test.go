package cri

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"berth/test/machine"
)

// A real kubelet runs its pods on Berth, by CNI's plugins and on the node's own
// network.
func TestKubelet(t *testing.T) {
	for network, cni := range map[string]string{"cni": bridge, "own network": ""} {
		t.Run(network, func(t *testing.T) { testKubelet(t, cni) })
	}
}

func testKubelet(t *testing.T, cni string) {
	c := newCluster(t, cni)
	machine.UntilFor(t, patience, "there is a service account", func() error { _, err := c.kubectl("get", "serviceaccount", "default"); return err })
	c.mustKubectl(t, web, "apply", "-f", "-")
	c.mustKubectl(t, other, "apply", "-f", "-")
	c.mustKubectl(t, further, "apply", "-f", "-")
	c.mustKubectl(t, "", "rollout", "status", "deployment/web", "--timeout=120s")
	for _, n := range []string{"2", "3"} { // for a collection: it takes only what an earlier one has seen
		c.must(t, "crictl", "pull", "gcr.io/k8s-staging-cri-tools/test-image-"+n+":latest")
	}
	c.undisturbed(t, func() { c.startKubelet(t) })
	kubeletSince := time.Now()
	t.Run("commands", c.commands)
	t.Run("other pods", c.otherPods)
	t.Run("a pod with everything", c.everything)
	t.Run("pods that end", c.ends)
	t.Run("pods that cannot start", c.failures)
	t.Run("debug", c.debug)
	t.Run("resize", c.resize)
	t.Run("static pod", c.static)
	t.Run("stop signal", c.stopSignal)
	t.Run("numbers", c.numbers)
	t.Run("traces", c.traces)
	t.Run("no pod has a container twice", func(t *testing.T) { machine.Must(t, c.twins()) })
	t.Run("the runtime is killed", func(t *testing.T) { c.undisturbed(t, func() { c.Kill(); c.Start(t) }) })
	t.Run("the keeper is killed", func(t *testing.T) { c.undisturbed(t, func() { c.KillKeeper(t) }) })
	t.Run("the runtime is restarted", func(t *testing.T) { c.undisturbed(t, func() { c.End(t); c.Start(t) }) })
	t.Run("events are told again", c.events)
	c.mustKubectl(t, "", "set", "env", "deployment/web", "ROUND=TWO")
	c.mustKubectl(t, "", "rollout", "status", "deployment/web", "--timeout=120s")
	machine.Must(t, c.twins())
	t.Run("unused images go", func(t *testing.T) { c.collection(t, kubeletSince) })
	c.mustKubectl(t, "", "delete", "deployment,job,cronjob,pod", "--all", "--timeout=60s")
	machine.UntilFor(t, patience, "nothing of the pods is left", func() error { return c.left(t) })
	machine.Must(t, c.complaints())
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
	if out := c.mustKubectl(t, "typed\n", "run", "once", "--image=registry.k8s.io/e2e-test-images/busybox:1.29-2", "--rm", "-i", "--restart=Never", "--", "sh", "-c", "read x; echo it was $x"); !strings.Contains(out, "it was typed") {
		t.Errorf("run said %q", out)
	}
	pod := c.mustKubectl(t, "", "get", "pod", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}")
	machine.Must(t, os.WriteFile(c.path("there"), []byte("there and back"), 0o600))
	c.mustKubectl(t, "", "cp", c.path("there"), pod+":/shared/there")
	c.mustKubectl(t, "", "cp", pod+":/shared/there", c.path("back"))
	if back, err := os.ReadFile(c.path("back")); err != nil || string(back) != "there and back" {
		t.Errorf("cp brought %q: %v", back, err)
	}
	forward := c.run(t, "kubectl", "--kubeconfig", c.path("kubeconfig"), "port-forward", "deploy/web", "18080:80")
	machine.UntilFor(t, patience, "the port answers", answers("http://127.0.0.1:18080/"))
	_ = forward.Process.Signal(os.Interrupt)
}

// answers says why a web server of a pod cannot be reached.
func answers(url string) func() error {
	return func() error {
		out, err := exec.Command("curl", "-fsS", "-m", "5", url).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "It works!") {
			return fmt.Errorf("%s says %q: %w", url, out, err)
		}
		return nil
	}
}

func (c *cluster) otherPods(t *testing.T) {
	c.says(t, "a pod that crashes is started again", `^[1-9]\d* 3 Error last words`, "get", "pod", "crash", "-o",
		"jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].lastState.terminated.exitCode} {.status.containerStatuses[0].lastState.terminated.reason} {.status.containerStatuses[0].lastState.terminated.message}")
	c.mustKubectl(t, "", "wait", "--for=condition=Ready", "pod/mapped", "pod/several", "pod/host", "--timeout=60s")
	if out := c.mustKubectl(t, "", "exec", "mapped", "--", "cat", "/proc/self/uid_map"); strings.Fields(out)[1] == "0" {
		t.Errorf("the users of a pod of its own are %s", out)
	}
	if out := c.mustKubectl(t, "", "exec", "mapped", "--", "ls", "-ln", "/v/x"); !regexp.MustCompile(` 1000 +2345 `).MatchString(out) {
		t.Errorf("on a volume of a pod with its own users: %s", out)
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

// everything is in the pod of that name: volumes of all kinds, what it is told
// of itself, a port of the machine, a container beside it that lives as long.
func (c *cluster) everything(t *testing.T) {
	c.mustKubectl(t, "", "wait", "--for=condition=Ready", "pod/everything", "--timeout=60s")
	out := c.mustKubectl(t, "", "logs", "everything", "-c", "main")
	ip := c.mustKubectl(t, "", field("everything", "podIP")...)
	if want := "begun by the one beside\nmade first\neverything " + ip + " 67108864 200 one"; out != want {
		t.Errorf("it was told %q, want %q", out, want)
	}
	mounts := c.mustKubectl(t, "", "exec", "everything", "-c", "main", "--", "cat", "/proc/mounts", "/info/labels")
	for _, want := range []string{` /mem tmpfs rw,.*size=8192k`, ` / \S+ ro,`, ` /sub `, ` /info tmpfs ro,`, `app="everything"`} {
		if !regexp.MustCompile(want).MatchString(mounts) {
			t.Errorf("there is no %s in\n%s", want, mounts)
		}
	}
	if out := c.mustKubectl(t, "", "exec", "everything", "-c", "main", "--", "sh", "-c", "touch /no 2>&1; ls -dn /w /sub; id; hostname -f"); !regexp.MustCompile(
		`Read-only file system\n.* 0 +2345 .* /sub\n.* 0 +2345 .* /w\nuid=0\(root\).*2345\nname.sub.default.svc`).MatchString(out) {
		t.Errorf("the pod shows %s", out)
	}
	machine.UntilFor(t, patience, "the port of the machine answers", answers("http://127.0.0.1:12080/"))
	machine.UntilFor(t, patience, "and so from elsewhere", answers("http://"+address+":12080/"))
}

func (c *cluster) ends(t *testing.T) {
	c.mustKubectl(t, "", "wait", "--for=condition=Complete", "job/three", "--timeout=90s")
	c.mustKubectl(t, "", "wait", "--for=condition=Failed", "job/fails", "--timeout=90s")
	if out := c.mustKubectl(t, "", "get", "pod", "-l", "job-name=fails", "-o", "jsonpath={.items[0].status.containerStatuses[0].state.terminated}"); !strings.Contains(out, `"exitCode":4`) || !strings.Contains(out, "why it failed") {
		t.Errorf("a job that fails: %s", out)
	}
	c.says(t, "more memory than it may", `OOMKilled`, field("greedy", "containerStatuses[0].state.terminated.reason")...)
	c.says(t, "a deadline", `DeadlineExceeded`, field("late", "reason")...)
	c.says(t, "started again by a rule", `^[1-9]`, field("ruled", "containerStatuses[0].restartCount")...)
	c.says(t, "a disk that is full", `Evicted`, field("big", "reason")...)
}

func (c *cluster) failures(t *testing.T) {
	for pod, why := range map[string]string{
		"noimage":   `ErrImagePull|ImagePullBackOff`,
		"nocommand": `RunContainerError|CrashLoopBackOff`,
		"noroot":    `CreateContainerConfigError`,
	} {
		c.says(t, pod, why, field(pod, "containerStatuses[0].state.waiting.reason")...)
	}
	c.says(t, "why", `no such file or directory`, field("nocommand", "containerStatuses[0].lastState.terminated.message")...)
	c.says(t, "which runtime", `there is no runtime for handler "nothere"`, "get", "event", "--field-selector", "involvedObject.name=noruntime")
	c.mustKubectl(t, "", "delete", "pod", "noimage", "nocommand", "noroot", "noruntime", "--timeout=60s")
}

// debug joins the processes of a container, and looks at the machine.
func (c *cluster) debug(t *testing.T) {
	const busybox = "--image=registry.k8s.io/e2e-test-images/busybox:1.29-2"
	c.mustKubectl(t, "", "debug", "everything", busybox, "--target=main", "-c", "debugger", "--", "sh", "-c", "ps; sleep 1000")
	c.says(t, "the target's processes", `sleep 0.2`, "logs", "everything", "-c", "debugger")
	c.mustKubectl(t, "", "debug", "node/one", busybox, "--", "sh", "-c", "chroot /host hostname")
	name, err := os.Hostname()
	machine.Must(t, err)
	c.says(t, "the machine's name", regexp.QuoteMeta(name), "logs", "-l", "app.kubernetes.io/managed-by=kubectl-debug")
}

// resize changes limits in place, and with a new start where the pod asks for it.
func (c *cluster) resize(t *testing.T) {
	c.mustKubectl(t, "", "patch", "pod", "everything", "--subresource", "resize", "-p",
		`{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"60m","memory":"40Mi"},"limits":{"cpu":"300m","memory":"96Mi"}}}]}}`)
	c.says(t, "the new limits", `^\{"cpu":"300m","memory":"96Mi"\} 0$`, "get", "pod", "everything", "-o",
		`jsonpath={.status.containerStatuses[?(@.name=="main")].resources.limits} {.status.containerStatuses[?(@.name=="main")].restartCount}`)
	c.mustKubectl(t, "", "patch", "pod", "anew", "--subresource", "resize", "-p", `{"spec":{"containers":[{"name":"a","resources":{"limits":{"memory":"48Mi"}}}]}}`)
	c.says(t, "new limits by a new start", `^48Mi 1$`, "get", "pod", "anew", "-o",
		`jsonpath={.status.containerStatuses[0].resources.limits.memory} {.status.containerStatuses[0].restartCount}`)
}

// static is a pod from a file, which runs without the API.
func (c *cluster) static(t *testing.T) {
	file := filepath.Join(c.path("static"), "pod.yaml")
	machine.Must(t, os.WriteFile(file, []byte(`apiVersion: v1
kind: Pod
metadata: {name: static}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", command: [sleep, "1000"]}]
`), 0o600))
	c.says(t, "the static pod", `Running`, field("static-one", "phase")...)
	machine.Must(t, os.Remove(file))
	machine.UntilFor(t, patience, "it is gone", func() error {
		if _, err := c.kubectl("get", "pod", "static-one"); err == nil {
			return errors.New("it is there")
		}
		return nil
	})
}

// stopSignal is the pod's own, and its container heeds no other.
func (c *cluster) stopSignal(t *testing.T) {
	c.mustKubectl(t, "", "wait", "--for=condition=Ready", "pod/signal", "--timeout=60s")
	c.mustKubectl(t, "", "delete", "pod", "signal", "--timeout=30s") // its grace period is two minutes
}

// numbers are what kubelet tells of pods by the runtime alone, without cAdvisor.
func (c *cluster) numbers(t *testing.T) {
	machine.UntilFor(t, patience, "statistics of a pod", func() error {
		out, err := c.kubectl("get", "--raw", "/api/v1/nodes/one/proxy/stats/summary")
		if err != nil {
			return err
		}
		var summary struct {
			Node struct {
				Runtime struct{ ImageFs struct{ UsedBytes uint64 } }
			}
			Pods []struct {
				PodRef     struct{ Name string }
				CPU        struct{ UsageCoreNanoSeconds uint64 }
				Memory     struct{ WorkingSetBytes uint64 }
				Network    struct{ RxBytes uint64 }
				Containers []struct {
					Rootfs struct{ UsedBytes uint64 }
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &summary); err != nil {
			return err
		}
		for _, p := range summary.Pods {
			if strings.HasPrefix(p.PodRef.Name, "web-") && p.CPU.UsageCoreNanoSeconds > 0 && p.Memory.WorkingSetBytes > 0 && p.Network.RxBytes > 0 &&
				len(p.Containers) > 0 && p.Containers[0].Rootfs.UsedBytes > 0 && summary.Node.Runtime.ImageFs.UsedBytes > 0 {
				return nil
			}
		}
		return errors.New(out)
	})
	for path, want := range map[string]string{
		"/metrics/cadvisor": `container_memory_working_set_bytes\{container="nginx",.*pod="web-`,
		"/metrics/resource": `container_cpu_usage_seconds_total\{container="nginx",namespace="default",pod="web-`,
		"/metrics":          `kubelet_evented_pleg_connection_success_count(\{\})? [1-9]`,
	} {
		c.says(t, path, want, "get", "--raw", "/api/v1/nodes/one/proxy"+path)
	}
	c.says(t, "the version", `^berth://\d`, "get", "node", "one", "-o", "jsonpath={.status.nodeInfo.containerRuntimeVersion}")
	out, err := exec.Command("curl", "-fsS", "--unix-socket", c.Socket, "http://berth/metrics").Output()
	machine.Must(t, err)
	for _, rpc := range []string{"StreamContainers", "StreamPodSandboxes", "StreamImages"} {
		if !regexp.MustCompile(`berth_cri_operations_total\{operation="` + rpc + `"\} [1-9]`).Match(out) {
			t.Errorf("kubelet has not asked for %s", rpc)
		}
	}
}

// events reach kubelet after two restarts of the runtime, each of which took one
// of the five attempts that it makes.
func (c *cluster) events(t *testing.T) {
	c.says(t, "attempts", `kubelet_evented_pleg_connection_error_count(\{\})? 2\n`, "get", "--raw", "/api/v1/nodes/one/proxy/metrics")
	c.says(t, "streams", `kubelet_evented_pleg_connection_success_count(\{\})? 3\n`, "get", "--raw", "/api/v1/nodes/one/proxy/metrics")
	log, err := os.ReadFile(c.path("kubelet.log"))
	machine.Must(t, err)
	if strings.Contains(string(log), "Fall back to Generic PLEG relisting") {
		t.Error("kubelet has gone back to listing")
	}
}

// traces of pods' starts begin in kubelet and go on here.
func (c *cluster) traces(t *testing.T) {
	machine.UntilFor(t, patience, "spans", func() error {
		for _, rpc := range []string{"RunPodSandbox", "CreateContainer", "StartContainer"} {
			if begun, children := c.spans.within("/runtime.v1.RuntimeService/" + rpc); begun == 0 || children == 0 {
				return fmt.Errorf("%d %s within kubelet's spans, %d steps of them", begun, rpc, children)
			}
		}
		return nil
	})
}

// undisturbed kills somebody, to which no pod pays heed.
func (c *cluster) undisturbed(t *testing.T, what func()) {
	ready := []string{"wait", "--for=condition=Ready", "pod", "-l", "steady", "--timeout=60s"}
	c.mustKubectl(t, "", ready...)
	state := []string{"get", "pods", "-l", "steady", "-o", "jsonpath={.items[*].metadata.name} {.items[*].status.containerStatuses[*].restartCount} {.items[*].status.containerStatuses[*].containerID}"}
	before := c.mustKubectl(t, "", state...)
	what()
	machine.UntilFor(t, patience, "commands run again", func() error { _, err := c.kubectl("exec", "deploy/web", "-c", "nginx", "--", "true"); return err })
	c.mustKubectl(t, "", ready...)
	if after := c.mustKubectl(t, "", state...); before != after {
		t.Errorf("pods were %s, are %s", before, after)
	}
	machine.Must(t, c.twins())
}

// collection is kubelet's: five minutes after its start it asks for what images
// take, and removes those that no pod uses.
func (c *cluster) collection(t *testing.T, since time.Time) {
	if testing.Short() {
		t.Skip("skipped: kubelet takes five minutes to look for unused images, too long for -short")
	}
	// It gives up for five minutes more when a container goes while it looks, and
	// at that very moment it also removes those that have ended.
	c.mustKubectl(t, "", "delete", "cronjob,job", "--all", "--timeout=60s")
	c.mustKubectl(t, "", "delete", "pod", "-l", "!steady", "--timeout=60s")
	select {
	case <-time.After(time.Until(since.Add(5 * time.Minute))):
	case <-t.Context().Done():
	}
	// It takes only what it has seen before, perhaps just now: then the next time.
	machine.UntilFor(t, 5*time.Minute+patience, "what no pod uses has gone", func() error {
		out, err := c.try("crictl", "images")
		if err == nil && strings.Contains(out, "test-image-2 ") {
			err = errors.New(out)
		}
		return err
	})
	out := c.must(t, "crictl", "images")
	for _, stays := range []string{"test-image-3 ", "nginx ", "busybox ", "test-image-1 "} { // pinned, of pods, a volume
		if !strings.Contains(out, stays) {
			t.Errorf("%s has gone:\n%s", stays, out)
		}
	}
}
