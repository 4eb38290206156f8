package container_test

import (
	"strconv"
	"syscall"
	"testing"
	"time"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/snapshot"
	"berth/spec"
)

const (
	statusLabel  = "containerd.io/restart.status"
	policyLabel  = "containerd.io/restart.policy"
	countLabel   = "containerd.io/restart.count"
	logLabel     = "containerd.io/restart.loguri"
	stoppedLabel = "containerd.io/restart.explicitly-stopped"
)

// relabel does what nerdctl does once it has started a task.
func (w *world) relabel(g spec.Given, pairs ...string) {
	w.t.Helper()
	_, err := w.node.UpdateGiven(w.t.Context(), g.Namespace, g.ID, func(g *spec.Given) error {
		for i := 0; i < len(pairs); i += 2 {
			g.Labels[pairs[i]] = pairs[i+1]
		}
		return nil
	})
	w.ok(err)
}

func (w *world) label(namespace, id, name string) string {
	w.t.Helper()
	g, err := w.node.Given(w.t.Context(), namespace, id)
	w.ok(err)
	return g.Labels[name]
}

func TestRestartByLabels(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		g := written("default", "one", "/bin/sleep", "1000")
		g.Labels = map[string]string{policyLabel: "always", logLabel: "binary:///log?x=y"}
		w.give(g)
		w.relabel(g, statusLabel, "running", stoppedLabel, "false")
		w.runtime.End("one", 1)
		time.Sleep(time.Second)
		w.wantTask("default", "one", "", container.TaskRunning)
		if l := w.runtime.Launched("one"); l.Streams.Stdout != "binary:///log?x=y" || len(l.Rootfs) != 0 {
			t.Errorf("restarted as %+v", l)
		}
		if count := w.label("default", "one", countLabel); count != "1" {
			t.Errorf("counted %q", count)
		}
		actions := w.actions()
		if got := actions[len(actions)-4:]; got[0] != "die" || got[1] != "task_delete" || got[2] != "task_create" || got[3] != "start" {
			t.Errorf("events %v", actions)
		}

		w.ok(n.Stop(t.Context(), "one", new(int), "")) // by one who knows of no labels
		time.Sleep(time.Hour)
		w.wantTask("default", "one", "", container.TaskStopped)
		if stopped := w.label("default", "one", stoppedLabel); stopped != "true" {
			t.Errorf("explicitly stopped: %q", stopped)
		}
		w.ok(n.Start(t.Context(), "one"))
		w.wantTask("default", "one", "", container.TaskRunning)
		if stopped := w.label("default", "one", stoppedLabel); stopped != "false" {
			t.Errorf("explicitly stopped: %q", stopped)
		}
		w.relabel(g, stoppedLabel, "true") // by nerdctl stop
		w.ok(n.KillTask(t.Context(), "default", "one", "", syscall.SIGKILL, false))
		time.Sleep(time.Hour)
		w.wantTask("default", "one", "", container.TaskStopped)
		w.tidy()
		w.wantNothing()
	})
}

func TestRestartOnFailureByLabels(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		g := written("moby", "one", "/bin/sh", "-c", "exit 3")
		g.Labels = map[string]string{statusLabel: "running", policyLabel: "on-failure:3"}
		w.give(g)
		time.Sleep(time.Hour)
		w.wantTask("moby", "one", "", container.TaskStopped)
		if count, starts := w.label("moby", "one", countLabel), len(w.starts()); count != "3" || starts != 4 {
			t.Errorf("%d starts, %s counted", starts, count)
		}
		odd := written("moby", "odd", "/bin/false")
		odd.Labels = map[string]string{statusLabel: "running", policyLabel: "sometimes"}
		w.give(odd)
		time.Sleep(time.Hour)
		w.wantTask("moby", "odd", "", container.TaskStopped)
		w.tidy()
		w.wantNothing()
	})
}

// TestLabelsAfterTheEnd: nerdctl sets them when the task was started, which may
// have ended by then.
func TestLabelsAfterTheEnd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		g := written("default", "one", "/bin/false")
		g.Labels = map[string]string{policyLabel: "always"}
		w.give(g)
		_, err := n.WaitTask(t.Context(), "default", "one", "")
		w.ok(err)
		w.relabel(g, statusLabel, "running")
		time.Sleep(time.Second)
		if starts := len(w.starts()); starts < 3 {
			t.Errorf("%d starts", starts)
		}
		w.relabel(g, statusLabel, "")
		starts := len(w.starts())
		time.Sleep(time.Hour)
		if now := len(w.starts()); now != starts {
			t.Errorf("%d starts after the label was taken away", now-starts)
		}
		w.relabel(g, statusLabel, "running", countLabel, strconv.Itoa(7))
		time.Sleep(time.Second)
		w.relabel(g, statusLabel, "stopped")
		time.Sleep(time.Hour)
		w.wantTask("default", "one", "", container.TaskStopped)
		w.tidy()
		w.wantNothing()
	})
}

// TestClientAtWorkIsNotDisturbed: no new task comes between a client's kill and
// its removal.
func TestClientAtWorkIsNotDisturbed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		g := written("default", "one", "/bin/sleep", "1000")
		g.Labels = map[string]string{policyLabel: "always", statusLabel: "running"}
		w.give(g)
		w.ok(n.KillTask(ctx, "default", "one", "", syscall.SIGKILL, true))
		time.Sleep(2 * time.Second)
		_, err := n.DeleteTask(ctx, "default", "one")
		w.ok(err)
		time.Sleep(2 * time.Second)
		w.ok(n.RemoveGiven(ctx, "default", "one"))
		w.give(g)
		w.ok(n.KillTask(ctx, "default", "one", "", syscall.SIGKILL, true))
		time.Sleep(time.Minute) // it was not removed
		w.wantTask("default", "one", "", container.TaskRunning)
		w.tidy()
		w.wantNothing()
	})
}

func TestTasksAfterReboot(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		for _, policy := range []string{"", "always", "unless-stopped", "on-failure"} {
			g := written("moby", "with"+policy, "/bin/sleep", "1000")
			g.Labels = map[string]string{policyLabel: policy}
			if policy != "" {
				g.Labels[statusLabel] = "running"
			}
			w.give(g)
		}
		for _, policy := range []string{"always", "unless-stopped"} {
			g := written("moby", "stopped-"+policy, "/bin/sleep", "1000")
			g.Labels = map[string]string{policyLabel: policy, statusLabel: "running"}
			w.give(g)
			w.ok(n.Stop(t.Context(), g.ID, new(int), ""))
		}
		time.Sleep(time.Second)
		w.powerCut()
		n = w.open()
		time.Sleep(time.Second)
		for _, id := range []string{"withalways", "withunless-stopped", "stopped-always"} {
			w.wantTask("moby", id, "", container.TaskRunning)
		}
		if root := w.mounted("moby+withalways"); root != "client/withalways-snapshot" {
			t.Errorf("its root is %q", root)
		}
		if stopped := w.label("moby", "stopped-always", stoppedLabel); stopped != "false" {
			t.Errorf("explicitly stopped: %q", stopped)
		}
		for _, id := range []string{"with", "withon-failure", "stopped-unless-stopped"} {
			_, err := n.Task(t.Context(), "moby", id, "")
			wantKind(t, err, errs.NotFound)
			w.wantState(id, spec.Stopped)
		}
		w.tidy()
		w.wantNothing()
	})
}

// mounted is what is mounted as the root of a container.
func (w *world) mounted(key string) snapshot.Key {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mounts[w.dir+"/state/containers/"+key+"/rootfs"]
}
