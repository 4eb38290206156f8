package containerd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"berth/test/machine"
)

// onBerth skips a test of what containerd has not.
func onBerth(t testing.TB) {
	t.Helper()
	if peer {
		t.Skip("skipped: only a node has more doors than one")
	}
}

// has wants a line of text with all the words.
func has(t testing.TB, text string, words ...string) {
	t.Helper()
	for line := range strings.Lines(text) {
		found := 0
		for _, word := range words {
			if strings.Contains(line, word) {
				found++
			}
		}
		if found == len(words) {
			return
		}
	}
	t.Errorf("no line has %q:\n%s", words, text)
}

// inDefault is a command of ctr or nerdctl in the namespace of what berth run
// makes.
func (e *engine) inDefault(t testing.TB, name string, args ...string) string {
	t.Helper()
	return e.must(t, name, append([]string{"-n", "default"}, args...)...)
}

// TestDoors starts containers by each door and sees, uses and ends them by the
// others.
func TestDoors(t *testing.T) {
	onBerth(t)
	e := newEngine(t)
	image := e.registry.Host() + "/" + busyboxName
	e.inDefault(t, "nerdctl", "pull", "-q", "--insecure-registry", image)
	has(t, e.must(t, "berth", "images"), "library/busybox")

	t.Run("ctr's", func(t *testing.T) {
		e.inDefault(t, "ctr", "run", "-d", image, "by-ctr", "sleep", "1000")
		has(t, e.must(t, "berth", "ps"), "by-ctr", "library/busybox")
		has(t, e.inDefault(t, "nerdctl", "ps"), "by-ctr", "Up")
		if got := e.must(t, "berth", "exec", "by-ctr", "cat", "/etc/issue"); got != "busybox of the tests\n" {
			t.Errorf("berth exec says %q", got)
		}
		has(t, e.must(t, "berth", "top", "by-ctr"), "sleep 1000")
		e.must(t, "berth", "inspect", "by-ctr")
		has(t, e.must(t, "berth", "stats", "--no-stream"), "by-ctr")
		e.must(t, "berth", "pause", "by-ctr")
		has(t, e.inDefault(t, "ctr", "tasks", "ls"), "by-ctr", "PAUSED")
		e.must(t, "berth", "unpause", "by-ctr")
		e.must(t, "berth", "kill", "by-ctr")
		machine.Await(t, "the task ends", func() bool { return strings.Contains(e.inDefault(t, "ctr", "tasks", "ls"), "STOPPED") })
		e.inDefault(t, "ctr", "tasks", "rm", "by-ctr")
		e.inDefault(t, "ctr", "containers", "rm", "by-ctr")
		if all := e.must(t, "berth", "ps", "-aq"); all != "" {
			t.Errorf("after its removal there is %s", all)
		}
	})
	t.Run("nerdctl's", func(t *testing.T) {
		e.inDefault(t, "nerdctl", "run", "-d", "--name", "web", "--net", "none", image, "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done")
		id := strings.TrimSpace(e.inDefault(t, "nerdctl", "inspect", "-f", "{{.ID}}", "web"))
		has(t, e.must(t, "berth", "ps"), id[:12])
		e.must(t, "berth", "exec", id, "true")
		e.must(t, "berth", "stop", id)
		has(t, e.inDefault(t, "nerdctl", "ps", "-a"), "web", "Exited (3)")
		e.inDefault(t, "nerdctl", "start", "web")
		has(t, e.must(t, "berth", "ps"), id[:12])
		e.must(t, "berth", "rm", "-f", id)
		if left := e.inDefault(t, "ctr", "containers", "ls", "-q"); strings.Contains(left, id) {
			t.Errorf("berth rm leaves %s", left)
		}
	})
	t.Run("berth's", func(t *testing.T) {
		e.must(t, "berth", "run", "-d", "--name", "own", image, "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done")
		id := strings.TrimSpace(e.must(t, "berth", "inspect", "-f", "{{.ID}}", "own"))
		has(t, e.inDefault(t, "nerdctl", "ps"), "own", "Up")
		has(t, e.inDefault(t, "ctr", "tasks", "ls"), id, "RUNNING")
		has(t, e.inDefault(t, "ctr", "containers", "ls"), id, "library/busybox", "io.containerd.runc.v2")
		if got := e.inDefault(t, "nerdctl", "exec", "own", "cat", "/etc/issue"); got != "busybox of the tests\n" {
			t.Errorf("nerdctl exec says %q", got)
		}
		has(t, e.inDefault(t, "nerdctl", "top", "own"), "trap")
		has(t, e.inDefault(t, "nerdctl", "stats", "--no-stream"), "own")
		e.inDefault(t, "ctr", "tasks", "metrics", id)
		e.inDefault(t, "nerdctl", "pause", "own")
		has(t, e.must(t, "berth", "ps"), "own", "aused")
		e.inDefault(t, "nerdctl", "unpause", "own")
		e.inDefault(t, "nerdctl", "stop", "own")
		has(t, e.must(t, "berth", "ps", "-a"), "own", "xited (3)")
		e.inDefault(t, "nerdctl", "rm", "own")
		if all := e.must(t, "berth", "ps", "-aq"); all != "" {
			t.Errorf("nerdctl rm leaves %s", all)
		}
		e.must(t, "berth", "run", "-d", "--name", "forced", image, "sleep", "1000")
		e.inDefault(t, "nerdctl", "rm", "-f", "forced")
		if all := e.must(t, "berth", "ps", "-aq"); all != "" {
			t.Errorf("nerdctl rm -f leaves %s", all)
		}
	})
	t.Run("images", func(t *testing.T) {
		e.must(t, "berth", "tag", image, "docker.io/library/second:1")
		has(t, e.inDefault(t, "ctr", "images", "ls"), "docker.io/library/second:1")
		e.inDefault(t, "ctr", "images", "tag", image, "docker.io/library/third:1")
		if got := e.must(t, "berth", "run", "--rm", "third:1", "cat", "/data/seed"); got != "seed\n" {
			t.Errorf("an image that ctr named gives %q", got)
		}
		e.must(t, "berth", "rmi", "third:1")
		if left := e.inDefault(t, "ctr", "images", "ls", "-q"); strings.Contains(left, "third") {
			t.Errorf("berth rmi leaves %s", left)
		}
		e.inDefault(t, "ctr", "images", "rm", "--sync", "docker.io/library/second:1")
		if left := e.must(t, "berth", "images"); strings.Contains(left, "second") {
			t.Errorf("ctr images rm leaves\n%s", left)
		}
	})
}

