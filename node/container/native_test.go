package container_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/logfile"
	"berth/spec"
)

// TestNativesAsTasks: clients see the node's own containers and what runs in
// them, and can do all but make tasks of them.
func TestNativesAsTasks(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		cfg := config("/bin/sleep", "1000")
		cfg.Name = "web"
		c := w.start(cfg)
		g, err := n.Given(ctx, "default", c.ID)
		w.ok(err)
		if g.Labels["nerdctl/name"] != "web" || g.Labels["of"] != "image" || g.Image != "docker.io/library/busybox:latest" || g.Runtime != container.RuntimeV2 || g.Snapshotter != "fakefs" || g.SnapshotKey != c.ID {
			t.Errorf("given %+v", g)
		}
		var oci specs.Spec
		w.ok(json.Unmarshal(g.Spec.Value, &oci))
		if !slices.Equal(oci.Process.Args, []string{"/bin/sleep", "1000"}) || len(oci.Mounts) == 0 || oci.Annotations["nerdctl/networks"] != `["none"]` {
			t.Errorf("spec %s", g.Spec.Value)
		}
		for _, ref := range []string{"web", c.ID[:12]} { // clients know ids
			_, err = n.Given(ctx, "default", ref)
			wantKind(t, err, errs.NotFound)
		}
		_, err = n.Given(ctx, "moby", c.ID)
		wantKind(t, err, errs.NotFound)

		if state := w.wantTask("default", c.ID, "", container.TaskRunning); state.Pid != c.State.Pid {
			t.Errorf("task %+v of %+v", state, c.State)
		}
		_, err = n.CreateTask(ctx, "default", c.ID, request)
		wantKind(t, err, errs.Conflict)
		if err == nil || !strings.Contains(err.Error(), "berth start web") {
			t.Errorf("%v", err)
		}
		w.ok(n.PauseTask(ctx, "default", c.ID))
		w.wantTask("default", c.ID, "", container.TaskPaused)
		w.ok(n.ResumeTask(ctx, "default", c.ID))
		w.addExec("default", c.ID, "e", "/bin/true")
		_, err = n.StartTask(ctx, "default", c.ID, "e")
		w.ok(err)
		if exit, err := n.WaitTask(ctx, "default", c.ID, "e"); err != nil || exit.Code != 0 {
			t.Errorf("exec ended as %+v, %v", exit, err)
		}
		if cgroup, pid, _, err := n.TaskCgroup(ctx, "default", c.ID); err != nil || cgroup != "/berth-test/"+c.ID || pid != c.State.Pid {
			t.Errorf("cgroup %s of %d, %v", cgroup, pid, err)
		}
		_, err = n.DeleteTask(ctx, "default", c.ID)
		wantKind(t, err, errs.Conflict)
		wantKind(t, n.RemoveGiven(ctx, "default", c.ID), errs.Conflict)

		ends := make(chan container.TaskExit, 1)
		go func() {
			exit, _ := n.WaitTask(ctx, "default", c.ID, "")
			ends <- exit
		}()
		time.Sleep(time.Second)
		w.ok(n.KillTask(ctx, "default", c.ID, "", syscall.SIGKILL, true))
		if exit := <-ends; exit.Code != 137 {
			t.Errorf("exit %+v", exit)
		}
		w.wantTask("default", c.ID, "", container.TaskStopped)
		time.Sleep(time.Second)
		w.crash()
		n = w.open()
		w.wantTask("default", c.ID, "", container.TaskStopped)
		if exit, err := n.DeleteTask(ctx, "default", c.ID); err != nil || exit.Code != 137 {
			t.Errorf("deleted as %+v, %v", exit, err)
		}
		_, err = n.Task(ctx, "default", c.ID, "")
		wantKind(t, err, errs.NotFound)
		w.ok(n.Start(ctx, "web"))
		w.wantTask("default", c.ID, "", container.TaskRunning)
		w.ok(n.KillTask(ctx, "default", c.ID, "", syscall.SIGKILL, true))
		w.wait(c.ID, "")
		_, err = n.DeleteTask(ctx, "default", c.ID)
		w.ok(err)
		w.ok(n.RemoveGiven(ctx, "default", c.ID))
		time.Sleep(2 * time.Second)
		w.wantNothing()
	})
}

