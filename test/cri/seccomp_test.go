package cri

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/test/machine"
)

// watchedPod makes a pod with an annotation, and a container in it that runs a
// shell under the default profile.
func (n *node) watchedPod(t *testing.T, name, annotation, action, script string) (pod, container string) {
	t.Helper()
	config := n.podFile(t, name, map[string]string{annotation: action})
	app := n.containerFile(t, name, script, map[string]any{"linux": map[string]any{
		"security_context": map[string]any{"seccomp": map[string]any{"profile_type": 0}},
	}})
	pod = n.must(t, "crictl", "runp", config)
	container = n.must(t, "crictl", "create", pod, app, config)
	n.must(t, "crictl", "start", container)
	return pod, container
}

// says waits for a container's log to have a text.
func (n *node) says(t *testing.T, container, text string) {
	t.Helper()
	machine.Until(t, "the container says "+text, func() error {
		out, err := n.try("crictl", "logs", container)
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
}

func TestSeccompNotifier(t *testing.T) {
	profiles := t.TempDir()
	n := newNode(t, "", fmt.Sprintf("[cri]\nseccomp_trusting = true\nseccomp_profile_root = %q\n", profiles))
	n.must(t, "crictl", "pull", busybox)

	t.Run("stop", func(t *testing.T) {
		begun := time.Now()
		pod, c := n.watchedPod(t, "stopped", "seccomp-notifier-action.crio.io", "stop", "swapoff /x; swapoff /x; sleep 1000")
		machine.Until(t, "it is stopped", func() error {
			out, err := n.try("crictl", "inspect", "-o", "go-template", "--template", "{{.status.state}}|{{.status.reason}}|{{.status.message}}", c)
			if err == nil && out != "CONTAINER_EXITED|seccomp killed|Used forbidden syscalls: swapoff (2x)" {
				err = errors.New(out)
			}
			return err
		})
		if took := time.Since(begun); took < 4*time.Second {
			t.Errorf("stopped after %v", took)
		}
		n.must(t, "crictl", "rmp", "-f", pod)
	})

	t.Run("the node and its keeper are killed", func(t *testing.T) {
		pod, c := n.watchedPod(t, "survivor", "io.kubernetes.cri-o.seccompNotifierAction", "true",
			"swapoff /x; echo one; while [ ! -e /tmp/go ]; do sleep 0.05; done; swapoff /x; echo two; sleep 1000")
		n.says(t, c, "one")
		n.must(t, "crictl", "exec", c, "touch", "/tmp/go")
		n.Kill()
		n.Start(t)
		before := n.Helper("keeper")
		n.KillKeeper(t)
		machine.Until(t, "there is another keeper", func() error {
			if pid := n.Helper("keeper"); pid == before || syscall.Kill(pid, 0) != nil {
				return errors.New("not yet")
			}
			_, err := n.try("crictl", "exec", c, "true") // it knows the containers again
			return err
		})
		n.Kill()
		n.Start(t)
		n.says(t, c, "two")
		n.must(t, "crictl", "exec", c, "sh", "-c", "swapoff /x || true")
		machine.Until(t, "the metric", func() error {
			out, err := n.metrics()
			if want := `berth_seccomp_notifier_count_total{name="shop/survivor/survivor",syscall="swapoff"} 3`; err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("no %s", want)
			}
			return err
		})
		if out := n.must(t, "berth", "events", "--since", "1h", "--until", "0s", "--filter", "type=container", "--filter", "event=seccomp"); !strings.Contains(out, "swapoff") {
			t.Errorf("events: %s", out)
		}
		n.must(t, "crictl", "rmp", "-f", pod)
	})

	t.Run("record", func(t *testing.T) {
		pod, c := n.watchedPod(t, "recorded", "seccomp-notifier-action.berth.io", "record=shop/app.json", "ls /; mkdir /tmp/x; echo done")
		n.says(t, c, "done")
		file := filepath.Join(profiles, "shop", "app.json")
		machine.Until(t, "the profile", func() error { _, err := os.Stat(file); return err })
		n.must(t, "crictl", "rmp", "-f", pod)
		text, err := os.ReadFile(file)
		machine.Must(t, err)
		var profile struct{ DefaultAction string }
		machine.Must(t, json.Unmarshal(text, &profile))
		if profile.DefaultAction != "SCMP_ACT_ERRNO" || !strings.Contains(string(text), `"mkdir"`) {
			t.Errorf("the profile: %s", text)
		}
		if out := n.must(t, "berth", "seccomp", "ls"); !strings.Contains(out, "shop_recorded_recorded") {
			t.Errorf("profiles: %s", out)
		}

		config := n.podFile(t, "profiled", nil)
		security := map[string]any{"linux": map[string]any{"security_context": map[string]any{
			"seccomp": map[string]any{"profile_type": 2, "localhost_ref": "shop/app.json"},
		}}}
		pod = n.must(t, "crictl", "runp", config)
		for name, script := range map[string]string{"same": "ls /; mkdir /tmp/x; echo done", "more": "chmod 700 /tmp || echo refused"} {
			c := n.must(t, "crictl", "create", pod, n.containerFile(t, name, script, security), config)
			n.must(t, "crictl", "start", c)
			n.says(t, c, map[string]string{"same": "done", "more": "refused"}[name])
		}
		n.must(t, "crictl", "rmp", "-f", pod)
	})

	t.Run("audit", func(t *testing.T) {
		pod, c := n.watchedPod(t, "audited", "seccomp-notifier-action.berth.io", "audit", "swapoff /x 2>&1; echo done")
		n.says(t, c, "done")
		if out, err := n.metrics(); err != nil || !strings.Contains(out, `{name="shop/audited/audited",syscall="swapoff"} 1`) {
			t.Errorf("no metric: %v", err)
		}
		n.must(t, "crictl", "rmp", "-f", pod)
	})
}

// metrics is what Prometheus is told.
func (n *node) metrics() (string, error) {
	out, err := exec.Command("curl", "-fsS", "--unix-socket", n.Socket, "http://berth/metrics").Output()
	return string(out), err
}