// TestNamespacesShareLayers pulls one image in three namespaces at once: its
// layers are fetched and unpacked once.
func TestNamespacesShareLayers(t *testing.T) {
	e := newEngine(t)
	image := e.registry.Host() + "/" + busyboxName
	var pulls sync.WaitGroup
	for n := range 3 {
		pulls.Go(func() {
			if _, err := e.try("ctr", "-n", fmt.Sprint(e.namespace(), n), "images", "pull", "--plain-http", image); err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	for n := range 3 {
		space := fmt.Sprint(e.namespace(), n)
		if got := e.must(t, "ctr", "-n", space, "run", "--rm", image, "c", "cat", "/data/seed"); got != "seed\n" {
			t.Errorf("in %s a container says %q", space, got)
		}
	}
	if peer {
		return // it unpacks for each namespace
	}
	base := busybox(t)[0].Layers[0].Digest.String()
	if got := len(e.registry.Requests("GET", base)); got != 1 {
		t.Errorf("the layer was fetched %d times", got)
	}
	all, err := exec.Command("find", e.Root, "-type", "f", "-size", "+1900k").Output()
	machine.Must(t, err)
	if files := strings.Fields(string(all)); len(files) != 1 {
		t.Errorf("busybox lies at %q", files)
	}
}

// kill ends a daemon of the node without giving it a chance.
func (e *engine) kill(t testing.TB, role string) {
	t.Helper()
	if role == "node" {
		e.Kill()
	} else {
		e.KillKeeper(t)
	}
}

// TestKills kills node and keeper in the middle of what clients do: containers
// go on, and clients come back or end with an error.
func TestKills(t *testing.T) {
	for _, role := range []string{"node", "keeper"} {
		t.Run(role, func(t *testing.T) { killUnder(t, role) })
	}
}

func killUnder(t *testing.T, role string) {
	if role == "keeper" {
		onBerth(t)
	}
	e := newEngine(t)
	image := e.registry.Host() + "/" + busyboxName
	e.must(t, "nerdctl", "pull", "-q", "--insecure-registry", image)
	e.must(t, "nerdctl", "run", "-d", "--name", "calm", "--net", "none", image, "sleep", "1000")
	log := filepath.Join(e.Dir, "beats")
	e.must(t, "ctr", "run", "-d", "--log-uri", "file://"+log, image, "still", "sh", "-c", "while :; do echo beat; sleep 0.1; done")
	pid := strings.TrimSpace(e.must(t, "nerdctl", "inspect", "-f", "{{.State.Pid}}", "calm"))

	foreground := e.command("ctr", "run", "--rm", image, "front", "sh", "-c", "sleep 6; echo done")
	var said strings.Builder
	foreground.Stdout, foreground.Stderr = &said, &said
	machine.Must(t, foreground.Start())
	machine.Await(t, "the container in front runs", func() bool {
		out, _ := e.try("ctr", "tasks", "ls")
		return strings.Contains(out, "front")
	})
	e.kill(t, role)
	if role == "node" {
		e.Start(t)
	}
	machine.Await(t, "tasks are listed", func() bool {
		out, err := e.try("ctr", "tasks", "ls")
		return err == nil && strings.Contains(out, "still")
	})
	if now := strings.TrimSpace(e.must(t, "nerdctl", "inspect", "-f", "{{.State.Pid}}", "calm")); now != pid {
		t.Errorf("the container's process was %s and is %s", pid, now)
	}
	before, err := os.Stat(log)
	machine.Must(t, err)
	machine.Await(t, "the container goes on", func() bool {
		now, err := os.Stat(log)
		return err == nil && now.Size() > before.Size()
	})
	if got := e.must(t, "nerdctl", "exec", "calm", "cat", "/data/seed"); got != "seed\n" {
		t.Errorf("exec says %q", got)
	}
	if got := e.must(t, "ctr", "tasks", "exec", "--exec-id", "e", "still", "cat", "/data/seed"); got != "seed\n" {
		t.Errorf("exec says %q", got)
	}
	ended := make(chan error, 1)
	go func() { ended <- foreground.Wait() }()
	if err := <-ended; err != nil && !strings.Contains(said.String(), "ctr: ") {
		t.Errorf("the command in front ended with %v and said %q", err, said.String())
	}
	e.must(t, "nerdctl", "stop", "-t", "0", "calm")
	e.must(t, "nerdctl", "rm", "calm")
}

// TestKillsDuringPulls kills the node while clients pull: the next pull of the
// same image works.
func TestKillsDuringPulls(t *testing.T) {
	for _, pull := range [][]string{{"ctr", "images", "pull", "--plain-http"}, {"ctr", "images", "pull", "--local", "--plain-http"}, {"nerdctl", "pull", "-q", "--insecure-registry"}} {
		t.Run(strings.Join(pull, " "), func(t *testing.T) {
			e := newEngine(t)
			image := e.registry.Host() + "/" + busyboxName
			pull := append(slices.Clone(pull), image)
			halted, release := e.haltBlobs()
			t.Cleanup(release)
			cmd := e.command(pull[0], pull[1:]...)
			machine.Must(t, cmd.Start())
			<-halted
			e.kill(t, "node")
			release()
			if err := cmd.Wait(); err == nil {
				t.Error("a pull under which the node was killed succeeded")
			}
			e.registry.Mend()
			e.Start(t)
			e.must(t, pull[0], pull[1:]...)
			if got := e.must(t, "ctr", "run", "--rm", image, "c", "cat", "/data/seed"); got != "seed\n" {
				t.Errorf("a container says %q", got)
			}
		})
	}
}
