package container_test

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/snapshot"
	"berth/spec"
)

const pods = "k8s.io"

// inPod is a container that the node makes for a pod, with its snapshot.
func (w *world) inPod(id string, args ...string) spec.Given {
	g := written(pods, id, args...)
	g.Snapshotter, g.SnapshotKey, g.Sandbox = "", "client/"+id, "pod1"
	g.Name, g.Labels = "ns/pod/"+strings.TrimRight(id, "0123456789"), nil
	g.Log = filepath.Join(w.dir, "pods", id+".log")
	w.mu.Lock()
	w.snapshots[snapshot.Key(g.SnapshotKey)] = true
	w.mu.Unlock()
	return g
}

// runs makes a container of a pod and runs it.
func (w *world) runs(g spec.Given) container.TaskState {
	w.t.Helper()
	_, err := w.node.AdmitGiven(w.t.Context(), g)
	w.ok(err)
	state, err := w.node.RunTask(w.t.Context(), g.Namespace, g.ID, container.TaskRequest{})
	w.ok(err)
	return state
}

func TestOwned(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		g := w.inPod("web1", "/bin/echo", "hello")
		root, err := n.MountRoot(ctx, pods, g.ID, snapshot.Key(g.SnapshotKey))
		w.ok(err)
		if again, err := n.MountRoot(ctx, pods, g.ID, snapshot.Key(g.SnapshotKey)); again != root || err != nil {
			t.Errorf("mounted again at %s, %v", again, err)
		}
		if !n.Claims(pods + "+web1") {
			t.Error("nobody claims a root that is mounted")
		}
		w.runs(g)
		end, err := n.WaitTask(ctx, pods, g.ID, "")
		w.ok(err)
		view, err := n.Get(ctx, "ns/pod/web")
		w.ok(err)
		if end.Code != 0 || view.Pod != "pod1" || view.ID != g.ID || view.LogPath != g.Log {
			t.Errorf("ended %+v as %+v", end, view)
		}
		if log := readFile(t, g.Log); !strings.HasSuffix(log, " stdout F hello\n") {
			t.Errorf("log %q", log)
		}
		wantKind(t, n.Start(ctx, g.ID), errs.Conflict) // a pod's containers are made anew
		wantKind(t, n.Restart(ctx, g.ID, nil, ""), errs.Conflict)

		w.ok(n.RemoveGiven(ctx, pods, g.ID)) // an ended task goes with it
		wantKind(t, n.RemoveGiven(ctx, pods, g.ID), errs.NotFound)
		if got := w.actions(); !slices.Equal(got, []string{"create", "task_create", "start", "die", "task_delete", "destroy"}) {
			t.Errorf("events %v", got)
		}
		for _, e := range w.events {
			if e.Attributes["pod"] != "pod1" {
				t.Errorf("event %s is of pod %q", e.Action, e.Attributes["pod"])
			}
		}
		time.Sleep(2 * time.Second)
		w.wantNothing()
	})
}

// A name is that of the last of those that have had it.
func TestOwnedNames(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		is := func(want string) {
			t.Helper()
			view, err := n.Get(t.Context(), "ns/pod/web")
			if err != nil || view.ID != want {
				t.Errorf("ns/pod/web is %s (%v), want %s", view.ID, err, want)
			}
		}
		for _, id := range []string{"web1", "web2"} {
			w.runs(w.inPod(id, "/bin/true"))
			time.Sleep(time.Second)
			is(id)
		}
		w.shut()
		n = w.open()
		is("web2")
		w.ok(n.Remove(t.Context(), "web2", true, false))
		is("web1")
		w.tidy()
	})
}

