package container_test

import (
	"context"
	"slices"
	"syscall"
	"testing"
	"time"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/container/fakecontainer"
	"berth/spec"
)

// shim is a runtime that mounts, resizes, signals and measures by itself.
type shim struct {
	*fakecontainer.Runtime
	w *world
}

const shimName = "io.containerd.fake.v1"

func (w *world) shim(_ context.Context, name string) (container.Runtime, error) {
	if name != shimName {
		return nil, errs.New(errs.NotFound, "no program for %s", name)
	}
	return shim{w.runtime, w}, nil
}

func (shim) MountsRootfs() bool { return true }

func (s shim) Resize(_ context.Context, id, exec string, size spec.Size) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.resized = id + "/" + exec
	return nil
}

func (s shim) Report(_ context.Context, id string) (*spec.Opaque, error) {
	return &spec.Opaque{Type: "metrics", Value: []byte(id)}, nil
}

func (s shim) Checkpoint(_ context.Context, id string, c container.Checkpoint) error {
	if c.Exit {
		s.End(id, 0)
	}
	return nil
}

func TestShims(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		g := written("moby", "one", "/bin/sleep", "1000")
		g.Runtime, g.Options = shimName, &spec.Opaque{Type: "options", Value: []byte{1}}
		w.give(g)
		if l := w.runtime.Launched("moby+one"); len(l.Rootfs) != 1 || l.Name != "one" || l.Namespace != "moby" || l.Options != g.Options && l.Options.Type != "options" {
			t.Errorf("launched %+v", l)
		}
		w.ok(n.ResizeTask(ctx, "moby", "one", "", spec.Size{Rows: 1, Cols: 2}))
		if w.resized != "moby+one/" {
			t.Errorf("resized %s", w.resized)
		}
		cgroup, _, report, err := n.TaskCgroup(ctx, "moby", "one")
		w.ok(err)
		if cgroup != "/moby/one" || report == nil || string(report.Value) != "moby+one" {
			t.Errorf("measured in %s, %+v", cgroup, report)
		}
		w.crash()
		n = w.open()
		w.wantTask("moby", "one", "", container.TaskRunning)
		w.ok(n.KillTask(ctx, "moby", "one", "", syscall.SIGKILL, false))
		_, err = n.WaitTask(ctx, "moby", "one", "")
		w.ok(err)
		time.Sleep(10 * time.Millisecond)
		if left := w.runtime.Left(); !slices.Equal(left, []string{"container moby+one"}) {
			t.Errorf("its output may not have been read, and there is only %v", left)
		}
		_, err = n.DeleteTask(ctx, "moby", "one")
		w.ok(err)
		time.Sleep(2 * time.Second)
		if left := w.left(); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
		w.tidy()
	})
}

// TestRestoredTask has no process before it is started.
func TestRestoredTask(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		g := written("moby", "one", "/bin/sleep", "1000")
		g.Runtime = shimName
		_, err := n.CreateGiven(ctx, g)
		w.ok(err)
		from := request
		from.Restore = "/checkpoint"
		_, err = n.CreateTask(ctx, "moby", "one", from)
		w.ok(err)
		wantKind(t, n.CheckpointTask(ctx, "moby", "one", container.Checkpoint{Image: "/x"}), errs.Conflict)
		pid, err := n.StartTask(ctx, "moby", "one", "")
		w.ok(err)
		if state := w.wantTask("moby", "one", "", container.TaskRunning); pid == 0 || state.Pid != pid {
			t.Errorf("pid %d, %+v", pid, state)
		}
		w.ok(n.CheckpointTask(ctx, "moby", "one", container.Checkpoint{Image: "/x", Exit: true}))
		if exit, err := n.WaitTask(ctx, "moby", "one", ""); err != nil || exit.Code != 0 || exit.Pid != pid {
			t.Errorf("exit %+v, %v", exit, err)
		}
		if !slices.Contains(w.actions(), "checkpoint") {
			t.Errorf("events %v", w.actions())
		}
		w.tidy()
		w.wantNothing()
	})
}
