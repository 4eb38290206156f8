package container_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"berth/base/errs"
	"berth/node/container"
	"berth/spec"
)

// inWorld runs a test on a node whose clock is bent.
func inWorld(t *testing.T, test func(t *testing.T, w *world, n *node)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.open()
		test(t, w, n)
		w.shut()
	})
}

func config(args ...string) spec.ContainerConfig {
	return spec.ContainerConfig{Image: "busybox", Command: args, Network: spec.NetworkChoice{Mode: "none"}}
}

func (w *world) create(c spec.ContainerConfig) spec.Container {
	w.t.Helper()
	made, err := w.node.Create(w.t.Context(), c)
	w.ok(err)
	return made
}

func (w *world) start(c spec.ContainerConfig) spec.Container {
	w.t.Helper()
	made := w.create(c)
	w.ok(w.node.Start(w.t.Context(), made.ID))
	return w.get(made.ID)
}

func (w *world) get(ref string) spec.Container {
	w.t.Helper()
	c, err := w.node.Get(w.t.Context(), ref)
	w.ok(err)
	return c
}

func (w *world) wait(ref, condition string) spec.Exit {
	w.t.Helper()
	x, err := w.node.Wait(w.t.Context(), ref, condition)
	w.ok(err)
	return x
}

func (w *world) wantState(ref string, want spec.State) spec.ContainerState {
	w.t.Helper()
	st := w.get(ref).State
	if st.Status != want {
		w.t.Errorf("%s is %s, want %s (%+v)", ref, st.Status, want, st)
	}
	return st
}

func wantKind(t *testing.T, err error, want errs.Kind) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

func TestWholeLife(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		cfg := config("/bin/sh", "-c", "exit 7")
		cfg.Name, cfg.Network.Mode = "web", ""
		cfg.Labels = map[string]string{"own": "label"}
		made := w.create(cfg)
		if len(made.ID) != 64 || made.Name != "web" || made.State.Status != spec.Created || made.Config.Labels["of"] != "image" || made.Config.Labels["own"] != "label" {
			t.Errorf("created %+v", made)
		}
		if made.Exposed[0] != "80/tcp" || made.Config.Hostname != made.ID[:12] || made.ImageID != "sha256:busybox" {
			t.Errorf("created %+v", made)
		}
		w.ok(n.Start(ctx, "web"))
		if x := w.wait(made.ID[:8], container.NotRunning); x.Code != 7 || x.Unknown {
			t.Errorf("exit %+v", x)
		}
		st := w.wantState("web", spec.Stopped)
		if st.ExitCode != 7 || st.Pid != 0 || st.StartedAt.IsZero() || st.FinishedAt.Before(st.StartedAt) {
			t.Errorf("state %+v", st)
		}
		w.ok(n.Remove(ctx, "web", false, false))
		w.runtime.Wait()
		time.Sleep(2 * time.Second)
		w.wantNothing()
		if x := w.wait(made.ID, container.Removed); x.Code != 7 {
			t.Errorf("exit of a removed container %+v", x)
		}
		want := []string{"create", "start", "die", "destroy"}
		if got := w.actions(); !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	})
}

func TestNames(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		cfg := config()
		cfg.Name = "one"
		one := w.create(cfg)
		_, err := n.Create(ctx, cfg)
		wantKind(t, err, errs.Exists)
		if err == nil || !strings.Contains(err.Error(), one.ID[:12]) {
			t.Errorf("the error %v does not name the holder", err)
		}
		for _, bad := range []string{"-x", "a b", "ü1", "a/b"} {
			cfg.Name = bad
			_, err := n.Create(ctx, cfg)
			wantKind(t, err, errs.Invalid)
		}
		other := w.create(config())
		if !strings.Contains(other.Name, "_") {
			t.Errorf("made-up name %q", other.Name)
		}
		wantKind(t, n.Rename(ctx, other.ID, "one"), errs.Exists)
		w.ok(n.Rename(ctx, "one", "two"))
		w.ok(n.Rename(ctx, other.ID, "one"))
		if w.get("two").ID != one.ID || w.get("one").ID != other.ID || w.get("two").Config.Name != "two" {
			t.Error("renamed wrongly")
		}
		_, err = n.Get(ctx, "three")
		wantKind(t, err, errs.NotFound)
		for range 17 { // so that two ids begin alike
			w.create(config())
		}
		list, err := n.List(ctx, true, nil)
		w.ok(err)
		seen := map[string]int{}
		for _, c := range list {
			seen[c.ID[:1]]++
		}
		for first, count := range seen {
			_, err := n.Get(ctx, first)
			if count > 1 {
				wantKind(t, err, errs.Conflict)
			} else {
				w.ok(err)
			}
		}
	})
}