func TestNativesLabels(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.create(config("/bin/sleep", "1000"))
		update := func(change func(*spec.Given)) error {
			_, err := n.UpdateGiven(t.Context(), "default", c.ID, func(g *spec.Given) error { change(g); return nil })
			return err
		}
		w.ok(update(func(g *spec.Given) { g.Labels["x"] = "y"; g.Labels["nerdctl/name"] = "other" }))
		if now := w.get("other"); now.ID != c.ID || now.Config.Labels["x"] != "y" || now.Config.Labels["nerdctl/name"] != "" {
			t.Errorf("now %+v", now.Config)
		}
		wantKind(t, update(func(g *spec.Given) { g.Image = "other" }), errs.Conflict)
		wantKind(t, update(func(g *spec.Given) { g.Labels["nerdctl/name"] = "/" }), errs.Invalid)
	})
}

// TestGivensAsContainers: people see containers of clients among the others.
func TestGivensAsContainers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		g := written("moby", "one", "/bin/sleep", "1000")
		g.Labels["nerdctl/name"] = "web"
		state := w.give(g)
		c := w.get("web")
		if c.ID != "one" || c.Name != "web" || c.Namespace != "moby" || c.State.Pid != state.Pid || c.LogPath != "" || c.Config.Labels["a"] != "b" || !slices.Equal(c.Args, []string{"/bin/sleep", "1000"}) || !slices.Equal(c.Config.Env, []string{"A=b"}) {
			t.Errorf("seen as %+v", c)
		}
		for _, ref := range []string{"one", "on", "moby+one"} {
			if w.get(ref).Name != "web" {
				t.Errorf("%s is %+v", ref, w.get(ref))
			}
		}
		if names := w.names(false, nil); !slices.Equal(names, []string{"web"}) {
			t.Errorf("list %v", names)
		}
		e := w.exec("web", spec.ExecConfig{Command: []string{"/bin/echo", "hello"}})
		session, err := n.StartExec(ctx, e.ID)
		w.ok(err)
		w.ok(session.Close())
		stats, err := n.Stats(ctx, []string{"web"})
		w.ok(err)
		if stats[0].ID != "one" || stats[0].Pids.Current != uint64(state.Pid) {
			t.Errorf("stats %+v", stats)
		}
		_, err = n.Top(ctx, "web", nil)
		w.ok(err)
		w.ok(n.Pause(ctx, "web"))
		w.wantTask("moby", "one", "", container.TaskPaused)
		w.ok(n.Unpause(ctx, "web"))

		for what, err := range map[string]error{
			"rename":  n.Rename(ctx, "web", "other"),
			"logs":    n.Logs(ctx, "web", logfile.Query{Tail: -1}, func(logfile.Line) error { return nil }),
			"connect": n.Connect(ctx, "web", "bridge", spec.EndpointConfig{}),
			"update":  second(n.Update(ctx, "web", spec.ContainerUpdate{})),
			"stdin":   second(n.Stdin(ctx, "web")),
			"attach":  second(n.LogPosition(ctx, "web")),
		} {
			if !errors.Is(err, errs.Unsupported) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := second(n.LogPosition(ctx, "web")); !strings.Contains(err.Error(), "/out") {
			t.Errorf("%v does not say where its output goes", err)
		}
		if changes, err := n.Changes(ctx, "web"); err != nil || len(changes) != 1 {
			t.Errorf("changes %v, %v", changes, err)
		}

		wantKind(t, n.Remove(ctx, "web", false, false), errs.Conflict)
		w.ok(n.Kill(ctx, "web", ""))
		if x := w.wait("web", ""); x.Code != 137 {
			t.Errorf("exit %+v", x)
		}
		w.wantTask("moby", "one", "", container.TaskStopped)
		w.ok(n.Start(ctx, "web")) // without its client
		w.wantTask("moby", "one", "", container.TaskRunning)
		w.ok(n.Stop(ctx, "web", new(int), ""))
		w.ok(n.Remove(ctx, "web", false, false))
		actions := w.actions()
		if last := actions[len(actions)-2:]; !slices.Equal(last, []string{"task_delete", "destroy"}) {
			t.Errorf("events %v", actions)
		}
		time.Sleep(2 * time.Second)
		w.wantNothing()
	})
}

func second[T any](_ T, err error) error { return err }

