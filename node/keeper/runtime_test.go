package keeper_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/node/keeper"
	"berth/test/machine"
)

// container is an OCI bundle with busybox, under one real runtime.
type container struct {
	*rig
	runtime, bundle string
	id              string
}

func eachRuntime(t *testing.T, test func(t *testing.T, runtime string)) {
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) {
			needRoot(t)
			for _, tool := range []string{name, "busybox"} {
				if _, err := exec.LookPath(tool); err != nil {
					t.Skipf("needs %s", tool)
				}
			}
			test(t, name)
		})
	}
}

func (r *rig) container(runtime, id string, terminal bool, args ...string) *container {
	r.t.Helper()
	c := &container{rig: r, runtime: runtime, id: machine.Name() + "-" + id, bundle: filepath.Join(r.dir, id)}
	root := filepath.Join(c.bundle, "rootfs")
	for _, dir := range []string{"bin", "proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	busybox, _ := exec.LookPath("busybox")
	if err := exec.Command("cp", busybox, root+"/bin/busybox").Run(); err != nil {
		r.t.Fatal(err)
	}
	for _, name := range []string{"sh", "sleep", "cat", "echo", "stty", "tty", "seq"} {
		if err := os.Symlink("busybox", root+"/bin/"+name); err != nil {
			r.t.Fatal(err)
		}
	}
	type object = map[string]any
	config := object{
		"ociVersion": "1.0.2",
		"process":    object{"terminal": terminal, "cwd": "/", "args": args, "env": []string{"PATH=/bin"}, "user": object{"uid": 0, "gid": 0}},
		"root":       object{"path": "rootfs"},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666"}},
		},
		"linux": object{
			"cgroupsPath": "/" + c.id,
			"namespaces":  []object{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}},
		},
	}
	data, _ := json.Marshal(config)
	if err := os.WriteFile(c.bundle+"/config.json", data, 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if out, err := exec.Command(runtime, "delete", "--force", c.id).CombinedOutput(); err != nil {
			r.t.Logf("delete: %v %s", err, out)
		}
	})
	return c
}

// run is the launch of the container by one command.
func (c *container) run(terminal bool) keeper.Launch {
	l := keeper.Launch{
		ID: c.id, Env: []string{"PATH=" + os.Getenv("PATH")}, PidFile: c.bundle + "/pid", RuntimeLog: c.bundle + "/runtime.log",
		Log: keeper.Log{Path: c.bundle + "/log"},
	}
	l.Argv = []string{c.runtime, "--log", l.RuntimeLog, "--log-format", "json", "run", "--detach", "--bundle", c.bundle, "--pid-file", l.PidFile}
	if terminal {
		l.ConsoleSocket, l.Rows, l.Cols = c.bundle+"/tty", 33, 101
		l.Argv = append(l.Argv, "--console-socket", l.ConsoleSocket)
	}
	l.Argv = append(l.Argv, c.id)
	return l
}

func (c *container) exec(id string, process map[string]any) keeper.Launch {
	process["cwd"], process["env"] = "/", []string{"PATH=/bin"}
	data, _ := json.Marshal(process)
	file := c.bundle + "/" + id + ".json"
	if err := os.WriteFile(file, data, 0o600); err != nil {
		c.t.Fatal(err)
	}
	l := keeper.Launch{ID: id, Env: []string{"PATH=" + os.Getenv("PATH")}, PidFile: c.bundle + "/" + id + ".pid", Output: keeper.Hold}
	l.Argv = []string{c.runtime, "exec", "--detach", "--process", file, "--pid-file", l.PidFile, c.id}
	return l
}

func TestContainer(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		r := start(t)
		c := r.container(runtime, "a", false, "sh", "-c", "echo out; echo err >&2; read x; echo got $x; exit 7")
		l := c.run(false)
		l.Stdin = true
		p := r.launch(l)
		e := c.exec("x", map[string]any{"args": []string{"sh", "-c", "cat; echo bad >&2; exit 3"}})
		e.Stdin = true
		x := r.launch(e)
		if _, err := io.WriteString(x.Stdin, "into exec"); err != nil {
			t.Fatal(err)
		}
		if err := r.CloseStdin(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		out, _ := io.ReadAll(x.Stdout)
		bad, _ := io.ReadAll(x.Stderr)
		if string(out) != "into exec" || string(bad) != "bad\n" {
			t.Errorf("exec: %q %q", out, bad)
		}
		if e := r.wait("x"); e.Code != 3 || !e.Known {
			t.Errorf("exec's exit %+v", e)
		}
		if _, err := io.WriteString(p.Stdin, "this\n"); err != nil {
			t.Fatal(err)
		}
		if e := r.wait(c.id); e.Code != 7 || !e.Known || e.Pid != p.Pid {
			t.Errorf("exit %+v", e)
		}
		if got := output(t, l.Log.Path); len(got) != 17 || !strings.HasSuffix(got, "got this\n") {
			t.Errorf("log %q", got)
		}
	})
}

func TestTerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		r := start(t)
		c := r.container(runtime, "a", true, "sh", "-c", "read x; stty size; echo got $x; read y; stty size; sleep 0.1; printf bye; exit 8")
		l := c.run(true)
		p := r.launch(l)
		if p.Console == nil || p.Stdin != nil {
			t.Fatalf("process %+v", p)
		}
		say := func(text string) {
			if _, err := io.WriteString(p.Console, text+"\n"); err != nil {
				t.Fatal(err)
			}
		}
		say("hello")
		eventually(t, func() bool { return strings.Contains(output(t, l.Log.Path), "33 101\r\ngot hello\r\n") })
		old := r.Pid()
		if err := unix.Kill(old, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool { p := r.Pid(); return p != 0 && p != old })
		raw, err := p.Console.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 120})
		}); err != nil {
			t.Fatal(err)
		}
		say("again")
		if e := r.wait(c.id); e.Known && e.Code != 8 {
			t.Errorf("exit %+v", e)
		}
		if got := output(t, l.Log.Path); !strings.HasSuffix(got, "again\r\n40 120\r\nbye") {
			t.Errorf("log %q", got)
		}
		ex := r.container(runtime, "b", false, "sleep", "100")
		r.launch(ex.run(false))
		e := ex.exec("x", map[string]any{"terminal": true, "args": []string{"sh", "-c", "tty; exit 2"}})
		e.ConsoleSocket = ex.bundle + "/x.tty"
		e.Argv = append(e.Argv[:len(e.Argv)-1], "--console-socket", e.ConsoleSocket, ex.id)
		x := r.launch(e)
		out, _ := io.ReadAll(x.Console) // a terminal ends with EIO
		if !bytes.HasPrefix(out, []byte("/dev/pts/")) {
			t.Errorf("exec on a terminal: %q", out)
		}
		if e := r.wait("x"); e.Code != 2 {
			t.Errorf("exit %+v", e)
		}
	})
}

func TestContainerFails(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		r := start(t)
		c := r.container(runtime, "a", false, "/no/such/command")
		_, err := r.Launch(t.Context(), c.run(false))
		var le *keeper.LaunchError
		if !errors.As(err, &le) || !strings.Contains(le.Text, "/no/such/command") || strings.Contains(le.Text, "{") {
			t.Errorf("%v", err)
		}
		t.Log(err)
	})
}
