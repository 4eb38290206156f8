package container_test

import (
	"encoding/json"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/snapshot"
	"berth/spec"
)

func process(args ...string) []byte {
	data, err := json.Marshal(specs.Process{Args: args, Cwd: "/"})
	if err != nil {
		panic(err)
	}
	return data
}

func (w *world) addExec(namespace, id, exec string, args ...string) {
	w.t.Helper()
	w.ok(w.node.AddExec(w.t.Context(), namespace, id, container.ExecRequest{
		ID: exec, Streams: container.Streams{Stdout: "/of/" + exec}, Process: process(args...),
	}))
}

func TestTaskExec(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		w.give(written("moby", "one", "/bin/sleep", "1000"))
		w.addExec("moby", "one", "e", "/bin/sh", "-c", "exit 3")
		wantKind(t, n.AddExec(ctx, "moby", "one", container.ExecRequest{ID: "e", Process: process("/bin/true")}), errs.Exists)
		for _, bad := range []container.ExecRequest{{ID: "a/b", Process: process("x")}, {ID: "f", Process: []byte("nonsense")}, {ID: "f", Process: []byte("{}")}} {
			wantKind(t, n.AddExec(ctx, "moby", "one", bad), errs.Invalid)
		}
		wantKind(t, n.AddExec(ctx, "moby", "two", container.ExecRequest{ID: "e", Process: process("x")}), errs.NotFound)
		if e := w.wantTask("moby", "one", "e", container.TaskCreated); e.Exec != "e" || e.Streams.Stdout != "/of/e" || e.Pid != 0 {
			t.Errorf("exec %+v", e)
		}
		wantKind(t, n.KillTask(ctx, "moby", "one", "e", syscall.SIGKILL, false), errs.Conflict)
		pid, err := n.StartTask(ctx, "moby", "one", "e")
		w.ok(err)
		exit, err := n.WaitTask(ctx, "moby", "one", "e")
		w.ok(err)
		if exit.Pid != pid || exit.Code != 3 || exit.At.IsZero() {
			t.Errorf("exit %+v of %d", exit, pid)
		}
		_, err = n.StartTask(ctx, "moby", "one", "e")
		wantKind(t, err, errs.Conflict)
		wantKind(t, n.KillTask(ctx, "moby", "one", "e", syscall.SIGKILL, false), errs.NotFound)
		deleted, err := n.DeleteExec(ctx, "moby", "one", "e")
		w.ok(err)
		if deleted != exit {
			t.Errorf("deleted as %+v", deleted)
		}
		_, err = n.Task(ctx, "moby", "one", "e")
		wantKind(t, err, errs.NotFound)

		w.addExec("moby", "one", "e", "/bin/sleep", "1000") // the id is free again
		_, err = n.StartTask(ctx, "moby", "one", "e")
		w.ok(err)
		_, err = n.DeleteExec(ctx, "moby", "one", "e")
		wantKind(t, err, errs.Conflict)
		pids, err := n.TaskPids(ctx, "moby", "one")
		w.ok(err)
		if len(pids) != 2 || pids[0].Exec != "" || pids[1].Exec != "e" {
			t.Errorf("pids %v", pids)
		}
		w.addExec("moby", "one", "missing", "/no/such")
		_, err = n.StartTask(ctx, "moby", "one", "missing")
		if err == nil {
			t.Error("a missing command was started")
		}
		w.wantTask("moby", "one", "missing", container.TaskCreated)
		if exit, err = n.WaitTask(ctx, "moby", "one", "missing"); err != nil || exit.Code == 0 {
			t.Errorf("end of what did not start: %+v, %v", exit, err)
		}
		wantKind(t, n.KillTask(ctx, "moby", "one", "missing", syscall.SIGKILL, false), errs.NotFound)
		w.ok(n.KillTask(ctx, "moby", "one", "", syscall.SIGKILL, true))
		exit, err = n.WaitTask(ctx, "moby", "one", "e")
		w.ok(err)
		if exit.Code != 137 {
			t.Errorf("exit %+v", exit)
		}
		if _, err = n.WaitTask(ctx, "moby", "one", ""); err != nil {
			t.Error(err)
		}
		wantKind(t, n.AddExec(ctx, "moby", "one", container.ExecRequest{ID: "late", Process: process("x")}), errs.Conflict)
		w.tidy()
		w.wantNothing()
	})
}

// TestEventsAreInOrder: nothing ends before it has begun, however short it is.
func TestEventsAreInOrder(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		w.give(written("moby", "one", "/bin/sleep", "1000"))
		for range 50 {
			w.addExec("moby", "one", "e", "/bin/true")
			_, err := n.StartTask(ctx, "moby", "one", "e")
			w.ok(err)
			_, err = n.WaitTask(ctx, "moby", "one", "e")
			w.ok(err)
			_, err = n.DeleteExec(ctx, "moby", "one", "e")
			w.ok(err)
		}
		own := w.start(config("/bin/sleep", "1000"))
		for range 50 {
			w.exec(own.ID, spec.ExecConfig{Command: []string{"/bin/true"}, Detach: true})
		}
		w.runtime.Wait()
		var order []string // without those of the two containers
		for _, action := range w.actions() {
			if strings.HasPrefix(action, "exec") {
				order = append(order, action)
			}
		}
		want := []string{"exec_create: /bin/true", "exec_start: /bin/true", "exec_die"}
		for i := range 50 {
			if got := order[3*i : 3*i+3]; !slices.Equal(got, want) {
				t.Fatalf("events of exec %d: %v", i, got)
			}
		}
		w.tidy()
		w.wantNothing()
	})
}

// TestRootOfOthers: what a client has mounted of its own is let go at once.
func TestRootOfOthers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		_, err := n.CreateGiven(ctx, written("moby", "one", "/bin/sleep", "1000"))
		w.ok(err)
		_, err = n.CreateTask(ctx, "moby", "one", container.TaskRequest{Rootfs: []snapshot.Mount{{Type: "overlay", Source: "overlay"}}})
		w.ok(err)
		_, err = n.DeleteTask(ctx, "moby", "one")
		w.ok(err)
		w.tidy()
		w.wantNothing()
	})
}
