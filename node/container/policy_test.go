package container_test

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"berth/base/errs"
	"berth/spec"
)

func withPolicy(name string, retries int, args ...string) spec.ContainerConfig {
	c := config(args...)
	c.Restart = spec.RestartPolicy{Name: name, MaxRetries: retries}
	return c
}

// starts are the times of the starts that the events tell of.
func (w *world) starts() []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []time.Time
	for _, e := range w.events {
		if e.Action == "start" {
			list = append(list, e.Time)
		}
	}
	return list
}

func TestRestartBacksOff(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.start(withPolicy("always", 0, "/bin/false"))
		time.Sleep(10 * time.Minute)
		starts := w.starts()
		var waits []time.Duration
		for i := range len(starts) - 1 {
			waits = append(waits, starts[i+1].Sub(starts[i]))
		}
		for i, want := range []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond} {
			if waits[i] != want {
				t.Errorf("wait %d was %v, want %v", i, waits[i], want)
			}
		}
		if last := waits[len(waits)-1]; last != time.Minute {
			t.Errorf("the last wait was %v", last)
		}
		if st := w.wantState(c.ID, spec.Restarting); st.RestartCount != len(starts)-1 {
			t.Errorf("%d restarts counted, %d seen", st.RestartCount, len(starts)-1)
		}
		w.ok(n.Stop(t.Context(), c.ID, nil, "")) // in the middle of the back-off
		w.wantState(c.ID, spec.Stopped)
		count := len(w.starts())
		time.Sleep(time.Hour)
		if len(w.starts()) != count {
			t.Error("started again after it was stopped")
		}
		w.ok(n.Start(t.Context(), c.ID))
		time.Sleep(150 * time.Millisecond)
		if len(w.starts()) != count+2 {
			t.Error("the back-off was not short again after a start by hand")
		}
		w.ok(n.Remove(t.Context(), c.ID, true, false))
		time.Sleep(2 * time.Second)
		w.wantNothing()
	})
}

func TestGoodRunResetsBackOff(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		w.start(withPolicy("unless-stopped", 0, "/bin/sleep", "11"))
		time.Sleep(5 * time.Minute)
		starts := w.starts()
		for i := range len(starts) - 1 {
			if got := starts[i+1].Sub(starts[i]); got != 11100*time.Millisecond {
				t.Fatalf("start %d came %v after the one before", i+1, got)
			}
		}
	})
}

func TestOnFailureGivesUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.start(withPolicy("on-failure", 3, "/bin/sh", "-c", "exit 2"))
		time.Sleep(time.Minute)
		if st := w.wantState(c.ID, spec.Stopped); st.RestartCount != 3 || st.ExitCode != 2 || len(w.starts()) != 4 {
			t.Errorf("state %+v after %d starts", st, len(w.starts()))
		}
		good := w.start(withPolicy("on-failure", 0, "/bin/true"))
		time.Sleep(time.Minute)
		if st := w.wantState(good.ID, spec.Stopped); st.RestartCount != 0 {
			t.Errorf("state %+v", st)
		}
	})
}

func TestKillEndsRestarts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.start(withPolicy("always", 0, "/bin/sleep", "1000"))
		w.runtime.End(c.ID, 1)
		time.Sleep(time.Second)
		w.wantState(c.ID, spec.Running)
		w.ok(n.Kill(t.Context(), c.ID, "KILL"))
		time.Sleep(time.Hour)
		w.wantState(c.ID, spec.Stopped)
	})
}

func TestRestartThatCannotStartTriesAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.start(withPolicy("always", 0, "/bin/sleep", "1000"))
		var broken atomic.Bool
		broken.Store(true)
		w.runtime.Fail = func(op, id string) error {
			if op == "run" && broken.Load() {
				return errs.New(errs.Unavailable, "no room")
			}
			return w.step(op, id)
		}
		w.runtime.End(c.ID, 1)
		time.Sleep(time.Second)
		if st := w.wantState(c.ID, spec.Restarting); !strings.Contains(st.Error, "no room") {
			t.Errorf("state %+v", st)
		}
		broken.Store(false)
		time.Sleep(time.Minute)
		w.wantState(c.ID, spec.Running)
	})
}

