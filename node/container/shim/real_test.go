package shim_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/node/container"
	"berth/node/container/containertest"
	"berth/node/snapshot"
	"berth/spec"
)

// containerd's shim for runc passes what every runtime has to.
func TestSuite(t *testing.T) {
	containertest.Suite(t, func(t *testing.T, exited func(container.Exit)) containertest.Subject {
		b := newBench(t)
		r := b.real()
		b.mu.Lock()
		defer b.mu.Unlock()
		b.forward = exited
		return containertest.Subject{
			Runtime: r,
			Bundle: func(t *testing.T, id string, terminal bool, args ...string) string {
				return b.make(id, spec.ContainerConfig{Command: args, TTY: terminal})
			},
			Process: process,
			Forget:  func(id string) error { return b.driver.Forget(t.Context(), id) },
		}
	})
}

// The life of a container in a namespace, with streams that a client named.
func TestGiven(t *testing.T) {
	b := newBench(t)
	r := b.real()
	l := b.launch(r, "team+web", command("sh", "-c", "echo hello; exit 7"), func(s *specs.Spec) { s.Root.Path = "rootfs" })
	l.Name, l.Namespace = "web", "team"
	l.Rootfs = []snapshot.Mount{{Type: "bind", Source: filepath.Join(l.Bundle, "rootfs"), Options: []string{"rbind"}}}
	out := filepath.Join(b.dir, "out")
	l.Streams = &container.Streams{Stdout: "file://" + out, Stderr: "file://" + out}
	p, err := r.Create(t.Context(), l)
	b.ok(err, "create")
	if p.Pid <= 0 || p.Stdout != nil || p.Stdin != nil {
		t.Errorf("process %+v", p)
	}
	if b.exitsOf(l.ID) != 0 {
		t.Error("ended before it was started")
	}
	b.ok(r.Start(t.Context(), l.ID), "start")
	if x := b.exit(l.ID); x.Code != 7 || !x.Known || x.Pid != p.Pid {
		t.Errorf("ended as %+v", x)
	}
	b.ok(r.Delete(t.Context(), l.ID), "delete")
	if text, _ := os.ReadFile(out); string(text) != "hello\n" {
		t.Errorf("output %q", text)
	}
	for _, topic := range []string{"create", "start"} {
		if b.sent("team /tasks/"+topic) != 1 {
			t.Errorf("the shim sent no event of %s: %v", topic, b.topics)
		}
	}
	if b.exitsOf(l.ID) != 1 {
		t.Errorf("its end was told %d times", b.exitsOf(l.ID))
	}
	b.noShims()
}

// Containers of one group run in one shim, which is there for the last.
func TestGroup(t *testing.T) {
	b := newBench(t)
	r := b.real()
	group := func(s *specs.Spec) { s.Annotations = map[string]string{"io.kubernetes.cri.sandbox-id": "pause"} }
	for _, id := range []string{"pause", "one", "two"} {
		b.run(r, b.launch(r, id, command("sleep", "1000"), group))
	}
	if got := b.shims(); len(got) != 1 {
		t.Errorf("shims %v", got)
	}
	b.ok(r.Delete(t.Context(), "pause"), "delete the first")
	if x := b.exit("pause"); x.Code != 137 {
		t.Errorf("ended as %+v", x)
	}
	if pids, err := r.Pids(t.Context(), "two"); err != nil || len(pids) != 1 {
		t.Errorf("pids %v, %v", pids, err)
	}
	b.ok(r.Delete(t.Context(), "one"), "delete")
	b.ok(r.Delete(t.Context(), "two"), "delete")
	b.noShims()
}

// A node that comes back finds what runs, and what has ended meanwhile.
func TestSurvivors(t *testing.T) {
	b := newBench(t)
	r := b.real()
	b.run(r, b.launch(r, "stays", command("sh", "-c", "echo before; read x </tmp/go; echo after; exit 4"), fifo("/tmp/go")))
	b.run(r, b.launch(r, "ends", command("sh", "-c", "read x </tmp/go; exit 5"), fifo("/tmp/go")))
	b.run(r, b.launch(r, "ended", command("sh", "-c", "exit 6")))
	b.exit("ended")
	b.ok(r.Delete(t.Context(), "ended"), "delete")
	e, err := r.Exec(t.Context(), container.ExecLaunch{ID: "exec", Container: "stays", Process: process(false, "/bin/sleep", "1000"), Detach: true})
	b.ok(err, "exec")
	b.stop()
	before := b.sent("/tasks/exit")
	b.let("ends", "/tmp/go")
	await(t, "the container to end", func() bool { return b.sent("/tasks/exit") > before })

	found := map[string]container.Survivor{}
	for _, v := range b.open() {
		found[v.Process.ID] = v
	}
	if v := found["stays"]; v.Process == nil || v.Exit != nil || v.Process.Pid <= 0 {
		t.Errorf("survivor %+v", v)
	}
	if v := found["exec"]; v.Process == nil || v.Exit != nil || v.Process.Pid != e.Pid {
		t.Errorf("survivor %+v", v)
	}
	for id, code := range map[string]int{"ends": 5, "ended": 6} {
		if v := found[id]; v.Exit == nil || v.Exit.Code != code || !v.Exit.Known {
			t.Errorf("survivor %+v", v)
		}
	}
	b.ok(b.driver.Forget(t.Context(), "ended"), "forget")
	if b.driver.Has("ended") {
		t.Error("it is not forgotten")
	}
	r = b.runtime(r.Name())
	b.let("stays", "/tmp/go")
	if x := b.exit("stays"); x.Code != 4 {
		t.Errorf("ended as %+v", x)
	}
	b.ok(r.Delete(t.Context(), "stays"), "delete")
	b.ok(r.Delete(t.Context(), "ends"), "delete")
	log, _ := os.ReadFile(filepath.Join(b.dir, "stays.log"))
	if lines := strings.Split(string(log), "\n"); len(lines) != 3 || !strings.HasSuffix(lines[0], "F before") || !strings.HasSuffix(lines[1], "F after") {
		t.Errorf("log %q", log)
	}
	for _, id := range []string{"stays", "ends"} {
		b.ok(b.driver.Forget(t.Context(), id), "forget")
	}
	if left, _ := filepath.Glob(filepath.Join(b.config.State, "shim/.record/*")); len(left) > 0 {
		t.Errorf("records are left: %v", left)
	}
	b.noShims()
}

// fifo makes a FIFO in the container that its command waits at.
func fifo(path string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Process.Args[2] = "busybox mkfifo " + path + "; " + s.Process.Args[2]
	}
}

// let has a command go on that waits at a FIFO.
func (b *bench) let(id, path string) {
	b.t.Helper()
	path = filepath.Join(b.dir, "containers", id, "rootfs", path)
	await(b.t, "the FIFO", func() bool { _, err := os.Stat(path); return err == nil })
	b.ok(os.WriteFile(path, []byte("go\n"), 0), "write")
}
