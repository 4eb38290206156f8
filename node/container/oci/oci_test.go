package oci_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/node/bundle"
	"berth/node/container"
	"berth/node/container/oci"
	"berth/spec"
	"berth/test/machine"
)

// bench is one runtime with a keeper, and room for containers.
type bench struct {
	t       testing.TB
	dir     string
	keeper  *launcher
	runtime *oci.Runtime
	host    bundle.Host
	input   func(*bundle.Input) // changes what bundles are made of
}

func newBench(t testing.TB, name string, change ...func(*oci.Config)) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	for _, program := range []string{name, "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
	dir := machine.Folder(t)
	b := &bench{t: t, dir: dir, keeper: newLauncher(t)}
	config := oci.Config{Name: name, State: filepath.Join(dir, "runtime"), Keeper: b.keeper}
	for _, c := range change {
		c(&config)
	}
	var err error
	if b.runtime, err = oci.New(config); err != nil {
		t.Fatal(err)
	}
	if b.host, err = bundle.Detect(); err != nil {
		t.Fatal(err)
	}
	return b
}

// make writes a bundle with a busybox in it. Whatever the test does, the
// container is gone after it.
func (b *bench) make(config spec.ContainerConfig, change ...func(*specs.Spec)) container.Launch {
	b.t.Helper()
	id := newID()
	dir := filepath.Join(b.dir, id[:12])
	rootfs := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	busybox, _ := exec.LookPath("busybox")
	if err := exec.Command("cp", busybox, filepath.Join(rootfs, "bin/busybox")).Run(); err != nil {
		b.t.Fatal(err)
	}
	for _, applet := range []string{"sh", "sleep", "true", "false", "cat", "id", "echo", "ps", "env", "stat", "ls", "mount", "hostname", "pwd", "touch", "grep", "unshare", "kill", "wc", "df", "dd", "tail", "readlink"} {
		if err := os.Symlink("busybox", filepath.Join(rootfs, "bin", applet)); err != nil {
			b.t.Fatal(err)
		}
	}
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(rootfs, name), []byte(text), mode); err != nil {
			b.t.Fatal(err)
		}
	}
	write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n", 0o644)
	write("etc/group", "root:x:0:\napp:x:1000:\nvideo:x:44:app\n", 0o644)
	write("etc/plain", "no program\n", 0o644)
	config.CgroupParent = cmp.Or(config.CgroupParent, "/"+machine.Name())
	in := bundle.Input{Container: spec.Container{ID: id, Config: config}, Host: b.host, Rootfs: rootfs}
	if b.input != nil {
		b.input(&in)
	}
	s, err := bundle.Spec(in)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range change {
		c(s)
	}
	if err := bundle.Write(dir, s); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := b.runtime.Delete(context.Background(), id); err != nil {
			b.t.Error(err)
		}
		b.nothingLeft(id)
	})
	return container.Launch{ID: id, Bundle: dir, TTY: config.TTY, Stdin: config.OpenStdin}
}

func newID() string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw)
	return hex.EncodeToString(raw)
}

func (b *bench) run(l container.Launch) *container.Process {
	b.t.Helper()
	p, err := b.runtime.Run(b.t.Context(), l)
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// cgroupOf is where a container is that says nothing of it.
func cgroupOf(id string) string { return "/" + machine.Name() + "/" + id }

// nothingLeft looks for cgroups and files of a container.
func (b *bench) nothingLeft(id string) {
	b.t.Helper()
	for _, pattern := range []string{
		"/sys/fs/cgroup" + cgroupOf(id), "/sys/fs/cgroup/*" + cgroupOf(id), "/sys/fs/cgroup/berth/" + id, "/sys/fs/cgroup/*/berth/" + id,
		filepath.Join(b.dir, "runtime/*", id+"*"), filepath.Join(b.dir, "runtime/.bundle", id), filepath.Join(b.dir, "runtime/.launch/*"),
	} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			b.t.Errorf("left behind: %v", left)
		}
	}
}

func eachRuntime(t *testing.T, test func(t *testing.T, b *bench)) {
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) { test(t, newBench(t, name)) })
	}
}

func command(args ...string) spec.ContainerConfig { return spec.ContainerConfig{Command: args} }

func TestRun(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		l := b.make(command("sh", "-c", "echo hello; echo oops >&2; exit 7"))
		p := b.run(l)
		if p.Pid <= 0 || p.ID != l.ID {
			t.Errorf("process %+v", p)
		}
		code, out := b.keeper.exit(l.ID)
		if code != 7 || out != "hello\noops\n" {
			t.Errorf("exit %d, output %q", code, out)
		}
		if err := b.runtime.Delete(t.Context(), l.ID); err != nil {
			t.Error(err)
		}
		if err := b.runtime.Delete(t.Context(), l.ID); err != nil {
			t.Errorf("second delete: %v", err)
		}
		b.nothingLeft(l.ID)
	})
}