func TestInvalidConfigs(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		for name, change := range map[string]func(*spec.ContainerConfig){
			"runtime":         func(c *spec.ContainerConfig) { c.Runtime = "nope" },
			"signal":          func(c *spec.ContainerConfig) { c.StopSignal = "SIGNOPE" },
			"restart":         func(c *spec.ContainerConfig) { c.Restart.Name = "sometimes" },
			"restart retries": func(c *spec.ContainerConfig) { c.Restart = spec.RestartPolicy{Name: "always", MaxRetries: 3} },
			"restart and rm":  func(c *spec.ContainerConfig) { c.Restart.Name, c.AutoRemove = "always", true },
			"health":          func(c *spec.ContainerConfig) { c.Health = &spec.HealthConfig{Test: []string{"CMD"}} },
			"pid mode":        func(c *spec.ContainerConfig) { c.PIDMode = "guest" },
			"mount target":    func(c *spec.ContainerConfig) { c.Mounts = []spec.MountPoint{{Type: "tmpfs", Target: "tmp"}} },
			"mount root":      func(c *spec.ContainerConfig) { c.Mounts = []spec.MountPoint{{Type: "tmpfs", Target: "/.."}} },
			"mount type":      func(c *spec.ContainerConfig) { c.Mounts = []spec.MountPoint{{Type: "nfs", Target: "/x"}} },
			"two mounts": func(c *spec.ContainerConfig) {
				c.Mounts = []spec.MountPoint{{Type: "tmpfs", Target: "/x"}, {Type: "tmpfs", Target: "/x/"}}
			},
			"shared hostname": func(c *spec.ContainerConfig) {
				c.Network.Mode, c.Hostname = "container:"+w.create(config()).ID, "mine"
			},
		} {
			cfg := config()
			change(&cfg)
			_, err := n.Create(t.Context(), cfg)
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%s: %v, want invalid", name, err)
			}
		}
		cfg := config()
		cfg.Image = "nobody/nothing"
		_, err := n.Create(t.Context(), cfg)
		wantKind(t, err, errs.NotFound)
		cfg = config()
		cfg.Platform = "linux/arm64"
		_, err = n.Create(t.Context(), cfg)
		wantKind(t, err, errs.NotFound)
	})
}

func TestStartFailure(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		for code, command := range map[int]string{127: "/no/such", 126: "/etc/passwd"} {
			cfg := config(command)
			cfg.Network.Mode = ""
			c := w.create(cfg)
			err := n.Start(t.Context(), c.ID)
			var start *container.StartError
			if !errors.As(err, &start) || start.Code != code {
				t.Errorf("%s: %v, want a StartError with %d", command, err, code)
			}
			st := w.wantState(c.ID, spec.Created)
			if st.ExitCode != code || !strings.Contains(st.Error, command) {
				t.Errorf("state %+v", st)
			}
			w.ok(n.Remove(t.Context(), c.ID, false, false))
		}
		w.wantNothing()
	})
}

