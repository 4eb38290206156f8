package cri

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// onCue has pods connected by a plugin that fails or hangs when it is told so.
const onCue = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [
	{"type": "cue", "bridge": "cnicue0", "isGateway": true,
	 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.89.0.0/16"}]]}}]}`

// pretender is a program in the place of another one. It does as the file cue
// says: fail or hang instead of doing what is named, or hang when it is done.
const pretender = `#!/bin/sh
dir=%s what=${CNI_COMMAND:-none}
if [ "$what" = none ]; then
	for arg; do case $arg in run|delete|kill) what=$arg; break;; esac; done
fi
case "$(cat $dir/cue 2>/dev/null)" in
"$what fails") echo '{"cniVersion": "1.0.0", "code": 100, "msg": "fails on cue"}'; echo "fails on cue" >&2; exit 1;;
"$what hangs") touch $dir/reached; exec sleep 60;;
"$what hangs late") %s "$@"; code=$?; touch $dir/reached; sleep 60; exit $code;;
esac
exec %s "$@"
`

// cued starts a node whose plugin and whose runtime "cue" wait for cues.
func cued(t *testing.T, settings string) *node {
	t.Helper()
	for _, plugin := range []string{"bridge", "host-local"} {
		if _, err := os.Stat("/usr/lib/cni/" + plugin); err != nil {
			t.Skipf("skipped: CNI's plugin %s is not installed", plugin)
		}
	}
	n := newNode(t, onCue, "", func(n *node) {
		runtime := filepath.Join(tools, "runc")
		must(t, os.MkdirAll(filepath.Join(n.dir, "plugins"), 0o700))
		must(t, os.WriteFile(filepath.Join(n.dir, "plugins", "cue"), fmt.Appendf(nil, pretender, n.dir, "/usr/lib/cni/bridge", "/usr/lib/cni/bridge"), 0o700)) //nolint:gosec // it is run
		must(t, os.WriteFile(filepath.Join(n.dir, "runtime"), fmt.Appendf(nil, pretender, n.dir, runtime, runtime), 0o700))                                    //nolint:gosec // likewise
		n.settings = fmt.Sprintf("%s\n[runtimes.cue]\npath = %q\n", settings, filepath.Join(n.dir, "runtime"))
	})
	n.must(t, "crictl", "pull", busybox)
	return n
}

func (n *node) cue(t *testing.T, what string) {
	t.Helper()
	_ = os.Remove(filepath.Join(n.dir, "reached"))
	must(t, os.WriteFile(filepath.Join(n.dir, "cue"), []byte(what), 0o600))
}

func (n *node) reached() error {
	_, err := os.Stat(filepath.Join(n.dir, "reached"))
	return err
}

// up makes a pod with a container that runs, and returns both.
func (n *node) up(t *testing.T, name string) (pod, container string) {
	t.Helper()
	file, app := n.podFile(t, name, nil), n.containerFile(t, "app", forever, nil)
	pod = n.must(t, "crictl", "runp", "--runtime", "cue", file)
	container = n.must(t, "crictl", "create", pod, app, file)
	n.must(t, "crictl", "start", container)
	return pod, container
}

// step is a call that is caught at a point.
type step struct {
	cue  string
	do   func(n *node, pod, container string) (string, error)
	made bool // on a pod that runs
}

func steps(t *testing.T) map[string]step {
	t.Helper()
	run := func(n *node, _, _ string) (string, error) {
		return n.try("crictl", "runp", "--runtime", "cue", n.podFile(t, "victim", nil))
	}
	start := func(n *node, _, _ string) (string, error) {
		file, app := n.podFile(t, "victim", nil), n.containerFile(t, "app", forever, nil)
		return n.try("crictl", "run", "--no-pull", "--runtime", "cue", app, file)
	}
	remove := func(n *node, pod, _ string) (string, error) { return n.try("crictl", "rmp", "-f", pod) }
	return map[string]step{
		"before the network":         {"ADD hangs", run, false},
		"after the network":          {"ADD hangs late", run, false},
		"before the start":           {"run hangs", start, false},
		"after the start":            {"run hangs late", start, false},
		"before the network is gone": {"DEL hangs", remove, true},
		"after the network is gone":  {"DEL hangs late", remove, true},
		"before the end of a task":   {"delete hangs", remove, true},
		"after the end of a task":    {"delete hangs late", remove, true},
	}
}

// Whoever dies in the middle, a pod that is there beside it lives on, the call
// can be made again, and in the end nothing is left.
func TestNodeAndKeeperDieInTheMiddle(t *testing.T) {
	n := cued(t, "")
	witness, alive := n.up(t, "witness")
	for name, s := range steps(t) {
		for _, who := range []string{"node", "keeper", "both"} {
			t.Run(strings.ReplaceAll(name, " ", "-")+"/"+who, func(t *testing.T) {
				n.dieAt(t, s, who)
				if out, err := n.try("crictl", "exec", "-s", alive, "true"); err != nil {
					t.Errorf("the pod beside it suffers: %v\n%s", err, out)
				}
			})
		}
	}
	n.must(t, "crictl", "rmp", "-f", witness)
}

func (n *node) dieAt(t *testing.T, s step, who string) {
	t.Helper()
	var pod, container string
	n.cue(t, "")
	if s.made {
		pod, container = n.up(t, "victim")
	}
	n.cue(t, s.cue)
	done := make(chan error, 1)
	go func() { _, err := s.do(n, pod, container); done <- err }()
	until(t, "it comes to "+s.cue, n.reached)
	if who != "node" {
		n.killKeeper(t)
	}
	if who != "keeper" {
		n.killNode()
	}
	must(t, os.WriteFile(filepath.Join(n.dir, "cue"), nil, 0o600))
	n.wake(t)
	if who != "keeper" {
		n.start(t)
	}
	<-done
	for id := range strings.FieldsSeq(n.must(t, "crictl", "pods", "-q", "--name", "victim")) {
		n.must(t, "crictl", "rmp", "-f", id)
	}
	pod, container = n.up(t, "victim")
	n.must(t, "crictl", "exec", "-s", container, "true")
	n.must(t, "crictl", "rmp", "-f", pod)
	until(t, "nothing of it is left", func() error { return n.leftOf("victim") })
}

// wake ends what sleeps on cue.
func (n *node) wake(t *testing.T) {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*/environ")
	must(t, err)
	for _, file := range processes {
		dir := filepath.Dir(file)
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if string(line) != "sleep\x0060\x00" {
			continue
		}
		parents, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if strings.Contains(string(parents), n.dir) {
			_ = exec.Command("kill", filepath.Base(dir)).Run() // it may have gone by itself
		}
	}
}

// leftOf says what there is of pods besides the witness.
func (n *node) leftOf(name string) error {
	pods, err := n.try("crictl", "pods", "-q")
	if err != nil {
		return err
	}
	count := len(strings.Fields(pods))
	for what, pattern := range map[string]string{
		"folders": n.state + "/pods/*", "namespaces": n.state + "/kernelns/[0-9a-f]*", "bundles": n.state + "/containers/*",
		"addresses": "/var/lib/cni/networks/pods/[0-9]*",
	} {
		if found, _ := filepath.Glob(pattern); len(found) > count {
			err = errors.Join(err, fmt.Errorf("%d %s of %d pods after %s: %v", len(found), what, count, name, found))
		}
	}
	return err
}

// A plugin or a runtime that fails is told of, and nothing is left.
func TestPluginAndRuntimeFailOnCue(t *testing.T) {
	n := cued(t, "")
	for _, cue := range []string{"ADD fails", "run fails"} {
		n.cue(t, cue)
		file, app := n.podFile(t, "victim", nil), n.containerFile(t, "app", forever, nil)
		out, err := n.try("crictl", "run", "--no-pull", "--runtime", "cue", app, file)
		if err == nil || !strings.Contains(err.Error(), "fails on cue") {
			t.Errorf("%s: %v, %s", cue, err, out)
		}
		n.cue(t, "")
		for id := range strings.FieldsSeq(n.must(t, "crictl", "pods", "-q")) {
			n.must(t, "crictl", "rmp", "-f", id)
		}
		must(t, n.leftOf("victim"))
	}
	pod, _ := n.up(t, "victim")
	n.cue(t, "DEL fails")
	if out, err := n.try("crictl", "stopp", pod); err == nil || !strings.Contains(err.Error(), "fails on cue") {
		t.Errorf("DEL fails: %v, %s", err, out)
	}
	n.cue(t, "")
	n.must(t, "crictl", "stopp", pod)
	n.must(t, "crictl", "rmp", pod)
	must(t, n.leftOf("victim"))
}