func TestStartFailures(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		for _, tt := range []struct {
			args []string
			code int
			kind errs.Kind
		}{
			{[]string{"nothere"}, 127, errs.NotFound},
			{[]string{"/bin/nothere"}, 127, errs.NotFound},
			{[]string{"/etc/plain"}, 126, errs.Invalid},
			{[]string{"/etc"}, 126, errs.Invalid},
		} {
			l := b.make(command(tt.args...))
			_, err := b.runtime.Run(t.Context(), l)
			start, ok := errors.AsType[*container.StartError](err)
			if !ok || start.Code != tt.code || errs.KindOf(err) != tt.kind {
				t.Errorf("run %v: %v (%s)", tt.args, err, errs.KindOf(err))
			}
			b.nothingLeft(l.ID)
		}
		l := b.make(command("sleep", "100"))
		b.run(l)
		for _, tt := range []struct {
			args []string
			code int
		}{{[]string{"nothere"}, 127}, {[]string{"/bin/nothere"}, 127}, {[]string{"/etc/plain"}, 126}, {[]string{"/etc"}, 126}} {
			_, err := b.runtime.Exec(t.Context(), container.ExecLaunch{ID: newID(), Container: l.ID, Process: process(tt.args...)})
			if start, ok := errors.AsType[*container.StartError](err); !ok || start.Code != tt.code {
				t.Errorf("exec %v: %v (%s)", tt.args, err, errs.KindOf(err))
			}
		}
	})
}

func process(args ...string) *specs.Process {
	return &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}}
}

func TestSignalPauseUpdate(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		l := b.make(command("sh", "-c", "sleep 1000 & trap 'exit 5' TERM; echo ready; wait"))
		b.run(l)
		await(t, func() bool { pids, err := b.runtime.Pids(t.Context(), l.ID); return err == nil && len(pids) == 2 })

		if err := b.runtime.Pause(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}
		if state := b.state(l.ID); state != "paused" {
			t.Errorf("the runtime says %s, not paused", state)
		}
		if err := b.runtime.Resume(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}
		if state := b.state(l.ID); state != "running" {
			t.Errorf("the runtime says %s, not running", state)
		}
		limits, err := bundle.Resources(spec.Resources{Memory: 64 << 20, Pids: 50, CPUShares: 512}, b.host)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.runtime.Update(t.Context(), l.ID, limits); err != nil {
			t.Error(err)
		}
		if got := readCgroup(l.ID, "pids", "pids.max"); got != "50" {
			t.Errorf("pids.max %q after update", got)
		}
		if err := b.runtime.Signal(t.Context(), l.ID, syscall.SIGTERM, false); err != nil {
			t.Error(err)
		}
		if code, _ := b.keeper.exit(l.ID); code != 5 {
			t.Errorf("exit %d", code)
		}
		if err := b.runtime.Signal(t.Context(), l.ID, syscall.SIGTERM, false); errs.KindOf(err) != errs.NotFound {
			t.Errorf("signal to the dead: %v", err)
		}
		for what, err := range map[string]error{
			"signal": b.runtime.Signal(t.Context(), newID(), syscall.SIGTERM, false),
			"pause":  b.runtime.Pause(t.Context(), newID()),
			"update": b.runtime.Update(t.Context(), newID(), limits),
			"start":  b.runtime.Start(t.Context(), newID()),
		} {
			if errs.KindOf(err) != errs.NotFound {
				t.Errorf("%s of an unknown container: %v", what, err)
			}
		}
	})
}

func readCgroup(id, controller, file string) string {
	data, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, cgroupOf(id), file))
	if err != nil {
		data, _ = os.ReadFile(filepath.Join("/sys/fs/cgroup", cgroupOf(id), file))
	}
	return strings.TrimSpace(string(data))
}

// state asks the program itself, or another.
func (b *bench) state(id string, other ...string) string {
	program := append(other, b.runtime.Name())[0]
	out, err := exec.Command(program, "--root", filepath.Join(b.dir, "runtime", filepath.Base(program)), "state", id).CombinedOutput()
	if err != nil {
		return string(out)
	}
	for _, state := range []string{"paused", "running", "created", "stopped"} {
		if strings.Contains(string(out), `"status": "`+state+`"`) {
			return state
		}
	}
	return string(out)
}

func await(t *testing.T, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(time.Minute); !done(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("waited for ten seconds")
		}
	}
}

func TestCreateStart(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		l := b.make(command("sh", "-c", "exit 3"))
		if _, err := b.runtime.Create(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if state := b.state(l.ID); state != "created" {
			t.Errorf("state %s", state)
		}
		if err := b.runtime.Start(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}
		if code, _ := b.keeper.exit(l.ID); code != 3 {
			t.Errorf("exit %d", code)
		}
	})
}