func TestPortInUse(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		cfg := config()
		cfg.Network = spec.NetworkChoice{Ports: []spec.PortMapping{{HostPort: 80, ContainerPort: 80}}}
		first := w.start(cfg)
		second := w.create(cfg)
		wantKind(t, n.Start(t.Context(), second.ID), errs.Conflict)
		w.ok(n.Remove(t.Context(), first.ID, true, false))
		w.ok(n.Start(t.Context(), second.ID))
		if st := w.wantState(second.ID, spec.Running); st.Error != "" || st.ExitCode != 0 {
			t.Errorf("state after a good start %+v", st)
		}
		w.ok(n.Remove(t.Context(), second.ID, true, false))
		time.Sleep(2 * time.Second)
		w.wantNothing()
	})
}

const heedsTERM = "trap 'exit 5' TERM; sleep"

func TestStop(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		c := w.start(config("/bin/sh", "-c", heedsTERM))
		w.ok(n.Stop(ctx, c.ID, nil, ""))
		if st := w.wantState(c.ID, spec.Stopped); st.ExitCode != 5 || st.StoppedBy != "user" {
			t.Errorf("state %+v", st)
		}
		w.ok(n.Stop(ctx, c.ID, nil, "")) // again is no error
		if got, want := w.actions(), []string{"create", "start", "kill", "die", "stop"}; !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}

		deaf := w.start(config("/bin/sleep", "1000"))
		begin := time.Now()
		seconds := 3
		w.ok(n.Stop(ctx, deaf.ID, &seconds, "SIGINT"))
		if took := time.Since(begin); took != 3*time.Second {
			t.Errorf("killed after %v", took)
		}
		if st := w.wantState(deaf.ID, spec.Stopped); st.ExitCode != 137 {
			t.Errorf("state %+v", st)
		}
	})
}

func TestStopOfPaused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		c := w.start(config("/bin/sh", "-c", heedsTERM))
		w.ok(n.Pause(ctx, c.ID))
		w.wantState(c.ID, spec.Paused)
		wantKind(t, n.Pause(ctx, c.ID), errs.Conflict)
		wantKind(t, n.Kill(ctx, c.ID, "TERM"), errs.Conflict)
		wantKind(t, n.Start(ctx, c.ID), errs.Conflict)
		_, err := n.CreateExec(ctx, c.ID, spec.ExecConfig{Command: []string{"true"}})
		wantKind(t, err, errs.Conflict)
		w.ok(n.Stop(ctx, c.ID, nil, ""))
		w.wantState(c.ID, spec.Stopped)
		wantKind(t, n.Unpause(ctx, c.ID), errs.Conflict)

		w.ok(n.Start(ctx, c.ID))
		w.ok(n.Pause(ctx, c.ID))
		w.ok(n.Kill(ctx, c.ID, ""))
		if st := w.wantState(c.ID, spec.Stopped); st.ExitCode != 137 {
			t.Errorf("state %+v", st)
		}
	})
}

func TestStopOutlivesItsCaller(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.start(config("/bin/sleep", "1000"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := n.Stop(ctx, c.ID, nil, ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stop: %v", err)
		}
		w.wantState(c.ID, spec.Running)
		w.wait(c.ID, container.NotRunning)
		w.wantState(c.ID, spec.Stopped)
	})
}

func TestKill(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		c := w.start(config("/bin/sleep", "1000"))
		wantKind(t, n.Kill(ctx, c.ID, "NOPE"), errs.Invalid)
		w.ok(n.Kill(ctx, c.ID, "USR1"))
		w.wantState(c.ID, spec.Running)
		w.ok(n.Kill(ctx, c.ID, "9"))
		w.wantState(c.ID, spec.Stopped)
		wantKind(t, n.Kill(ctx, c.ID, ""), errs.Conflict)
	})
}

func TestRemove(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		c := w.start(config("/bin/sleep", "1000"))
		wantKind(t, n.Remove(ctx, c.ID, false, false), errs.Conflict)
		w.ok(n.Remove(ctx, c.ID, true, false))
		wantKind(t, n.Remove(ctx, c.ID, true, false), errs.NotFound)
		if x := w.wait(c.ID, ""); x.Code != 137 {
			t.Errorf("exit %+v", x)
		}
		c = w.start(config("/bin/sleep", "1000"))
		w.ok(n.Pause(ctx, c.ID))
		w.ok(n.Remove(ctx, c.ID, true, false))
		time.Sleep(2 * time.Second)
		w.wantNothing()
	})
}