func TestUpdatePolicyAndLimits(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.start(config("/bin/sleep", "1000"))
		_, err := n.Update(t.Context(), c.ID, spec.ContainerUpdate{Restart: &spec.RestartPolicy{Name: "maybe"}})
		wantKind(t, err, errs.Invalid)
		updated, err := n.Update(t.Context(), c.ID, spec.ContainerUpdate{
			Restart:   &spec.RestartPolicy{Name: "always"},
			Resources: &spec.Resources{Memory: 64 << 20, Pids: 10},
		})
		w.ok(err)
		if updated.Config.Restart.Name != "always" || updated.Config.Resources.Pids != 10 {
			t.Errorf("updated %+v", updated.Config)
		}
		if got := w.runtime.Updated(c.ID); got == nil || *got.Memory.Limit != 64<<20 {
			t.Errorf("the runtime was told %+v", got)
		}
		w.runtime.End(c.ID, 0)
		time.Sleep(time.Second)
		w.wantState(c.ID, spec.Running)
	})
}

func TestHealth(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		cfg := config("/bin/sleep", "100000")
		cfg.Health = &spec.HealthConfig{
			Test: []string{"CMD", "/bin/false"}, Interval: 10 * time.Second, Retries: 2,
			StartPeriod: 12 * time.Second, StartInterval: 5 * time.Second,
		}
		c := w.start(cfg)
		if h := w.get(c.ID).State.Health; h == nil || h.Status != "starting" {
			t.Errorf("health %+v", h)
		}
		time.Sleep(11 * time.Second) // probes at 5 and 10 do not count
		if h := w.get(c.ID).State.Health; h.Status != "starting" || h.FailingStreak != 0 || len(h.Log) != 2 {
			t.Errorf("health in the start period %+v", h)
		}
		time.Sleep(15 * time.Second) // at 15 and 25 they do
		if h := w.get(c.ID).State.Health; h.Status != "unhealthy" || h.FailingStreak != 2 {
			t.Errorf("health %+v", h)
		}
		time.Sleep(10 * time.Minute)
		h := w.get(c.ID).State.Health
		if len(h.Log) != 5 || h.Log[4].ExitCode != 1 {
			t.Errorf("log of %d probes, last %+v", len(h.Log), h.Log[len(h.Log)-1])
		}
		w.ok(n.Pause(t.Context(), c.ID))
		time.Sleep(time.Minute)
		if now := w.get(c.ID).State.Health; now.FailingStreak != h.FailingStreak {
			t.Error("probed while paused")
		}
		w.ok(n.Unpause(t.Context(), c.ID))
		w.ok(n.Stop(t.Context(), c.ID, new(int), ""))
		if got := w.get(c.ID).State.Health; got != nil {
			t.Errorf("health of a stopped container %+v", got)
		}
		if !slices.Contains(w.actions(), "health_status: unhealthy") {
			t.Errorf("events %v", w.actions())
		}
		w.ok(n.Remove(t.Context(), c.ID, false, false))
		time.Sleep(2 * time.Second)
		w.wantNothing()
	})
}

func TestHealthOfImageAndOutput(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		image := w.images["busybox"]
		image.Config.Health = &spec.HealthConfig{Test: []string{"CMD", "/bin/echo", strings.Repeat("x", 5000)}}
		w.images["busybox"] = image
		c := w.start(config("/bin/sleep", "100000"))
		time.Sleep(31 * time.Second)
		h := w.get(c.ID).State.Health
		if h.Status != "healthy" || len(h.Log[0].Output) != 4096 {
			t.Errorf("health %s with %d bytes of output", h.Status, len(h.Log[0].Output))
		}
		cfg := config("/bin/sleep", "100000")
		cfg.Health = &spec.HealthConfig{Test: []string{"NONE"}}
		if none := w.start(cfg); none.State.Health != nil {
			t.Errorf("health %+v", none.State.Health)
		}
	})
}

func TestHealthTimeout(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		cfg := config("/bin/sleep", "100000")
		cfg.Health = &spec.HealthConfig{Test: []string{"CMD", "/bin/sleep", "500"}, Interval: time.Second, Timeout: 2 * time.Second, Retries: 1}
		c := w.start(cfg)
		time.Sleep(3500 * time.Millisecond)
		h := w.get(c.ID).State.Health
		if h.Status != "unhealthy" || h.Log[0].ExitCode != -1 || !strings.Contains(h.Log[0].Output, "longer than 2s") {
			t.Errorf("health %+v", h)
		}
		w.ok(n.Remove(t.Context(), c.ID, true, false))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		w.wantNothing()
	})
}