func TestDeleteRunning(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		for what, change := range map[string]func(*specs.Spec){
			"own pids": func(*specs.Spec) {},
			"host pids": func(s *specs.Spec) {
				for i, n := range s.Linux.Namespaces {
					if n.Type == specs.PIDNamespace {
						s.Linux.Namespaces = append(s.Linux.Namespaces[:i], s.Linux.Namespaces[i+1:]...)
						break
					}
				}
			},
		} {
			l := b.make(command("sh", "-c", "sleep 1000 & sleep 1000 & trap '' TERM; wait"), change)
			b.run(l)
			await(t, func() bool { pids, _ := b.runtime.Pids(t.Context(), l.ID); return len(pids) == 3 })
			if err := b.runtime.Delete(t.Context(), l.ID); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if code, _ := b.keeper.exit(l.ID); code != 137 {
				t.Errorf("%s: exit %d", what, code)
			}
			b.nothingLeft(l.ID)

			l = b.make(command("sleep", "1000"), change)
			b.run(l)
			if err := b.runtime.Pause(t.Context(), l.ID); err != nil {
				t.Fatal(err)
			}
			if err := b.runtime.Signal(t.Context(), l.ID, syscall.SIGKILL, false); err != nil {
				t.Error(err)
			}
			if code, _ := b.keeper.exit(l.ID); code != 137 {
				t.Errorf("%s: a paused container exits with %d", what, code)
			}
		}
	})
}

func TestExec(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		l := b.make(command("sleep", "1000"))
		b.run(l)
		id := newID()
		p, err := b.runtime.Exec(t.Context(), container.ExecLaunch{ID: id, Container: l.ID, Stdin: true, Process: process("sh", "-c", "cat; echo err >&2; exit 9")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(p.Stdin, "over and out\n"); err != nil {
			t.Error(err)
		}
		if err := p.CloseStdin(t.Context()); err != nil {
			t.Error(err)
		}
		out, _ := io.ReadAll(p.Stdout)
		complaints, _ := io.ReadAll(p.Stderr)
		if code, _ := b.keeper.exit(id); code != 9 || string(out) != "over and out\n" || string(complaints) != "err\n" {
			t.Errorf("exit %d, stdout %q, stderr %q", code, out, complaints)
		}

		id = newID()
		tty := process("sh", "-c", "test -t 0 && test -t 1 && echo terminal")
		tty.Terminal = true
		p, err = b.runtime.Exec(t.Context(), container.ExecLaunch{ID: id, Container: l.ID, Process: tty})
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(p.Console) // ends with EIO
		if code, _ := b.keeper.exit(id); code != 0 || string(text) != "terminal\r\n" {
			t.Errorf("exit %d, terminal %q", code, text)
		}
		p.Console.Close()
	})
}

func TestTerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		l := b.make(spec.ContainerConfig{TTY: true, OpenStdin: true, Command: []string{"sh", "-c", "read x; echo got $x; echo $TERM"}})
		p := b.run(l)
		defer p.Console.Close()
		if _, err := io.WriteString(p.Console, "it\n"); err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(p.Console)
		if code, _ := b.keeper.exit(l.ID); code != 0 || !strings.Contains(string(text), "got it\r\nxterm\r\n") {
			t.Errorf("exit %d, terminal %q", code, text)
		}
	})
}

// The second container with a profile, and what is executed in it, are as
// confined as the first.
func TestSeccomp(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		if !b.host.Seccomp {
			t.Skip("this kernel has no seccomp")
		}
		probe := "grep '^Seccomp:' /proc/self/status; mount -t tmpfs none /tmp 2>&1 | grep -c denied; unshare -m true 2>/dev/null || echo confined"
		for _, config := range []spec.ContainerConfig{
			{Security: spec.Security{CapAdd: []string{"ALL"}}},
			{},
			{Security: spec.Security{CapAdd: []string{"ALL"}, Seccomp: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["unshare"],"action":"SCMP_ACT_ERRNO"}]}`}},
		} {
			config.Annotations = map[string]string{"a": "<b>"}
			config.Command = []string{"sh", "-c", probe}
			var outputs []string
			for range 3 {
				l := b.make(config)
				b.run(l)
				code, out := b.keeper.exit(l.ID)
				if !strings.Contains(out, "Seccomp:\t2") || config.Security.Seccomp != "" && !strings.Contains(out, "confined") {
					t.Errorf("exit %d: %s", code, out)
				}
				outputs = append(outputs, out)
			}
			if outputs[0] != outputs[1] || outputs[1] != outputs[2] {
				t.Errorf("the containers differ: %q", outputs)
			}
		}
		for range 2 {
			l := b.make(command("sleep", "1000"))
			if _, err := b.runtime.Create(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			if err := b.runtime.Start(t.Context(), l.ID); err != nil {
				t.Fatal(err)
			}
			id := newID()
			p, err := b.runtime.Exec(t.Context(), container.ExecLaunch{ID: id, Container: l.ID, Process: process("grep", "Seccomp:", "/proc/1/status", "/proc/self/status")})
			if err != nil {
				t.Fatal(err)
			}
			if out, _ := io.ReadAll(p.Stdout); strings.Count(string(out), "Seccomp:\t2") != 2 {
				t.Errorf("%s", out)
			}
		}
	})
}

func TestVersion(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		v, err := b.runtime.Version(t.Context())
		if err != nil || v == "" || strings.Contains(v, " ") {
			t.Errorf("%q, %v", v, err)
		}
	})
	if _, err := oci.New(oci.Config{Name: "nothere", State: t.TempDir()}); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a missing program: %v", err)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
