package container_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/node/container"
	"berth/node/snapshot"
	"berth/spec"
)

// realPod is a container of a pod that runs busybox.
func (r *real) realPod(id string, terminal bool, args ...string) spec.Given {
	g := r.inPod(id, args...)
	given := r.realSpec(id, terminal, args...)
	g.Spec = given.Spec
	oci := &specs.Spec{}
	r.ok(json.Unmarshal(g.Spec.Value, oci))
	oci.Mounts = append(oci.Mounts, // runc furnishes it, and not the root that many share
		specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}})
	data, err := json.Marshal(oci)
	r.ok(err)
	g.Spec = &spec.Opaque{Type: g.Spec.Type, Value: data}
	return g
}

func TestRealPods(t *testing.T) {
	eachReal(t, realPart{"life", realPodLife}, realPart{"output", realPodOutput}, realPart{"terminal", realPodTerminal}, realPart{"stop", realPodStop},
		realPart{"limits", realPodLimits}, realPart{"killed command", realPodKillExec}, realPart{"comes back", realPodReturn})
}

func (r *real) waitPod(id string) container.TaskExit {
	r.t.Helper()
	exit, err := r.node.WaitTask(r.t.Context(), pods, id, "")
	r.ok(err)
	return exit
}

func realPodLife(t *testing.T, r *real) {
	g := r.realPod("life", false, "/bin/sh", "-c", "cat /etc/seen; echo two >&2; printf three; exit 7")
	root, err := r.node.MountRoot(t.Context(), pods, g.ID, snapshot.Key(g.SnapshotKey))
	r.ok(err)
	r.ok(os.WriteFile(filepath.Join(root, "etc/seen"), []byte("one\n"), 0o644)) // what is seen there is what runs
	r.runs(g)
	if x := r.waitPod(g.ID); x.Code != 7 {
		t.Errorf("exit %+v", x)
	}
	log := readFile(t, g.Log)
	for _, want := range []string{" stdout F one\n", " stderr F two\n", " stdout P three\n"} {
		if !strings.Contains(log, want) {
			t.Errorf("log %q is without %q", log, want)
		}
	}
	if got := r.output(g.ID); !strings.Contains(got, "one\n") { // berth logs
		t.Errorf("logs: %q", got)
	}
	none := r.realPod("nolog", false, "/bin/echo", "heard")
	none.Log = ""
	r.runs(none)
	r.waitPod(none.ID)
	if got := r.output(none.ID); got != "heard\n" {
		t.Errorf("logs: %q", got)
	}
}

// Who listens hears all that comes from then on, from file to file.
func realPodOutput(t *testing.T, r *real) {
	g := r.realPod("cat", false, "/bin/cat")
	g.Stdin, g.StdinOnce = true, true
	r.runs(g)
	in, err := r.node.Stdin(t.Context(), g.ID)
	r.ok(err)
	say := func(text string) {
		_, err := io.WriteString(in, text)
		r.ok(err)
	}
	say("before\n")
	r.awaitLog(g.Log, "before")
	out, err := r.node.Output(t.Context(), g.ID)
	r.ok(err)
	defer out.Close()
	heard := make(chan string, 1)
	go func() {
		var all strings.Builder
		err := out.Each(t.Context(), func(stderr bool, data []byte) error {
			all.Write(data)
			return nil
		})
		heard <- fmt.Sprint(all.String(), err)
	}()
	want := ""
	for i := range 5 { // as kubelet rotates
		line := fmt.Sprintln("line", i)
		want += line
		say(line)
		r.awaitLog(g.Log, line)
		r.ok(os.Rename(g.Log, fmt.Sprint(g.Log, ".2026112115000", i)))
		late := fmt.Sprintln("late", i) // goes to the old file
		want += late
		say(late)
		r.awaitLog(fmt.Sprint(g.Log, ".2026112115000", i), late)
		r.ok(r.node.ReopenLog(t.Context(), g.ID))
	}
	say("end")
	want += "end"
	r.ok(in.Close())
	r.waitPod(g.ID)
	if got := <-heard; got != want+"<nil>" {
		t.Errorf("heard %q, want %q", got, want)
	}
}

func (r *real) awaitLog(path, text string) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		data, _ := os.ReadFile(path)
		if strings.Contains(string(data), strings.TrimSuffix(text, "\n")) {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s is without %q: %q", path, text, data)
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
	}
}

func realPodTerminal(t *testing.T, r *real) {
	g := r.realPod("tty", true, "/bin/sh", "-c", "read a; echo got $a")
	g.Stdin = true
	r.runs(g)
	r.ok(r.node.Resize(t.Context(), g.ID, spec.Size{Rows: 20, Cols: 60}))
	in, err := r.node.Stdin(t.Context(), g.ID)
	r.ok(err)
	_, err = io.WriteString(in, "it\n")
	r.ok(err)
	r.waitPod(g.ID)
	if log := readFile(t, g.Log); !strings.Contains(log, "got it\r\n") {
		t.Errorf("log %q", log)
	}
}

