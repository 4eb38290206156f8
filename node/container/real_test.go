package container_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/clock"
	"berth/base/errs"
	"berth/base/kv"
	"berth/node/bundle"
	"berth/node/container"
	"berth/node/container/oci"
	"berth/node/keeper"
	"berth/node/logfile"
	"berth/node/snapshot"
	"berth/node/stats"
	"berth/spec"
)

// keeperVar makes the test's program a keeper for the folder it names.
const keeperVar = "BERTH_CONTAINER_TEST_KEEPER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(keeperVar); dir != "" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		config := keeper.ServeConfig{Socket: dir + "/keeper.sock", PidFile: dir + "/keeper.pid", Log: log}
		if err := keeper.Serve(context.Background(), config); err != nil {
			log.Error("keeper", "err", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// real is a node with real processes, runtime, keeper and cgroups; what comes
// from other rooms' drivers is simple.
type real struct {
	*world
	state  string
	keeper *keeper.Keeper
	stop   func()
}

func newReal(t testing.TB, program string) *real {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	for _, needed := range []string{program, "busybox"} {
		if _, err := exec.LookPath(needed); err != nil {
			t.Skip("needs", needed)
		}
	}
	w := newWorld(t)
	r := &real{world: w}
	var err error
	r.state, err = os.MkdirTemp("/tmp", "container-") // short: it holds sockets
	w.ok(err)
	t.Cleanup(func() { _ = os.RemoveAll(r.state) })
	r.open(program)
	t.Cleanup(func() {
		r.tidyUp()
		w.ok(r.keeper.Shutdown(context.Background(), true))
		r.stop()
		for _, root := range r.cgroups("") {
			_ = os.Remove(root)
		}
	})
	return r
}

func (r *real) openKeeper(exited func(keeper.Exit)) *keeper.Keeper {
	k, err := keeper.Open(context.Background(), keeper.Config{
		Socket: r.state + "/keeper.sock", PidFile: r.state + "/keeper.pid",
		Command: []string{"/usr/bin/env", keeperVar + "=" + r.state, os.Args[0]},
		Exited:  exited, Log: slog.New(slog.NewTextHandler(r.log, nil)),
	})
	r.ok(err)
	return k
}

// open starts a node, as the daemon does.
func (r *real) open(program string) {
	r.t.Helper()
	var set *container.Set
	k := r.openKeeper(func(x keeper.Exit) { set.Exited(container.Exit(x)) })
	driver, err := oci.New(oci.Config{Name: program, State: r.state + "/runtime", Keeper: k})
	r.ok(err)
	db, err := kv.Open(filepath.Join(r.dir, "db"))
	r.ok(err)
	host, err := bundle.Detect()
	r.ok(err)
	meter, err := stats.Open()
	r.ok(err)
	boot, err := clock.Boot()
	r.ok(err)
	ctx, cancel := context.WithCancel(context.Background())
	set, err = container.Open(ctx, container.Config{
		DB: db, Root: filepath.Join(r.dir, "root"), State: r.state, Boot: boot,
		Images: images{r.world}, Snapshots: roots{snapshots{r.world}}, Networks: networks{r.world}, Volumes: volumes{r.world},
		Events: events{r.world}, Meter: meter, Processes: k,
		Runtimes: map[string]container.Runtime{program: driver}, Runtime: program,
		Host: host, CgroupParent: "/berth-" + filepath.Base(r.state), Log: slog.New(slog.NewTextHandler(r.log, nil)),
	})
	r.ok(err)
	var survivors []container.Survivor
	for _, p := range k.Processes() {
		adopted, err := oci.Adopt(k, p)
		r.ok(err)
		v := container.Survivor{Process: adopted}
		if p.Exit != nil {
			exit := container.Exit(*p.Exit)
			v.Exit = &exit
		}
		survivors = append(survivors, v)
	}
	r.ok(set.Recover(ctx, survivors))
	r.node, r.keeper = &node{Set: set, db: db, cancel: cancel}, k
	ran := make(chan error, 1)
	go func() { ran <- k.Run(ctx) }()
	r.stop = func() {
		r.ok(set.Close())
		cancel()
		r.ok(<-ran)
		r.ok(k.Close())
		r.ok(db.Close())
	}
}

// cgroups are those of this node, in every hierarchy.
func (r *real) cgroups(pattern string) []string {
	found, err := filepath.Glob(filepath.Join("/sys/fs/cgroup/*/berth-"+filepath.Base(r.state), pattern))
	r.ok(err)
	return found
}

// reopen ends the node and starts another.
func (r *real) reopen(program string) {
	r.t.Helper()
	r.stop()
	r.open(program)
}

func (r *real) tidyUp() {
	list, err := r.node.List(context.Background(), true, nil)
	r.ok(err)
	for _, c := range list {
		r.ok(r.node.Remove(context.Background(), c.ID, true, true))
	}
}

// roots are busybox's, bound where a driver would mount a snapshot.
type roots struct{ snapshots }

func (s roots) Mount(_ context.Context, key snapshot.Key, target string) error {
	root := s.w.content(key)
	if !exists(filepath.Join(root, "bin")) {
		s.w.furnish(root)
	}
	return unix.Mount(root, target, "", unix.MS_BIND, "")
}

func (s roots) Unmount(_ context.Context, target string) error {
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func (w *world) furnish(root string) {
	busybox, err := exec.LookPath("busybox")
	w.ok(err)
	for _, dir := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		w.ok(os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	program, err := os.ReadFile(busybox)
	w.ok(err)
	w.ok(os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755))
	for _, name := range []string{"sh", "cat", "echo", "sleep", "true", "false", "ls", "ln", "dd"} {
		w.ok(os.Symlink("busybox", filepath.Join(root, "bin", name)))
	}
	w.ok(os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/:/bin/sh\nwww:x:33:33::/:/bin/sh\n"), 0o644))
}

// output is what the container wrote.
func (r *real) output(ref string) string {
	r.t.Helper()
	var b strings.Builder
	err := r.node.Logs(r.t.Context(), ref, logfile.Query{Tail: -1, Follow: true}, func(l logfile.Line) error {
		fmt.Fprintf(&b, "%s\n", l.Text)
		return nil
	})
	r.ok(err)
	return b.String()
}

func (r *real) execOutput(ref string, cfg spec.ExecConfig) (string, int) {
	r.t.Helper()
	e := r.exec(ref, cfg)
	session, err := r.node.StartExec(r.t.Context(), e.ID)
	r.ok(err)
	out, err := io.ReadAll(session.Stdout)
	r.ok(err)
	ended, err := r.node.WaitExec(r.t.Context(), e.ID)
	r.ok(err)
	r.ok(session.Close())
	return string(out), ended.ExitCode
}

func TestReal(t *testing.T) {
	for _, program := range []string{"crun", "runc"} {
		t.Run(program, func(t *testing.T) {
			r := newReal(t, program)
			t.Run("life", func(t *testing.T) { realLife(t, r) })
			t.Run("exec", func(t *testing.T) { realExec(t, r) })
			t.Run("copy", func(t *testing.T) { realCopy(t, r) })
			t.Run("health", func(t *testing.T) { realHealth(t, r) })
			t.Run("comes back", func(t *testing.T) { realReturn(t, r, program) })
			r.tidyUp()
			if left := r.left(); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			if left, _ := filepath.Glob(filepath.Join(r.state, "containers/*")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			if left := r.cgroups("*/cgroup.procs"); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
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
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if h := r.get(ref).State.Health; h.Status == want {
			return h
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 10e6}, nil)
	}
	r.t.Fatalf("%s does not become %s: %+v", ref, want, r.get(ref).State.Health)
	return nil
}

func realReturn(t *testing.T, r *real, program string) {
	cfg := config("/bin/cat")
	cfg.OpenStdin, cfg.StdinOnce = true, true
	c := r.start(cfg)
	r.reopen(program)
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
