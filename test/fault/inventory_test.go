package fault

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/test/machine"
)

// inventory is everything that there is of a node on the machine, but for the
// node and the keeper: one line a thing.
func (n *node) inventory(t *testing.T) []string {
	t.Helper()
	var all []string
	add := func(kind string, things []string) {
		for _, thing := range things {
			all = append(all, kind+" "+thing)
		}
	}
	add("mount", machine.Mounts(t, n.Dir))
	add("file", n.files())
	add("cgroup", n.Cgroups())
	add("process", n.processes(t))
	add("link", machine.Lines("ip", "-o", "link", "show", "master", n.Instance()))
	add("rule", machine.Lines("nft", "list", "table", "inet", n.Instance()))
	if containers, err := n.ContainerList(t.Context(), true, nil); err != nil {
		t.Error(err)
	} else {
		for _, c := range containers {
			all = append(all, "container "+c.ID+" "+c.Name)
		}
	}
	if images, err := n.ImageList(t.Context(), nil); err != nil {
		t.Error(err)
	} else {
		for _, i := range images {
			all = append(all, fmt.Sprintf("image %s %v", i.ID, i.Names))
		}
	}
	slices.Sort(all)
	return all
}

// same waits until there is on the machine what there was before.
func (n *node) same(t *testing.T, before []string) {
	t.Helper()
	machine.Until(t, "what is on the machine", func() error { return n.changes(t, before) })
}

func (n *node) changes(t *testing.T, before []string) error {
	t.Helper()
	return machine.Changes(before, n.inventory(t))
}

// pruned is as same, but for blobs and good layers of pulls that failed: they
// stay for the next try until something is removed.
func (n *node) pruned(t *testing.T, before []string) {
	t.Helper()
	machine.Until(t, "what is left when images are pruned", func() error {
		_, err := n.ImagePrune(t.Context(), false, nil)
		machine.Must(t, err)
		return n.changes(t, before)
	})
}

// files are those that stand for containers and their parts.
func (n *node) files() []string {
	var all []string
	for _, pattern := range []string{
		"state/netns/*", "state/containers/*", "state/runtime/*/*", "state/runtime/.*/*",
		"root/layers/*", "root/objects/*/*", "root/meta/*", "root/recipes/*", "root/blobs/*/*", "root/logs/*", "root/volumes/*",
	} {
		found, _ := filepath.Glob(filepath.Join(n.Dir, pattern))
		all = append(all, found...)
	}
	return all
}

// processes are those in the node's cgroups, and those that work in its
// folders, by pid.
func (n *node) processes(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	machine.Must(t, err)
	keeper := n.Helper("keeper")
	var all []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || n.Runs() && pid == n.Pid() || pid == keeper {
			continue
		}
		groups, _ := os.ReadFile("/proc/" + e.Name() + "/cgroup")
		line, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if strings.Contains(string(groups), "/"+n.Instance()) || strings.Contains(string(line), n.Dir+"/") {
			all = append(all, e.Name()+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return all
}

// running says whether there is a process, and not only what is left of one.
func running(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// explain shows where a node that does not answer hangs.
func (n *node) explain(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if !n.Runs() || n.Ping(ctx) == nil {
		return
	}
	n.Signal(t, syscall.SIGQUIT)
	<-n.Ended()
	text := n.log()
	t.Logf("it does not answer:\n%s", text[max(0, strings.Index(text, "SIGQUIT")):])
}

// discard takes a node away with all that there is of it.
func (n *node) discard(t *testing.T) {
	text := n.log()
	if t.Failed() {
		t.Logf("log of the node:\n%s", n.Says())
		n.explain(t)
	}
	if strings.Contains(text, "panic:") || strings.Contains(text, "goroutine 1 [") {
		t.Errorf("the node or its keeper panicked:\n%s", text)
	}
	n.kill()
	n.KillHelper(t, "keeper")
	machine.Until(t, "its processes end", func() error {
		left := n.processes(t)
		for _, line := range left {
			number, _, _ := strings.Cut(line, " ")
			pid, _ := strconv.Atoi(number)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	machine.Unmount(t, n.Dir)
	machine.Must(t, os.RemoveAll(n.Dir))
}
