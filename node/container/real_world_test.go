package container_test

import (
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

	"golang.org/x/sys/unix"

	"berth/base/clock"
	"berth/base/kv"
	"berth/node/bundle"
	"berth/node/container"
	"berth/node/container/oci"
	"berth/node/keeper"
	"berth/node/logfile"
	"berth/node/snapshot"
	"berth/node/stats"
	"berth/spec"
	"berth/test/machine"
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
	os.Exit(machine.Run(m, machine.Empty))
}

// real is a node with real processes, runtime, keeper and cgroups; what comes
// from other rooms' drivers is simple.
type real struct {
	*world
	program string // the runtime
	state   string
	keeper  *keeper.Keeper
	stop    func()
}

func newReal(t testing.TB, program string) *real {
	t.Helper()
	machine.Need(t, program, "busybox")
	w := newWorld(t)
	r := &real{world: w, program: program}
	r.state = machine.Folder(t)
	r.open()
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
func (r *real) open() {
	r.t.Helper()
	var set *container.Set
	k := r.openKeeper(func(x keeper.Exit) { set.Exited(container.Exit(x)) })
	driver, err := oci.New(oci.Config{Name: r.program, State: r.state + "/runtime", Keeper: k})
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
		Runtimes: map[string]container.Runtime{r.program: driver}, Runtime: r.program,
		Host: host, CgroupParent: r.cgroup(), Log: slog.New(slog.NewTextHandler(r.log, nil)),
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

// cgroup is where those of this node's containers are.
func (r *real) cgroup() string { return "/" + machine.Name() + "-" + filepath.Base(r.state) }

// cgroups are those of this node, in every hierarchy.
func (r *real) cgroups(pattern string) []string {
	found, err := filepath.Glob(filepath.Join("/sys/fs/cgroup/*"+r.cgroup(), pattern))
	r.ok(err)
	return found
}

// reopen ends the node and starts another.
func (r *real) reopen() {
	r.t.Helper()
	r.stop()
	r.open()
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

// eachReal runs the parts of a test with each runtime, on a node that they share,
// and looks for what is left of it.
func eachReal(t *testing.T, parts ...realPart) {
	for _, program := range []string{"crun", "runc"} {
		t.Run(program, func(t *testing.T) {
			r := newReal(t, program)
			for _, part := range parts {
				t.Run(part.name, func(t *testing.T) { part.test(t, r) })
			}
			r.tidyUp()
			left := append(append(r.left(), r.cgroups("*/cgroup.procs")...), machine.Mounts(t, r.state)...)
			for _, pattern := range []string{"containers/*", "tasks/*", "runtime/*/*"} {
				found, err := filepath.Glob(filepath.Join(r.state, pattern))
				r.ok(err)
				left = append(left, found...)
			}
			if len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

type realPart struct {
	name string
	test func(t *testing.T, r *real)
}
