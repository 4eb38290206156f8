package container_test

import (
	"errors"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"

	"berth/base/errs"
	"berth/node/container"
)

// answered is what a client has been told by the time of a crash.
type answered struct{ created, task, started, killed, deleted, removed bool }

// works does what is tested for every step of it, until something fails.
func (w *world) works() (a answered) {
	ctx, n := w.t.Context(), w.node
	_, err := n.CreateGiven(ctx, written("moby", "one", "/bin/sleep", "1000"))
	if a.created = err == nil; !a.created {
		return a
	}
	_, err = n.CreateTask(ctx, "moby", "one", request)
	if a.task = err == nil; !a.task {
		return a
	}
	_, err = n.StartTask(ctx, "moby", "one", "")
	if a.started = err == nil; !a.started {
		return a
	}
	if a.killed = n.KillTask(ctx, "moby", "one", "", syscall.SIGKILL, false) == nil; !a.killed {
		return a
	}
	if _, err = n.WaitTask(ctx, "moby", "one", ""); err != nil {
		return a
	}
	_, err = n.DeleteTask(ctx, "moby", "one")
	if a.deleted = err == nil; a.deleted {
		a.removed = n.RemoveGiven(ctx, "moby", "one") == nil
	}
	return a
}

func eachTaskStep(t *testing.T, test func(w *world, i int, step string)) {
	t.Helper()
	eachStep(t, 8, func(w *world) bool { return w.works().removed }, test)
}

func TestTaskFailureAtEachStep(t *testing.T) {
	eachTaskStep(t, func(w *world, i int, _ string) {
		w.count(i, 0)
		_ = w.works()
		w.count(0, 0)
		synctest.Wait()
		w.tidy()
		w.wantNothing()
	})
}

func TestTaskCrashAtEachStep(t *testing.T) {
	eachTaskStep(t, func(w *world, i int, _ string) {
		w.count(0, i)
		a := w.works()
		w.crash()
		w.open()
		synctest.Wait()
		w.isAsAnswered(a)
		w.tidy()
		w.wantNothing()
	})
}

// isAsAnswered: what a client was told is so, and what it was not told may be.
func (w *world) isAsAnswered(a answered) {
	w.t.Helper()
	state, err := w.node.Task(w.t.Context(), "moby", "one", "")
	_, gone := w.node.Given(w.t.Context(), "moby", "one")
	switch {
	case a.deleted || !a.task:
		wantNoTask(w, err)
	case a.killed && state.Status != container.TaskStopped && state.Status != container.TaskRunning: // it may be about to end
		w.t.Errorf("killed, and is %s", state.Status)
	case a.started && !a.killed && state.Status != container.TaskRunning && state.Status != container.TaskStopped:
		w.t.Errorf("started, and is %s", state.Status)
	case err != nil:
		w.t.Errorf("there was a task: %v", err)
	}
	if state.Status == container.TaskStopped && state.Exit.Code != 128+9 {
		w.t.Errorf("exit %+v", state.Exit)
	}
	if a.created && !a.deleted && gone != nil {
		w.t.Errorf("there was a container: %v", gone)
	}
}

func wantNoTask(w *world, err error) {
	w.t.Helper()
	if !errors.Is(err, errs.NotFound) {
		w.t.Errorf("there is a task that nobody was told of: %v", err)
	}
}

func TestTaskPowerCutAtEachStep(t *testing.T) {
	eachTaskStep(t, func(w *world, i int, _ string) {
		w.count(0, i)
		a := w.works()
		w.powerCut()
		w.open()
		synctest.Wait()
		_, err := w.node.Task(w.t.Context(), "moby", "one", "")
		wantNoTask(w, err)
		if _, err := w.node.Given(w.t.Context(), "moby", "one"); a.created && !a.deleted && err != nil {
			w.t.Errorf("there was a container: %v", err)
		}
		w.tidy()
		w.wantNothing()
	})
}

func TestTasksComeBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		running := w.give(written("moby", "running", "/bin/sleep", "1000"))
		w.give(written("default", "paused", "/bin/sleep", "1000"))
		w.ok(n.PauseTask(ctx, "default", "paused"))
		w.give(written("moby", "ended", "/bin/sleep", "1000"))
		w.give(written("moby", "known", "/bin/sh", "-c", "exit 4"))
		known, err := n.WaitTask(ctx, "moby", "known", "")
		w.ok(err)
		_, err = n.CreateGiven(ctx, written("moby", "created", "/bin/sh", "-c", "exit 5"))
		w.ok(err)
		created, err := n.CreateTask(ctx, "moby", "created", request)
		w.ok(err)
		w.addExec("moby", "running", "e1", "/bin/sleep", "1000")
		w.addExec("moby", "running", "e2", "/bin/sleep", "1000")
		w.addExec("moby", "running", "e3", "/bin/true")
		for _, id := range []string{"e1", "e2"} {
			_, err = n.StartTask(ctx, "moby", "running", id)
			w.ok(err)
		}
		e1 := w.wantTask("moby", "running", "e1", container.TaskRunning)

		w.crash() // before any of it was on disk
		w.runtime.End("moby+ended", 9)
		w.runtime.End(w.runtime.ExecNamed("moby+running", "e2"), 3)
		n = w.open()
		synctest.Wait()

		if now := w.wantTask("moby", "running", "", container.TaskRunning); now != running {
			t.Errorf("running %+v, was %+v", now, running)
		}
		if now := w.wantTask("moby", "running", "e1", container.TaskRunning); now != e1 {
			t.Errorf("exec %+v, was %+v", now, e1)
		}
		if e2 := w.wantTask("moby", "running", "e2", container.TaskStopped); e2.Exit.Code != 3 {
			t.Errorf("exec %+v", e2)
		}
		w.wantTask("moby", "running", "e3", container.TaskCreated)
		w.wantTask("default", "paused", "", container.TaskPaused)
		w.ok(n.ResumeTask(ctx, "default", "paused"))
		if ended := w.wantTask("moby", "ended", "", container.TaskStopped); ended.Exit.Code != 9 {
			t.Errorf("ended %+v", ended)
		}
		if again := w.wantTask("moby", "known", "", container.TaskStopped); again.Exit != known {
			t.Errorf("exit %+v, was %+v", again.Exit, known)
		}
		if now := w.wantTask("moby", "created", "", container.TaskCreated); now != created {
			t.Errorf("created %+v, was %+v", now, created)
		}
		_, err = n.StartTask(ctx, "moby", "created", "")
		w.ok(err)
		exit, err := n.WaitTask(ctx, "moby", "created", "")
		w.ok(err)
		if exit.Code != 5 {
			t.Errorf("exit %+v", exit)
		}
		w.ok(n.KillTask(ctx, "moby", "running", "e1", syscall.SIGKILL, false))
		exit, err = n.WaitTask(ctx, "moby", "running", "e1")
		w.ok(err)
		if exit.Code != 137 || exit.Pid != e1.Pid {
			t.Errorf("exit %+v", exit)
		}
		_, err = n.StartTask(ctx, "moby", "running", "e3")
		w.ok(err)
		w.tidy()
		w.wantNothing()
	})
}

// TestStartIsNotHalf: the node goes between the start of the process and the
// note that it runs.
func TestStartIsNotHalf(t *testing.T) {
	for _, reached := range []bool{false, true} {
		inWorld(t, func(t *testing.T, w *world, n *node) {
			ctx := t.Context()
			_, err := n.CreateGiven(ctx, written("moby", "one", "/bin/sleep", "1000"))
			w.ok(err)
			_, err = n.CreateTask(ctx, "moby", "one", request)
			w.ok(err)
			w.count(0, 1)
			_, err = n.StartTask(ctx, "moby", "one", "")
			wantKind(t, err, errs.Unavailable)
			w.crash()
			if reached {
				w.ok(w.runtime.Start(ctx, "moby+one"))
			}
			w.open()
			w.wantTask("moby", "one", "", container.TaskRunning)
			if got := w.actions(); !slices.Equal(got, []string{"create", "task_create", "start"}) {
				t.Errorf("events %v", got)
			}
			w.tidy()
			w.wantNothing()
		})
	}
}
