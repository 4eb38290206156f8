package cri

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/test/machine"
)

// failure is a program that fails or hangs, and what is done meanwhile.
type failure struct {
	app
	cue  string
	call func(n *node, a *app) error
	up   bool   // the pod runs before
	says string // what the client is told
}

func failures() []*failure {
	runp, up, stopp, rmp := (*node).runp, (*node).up, (*node).stopp, (*node).rmp
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
	machine.Must(t, n.up(witness))
	n.complete(t, witness) // its program runs, and not the runtime any more
	before := n.inventory(t)
	var wg sync.WaitGroup
	for _, f := range failures() {
		wg.Go(func() { n.fails(t, f) })
	}
	wg.Wait()
	machine.Must(t, n.works(witness))
	n.complete(t, witness)
	n.same(t, before)
	machine.Must(t, n.rmp(witness))
}

func (n *node) fails(t *testing.T, f *failure) {
	if f.up {
		if err := n.up(&f.app); err != nil {
			t.Error(err)
			return
		}
	}
	n.cue(t, f.name, f.cue)
	began := time.Now()
	err := f.call(n, &f.app)
	soon(t, f.name, began, time.Minute)
	if err == nil || !strings.Contains(err.Error(), f.says) {
		t.Errorf("%s: %v, want it to say %q", f.name, err, f.says)
	}
	if ids, err := n.ready(f.name); err != nil || len(ids) > 0 && (f.up || f.pod == "") {
		t.Errorf("%s: there is a pod that is ready: %v, %v", f.name, ids, err)
	}
	n.cue(t, f.name, "")
	if f.pod != "" {
		if err := n.rmp(&f.app); err != nil {
			t.Errorf("%s: its removal later: %v", f.name, err)
		}
	}
	again := f.app
	if err := n.up(&again); err != nil {
		t.Errorf("%s: the pod anew: %v", f.name, err)
		return
	}
	if err := n.works(&again); err != nil {
		t.Errorf("%s: the pod anew: %v", f.name, err)
	}
	if err := n.rmp(&again); err != nil {
		t.Errorf("%s: the removal of the pod: %v", f.name, err)
	}
}

// A folder of what is valid until a reboot that somebody has emptied, with all
// that runs, is like a reboot: pods are there, not ready, and can be removed.
// Nothing is left of them.
func TestStateIsLost(t *testing.T) {
	n := cued(t, "")
	first := &app{name: "first", handler: "cue", port: 12031}
	machine.Must(t, n.up(first)) // the first has plugins make what stays
	machine.Must(t, n.rmp(first))
	empty := n.inventory(t)
	plain, shared := &app{name: "plain", handler: "cue", port: 12030}, &app{name: "shared", handler: "cue", shared: true}
	machine.Must(t, all([]*app{plain, shared}, func(a *app) error { return n.up(a) }))
	n.settle(t)
	n.loseState(t)
	n.Start(t)
	for _, a := range []*app{plain, shared} {
		machine.Until(t, a.name+" is not ready", func() error {
			is, err := n.fares(a)
			if err == nil && is != "SANDBOX_NOTREADY CONTAINER_EXITED ContainerStatusUnknown" {
				err = errors.New(is)
			}
			return err
		})
	}
	again := *plain
	again.name = "fresh"
	machine.Must(t, n.up(&again)) // the port is free
	machine.Must(t, n.works(&again))
	machine.Must(t, all([]*app{plain, shared, &again}, func(a *app) error { return n.rmp(a) }))
	n.same(t, empty)
}

// settle waits until what comes to the disk by and by is there.
func (n *node) settle(t *testing.T) {
	t.Helper()
	machine.Until(t, "the records are in the database", func() error {
		waiting, err := filepath.Glob(n.State + "/given/*")
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
	n.Kill()
	n.KillKeeper(t)
	machine.Until(t, "nothing runs", func() error {
		left := 0
		for _, dir := range n.Cgroups() {
			pids, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			for pid := range strings.FieldsSeq(string(pids)) {
				left++
				kill(pid)
			}
		}
		if left > 0 {
			return fmt.Errorf("%d processes", left)
		}
		return nil
	})
	for _, dir := range n.Cgroups() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}
	machine.Unmount(t, n.State)
	for _, link := range machine.Lines("ip", "-br", "link", "show", "type", "veth") {
		name, _, _ := strings.Cut(strings.Fields(link)[0], "@")
		machine.Lines("ip", "link", "del", name)
	}
	machine.Lines("iptables", "-t", "nat", "-F")
	machine.Lines("iptables", "-t", "nat", "-X")
	machine.Must(t, os.RemoveAll(n.State))
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
	machine.Must(t, all(apps, func(a *app) error { return n.up(a) }))
	n.settle(t)
	n.Kill()
	for file, text := range map[string]string{
		"pods/" + apps[1].pod + "/pod.json":                `{"pod":{"id":"` + apps[1].pod[:10],
		"pods/" + apps[2].pod + "/" + apps[2].id + ".json": "\x00\x00\x00\x00",
		"tasks/k8s.io+" + apps[3].id:                       "",
		"podnet/" + apps[4].pod:                            "{}",
		"pods/" + strings.Repeat("0", 64) + "/pod.json":    "garbage",
		"given/k8s.io+" + strings.Repeat("0", 64):          "garbage",
	} {
		file = filepath.Join(n.State, file)
		machine.Must(t, os.MkdirAll(filepath.Dir(file), 0o700))
		machine.Must(t, os.WriteFile(file, []byte(text), 0o600))
	}
	n.Start(t)
	log, err := os.ReadFile(filepath.Join(n.Dir, "node.log"))
	machine.Must(t, err)
	if said := strings.Count(string(log), "makes no sense"); said < 6 {
		t.Errorf("the node says it %d times", said)
	}
	for _, a := range apps {
		if err := n.works(a); err != nil && a.name != "task" {
			t.Errorf("%s suffers: %v", a.name, err)
		}
	}
	n.complete(t, apps[0])
	machine.Must(t, all(apps, func(a *app) error { return n.rmp(a) }))
	n.same(t, empty)
}