// A TERM right after the start reaches the program, not the runtime.
func realPodStop(t *testing.T, r *real) {
	for i := range 5 {
		g := r.realPod(fmt.Sprint("stop", i), false, "/bin/sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.02; done")
		r.runs(g)
		grace := 3
		r.ok(r.node.Stop(t.Context(), g.ID, &grace, ""))
		if x := r.waitPod(g.ID); x.Code != 5 && x.Code != 137 { // the shell may not have set its trap
			t.Errorf("exit %+v", x)
		}
	}
	g := r.realPod("kill", false, "/bin/sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done")
	r.runs(g)
	r.awaitLog(g.Log, "ready")
	zero := 0
	r.ok(r.node.Stop(t.Context(), g.ID, &zero, ""))
	if x := r.waitPod(g.ID); x.Code != 137 { // nobody asks it first
		t.Errorf("exit %+v", x)
	}
}

func realPodLimits(t *testing.T, r *real) {
	g := r.realPod("hungry", false, "/bin/sh", "-c", "read a; dd if=/dev/zero of=/dev/null bs=200M")
	g.Stdin = true
	oci := &specs.Spec{}
	r.ok(json.Unmarshal(g.Spec.Value, oci))
	many, some := int64(512<<20), int64(16<<20)
	oci.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &many, Swap: &many}}
	data, err := json.Marshal(oci)
	r.ok(err)
	_, err = r.node.AdmitGiven(t.Context(), g)
	r.ok(err)
	r.ok(r.node.SetGivenSpec(t.Context(), pods, g.ID, data))
	_, err = r.node.RunTask(t.Context(), pods, g.ID, container.TaskRequest{})
	r.ok(err)
	usage, err := r.node.Stats(t.Context(), []string{g.ID})
	if err != nil || usage[0].Memory.Limit != uint64(many) {
		t.Errorf("%+v, %v", usage, err)
	}
	r.ok(r.node.UpdateTask(t.Context(), pods, g.ID, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &some, Swap: &some}}, nil))
	in, err := r.node.Stdin(t.Context(), g.ID)
	r.ok(err)
	_, err = io.WriteString(in, "\n")
	r.ok(err)
	r.waitPod(g.ID)
	if view := r.get(g.ID); !view.State.OOMKilled {
		t.Errorf("%+v", view.State)
	}
}

// A node that comes back finds its pods' containers, those that run and those
// that do not yet.
func realPodReturn(t *testing.T, r *real) {
	g := r.realPod("back", false, "/bin/cat")
	g.Stdin, g.StdinOnce = true, true
	r.runs(g)
	waits := r.realPod("waits", false, "/bin/true")
	_, err := r.node.MountRoot(t.Context(), pods, waits.ID, snapshot.Key(waits.SnapshotKey))
	r.ok(err)
	_, err = r.node.AdmitGiven(t.Context(), waits)
	r.ok(err)
	r.reopen()
	in, err := r.node.Stdin(t.Context(), g.ID)
	r.ok(err)
	_, err = io.WriteString(in, "after\n")
	r.ok(err)
	r.ok(in.Close())
	if x := r.waitPod(g.ID); x.Code != 0 {
		t.Errorf("exit %+v", x)
	}
	if log := readFile(t, g.Log); !strings.Contains(log, "after\n") {
		t.Errorf("log %q", log)
	}
	_, err = r.node.RunTask(t.Context(), pods, waits.ID, container.TaskRequest{})
	r.ok(err)
	if x := r.waitPod(waits.ID); x.Code != 0 {
		t.Errorf("exit %+v", x)
	}
}

// A command that is killed takes along what it has started.
func realPodKillExec(t *testing.T, r *real) {
	g := r.realPod("killexec", false, "/bin/sleep", "1000")
	r.runs(g)
	e, err := r.node.CreateExec(t.Context(), g.ID, spec.ExecConfig{Command: []string{"/bin/sh", "-c", "sleep 500 & sleep 600; true"}})
	r.ok(err)
	session, err := r.node.StartExec(t.Context(), e.ID)
	r.ok(err)
	defer session.Close()
	running := func() int {
		table, err := r.node.Top(t.Context(), g.ID, nil)
		r.ok(err)
		return len(table.Processes)
	}
	await := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); running() != want; {
			if time.Now().After(deadline) {
				t.Fatalf("%d processes, want %d", running(), want)
			}
			unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
		}
	}
	await(4)
	r.ok(r.node.KillExec(t.Context(), e.ID, unix.SIGKILL))
	ended, err := r.node.WaitExec(t.Context(), e.ID)
	if err != nil || ended.ExitCode != 137 {
		t.Errorf("it ended %+v, %v", ended, err)
	}
	await(1)
}
