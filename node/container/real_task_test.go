package container_test

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/node/container"
	"berth/node/snapshot"
	"berth/spec"
)

// realSpec is what a client writes for a container of busybox.
func (r *real) realSpec(id string, terminal bool, args ...string) spec.Given {
	g := written("test", id)
	data, err := json.Marshal(specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Terminal: terminal, Args: args, Cwd: "/", Env: []string{"PATH=/bin"}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{
			CgroupsPath: r.cgroup() + "/" + id,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}},
		},
	})
	r.ok(err)
	g.Spec.Value = data
	return g
}

// fifos makes the FIFOs of a client and reads what comes out of them.
func (r *real) fifos(name string) (container.Streams, <-chan string) {
	r.t.Helper()
	s := container.Streams{Stdin: filepath.Join(r.dir, name+".in"), Stdout: filepath.Join(r.dir, name+".out")}
	for _, path := range []string{s.Stdin, s.Stdout} {
		r.ok(unix.Mkfifo(path, 0o600))
	}
	out, err := os.OpenFile(s.Stdout, os.O_RDONLY|unix.O_NONBLOCK, 0)
	r.ok(err)
	read := make(chan string, 1)
	go func() {
		defer out.Close()
		var all strings.Builder
		buf := make([]byte, 4096)
		for { // until somebody has written and all writers have gone
			n, err := out.Read(buf)
			all.Write(buf[:n])
			if err == io.EOF && all.Len() == 0 {
				time.Sleep(time.Millisecond)
				continue
			}
			if err != nil {
				break
			}
		}
		read <- all.String()
	}()
	return s, read
}

// busyboxRoot is an overlay, as a snapshotter has it mounted.
func (r *real) busyboxRoot(id string) []snapshot.Mount {
	lower := filepath.Join(r.dir, "busybox")
	if !exists(filepath.Join(lower, "bin")) {
		r.furnish(lower)
	}
	upper, work := filepath.Join(r.dir, id, "fs"), filepath.Join(r.dir, id, "work")
	for _, dir := range []string{upper, work} {
		r.ok(os.MkdirAll(dir, 0o755))
	}
	return []snapshot.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + lower, "upperdir=" + upper, "workdir=" + work}}}
}

func (r *real) createTask(g spec.Given, req container.TaskRequest) container.TaskState {
	r.t.Helper()
	_, err := r.node.CreateGiven(r.t.Context(), g)
	r.ok(err)
	state, err := r.node.CreateTask(r.t.Context(), g.Namespace, g.ID, req)
	r.ok(err)
	return state
}

func (r *real) startTask(g spec.Given, exec string) {
	r.t.Helper()
	_, err := r.node.StartTask(r.t.Context(), g.Namespace, g.ID, exec)
	r.ok(err)
}

func (r *real) waitTask(g spec.Given, exec string) container.TaskExit {
	r.t.Helper()
	exit, err := r.node.WaitTask(r.t.Context(), g.Namespace, g.ID, exec)
	r.ok(err)
	return exit
}

func TestRealTasks(t *testing.T) {
	eachReal(t, realPart{"life", realTask}, realPart{"exec", realTaskExec}, realPart{"comes back", realTaskReturn}, realPart{"own root", realTaskRoot})
}

func realTask(t *testing.T, r *real) {
	g := r.realSpec("life", false, "/bin/sh", "-c", "read line; echo got $line; echo x > /new; exit 7")
	streams, out := r.fifos("life")
	state := r.createTask(g, container.TaskRequest{Rootfs: r.busyboxRoot("life"), Streams: streams})
	if state.Status != container.TaskCreated || state.Pid == 0 {
		t.Errorf("created %+v", state)
	}
	in, err := os.OpenFile(streams.Stdin, os.O_WRONLY, 0)
	r.ok(err)
	r.startTask(g, "")
	if top, err := r.node.Top(t.Context(), "life", nil); err != nil || len(top.Processes) == 0 {
		t.Errorf("top %v, %v", top, err)
	}
	if list, err := r.node.Stats(t.Context(), []string{"life"}); err != nil || list[0].Pids.Current == 0 && list[0].Memory.Usage == 0 {
		t.Errorf("stats %+v, %v", list, err)
	}
	_, err = io.WriteString(in, "it\n")
	r.ok(err)
	r.ok(in.Close())
	exit := r.waitTask(g, "")
	if exit.Code != 7 || exit.Pid != state.Pid {
		t.Errorf("exit %+v", exit)
	}
	if got := <-out; got != "got it\n" {
		t.Errorf("output %q", got)
	}
	if written, err := os.ReadFile(filepath.Join(r.dir, "life/fs/new")); err != nil || string(written) != "x\n" {
		t.Errorf("wrote %q, %v", written, err)
	}
	_, err = r.node.DeleteTask(t.Context(), g.Namespace, g.ID)
	r.ok(err)
	r.ok(r.node.RemoveGiven(t.Context(), g.Namespace, g.ID))
}