func TestNamesOfClients(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		cfg := config("/bin/sleep", "1000")
		cfg.Name = "web"
		own := w.create(cfg)
		for _, g := range []spec.Given{
			written("moby", "web", "/bin/true"),
			written("moby", "same", "/bin/true"),
			written("buildkit", "same", "/bin/true"),
			written("default", "other", "/bin/true"),
		} {
			_, err := n.CreateGiven(ctx, g)
			w.ok(err)
		}
		if w.get("web").ID != own.ID {
			t.Error("a client took the name of one of ours")
		}
		if w.get("moby+web").Namespace != "moby" {
			t.Error("it is not found by its own id")
		}
		if got := w.get("same").Namespace; got != "moby" { // who had the name first
			t.Errorf("same is in %s", got)
		}
		cfg.Name = "other"
		_, err := n.Create(ctx, cfg)
		wantKind(t, err, errs.Exists)
		_, err = n.CreateGiven(ctx, written("default", "web", "/bin/true"))
		w.ok(err)
		_, err = n.Get(ctx, "web")
		wantKind(t, err, errs.Conflict) // neither is taken for the other

		for _, bad := range []spec.Given{written("a/b", "x", "/bin/true"), written("moby", "../x", "/bin/true"), written("moby", "", "/bin/true"), written("moby", strings.Repeat("x", 77), "/bin/true"), written("mo+by", "x", "/bin/true")} {
			_, err := n.CreateGiven(ctx, bad)
			wantKind(t, err, errs.Invalid)
		}
		all, err := n.Givens(ctx, "")
		w.ok(err)
		moby, err := n.Givens(ctx, "moby")
		w.ok(err)
		if len(all) != 6 || len(moby) != 2 {
			t.Errorf("%d containers, %d of moby", len(all), len(moby))
		}
		pruned, err := n.Prune(ctx, nil)
		w.ok(err)
		if !slices.Equal(pruned.Removed, []string{own.ID}) {
			t.Errorf("pruned %v", pruned.Removed)
		}
		w.shut()
		n = w.open()
		if again, err := n.Givens(ctx, ""); err != nil || len(again) != 5 {
			t.Errorf("%d containers after a restart, %v", len(again), err)
		}
		w.tidy()
		w.wantNothing()
	})
}

func TestUpdateGiven(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		g := written("moby", "one", "/bin/true")
		made, err := n.CreateGiven(ctx, g)
		w.ok(err)
		time.Sleep(time.Second)
		updated, err := n.UpdateGiven(ctx, "moby", "one", func(g *spec.Given) error {
			g.ID, g.Runtime, g.Created = "two", "other", time.Time{}
			g.Labels["nerdctl/name"], g.Image = "web", "other:latest"
			g.Extensions = map[string]spec.Opaque{"x": {Type: "y", Value: []byte{0, 255}}}
			return nil
		})
		w.ok(err)
		if updated.ID != "one" || updated.Runtime != g.Runtime || !updated.Created.Equal(made.Created) || !updated.Updated.After(made.Updated) || updated.Image != "other:latest" {
			t.Errorf("updated %+v", updated)
		}
		if w.get("web").Image != "other:latest" {
			t.Errorf("seen as %+v", w.get("web"))
		}
		refused := errs.New(errs.Invalid, "no")
		_, err = n.UpdateGiven(ctx, "moby", "one", func(g *spec.Given) error { g.Labels["x"] = "y"; return refused })
		wantKind(t, err, errs.Invalid)
		w.crash()
		n = w.open()
		again, err := n.Given(ctx, "moby", "one")
		w.ok(err)
		if again.Labels["x"] != "" || again.Labels["nerdctl/name"] != "web" || string(again.Extensions["x"].Value) != "\x00\xff" || string(again.Spec.Value) != string(g.Spec.Value) {
			t.Errorf("after a crash %+v", again)
		}
	})
}

func TestGivenWithoutSpec(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		for id, opaque := range map[string]*spec.Opaque{"none": nil, "odd": {Type: "x", Value: []byte("{")}} {
			g := written("moby", id)
			g.Spec = opaque
			_, err := n.CreateGiven(t.Context(), g)
			w.ok(err)
			_, err = n.CreateTask(t.Context(), "moby", id, request)
			wantKind(t, err, errs.Invalid)
		}
		g := written("moby", "shim", "/bin/true")
		g.Runtime = "io.containerd.none.v1"
		_, err := n.CreateGiven(t.Context(), g)
		w.ok(err)
		_, err = n.CreateTask(t.Context(), "moby", "shim", request)
		wantKind(t, err, errs.NotFound)
		w.wantNothing()
	})
}

func BenchmarkTasks(b *testing.B) {
	w := newWorld(b)
	n := w.open()
	for i := range 100 {
		w.give(written("moby", "c"+strings.Repeat("x", i%60)+string(rune('a'+i/60)), "/bin/sleep", "1000"))
	}
	for b.Loop() {
		if list, err := n.Tasks(b.Context(), "moby"); err != nil || len(list) != 100 {
			b.Fatal(len(list), err)
		}
	}
	b.StopTimer()
	w.shut()
}