// What is not for people is in no list and in no event, but is there.
func TestQuiet(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		g := w.inPod("pause", "/bin/sleep", "1000")
		g.Quiet, g.SnapshotKey, g.Log = true, "", ""
		state := w.runs(g)
		list, err := n.List(t.Context(), true, nil)
		if err != nil || len(list) != 0 || len(w.actions()) != 0 || state.Status != container.TaskRunning {
			t.Errorf("%v %v, events %v, task %+v", list, err, w.actions(), state)
		}
		if stats, err := n.Stats(t.Context(), nil); err != nil || len(stats) != 0 {
			t.Errorf("statistics %v %v", stats, err)
		}
		if len(w.mounts) != 0 {
			t.Errorf("mounted %v", w.mounts)
		}
		zero := 0
		w.ok(n.Stop(t.Context(), pods+"+pause", &zero, ""))
		w.ok(n.RemoveGiven(t.Context(), pods, "pause"))
		time.Sleep(2 * time.Second)
		w.wantNothing()
	})
}

func TestSetGivenSpec(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		g := w.inPod("one", "/bin/false")
		_, err := n.AdmitGiven(t.Context(), g)
		w.ok(err)
		changed := specs.Spec{Root: &specs.Root{Path: "rootfs"}, Process: &specs.Process{Args: []string{"/bin/sh", "-c", "exit 6"}, Cwd: "/"}}
		data, err := json.Marshal(changed)
		w.ok(err)
		w.ok(n.SetGivenSpec(t.Context(), pods, "one", data))
		w.crash() // at once: no commit has come
		n = w.open()
		_, err = n.RunTask(t.Context(), pods, "one", container.TaskRequest{})
		w.ok(err)
		if end, err := n.WaitTask(t.Context(), pods, "one", ""); err != nil || end.Code != 6 {
			t.Errorf("ended %+v, %v", end, err)
		}
		wantKind(t, n.SetGivenSpec(t.Context(), pods, "one", data), errs.Conflict)
		w.tidy()
		w.wantNothing()
	})
}

// Nothing is forgotten by a node that is killed, nor comes back; and a machine
// that is switched off remembers what is a moment old.
func TestOwnedIsDurable(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Second} {
		for _, reboot := range []bool{false, true} {
			inWorld(t, func(t *testing.T, w *world, n *node) {
				ctx := t.Context()
				_, err := n.AdmitGiven(ctx, w.inPod("old", "/bin/true"))
				w.ok(err)
				time.Sleep(time.Second)
				w.ok(n.RemoveGiven(ctx, pods, "old"))
				_, err = n.AdmitGiven(ctx, w.inPod("brief", "/bin/true"))
				w.ok(err)
				w.ok(n.RemoveGiven(ctx, pods, "brief"))
				kept, err := n.AdmitGiven(ctx, w.inPod("kept", "/bin/true"))
				w.ok(err)
				time.Sleep(wait)
				if reboot {
					w.powerCut()
				} else {
					w.crash()
				}
				for range 2 { // and the next one finds the same
					n = w.open()
					list, err := n.Givens(ctx, pods)
					w.ok(err)
					var ids []string
					for _, g := range list {
						ids = append(ids, g.ID)
					}
					want := []string{"kept"}
					if reboot && wait == 0 {
						want = []string{"old"} // the containers of a machine without power are all gone, in truth
					}
					if !slices.Equal(ids, want) {
						t.Errorf("after %s, reboot %v: %v, want %v", wait, reboot, ids, want)
					}
					if g, err := n.Given(ctx, pods, "kept"); err == nil && (!g.Created.Equal(kept.Created) || g.Name != kept.Name || !g.Owned) {
						t.Errorf("came back as %+v", g)
					}
					time.Sleep(time.Second)
					if files, _ := filepath.Glob(filepath.Join(w.dir, "state/given/*")); len(files) != 0 {
						t.Errorf("files are left: %v", files)
					}
					w.shut()
				}
				w.open()
				w.tidy()
				w.wantNothing()
			})
		}
	}
}

