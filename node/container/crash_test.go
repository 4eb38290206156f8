package container_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"berth/base/errs"
	"berth/node/container"
	"berth/spec"
)

// everything is a config that needs all that a container can.
func everything() spec.ContainerConfig {
	cfg := config("/bin/sleep", "1000")
	cfg.Network.Mode = ""
	cfg.Mounts = []spec.MountPoint{{Type: "volume", Target: "/anonymous"}, {Type: "volume", Source: "named", Target: "/named"}}
	return cfg
}

// lives does what is tested for every step of it.
func (w *world) lives() error {
	ctx := w.t.Context()
	made, err := w.node.Create(ctx, everything())
	if err != nil {
		return err
	}
	if err := w.node.Start(ctx, made.ID); err != nil {
		return err
	}
	return w.node.Remove(ctx, made.ID, true, true)
}

// tidy removes whatever containers are there.
func (w *world) tidy() {
	w.t.Helper()
	list, err := w.node.List(w.t.Context(), true, nil)
	w.ok(err)
	for _, c := range list {
		w.ok(w.node.Remove(w.t.Context(), c.ID, true, true))
	}
	time.Sleep(2 * time.Second)
	synctest.Wait()
}

// eachStep runs test once for every step of what a client does, of which there
// are at least so many. lives says whether all of it was done.
func eachStep(t *testing.T, least int, lives func(w *world) bool, test func(w *world, i int, step string)) {
	t.Helper()
	var steps []string
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.open()
		w.count(0, 0)
		if !lives(w) {
			t.Error("it fails where nothing goes wrong")
		}
		time.Sleep(2 * time.Second)
		steps = w.taken()
		w.wantNothing()
		w.shut()
	})
	if len(steps) < least {
		t.Fatalf("only %d steps: %v", len(steps), steps)
	}
	for i, step := range steps {
		t.Run(fmt.Sprintf("%02d %s", i+1, step), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.open()
				test(w, i+1, step)
				w.shut()
			})
		})
	}
}

// eachNativeStep does so with a container of the node's own.
func eachNativeStep(t *testing.T, test func(w *world, i int, step string)) {
	t.Helper()
	eachStep(t, 20, func(w *world) bool { return w.lives() == nil }, test)
}

// TestFailureAtEachStep: one thing goes wrong once. What was asked fails or
// succeeds, and the next try leaves nothing behind.
func TestFailureAtEachStep(t *testing.T) {
	eachNativeStep(t, func(w *world, i int, step string) {
		w.count(i, 0)
		_ = w.lives() // it may get over it
		w.count(0, 0)
		w.tidy()
		w.wantNothing()
	})
}

// TestCrashAtEachStep: the node is gone before the step; another one comes.
func TestCrashAtEachStep(t *testing.T) {
	eachNativeStep(t, func(w *world, i int, step string) {
		w.count(0, i)
		_ = w.lives()
		w.crash()
		w.open()
		synctest.Wait()
		w.tidy()
		w.forgiveVolume(step)
		w.wantNothing()
	})
}

// forgiveVolume: an anonymous volume that was just made, and not yet taken,
// cannot be told from one that a user made.
func (w *world) forgiveVolume(step string) {
	if step == "reserve volume" {
		w.mu.Lock()
		delete(w.volumes, "anonymous-0")
		w.mu.Unlock()
	}
}

// TestPowerCutAtEachStep: the processes are gone too, and all that lies in memory.
func TestPowerCutAtEachStep(t *testing.T) {
	eachNativeStep(t, func(w *world, i int, step string) {
		w.count(0, i)
		_ = w.lives()
		w.powerCut()
		w.open()
		synctest.Wait()
		w.tidy()
		w.forgiveVolume(step)
		w.wantNothing()
	})
}

// powerCut is a crash of the machine.
func (w *world) powerCut() {
	w.crash()
	w.reboot()
}

// reboot loses what does not outlive a boot.
func (w *world) reboot() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.boot += "+"
	w.runtime.Reset()
	clear(w.mounts)
	clear(w.roots)
	clear(w.spaces)
	clear(w.attached)
	for _, v := range w.volumes {
		clear(v.mounted)
	}
	w.removeState()
}

func TestNodeComesBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		cfg := config("/bin/sleep", "1000")
		cfg.Name = "running"
		cfg.Health = &spec.HealthConfig{Test: []string{"CMD", "/bin/true"}, Interval: time.Second}
		c := w.start(cfg)
		time.Sleep(1500 * time.Millisecond)
		paused := w.start(config("/bin/sleep", "1000"))
		w.ok(n.Pause(t.Context(), paused.ID))
		ended := w.start(config("/bin/sleep", "1000"))
		removed := config("/bin/sleep", "1000")
		removed.AutoRemove = true
		rm := w.start(removed)
		retried := w.start(withPolicy("on-failure", 0, "/bin/sleep", "1000"))

		w.crash()
		w.runtime.End(ended.ID, 9)
		w.runtime.End(rm.ID, 8)
		w.runtime.End(retried.ID, 7)
		n = w.open()
		synctest.Wait()

		if st := w.wantState("running", spec.Running); st.Pid != c.State.Pid || st.Health == nil || st.Health.Status != "healthy" {
			t.Errorf("state %+v", st)
		}
		probes := len(w.get("running").State.Health.Log)
		time.Sleep(2500 * time.Millisecond)
		if got := len(w.get("running").State.Health.Log); got != probes+2 {
			t.Errorf("%d probes after the node came back, %d before", got, probes)
		}
		w.wantState(paused.ID, spec.Paused)
		w.ok(n.Unpause(t.Context(), paused.ID))
		if st := w.wantState(ended.ID, spec.Stopped); st.ExitCode != 9 {
			t.Errorf("state %+v", st)
		}
		if st := w.wantState(rm.ID, spec.Stopped); st.ExitCode != 8 {
			t.Errorf("state %+v", st)
		}
		w.wantState(retried.ID, spec.Running)
		time.Sleep(15 * time.Second)
		if x := w.wait(rm.ID, container.Removed); x.Code != 8 {
			t.Errorf("exit %+v", x)
		}
		w.runtime.End("running", 1)
		w.ok(n.Stop(t.Context(), "running", nil, "KILL"))
		w.tidy()
		w.wantNothing()
	})
}

func TestReboot(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		policies := map[string]string{}
		for _, policy := range []string{"no", "on-failure", "always", "unless-stopped"} {
			policies[policy] = w.start(withPolicy(policy, 0, "/bin/sleep", "1000")).ID
		}
		stopped := map[string]string{}
		for _, policy := range []string{"always", "unless-stopped"} {
			id := w.start(withPolicy(policy, 0, "/bin/sleep", "1000")).ID
			w.ok(n.Stop(t.Context(), id, new(int), ""))
			stopped[policy] = id
		}
		created := w.create(withPolicy("always", 0, "/bin/sleep", "1000"))
		time.Sleep(time.Second)
		w.powerCut()
		w.open()
		time.Sleep(time.Second)
		w.wantState(policies["always"], spec.Running)
		w.wantState(policies["unless-stopped"], spec.Running)
		if st := w.wantState(policies["no"], spec.Stopped); !st.ExitUnknown {
			t.Errorf("state %+v", st)
		}
		w.wantState(policies["on-failure"], spec.Stopped)
		w.wantState(stopped["always"], spec.Running)
		w.wantState(stopped["unless-stopped"], spec.Stopped)
		w.wantState(created.ID, spec.Created)
		w.tidy()
		w.wantNothing()
	})
}

func TestExitIsNotLostInACrash(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.start(config("/bin/sh", "-c", "exit 6"))
		w.wait(c.ID, container.NotRunning)
		w.crash() // before the record of the end was written
		w.open()
		synctest.Wait()
		if st := w.wantState(c.ID, spec.Stopped); st.ExitCode != 6 || st.ExitUnknown {
			t.Errorf("state %+v", st)
		}
		time.Sleep(3 * time.Second)
		if left := w.runtime.Left(); len(left) != 0 {
			t.Errorf("not forgotten: %v", left)
		}
		w.crash()
		w.open()
		if st := w.wantState(c.ID, spec.Stopped); st.ExitCode != 6 {
			t.Errorf("state %+v", st)
		}
		if got, want := w.actions(), []string{"create", "start", "die", "die"}; !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	})
}

func TestTombstonesOutliveTheNode(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		cfg := config("/bin/sh", "-c", "exit 3")
		cfg.AutoRemove = true
		c := w.create(cfg)
		w.ok(w.node.Start(t.Context(), c.ID)) // it may be gone when this returns
		w.wait(c.ID, container.Removed)
		w.crash()
		w.open()
		if x := w.wait(c.ID, ""); x.Code != 3 {
			t.Errorf("exit %+v", x)
		}
		time.Sleep(time.Hour)
		_, err := w.node.Wait(t.Context(), c.ID, "")
		wantKind(t, err, errs.NotFound)
	})
}
