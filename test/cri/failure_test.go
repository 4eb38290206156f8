package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// failure is a program that fails or hangs, and what is done meanwhile.
type failure struct {
	app
	cue  string
	call func(t testing.TB, n *node, a *app) error
	up   bool   // the pod runs before
	says string // what the client is told
}

func failures() []*failure {
	runp := func(t testing.TB, n *node, a *app) error { return n.runp(t, a) }
	up := func(t testing.TB, n *node, a *app) error { return n.up(t, a) }
	stopp := func(_ testing.TB, n *node, a *app) error {
		_, err := n.try("crictl", "--timeout", patience, "stopp", a.pod)
		return err
	}
	rmp := func(_ testing.TB, n *node, a *app) error { return n.rmp(a.pod) }
	return []*failure{
		{app{name: "add-fails", handler: "cue", port: 12021}, "ADD fails", runp, false, "fails on cue"},
		{app{name: "add-hangs", handler: "cue"}, "ADD always hangs", runp, false, "did not end its ADD in time"},
		{app{name: "pause-fails", handler: "cue", shared: true}, "run fails", runp, false, "fails on cue"},
		{app{name: "pause-hangs", handler: "cue", shared: true}, "run always hangs", runp, false, "run did not end within 6s"},
		{app{name: "run-fails", handler: "cue"}, "run fails", up, false, "fails on cue"},
		{app{name: "run-hangs", handler: "cue"}, "run always hangs", up, false, "run did not end within 6s"},
		{app{name: "del-fails", handler: "cue", port: 12022}, "DEL fails", stopp, true, "fails on cue"},
		{app{name: "del-hangs", handler: "cue"}, "DEL always hangs", rmp, true, "did not end its DEL in time"},
		{app{name: "kill-fails", handler: "alien"}, "kill fails", stopp, true, "fails on cue"},
		{app{name: "kill-hangs", handler: "alien"}, "kill always hangs", stopp, true, "kill did not end within 6s"},
		{app{name: "delete-fails", handler: "alien"}, "delete fails", rmp, true, "fails on cue"},
		{app{name: "delete-hangs", handler: "alien"}, "delete always hangs", rmp, true, "delete did not end within 6s"},
	}
}

// Plugins and runtimes that fail or hang are told of in words, in time, and hold
// up nobody; the call can be made again, and nothing is left.
func TestPluginsAndRuntimesThatFailOrHang(t *testing.T) {
	n := cued(t, "runtime_timeout = 6")
	witness := &app{name: "witness", handler: "cue", port: 12020}
	must(t, n.up(t, witness))
	before := n.inventory(t)
	var wg sync.WaitGroup
	for _, f := range failures() {
		wg.Go(func() { n.fails(t, f) })
	}
	wg.Wait()
	must(t, n.works(witness))
	n.complete(t, witness)
	n.same(t, before)
	must(t, n.rmp(witness.pod))
}

func (n *node) fails(t *testing.T, f *failure) {
	if f.up {
		if err := n.up(t, &f.app); err != nil {
			t.Error(err)
			return
		}
	}
	n.cue(t, f.name, f.cue)
	began := time.Now()
	err := f.call(t, n, &f.app)
	soon(t, f.name, began, time.Minute)
	if err == nil || !strings.Contains(err.Error(), f.says) {
		t.Errorf("%s: %v, want it to say %q", f.name, err, f.says)
	}
	if out, err := n.try("crictl", "pods", "--name", f.name, "--state", "ready", "-q"); err != nil || out != "" && (f.up || f.pod == "") {
		t.Errorf("%s: there is a pod that is ready: %s, %v", f.name, out, err)
	}
	n.cue(t, f.name, "")
	if f.pod != "" {
		if err := n.rmp(f.pod); err != nil {
			t.Errorf("%s: its removal later: %v", f.name, err)
		}
	}
	again := f.app
	if err := n.up(t, &again); err != nil {
		t.Errorf("%s: the pod anew: %v", f.name, err)
		return
	}
	if err := n.works(&again); err != nil {
		t.Errorf("%s: the pod anew: %v", f.name, err)
	}
	if err := n.rmp(again.pod); err != nil {
		t.Errorf("%s: the removal of the pod: %v", f.name, err)
	}
}