// serves does what is tested for every step of it, until something fails.
func (w *world) serves() (a answered) {
	ctx, n := w.t.Context(), w.node
	g := w.inPod("one", "/bin/sleep", "1000")
	if _, err := n.MountRoot(ctx, pods, "one", snapshot.Key(g.SnapshotKey)); err != nil {
		return a
	}
	_, err := n.AdmitGiven(ctx, g)
	if a.created = err == nil; !a.created {
		return a
	}
	_, err = n.RunTask(ctx, pods, "one", container.TaskRequest{})
	if a.started = err == nil; !a.started {
		return a
	}
	zero := 0
	if a.killed = n.Stop(ctx, pods+"+one", &zero, "") == nil; a.killed {
		a.removed = n.Remove(ctx, pods+"+one", true, false) == nil
	}
	return a
}

func eachOwnedStep(t *testing.T, test func(w *world, i int, step string)) {
	t.Helper()
	eachStep(t, 6, func(w *world) bool { return w.serves().removed }, test)
}

func TestOwnedFailureAtEachStep(t *testing.T) {
	eachOwnedStep(t, func(w *world, i int, _ string) {
		w.count(i, 0)
		a := w.serves()
		w.count(0, 0)
		synctest.Wait()
		if a.created && !a.started {
			view, err := w.node.Get(w.t.Context(), pods+"+one")
			if err != nil || view.State.Status != spec.Created || view.State.Error == "" {
				w.t.Errorf("did not start: %+v, %v", view.State, err)
			}
		}
		if !a.created {
			w.ok(w.node.UnmountRoot(w.t.Context(), pods, "one"))
		}
		w.tidy()
		w.wantNothing()
	})
}

func TestOwnedCrashAtEachStep(t *testing.T) {
	eachOwnedStep(t, func(w *world, i int, _ string) {
		w.count(0, i)
		a := w.serves()
		w.crash()
		w.open()
		synctest.Wait()
		view, err := w.node.Get(w.t.Context(), pods+"+one")
		switch {
		case a.removed:
			wantNoTask(w, err)
		case a.created && !a.killed && err != nil:
			w.t.Errorf("there was a container: %v", err)
		case a.started && !a.killed && view.State.Status != spec.Running && view.State.ExitCode != 137:
			w.t.Errorf("started, and is %+v", view.State)
		case err == nil && view.State.Status == spec.Created: // it can be started
			_, err := w.node.RunTask(w.t.Context(), pods, "one", container.TaskRequest{})
			w.ok(err)
		}
		w.tidy()
		w.wantNothing()
	})
}

// The process was there when the node went, and nobody had been told.
func TestRunIsNotHalf(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		g := w.inPod("one", "/bin/sleep", "1000")
		_, err := n.AdmitGiven(ctx, g)
		w.ok(err)
		w.count(0, 2) // mount, run
		_, err = n.RunTask(ctx, pods, "one", container.TaskRequest{})
		wantKind(t, err, errs.Unavailable)
		w.crash()
		_, err = w.runtime.Run(ctx, container.Launch{ID: pods + "+one", Bundle: filepath.Join(w.dir, "state/containers", pods+"+one")})
		w.ok(err)
		n = w.open()
		w.wantTask(pods, "one", "", container.TaskRunning)
		if view, err := n.Get(ctx, "one"); err != nil || view.State.Status != spec.Running || view.State.StartedAt.IsZero() {
			t.Errorf("%+v, %v", view.State, err)
		}
		w.tidy()
		w.wantNothing()
	})
}

func TestRunFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		for id, code := range map[string]int{"gone": 127, "etc": 126} {
			_, err := n.AdmitGiven(t.Context(), w.inPod(id, map[string]string{"gone": "/no/such", "etc": "/etc/passwd"}[id]))
			w.ok(err)
			_, err = n.RunTask(t.Context(), pods, id, container.TaskRequest{})
			if start, ok := errors.AsType[*container.StartError](err); !ok || start.Code != code {
				t.Errorf("%s: %v", id, err)
			}
			view, err := n.Get(t.Context(), id)
			w.ok(err)
			if st := view.State; st.Status != spec.Created || st.ExitCode != code || st.Error == "" {
				t.Errorf("%s: %+v", id, st)
			}
			_, err = n.Task(t.Context(), pods, id, "")
			wantKind(t, err, errs.NotFound)
		}
		w.tidy()
		w.wantNothing()
	})
}

