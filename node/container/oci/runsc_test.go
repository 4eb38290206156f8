package oci_test

import (
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/container/oci"
	"berth/spec"
)

// A runtime that is only configured: gVisor, whose containers have a kernel
// of their own.
func TestRunsc(t *testing.T) {
	b := newBench(t, "runsc", func(c *oci.Config) {
		c.Foreign, c.Args = true, []string{"--platform=ptrace", "--network=none", "--ignore-cgroups"}
	})
	b.keeper.reapNamed("exe") // as Go programs that start themselves anew are called
	t.Run("run", func(t *testing.T) {
		l := b.make(command("sh", "-c", "echo hello; exit 7"))
		b.run(l)
		if code, out := b.keeper.exit(l.ID); code != 7 || out != "hello\n" {
			t.Errorf("exit %d, output %q", code, out)
		}
	})
	t.Run("missing command", func(t *testing.T) {
		l := b.make(command("/bin/nothere"))
		_, err := b.runtime.Run(t.Context(), l)
		if start, ok := errors.AsType[*container.StartError](err); !ok || start.Code != 127 {
			t.Errorf("%v", err)
		}
	})
	t.Run("exec and kill", func(t *testing.T) {
		l := b.make(command("sleep", "1000"))
		b.run(l)
		id := newID()
		p, err := b.runtime.Exec(t.Context(), container.ExecLaunch{ID: id, Container: l.ID, Stdin: true, Process: process("sh", "-c", "cat; exit 9")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(p.Stdin, "over\n"); err != nil {
			t.Error(err)
		}
		if err := p.CloseStdin(t.Context()); err != nil {
			t.Error(err)
		}
		out, _ := io.ReadAll(p.Stdout)
		if code, _ := b.keeper.exit(id); code != 9 || string(out) != "over\n" {
			t.Errorf("exit %d, output %q", code, out)
		}
		if pids, err := b.runtime.Pids(t.Context(), l.ID); err != nil || len(pids) == 0 {
			t.Errorf("pids %v, %v", pids, err)
		}
		if err := b.runtime.Pause(t.Context(), l.ID); err != nil {
			t.Error(err)
		}
		if err := b.runtime.Resume(t.Context(), l.ID); err != nil {
			t.Error(err)
		}
		if err := b.runtime.Signal(t.Context(), l.ID, syscall.SIGKILL, false); err != nil {
			t.Error(err)
		}
		if code, _ := b.keeper.exit(l.ID); code != 137 {
			t.Errorf("exit %d", code)
		}
		if err := b.runtime.Signal(t.Context(), l.ID, syscall.SIGTERM, false); errs.KindOf(err) != errs.NotFound {
			t.Errorf("signal to the dead: %v", err)
		}
	})
	t.Run("terminal and delete", func(t *testing.T) {
		l := b.make(spec.ContainerConfig{TTY: true, Command: []string{"sh", "-c", "test -t 0 && echo terminal; sleep 1000"}})
		p := b.run(l)
		defer p.Console.Close()
		buf := make([]byte, 100)
		if n, err := p.Console.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "terminal") {
			t.Errorf("%q, %v", buf[:n], err)
		}
		if err := b.runtime.Delete(t.Context(), l.ID); err != nil {
			t.Error(err)
		}
		b.keeper.exit(l.ID)
		b.nothingLeft(l.ID)
	})
}
