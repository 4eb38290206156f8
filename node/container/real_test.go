package container_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/container"
	"berth/spec"
)

func TestReal(t *testing.T) {
	eachReal(t, realPart{"life", realLife}, realPart{"exec", realExec}, realPart{"copy", realCopy}, realPart{"health", realHealth}, realPart{"comes back", realReturn})
}

func realLife(t *testing.T, r *real) {
	c := r.create(config("/bin/sh", "-c", "echo one; echo two >&2; exit 7"))
	read := make(chan string, 1)
	go func() { read <- r.output(c.ID) }() // from before the start
	r.ok(r.node.Start(t.Context(), c.ID))
	if x := r.wait(c.ID, ""); x.Code != 7 {
		t.Errorf("exit %+v", x)
	}
	if out := <-read; out != "one\ntwo\n" && out != "two\none\n" {
		t.Errorf("output %q", out)
	}
	r.ok(r.node.Start(t.Context(), c.ID)) // again, at once
	r.wait(c.ID, "")

	for code, command := range map[int]string{127: "/no/such", 126: "/etc/passwd"} {
		bad := r.create(config(command))
		err := r.node.Start(t.Context(), bad.ID)
		if start := (*container.StartError)(nil); !errors.As(err, &start) || start.Code != code {
			t.Errorf("%s: %v, want a StartError with %d", command, err, code)
		}
	}
	unknown := config("/bin/true")
	unknown.User = "nobody-here"
	wantKind(t, r.node.Start(t.Context(), r.create(unknown).ID), errs.Invalid)

	hungry := config("/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=200M")
	hungry.Resources.Memory, hungry.Resources.MemorySwap = 16<<20, 16<<20
	h := r.start(hungry)
	if x := r.wait(h.ID, ""); !x.OOMKilled || x.Code != 137 {
		t.Errorf("exit %+v", x)
	}

	// What the node writes for a container is no way to fill what all share.
	filler := r.start(config("/bin/sh", "-c", "for f in hosts hostname resolv.conf; do echo more >>/etc/$f || exit 1; dd if=/dev/zero of=/etc/$f bs=64k count=64 && exit 2; done; exit 0"))
	if x := r.wait(filler.ID, ""); x.Code != 0 {
		t.Errorf("exit %+v: %s", x, r.output(filler.ID))
	}

	retried := r.start(withPolicy("on-failure", 2, "/bin/sh", "-c", "exit 3"))
	if x := r.wait(retried.ID, ""); x.Code != 3 || r.get(retried.ID).State.RestartCount != 2 {
		t.Errorf("exit %+v, %+v", x, r.get(retried.ID).State)
	}

	s := r.start(config("/bin/sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done"))
	for !strings.Contains(readFile(t, s.LogPath), "ready") {
		unix.Nanosleep(&unix.Timespec{Nsec: 5e6}, nil)
	}
	r.ok(r.node.Pause(t.Context(), s.ID))
	r.ok(r.node.Stop(t.Context(), s.ID, nil, ""))
	if st := r.wantState(s.ID, spec.Stopped); st.ExitCode != 5 {
		t.Errorf("state %+v", st)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func realExec(t *testing.T, r *real) {
	c := r.start(config("/bin/sleep", "1000"))
	out, code := r.execOutput(c.ID, spec.ExecConfig{Command: []string{"/bin/sh", "-c", "echo $A; exit 4"}, Env: []string{"A=b"}, User: "www"})
	if out != "b\n" || code != 4 {
		t.Errorf("%q, %d", out, code)
	}
	e := r.exec(c.ID, spec.ExecConfig{Command: []string{"/no/such"}})
	_, err := r.node.StartExec(t.Context(), e.ID)
	if start := (*container.StartError)(nil); !errors.As(err, &start) || start.Code != 127 {
		t.Errorf("%v, want a StartError with 127", err)
	}
	tty := r.exec(c.ID, spec.ExecConfig{Command: []string{"/bin/sh"}, TTY: true, OpenStdin: true})
	session, err := r.node.StartExec(t.Context(), tty.ID)
	r.ok(err)
	r.ok(session.Resize(spec.Size{Rows: 40, Cols: 100}))
	_, err = io.WriteString(session.Stdin, "exit 8\n")
	r.ok(err)
	_, err = io.ReadAll(session.Stdout)
	r.ok(err)
	if ended, _ := r.node.WaitExec(t.Context(), tty.ID); ended.ExitCode != 8 {
		t.Errorf("ended as %+v", ended)
	}
	r.ok(session.Close())

	table, err := r.node.Top(t.Context(), c.ID, nil)
	if err != nil || len(table.Processes) != 1 || table.Processes[0][7] != "/bin/sleep 1000" {
		t.Errorf("top %+v, %v", table, err)
	}
	_, err = r.node.Update(t.Context(), c.ID, spec.ContainerUpdate{Resources: &spec.Resources{Pids: 17}})
	r.ok(err)
	usage, err := r.node.Stats(t.Context(), []string{c.ID})
	if err != nil || usage[0].Pids.Limit != 17 || usage[0].Pids.Current != 1 {
		t.Errorf("stats %+v, %v", usage, err)
	}
}

func realCopy(t *testing.T, r *real) {
	cfg := config("/bin/sleep", "1000")
	cfg.Mounts = []spec.MountPoint{{Type: "tmpfs", Target: "/tmp"}, {Type: "volume", Source: "shared", Target: "/shared"}}
	c := r.start(cfg)
	for _, dir := range []string{"/tmp", "/shared", "/etc"} { // what only the container sees, too
		r.ok(r.node.CopyTo(t.Context(), c.ID, dir, archive(t, entry{name: "in/file", body: "body"}), false))
		if out, _ := r.execOutput(c.ID, spec.ExecConfig{Command: []string{"/bin/cat", dir + "/in/file"}}); out != "body" {
			t.Errorf("%s: %q", dir, out)
		}
		var b bytes.Buffer
		_, err := r.node.CopyFrom(t.Context(), c.ID, dir+"/in", &b)
		r.ok(err)
		if found := entries(t, &b); found["in/file"] == nil || found["in/file"].Uid != 5 {
			t.Errorf("%s: copied %v", dir, found)
		}
	}
	secret := filepath.Join(t.TempDir(), "secret")
	r.ok(os.WriteFile(secret, nil, 0o600))
	r.execOutput(c.ID, spec.ExecConfig{Command: []string{"/bin/ln", "-s", secret, "/link"}})
	for _, name := range []string{"/link/", "/proc/1/root" + secret, "/proc/self/root" + secret} {
		if _, err := r.node.CopyFrom(t.Context(), c.ID, name, io.Discard); err == nil {
			t.Errorf("%s leads out of the container", name)
		}
	}
	r.ok(r.node.Kill(t.Context(), c.ID, ""))
	if _, err := r.node.StatPath(t.Context(), c.ID, "/etc/in/file"); err != nil {
		t.Error(err)
	}
}

func realHealth(t *testing.T, r *real) {
	cfg := config("/bin/sleep", "1000")
	cfg.Health = &spec.HealthConfig{Test: []string{"CMD-SHELL", "echo seen; cat /healthy"}, Interval: 30 * time.Millisecond, Retries: 1}
	c := r.start(cfg)
	r.awaitHealth(c.ID, "unhealthy")
	r.execOutput(c.ID, spec.ExecConfig{Command: []string{"/bin/sh", "-c", "echo > /healthy"}})
	h := r.awaitHealth(c.ID, "healthy")
	if out := h.Log[len(h.Log)-1].Output; !strings.HasPrefix(out, "seen\n") {
		t.Errorf("output %q", out)
	}
	r.ok(r.node.Remove(t.Context(), c.ID, true, false))
}

func (r *real) awaitHealth(ref, want string) *spec.Health {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if h := r.get(ref).State.Health; h.Status == want {
			return h
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 10e6}, nil)
	}
	r.t.Fatalf("%s does not become %s: %+v", ref, want, r.get(ref).State.Health)
	return nil
}

func realReturn(t *testing.T, r *real) {
	cfg := config("/bin/cat")
	cfg.OpenStdin, cfg.StdinOnce = true, true
	c := r.start(cfg)
	r.reopen()
	st := r.wantState(c.ID, spec.Running)
	if st.Pid != c.State.Pid {
		t.Errorf("pid %d, was %d", st.Pid, c.State.Pid)
	}
	in, err := r.node.Stdin(t.Context(), c.ID)
	r.ok(err)
	_, err = io.WriteString(in, "after\n")
	r.ok(err)
	r.ok(in.Close())
	if x := r.wait(c.ID, ""); x.Code != 0 {
		t.Errorf("exit %+v", x)
	}
	if out := r.output(c.ID); out != "after\n" {
		t.Errorf("output %q", out)
	}
}