// A TERM waits for the program to be there: the runtime would swallow it, or die
// of it and leave its own exit code.
func TestStopWhileStarting(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		w.runtime.Slow = 700 * time.Millisecond
		g := w.runs(w.inPod("one", "/bin/sh", "-c", "trap 'exit 3' TERM; x"))
		began, grace := time.Now(), 30
		locked := make(chan error, 1)
		go func() {
			time.Sleep(100 * time.Millisecond)
			locked <- n.PauseTask(t.Context(), pods, "one") // nobody holds it meanwhile
			locked <- n.ResumeTask(t.Context(), pods, "one")
		}()
		w.ok(n.Stop(t.Context(), pods+"+one", &grace, ""))
		if took := time.Since(began); took > time.Second {
			t.Errorf("took %s", took)
		}
		w.ok(<-locked)
		w.ok(<-locked)
		if end, err := n.WaitTask(t.Context(), pods, g.Container, ""); err != nil || end.Code != 3 {
			t.Errorf("ended %+v, %v", end, err)
		}
		kills := 0
		for _, action := range w.actions() {
			if action == "kill" {
				kills++
			}
		}
		if kills != 1 {
			t.Errorf("%d signals", kills)
		}

		// One that never comes that far is killed in time.
		w.runtime.Slow = time.Hour
		w.runs(w.inPod("two", "/bin/sh", "-c", "trap 'exit 3' TERM; x"))
		began, grace = time.Now(), 2
		w.ok(n.Stop(t.Context(), pods+"+two", &grace, ""))
		if took := time.Since(began); took < 2*time.Second || took > 3*time.Second {
			t.Errorf("took %s", took)
		}
		w.tidy()
	})
}

func TestKillExec(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		w.runs(w.inPod("one", "/bin/sleep", "1000"))
		e := w.exec("one", spec.ExecConfig{Command: []string{"/bin/sleep", "1000"}})
		wantKind(t, n.KillExec(t.Context(), e.ID, syscall.SIGKILL), errs.Conflict)
		session, err := n.StartExec(t.Context(), e.ID)
		w.ok(err)
		w.ok(n.KillExec(t.Context(), e.ID, syscall.SIGKILL))
		ended, err := n.WaitExec(t.Context(), e.ID)
		if err != nil || ended.ExitCode != 137 {
			t.Errorf("ended %+v, %v", ended, err)
		}
		w.ok(session.Close())
		wantKind(t, n.KillExec(t.Context(), e.ID, syscall.SIGKILL), errs.NotFound)
		wantKind(t, n.KillExec(t.Context(), "none", syscall.SIGKILL), errs.NotFound)
		w.tidy()
	})
}

// Probes are execs by the thousand: of one that nobody asks for nothing stays.
func TestForgetExec(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		w.runs(w.inPod("one", "/bin/sleep", "1000"))
		run := func(command ...string) (spec.Exec, *container.ExecSession) {
			t.Helper()
			e := w.exec("one", spec.ExecConfig{Command: command})
			session, err := n.StartExec(t.Context(), e.ID)
			w.ok(err)
			return e, session
		}
		e, session := run("/bin/true")
		_, err := n.WaitExec(t.Context(), e.ID)
		w.ok(err)
		w.ok(session.Close())
		n.ForgetExec(e.ID)
		_, err = n.GetExec(t.Context(), e.ID)
		wantKind(t, err, errs.NotFound)

		e, session = run("/bin/sleep", "60") // its client goes before it ends
		n.ForgetExec(e.ID)
		w.ok(session.Close())
		if is, err := n.GetExec(t.Context(), e.ID); err != nil || !is.Running {
			t.Errorf("it is %+v, %v", is, err)
		}
		time.Sleep(2 * time.Minute)
		_, err = n.GetExec(t.Context(), e.ID)
		wantKind(t, err, errs.NotFound)
		if left := w.runtime.Left(); len(left) != 1 {
			t.Errorf("there are %v", left)
		}
		n.ForgetExec("none")
		w.tidy()
	})
}