func TestAutoRemove(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		cfg := config("/bin/sh", "-c", "exit 3")
		cfg.AutoRemove = true
		cfg.Mounts = []spec.MountPoint{{Type: "volume", Target: "/data"}}
		c := w.create(cfg)
		removed := make(chan spec.Exit, 1)
		go func() { removed <- w.wait(c.ID, container.Removed) }()
		synctest.Wait()
		w.ok(n.Start(t.Context(), c.ID))
		if x := <-removed; x.Code != 3 {
			t.Errorf("exit %+v", x)
		}
		time.Sleep(2 * time.Second)
		w.wantNothing()
		if x := w.wait(c.ID, ""); x.Code != 3 {
			t.Errorf("exit of a removed container %+v", x)
		}
	})
}

func TestRestartKeepsAutoRemove(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		cfg := config("/bin/sh", "-c", heedsTERM)
		cfg.AutoRemove = true
		c := w.start(cfg)
		w.ok(n.Restart(t.Context(), c.ID, nil, ""))
		if st := w.wantState(c.ID, spec.Running); st.StoppedBy != "" {
			t.Errorf("state %+v", st)
		}
		w.ok(n.Stop(t.Context(), c.ID, nil, ""))
		w.wait(c.ID, container.Removed)
		_, err := n.Get(t.Context(), c.ID)
		wantKind(t, err, errs.NotFound)
	})
}

func TestOOM(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.start(config("/bin/sleep", "1000"))
		w.mu.Lock()
		w.oom[c.ID] = true
		w.mu.Unlock()
		w.runtime.End(c.ID, 137)
		if x := w.wait(c.ID, ""); !x.OOMKilled {
			t.Errorf("exit %+v", x)
		}
		if got, want := w.actions(), []string{"create", "start", "oom", "die"}; !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	})
}

func TestUnknownExit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.start(config("/bin/sleep", "1000"))
		w.runtime.Lose(c.ID)
		if x := w.wait(c.ID, ""); !x.Unknown || x.Code != 255 {
			t.Errorf("exit %+v", x)
		}
	})
}

func TestWaitWakesOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.create(config("/bin/sh", "-c", "exit 4"))
		var wg sync.WaitGroup
		exits := make(chan spec.Exit, 50)
		for range 50 {
			wg.Go(func() { exits <- w.wait(c.ID, container.NextExit) })
		}
		synctest.Wait()
		w.ok(n.Start(t.Context(), c.ID))
		wg.Wait()
		for range 50 {
			if x := <-exits; x.Code != 4 {
				t.Fatalf("exit %+v", x)
			}
		}
		_, err := n.Wait(t.Context(), c.ID, "whenever")
		wantKind(t, err, errs.Invalid)
	})
}

func TestSharedNamespaces(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		target := w.create(config("/bin/sleep", "1000"))
		cfg := config("/bin/sleep", "1000")
		cfg.Network.Mode, cfg.PIDMode = "container:"+target.Name, "container:"+target.Name
		c := w.create(cfg)
		if c.Config.Network.Mode != "container:"+target.ID {
			t.Errorf("mode %s", c.Config.Network.Mode)
		}
		wantKind(t, n.Start(ctx, c.ID), errs.Conflict)
		w.ok(n.Start(ctx, target.ID))
		w.ok(n.Start(ctx, c.ID))
		w.ok(n.Remove(ctx, target.ID, true, false))
		w.wantState(c.ID, spec.Running)
		wantKind(t, n.Restart(ctx, c.ID, new(int), "KILL"), errs.NotFound)
		w.wantState(c.ID, spec.Stopped)
	})
}
