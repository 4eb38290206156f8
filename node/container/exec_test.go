package container_test

import (
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"berth/base/errs"
	"berth/node/container"
	"berth/spec"
)

func (w *world) exec(ref string, cfg spec.ExecConfig) spec.Exec {
	w.t.Helper()
	e, err := w.node.CreateExec(w.t.Context(), ref, cfg)
	w.ok(err)
	return e
}

func TestExec(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		c := w.create(config("/bin/sleep", "100000"))
		_, err := n.CreateExec(ctx, c.ID, spec.ExecConfig{Command: []string{"/bin/true"}})
		wantKind(t, err, errs.Conflict)
		w.ok(n.Start(ctx, c.ID))
		_, err = n.CreateExec(ctx, c.ID, spec.ExecConfig{})
		wantKind(t, err, errs.Invalid)

		e := w.exec(c.ID, spec.ExecConfig{Command: []string{"/bin/cat"}, OpenStdin: true})
		session, err := n.StartExec(ctx, e.ID)
		w.ok(err)
		if running := w.get(c.ID).Execs; !slices.Equal(running, []string{e.ID}) {
			t.Errorf("execs %v", running)
		}
		_, err = n.StartExec(ctx, e.ID)
		wantKind(t, err, errs.Conflict)
		go func() {
			_, _ = io.WriteString(session.Stdin, "hello")
			_ = session.Stdin.Close()
		}()
		out, err := io.ReadAll(session.Stdout)
		if err != nil || string(out) != "hello" {
			t.Errorf("output %q, %v", out, err)
		}
		ended, err := n.WaitExec(ctx, e.ID)
		w.ok(err)
		if ended.ExitCode != 0 || ended.Running {
			t.Errorf("ended as %+v", ended)
		}
		w.ok(session.Close())
		wantKind(t, n.ResizeExec(ctx, e.ID, spec.Size{Rows: 1, Cols: 1}), errs.Conflict)
		if got := w.actions()[2:]; !slices.Equal(got, []string{"exec_create: /bin/cat", "exec_start: /bin/cat", "exec_die"}) {
			t.Errorf("events %v", got)
		}

		failing := w.exec(c.ID, spec.ExecConfig{Command: []string{"/bin/sh", "-c", "exit 3"}, Detach: true})
		session, err = n.StartExec(ctx, failing.ID)
		w.ok(err)
		if session.Stdout != nil || session.Stdin != nil {
			t.Errorf("a detached session has %+v", session)
		}
		if ended, _ := n.WaitExec(ctx, failing.ID); ended.ExitCode != 3 {
			t.Errorf("ended as %+v", ended)
		}
		time.Sleep(time.Hour)
		w.exec(c.ID, spec.ExecConfig{Command: []string{"/bin/true"}})
		_, err = n.GetExec(ctx, e.ID)
		wantKind(t, err, errs.NotFound)
	})
}

func TestExecThatCannotStart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.start(config("/bin/sleep", "1000"))
		e := w.exec(c.ID, spec.ExecConfig{Command: []string{"/no/such"}})
		_, err := n.StartExec(t.Context(), e.ID)
		if start := (*container.StartError)(nil); !errors.As(err, &start) || start.Code != 127 {
			t.Errorf("%v, want a StartError with 127", err)
		}
		if got, _ := n.WaitExec(t.Context(), e.ID); got.ExitCode != 127 || got.Running {
			t.Errorf("ended as %+v", got)
		}
	})
}

func TestExecEndsWithContainer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.start(config("/bin/sleep", "1000"))
		e := w.exec(c.ID, spec.ExecConfig{Command: []string{"/bin/sleep", "1000"}})
		session, err := n.StartExec(t.Context(), e.ID)
		w.ok(err)
		late := w.exec(c.ID, spec.ExecConfig{Command: []string{"/bin/true"}})
		w.ok(n.Kill(t.Context(), c.ID, ""))
		if ended, _ := n.WaitExec(t.Context(), e.ID); ended.ExitCode != 137 {
			t.Errorf("ended as %+v", ended)
		}
		w.ok(session.Close())
		_, err = n.StartExec(t.Context(), late.ID)
		wantKind(t, err, errs.Conflict)
		w.ok(n.Remove(t.Context(), c.ID, false, false))
		time.Sleep(2 * time.Second)
		w.wantNothing()
	})
}

func TestExecOutlivesTheNode(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		c := w.start(config("/bin/sleep", "100000"))
		e := w.exec(c.ID, spec.ExecConfig{Command: []string{"/bin/sleep", "50"}})
		_, err := n.StartExec(t.Context(), e.ID)
		w.ok(err)
		w.crash()
		w.open()
		_, err = w.node.GetExec(t.Context(), e.ID)
		wantKind(t, err, errs.NotFound)
		if left := w.runtime.Left(); len(left) != 2 {
			t.Errorf("left %v, want container and exec", left)
		}
		time.Sleep(time.Minute)
		if left := w.runtime.Left(); len(left) != 1 {
			t.Errorf("left %v, want the container", left)
		}
		w.tidy()
		w.wantNothing()
	})
}

func TestStdin(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		c := w.create(config("/bin/cat"))
		_, err := n.Stdin(ctx, c.ID)
		wantKind(t, err, errs.Conflict)
		cfg := config("/bin/cat")
		cfg.OpenStdin, cfg.StdinOnce = true, true
		c = w.create(cfg)
		in, err := n.Stdin(ctx, c.ID)
		w.ok(err)
		written := make(chan error, 1)
		go func() { // before the start
			_, err := io.WriteString(in, "early\n")
			written <- errors.Join(err, in.Close())
		}()
		w.ok(n.Start(ctx, c.ID))
		w.ok(<-written)
		if x := w.wait(c.ID, ""); x.Code != 0 {
			t.Errorf("exit %+v", x)
		}
		wantKind(t, n.Resize(ctx, c.ID, spec.Size{}), errs.Conflict)
	})
}
