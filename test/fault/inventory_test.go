package fault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// instance is how a node in folders of its own calls what it makes.
func (n *node) instance() string {
	sum := sha256.Sum256([]byte(n.state))
	return "berth-" + hex.EncodeToString(sum[:4])
}

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
	add("mount", n.mounts(t))
	add("file", n.files())
	add("cgroup", n.cgroups())
	add("process", n.processes(t))
	add("link", output("ip", "-o", "link", "show", "master", n.instance()))
	add("rule", output("nft", "list", "table", "inet", n.instance()))
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
	eventually(t, "what is on the machine", func() error { return n.changes(t, before) })
}

func (n *node) changes(t *testing.T, before []string) error {
	t.Helper()
	now := n.inventory(t)
	if slices.Equal(before, now) {
		return nil
	}
	var diff strings.Builder
	for _, line := range now {
		if !slices.Contains(before, line) {
			diff.WriteString("\n  left: " + line)
		}
	}
	for _, line := range before {
		if !slices.Contains(now, line) {
			diff.WriteString("\n  gone: " + line)
		}
	}
	return fmt.Errorf("it is not as before:%s", diff.String())
}

// pruned is as same, but for blobs and good layers of pulls that failed: they
// stay for the next try until something is removed.
func (n *node) pruned(t *testing.T, before []string) {
	t.Helper()
	eventually(t, "what is left when images are pruned", func() error {
		_, err := n.ImagePrune(t.Context(), false, nil)
		must(t, err)
		return n.changes(t, before)
	})
}

// mounts are those below the node's folders.
func (n *node) mounts(t *testing.T) []string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var targets []string
	for line := range strings.Lines(string(table)) {
		if target := strings.Fields(line)[4]; strings.HasPrefix(target, n.dir+"/") {
			targets = append(targets, target)
		}
	}
	return targets
}

// files are those that stand for containers and their parts.
func (n *node) files() []string {
	var all []string
	for _, pattern := range []string{
		"state/netns/*", "state/containers/*", "state/runtime/*/*", "state/runtime/.*/*",
		"root/layers/*", "root/objects/*/*", "root/meta/*", "root/recipes/*", "root/blobs/*/*", "root/logs/*", "root/volumes/*",
	} {
		found, _ := filepath.Glob(filepath.Join(n.dir, pattern))
		all = append(all, found...)
	}
	return all
}

// cgroups are those of containers, in every hierarchy.
func (n *node) cgroups() []string {
	var all []string
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + n.instance())
	for _, root := range append(roots, "/sys/fs/cgroup/"+n.instance()) {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != root && filepath.Base(path) != "keeper" {
				all = append(all, path)
			}
			return nil
		})
	}
	return all
}

// processes are those in the node's cgroups, and those that work in its
// folders, by pid.
func (n *node) processes(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	must(t, err)
	keeper, _ := os.ReadFile(filepath.Join(n.state, "keeper.pid"))
	var all []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || n.process != nil && pid == n.pid() || e.Name() == strings.TrimSpace(string(keeper)) {
			continue
		}
		groups, _ := os.ReadFile("/proc/" + e.Name() + "/cgroup")
		line, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if strings.Contains(string(groups), "/"+n.instance()) || strings.Contains(string(line), n.dir+"/") {
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

func output(name string, args ...string) []string {
	out, _ := exec.Command(name, args...).Output()
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' })
}

// explain shows where a node that does not answer hangs.
func (n *node) explain(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if n.process == nil || n.Ping(ctx) == nil {
		return
	}
	if n.process.Process.Signal(syscall.SIGQUIT) == nil {
		<-n.ended
		text := n.log()
		t.Logf("it does not answer:\n%s", text[max(0, strings.Index(text, "SIGQUIT")):])
	}
}

// discard takes a node away with all that there is of it.
func (n *node) discard(t *testing.T) {
	text := n.log()
	if t.Failed() {
		t.Logf("log of the node:\n%s", text[max(0, len(text)-6000):])
		n.explain(t)
	}
	if strings.Contains(text, "panic:") || strings.Contains(text, "goroutine 1 [") {
		t.Errorf("the node or its keeper panicked:\n%s", text)
	}
	if n.process != nil {
		_ = n.process.Process.Kill()
		<-n.ended
		n.Close()
	}
	if text, err := os.ReadFile(filepath.Join(n.state, "keeper.pid")); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	eventually(t, "its processes end", func() error {
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
	targets := n.mounts(t)
	for _, target := range slices.Backward(targets) {
		_ = unix.Unmount(target, unix.MNT_DETACH)
	}
	for _, line := range output("ip", "-o", "link", "show", "type", "bridge") {
		if strings.Contains(line, strings.Replace(n.instance(), "-", " ", 1)) || strings.Contains(line, n.instance()) {
			_, rest, _ := strings.Cut(line, ": ")
			name, _, _ := strings.Cut(rest, ":")
			_ = output("ip", "link", "del", name)
		}
	}
	_ = output("nft", "delete", "table", "inet", n.instance())
	groups := n.cgroups()
	slices.SortFunc(groups, func(a, b string) int { return len(b) - len(a) })
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + n.instance())
	for _, root := range roots {
		groups = append(groups, filepath.Join(root, "keeper"), root)
	}
	for _, group := range groups {
		_ = os.Remove(group)
	}
	must(t, os.RemoveAll(n.dir))
}