func realTaskExec(t *testing.T, r *real) {
	g := r.realSpec("exec", false, "/bin/sleep", "1000")
	r.createTask(g, container.TaskRequest{Rootfs: r.busyboxRoot("exec")})
	r.startTask(g, "")
	streams, out := r.fifos("exec")
	r.ok(r.node.AddExec(t.Context(), g.Namespace, g.ID, container.ExecRequest{ID: "e", Streams: streams, Process: process("/bin/sh", "-c", "cat; exit 3")}))
	in, err := os.OpenFile(streams.Stdin, os.O_RDWR, 0)
	r.ok(err)
	r.startTask(g, "e")
	_, err = io.WriteString(in, "through and through")
	r.ok(err)
	r.ok(in.Close())
	r.ok(r.node.CloseTaskStdin(t.Context(), g.Namespace, g.ID, "e"))
	if exit := r.waitTask(g, "e"); exit.Code != 3 {
		t.Errorf("exit %+v", exit)
	}
	if got := <-out; got != "through and through" {
		t.Errorf("output %q", got)
	}
	_, err = r.node.DeleteExec(t.Context(), g.Namespace, g.ID, "e")
	r.ok(err)
	if out, code := r.execOutput("exec", spec.ExecConfig{Command: []string{"/bin/echo", "by berth"}}); out != "by berth\n" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
	if stat, err := r.node.StatPath(t.Context(), "exec", "/bin/busybox"); err != nil || stat.Size == 0 {
		t.Errorf("stat %+v, %v", stat, err)
	}
	limit := int64(50)
	r.ok(r.node.UpdateTask(t.Context(), g.Namespace, g.ID, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}, nil))
	r.ok(r.node.PauseTask(t.Context(), g.Namespace, g.ID))
	r.ok(r.node.KillTask(t.Context(), g.Namespace, g.ID, "", syscall.SIGKILL, true))
	if exit := r.waitTask(g, ""); exit.Code != 137 {
		t.Errorf("exit %+v", exit)
	}
}

func realTaskReturn(t *testing.T, r *real) {
	running, created := r.realSpec("running", false, "/bin/sh", "-c", "cat; exit 4"), r.realSpec("created", false, "/bin/sh", "-c", "echo at last")
	streams, out := r.fifos("running")
	before := r.createTask(running, container.TaskRequest{Rootfs: r.busyboxRoot("running"), Streams: streams})
	in, err := os.OpenFile(streams.Stdin, os.O_WRONLY, 0)
	r.ok(err)
	r.startTask(running, "")
	streams, last := r.fifos("created")
	r.createTask(created, container.TaskRequest{Rootfs: r.busyboxRoot("created"), Streams: streams})
	r.reopen()
	state, err := r.node.Task(t.Context(), "test", "running", "")
	r.ok(err)
	if state.Status != container.TaskRunning || state.Pid != before.Pid || state.Streams != before.Streams {
		t.Errorf("came back as %+v", state)
	}
	_, err = io.WriteString(in, "still there")
	r.ok(err)
	r.ok(in.Close())
	r.ok(r.node.CloseTaskStdin(t.Context(), "test", "running", ""))
	if exit := r.waitTask(running, ""); exit.Code != 4 {
		t.Errorf("exit %+v", exit)
	}
	if got := <-out; got != "still there" {
		t.Errorf("output %q", got)
	}
	r.startTask(created, "")
	r.waitTask(created, "")
	if got := <-last; got != "at last\n" {
		t.Errorf("output %q", got)
	}
}

// realTaskRoot: without mounts the spec says where the root is.
func realTaskRoot(t *testing.T, r *real) {
	g := r.realSpec("root", false, "/bin/true")
	var oci specs.Spec
	r.ok(json.Unmarshal(g.Spec.Value, &oci))
	r.busyboxRoot("root")
	oci.Root.Path = filepath.Join(r.dir, "busybox")
	var err error
	g.Spec.Value, err = json.Marshal(oci)
	r.ok(err)
	r.createTask(g, container.TaskRequest{})
	if stat, err := r.node.StatPath(t.Context(), "root", "/bin/busybox"); err != nil || stat.Size == 0 {
		t.Errorf("stat %+v, %v", stat, err)
	}
	r.startTask(g, "")
	if exit := r.waitTask(g, ""); exit.Code != 0 {
		t.Errorf("exit %+v", exit)
	}
}
