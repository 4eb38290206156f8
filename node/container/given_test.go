package container_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/snapshot"
	"berth/spec"
)

// written is a container whose client wrote its spec.
func written(namespace, id string, args ...string) spec.Given {
	data, err := json.Marshal(specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"A=b"}},
		Linux:   &specs.Linux{CgroupsPath: "/" + namespace + "/" + id},
	})
	if err != nil {
		panic(err)
	}
	return spec.Given{
		Namespace: namespace, ID: id, Image: "docker.io/library/busybox:latest", Runtime: container.RuntimeV2,
		Labels: map[string]string{"a": "b"}, Snapshotter: "fakefs", SnapshotKey: id + "-snapshot",
		Spec: &spec.Opaque{Type: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: data},
	}
}

var request = container.TaskRequest{Rootfs: []snapshot.Mount{{Type: "bind", Source: "/", Options: []string{"rbind"}}}, Streams: container.Streams{Stdout: "/out"}}

// give makes a given container and its task, which runs.
func (w *world) give(g spec.Given) container.TaskState {
	w.t.Helper()
	_, err := w.node.CreateGiven(w.t.Context(), g)
	w.ok(err)
	return w.task(g)
}

// task makes and starts a task of it.
func (w *world) task(g spec.Given) container.TaskState {
	w.t.Helper()
	_, err := w.node.CreateTask(w.t.Context(), g.Namespace, g.ID, request)
	w.ok(err)
	_, err = w.node.StartTask(w.t.Context(), g.Namespace, g.ID, "")
	w.ok(err)
	state, err := w.node.Task(w.t.Context(), g.Namespace, g.ID, "")
	w.ok(err)
	return state
}

func (w *world) wantTask(namespace, id, exec string, want container.TaskStatus) container.TaskState {
	w.t.Helper()
	state, err := w.node.Task(w.t.Context(), namespace, id, exec)
	w.ok(err)
	if state.Status != want {
		w.t.Errorf("task %s is %s, want %s", id, state.Status, want)
	}
	return state
}

// A client's container in the default namespace uses the image that it names.
func TestUsersByName(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		for _, namespace := range []string{"default", "moby"} {
			_, err := n.CreateGiven(t.Context(), written(namespace, "in-"+namespace, "/bin/sh"))
			w.ok(err)
		}
		if got := n.Users(written("default", "x").Image); !slices.Equal(got, []string{"in-default"}) {
			t.Errorf("users: %q", got)
		}
		if got := n.Users("sha256:none"); len(got) != 0 {
			t.Errorf("users of another: %q", got)
		}
	})
}

func TestTaskLife(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		g := written("moby", "one", "/bin/sh", "-c", "exit 7")
		made, err := n.CreateGiven(ctx, g)
		w.ok(err)
		if made.Created.IsZero() || !made.Created.Equal(made.Updated) || string(made.Spec.Value) != string(g.Spec.Value) {
			t.Errorf("made %+v", made)
		}
		_, err = n.CreateGiven(ctx, g)
		wantKind(t, err, errs.Exists)
		_, err = n.Task(ctx, "moby", "one", "")
		wantKind(t, err, errs.NotFound)
		state, err := n.CreateTask(ctx, "moby", "one", request)
		w.ok(err)
		if state.Status != container.TaskCreated || state.Pid == 0 || state.Streams != request.Streams || !strings.HasSuffix(state.Bundle, "/moby+one") {
			t.Errorf("created %+v", state)
		}
		if written := w.runtime.Bundle("moby+one"); string(written) != string(g.Spec.Value) {
			t.Errorf("config.json is %s", written)
		}
		_, err = n.CreateTask(ctx, "moby", "one", request)
		wantKind(t, err, errs.Exists)
		wantKind(t, n.RemoveGiven(ctx, "moby", "one"), errs.Conflict)
		pid, err := n.StartTask(ctx, "moby", "one", "")
		w.ok(err)
		exit, err := n.WaitTask(ctx, "moby", "one", "")
		w.ok(err)
		if pid != state.Pid || exit.Pid != pid || exit.Code != 7 || exit.At.IsZero() {
			t.Errorf("pid %d, exit %+v", pid, exit)
		}
		wantKind(t, n.KillTask(ctx, "moby", "one", "", syscall.SIGKILL, false), errs.NotFound)
		if ended := w.wantTask("moby", "one", "", container.TaskStopped); ended.Exit != exit || ended.Pid != pid {
			t.Errorf("ended %+v", ended)
		}
		time.Sleep(2 * time.Second)
		if left := w.left(); !slices.Equal(left, []string{w.dir + "/state/tasks/moby+one"}) {
			t.Errorf("left at its end: %v", left)
		}
		deleted, err := n.DeleteTask(ctx, "moby", "one")
		w.ok(err)
		if deleted != exit {
			t.Errorf("deleted as %+v, ended as %+v", deleted, exit)
		}
		_, err = n.DeleteTask(ctx, "moby", "one")
		wantKind(t, err, errs.NotFound)
		w.ok(n.RemoveGiven(ctx, "moby", "one"))
		_, err = n.Given(ctx, "moby", "one")
		wantKind(t, err, errs.NotFound)
		want := []string{"create", "task_create", "start", "die", "task_delete", "destroy"}
		if got := w.actions(); !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
		w.wantNothing()
	})
}

func TestTaskEventsSayAll(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		g := written("moby", "one", "/bin/true")
		state := w.give(g)
		exit, err := n.WaitTask(t.Context(), "moby", "one", "")
		w.ok(err)
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, e := range w.events {
			attrs := e.Attributes
			if attrs["namespace"] != "moby" || attrs["container"] != "one" || attrs["given"] != "true" || attrs["image"] != g.Image || e.ID != "one" {
				t.Errorf("%s: %v", e.Action, attrs)
			}
			pid := fmt.Sprint(state.Pid)
			switch e.Action {
			case "task_create":
				if attrs["pid"] != pid || attrs["bundle"] != state.Bundle || attrs["terminal"] != "false" || attrs["stdout"] != "/out" || has(attrs, "stderr") {
					t.Errorf("%s: %v", e.Action, attrs)
				}
			case "start":
				if attrs["pid"] != pid {
					t.Errorf("%s: %v", e.Action, attrs)
				}
			case "die":
				if attrs["pid"] != pid || attrs["exitCode"] != "0" || attrs["exitedAt"] != exit.At.Format(time.RFC3339Nano) {
					t.Errorf("%s: %v", e.Action, attrs)
				}
			}
		}
	})
}

func has(attrs map[string]string, name string) bool {
	_, there := attrs[name]
	return there
}