// A folder of what is valid until a reboot that somebody has emptied, with all
// that runs, is like a reboot: pods are there, not ready, and can be removed.
// Nothing is left of them.
func TestStateIsLost(t *testing.T) {
	n := cued(t, "")
	first := &app{name: "first", handler: "cue", port: 12031}
	must(t, n.up(t, first)) // the first has plugins make what stays
	must(t, n.rmp(first.pod))
	empty := n.inventory(t)
	plain, shared := &app{name: "plain", handler: "cue", port: 12030}, &app{name: "shared", handler: "cue", shared: true}
	must(t, all([]*app{plain, shared}, func(a *app) error { return n.up(t, a) }))
	n.settle(t)
	n.loseState(t)
	n.start(t)
	for _, a := range []*app{plain, shared} {
		until(t, a.name+" is not ready", func() error {
			pod, err := n.try("crictl", "inspectp", "-o", "go-template", "--template", "{{.status.state}}", a.pod)
			if err == nil && pod != "SANDBOX_NOTREADY" {
				err = fmt.Errorf("it is %s", pod)
			}
			return err
		})
		if out := n.must(t, "crictl", "inspect", "-o", "go-template", "--template", "{{.status.state}}|{{.status.reason}}", a.id); out != "CONTAINER_EXITED|ContainerStatusUnknown" {
			t.Errorf("the container of %s is %s", a.name, out)
		}
	}
	again := *plain
	again.name = "fresh"
	must(t, n.up(t, &again)) // the port is free
	must(t, n.works(&again))
	must(t, all([]*app{plain, shared, &again}, func(a *app) error { return n.rmp(a.pod) }))
	n.same(t, empty)
}

// settle waits until what comes to the disk by and by is there.
func (n *node) settle(t *testing.T) {
	t.Helper()
	until(t, "the records are in the database", func() error {
		waiting, err := filepath.Glob(n.state + "/given/*")
		if err == nil && len(waiting) > 0 {
			err = fmt.Errorf("%v", waiting)
		}
		return err
	})
	<-time.After(300 * time.Millisecond)
}

// loseState takes away what a reboot does: what runs, and the state folder.
func (n *node) loseState(t *testing.T) {
	t.Helper()
	n.killNode()
	n.killKeeper(t)
	until(t, "nothing runs", func() error {
		left := n.processes(t)
		for _, line := range left {
			kill(line)
		}
		if len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	for _, dir := range n.cgroups() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}
	n.unmountAll(t, n.state)
	for _, link := range lines("ip", "-br", "link", "show", "type", "veth") {
		name, _, _ := strings.Cut(strings.Fields(link)[0], "@")
		lines("ip", "link", "del", name)
	}
	lines("iptables", "-t", "nat", "-F")
	lines("iptables", "-t", "nat", "-X")
	must(t, os.RemoveAll(n.state))
}

// Records in the state folder that make no sense: the node starts and says so,
// and nobody else suffers.
func TestStateIsSpoiled(t *testing.T) {
	n := cued(t, "")
	empty := n.inventory(t)
	var apps []*app
	for _, name := range []string{"witness", "pod", "container", "task", "network"} {
		apps = append(apps, &app{name: name, handler: "cue"})
	}
	must(t, all(apps, func(a *app) error { return n.up(t, a) }))
	n.settle(t)
	n.killNode()
	for file, text := range map[string]string{
		"pods/" + apps[1].pod + "/pod.json":                `{"pod":{"id":"` + apps[1].pod[:10],
		"pods/" + apps[2].pod + "/" + apps[2].id + ".json": "\x00\x00\x00\x00",
		"tasks/k8s.io+" + apps[3].id:                       "",
		"podnet/" + apps[4].pod:                            "{}",
		"pods/" + strings.Repeat("0", 64) + "/pod.json":    "garbage",
		"given/k8s.io+" + strings.Repeat("0", 64):          "garbage",
	} {
		file = filepath.Join(n.state, file)
		must(t, os.MkdirAll(filepath.Dir(file), 0o700))
		must(t, os.WriteFile(file, []byte(text), 0o600))
	}
	n.start(t)
	log, err := os.ReadFile(filepath.Join(n.dir, "node.log"))
	must(t, err)
	if said := strings.Count(string(log), "makes no sense"); said < 6 {
		t.Errorf("the node says it %d times", said)
	}
	for _, a := range apps {
		if err := n.works(a); err != nil && a.name != "task" {
			t.Errorf("%s suffers: %v", a.name, err)
		}
	}
	n.complete(t, apps[0])
	must(t, all(apps, func(a *app) error { return n.rmp(a.pod) }))
	n.same(t, empty)
}
