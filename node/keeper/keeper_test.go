package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/keeper"
	"berth/test/machine"
)

// The test binary is the keeper too, a runtime, and the node that gets killed.
func TestMain(m *testing.M) {
	if pidFile := os.Getenv("KEEPER_TEST_RUNTIME"); pidFile != "" {
		runtimeProcess(pidFile)
	}
	if dir := os.Getenv("KEEPER_TEST_SERVE"); dir != "" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		linger, _ := time.ParseDuration(os.Getenv("KEEPER_TEST_LINGER"))
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		err := keeper.Serve(ctx, keeper.ServeConfig{Socket: dir + "/keeper.sock", PidFile: dir + "/keeper.pid", Log: log, LoggerLimit: time.Second, Linger: linger})
		stop()
		if err != nil {
			log.Error("serve", slog.Any("err", err))
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == "log-to" {
		loggerProcess(os.Args[2], os.Args[3:])
	}
	if dir := os.Getenv("KEEPER_TEST_NODE"); dir != "" {
		nodeProcess(dir)
	}
	os.Exit(machine.Run(m, machine.Empty))
}

// rig is one node under test.
type rig struct {
	*keeper.Keeper
	t    testing.TB
	dir  string
	stop func()

	mu    sync.Mutex
	exits map[string]keeper.Exit
	twice []string
	more  chan struct{}
}

func command(dir string) []string {
	if program := os.Getenv("BERTH_BINARY"); program != "" { // to measure the real one
		return []string{program, "keeper", "--state", dir}
	}
	return []string{"/usr/bin/env", "KEEPER_TEST_SERVE=" + dir, os.Args[0]}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// open is a node on dir, which may have a keeper already.
func open(t testing.TB, dir string) *rig {
	t.Helper()
	r := &rig{t: t, dir: dir, exits: map[string]keeper.Exit{}, more: make(chan struct{}, 1)}
	k, err := keeper.Open(t.Context(), keeper.Config{
		Socket: dir + "/keeper.sock", PidFile: dir + "/keeper.pid", Command: command(dir), Exited: r.exited,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Keeper = k
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := k.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// start is a node with a keeper of its own, which is gone after the test.
func start(t testing.TB) *rig {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("/tmp", "keeper-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := open(t, dir)
	t.Cleanup(func() { shutdown(t, dir) })
	return r
}

// shutdown ends the keeper of dir and what it keeps, whoever is its node.
func shutdown(t testing.TB, dir string) {
	if t.Failed() {
		if data, err := os.ReadFile(dir + "/keeper.log"); err == nil {
			t.Logf("keeper's log:\n%s", data)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	k, err := keeper.Open(ctx, keeper.Config{Socket: dir + "/keeper.sock", PidFile: dir + "/keeper.pid", Command: command(dir), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Errorf("open to shut down: %v", err)
		return
	}
	for _, p := range k.Processes() {
		_ = k.Signal(p.ID, unix.SIGKILL)
	}
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	if err := k.Shutdown(ctx, true); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	cancel()
	<-done
	_ = k.Close()
}

func (r *rig) exited(e keeper.Exit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.exits[e.ID]; ok {
		r.twice = append(r.twice, e.ID)
	}
	r.exits[e.ID] = e
	select {
	case r.more <- struct{}{}:
	default:
	}
}

// wait waits for the exit of id.
func (r *rig) wait(id string) keeper.Exit {
	r.t.Helper()
	limit := time.After(time.Minute)
	for {
		r.mu.Lock()
		e, ok := r.exits[id]
		r.mu.Unlock()
		if ok {
			return e
		}
		select {
		case <-r.more:
		case <-limit:
			r.t.Fatalf("no exit of %s", id)
		}
	}
}

// runtimeProcess starts a shell and leaves it behind.
func runtimeProcess(pidFile string) {
	pid, err := syscall.ForkExec("/bin/sh", append([]string{"sh", "-c"}, os.Args[1:]...), &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err == nil {
		err = os.WriteFile(pidFile, fmt.Appendln(nil, pid), 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// script is a launch of a shell script.
func (r *rig) script(id, script string) keeper.Launch {
	pidFile := filepath.Join(r.dir, id+".pid")
	return keeper.Launch{
		ID: id, PidFile: pidFile,
		Argv: []string{os.Args[0], script},
		Env:  []string{"PATH=" + os.Getenv("PATH"), "KEEPER_TEST_RUNTIME=" + pidFile, "GORACE=atexit_sleep_ms=0"},
		Log:  keeper.Log{Path: filepath.Join(r.dir, id+".log")},
	}
}

func (r *rig) launch(l keeper.Launch) *keeper.Process {
	r.t.Helper()
	p, err := r.Launch(r.t.Context(), l)
	if err != nil {
		r.t.Fatalf("launch %s: %v", l.ID, err)
	}
	return p
}

// output is the text of a log, both streams, without its format.
func output(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 || len(fields[0]) != 30 || !strings.HasSuffix(line, "\n") {
			t.Fatalf("torn record %q", line)
		}
		b.WriteString(fields[3])
		if fields[2] == "F" {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func TestLaunch(t *testing.T) {
	r := start(t)
	l := r.script("a", `echo out; echo err >&2; sleep 0.05; printf half; exit 7`)
	p := r.launch(l)
	if p.Pid <= 1 || p.Stdin != nil || p.Stdout != nil || p.Console != nil {
		t.Errorf("process: %+v", p)
	}
	e := r.wait("a")
	if e.Code != 7 || !e.Known || e.Pid != p.Pid || time.Since(e.At) > time.Minute {
		t.Errorf("exit %+v", e)
	}
	got := output(t, l.Log.Path)
	if len(got) != len("out\nerr\nhalf") || !strings.Contains(got, "out\n") || !strings.Contains(got, "err\n") || !strings.HasSuffix(got, "half") {
		t.Errorf("log %q", got)
	}
	if p, ok := r.Process("a"); !ok || p.Exit == nil || p.Exit.Code != 7 {
		t.Errorf("process after its end: %+v", p)
	}
	if _, err := r.Launch(t.Context(), l); !errors.Is(err, errs.Exists) {
		t.Errorf("same id again: %v", err)
	}
	if err := r.Forget(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if err := r.Forget(t.Context(), "a"); err != nil {
		t.Errorf("forget twice: %v", err)
	}
	if n := len(r.Processes()); n != 0 {
		t.Errorf("%d processes left", n)
	}
}

func TestSignal(t *testing.T) {
	r := start(t)
	r.launch(r.script("a", `exec sleep 1000`))
	if err := r.Forget(t.Context(), "a"); !errors.Is(err, errs.Conflict) {
		t.Errorf("forget a running one: %v", err)
	}
	if err := r.Shutdown(t.Context(), false); !errors.Is(err, errs.Conflict) {
		t.Errorf("shutdown with one running: %v", err)
	}
	if err := unix.Kill(r.Pid(), unix.SIGSTOP); err != nil { // it reaps nobody
		t.Fatal(err)
	}
	if err := r.Signal("a", unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p, _ := r.Process("a")
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(p.Pidfd.Fd()), Events: unix.POLLIN}}, 10_000)
	if err := r.Signal("a", unix.SIGTERM); !errors.Is(err, errs.NotFound) {
		t.Errorf("signal one that has ended: %v", err)
	}
	if err := errors.Join(err, unix.Kill(r.Pid(), unix.SIGCONT)); err != nil {
		t.Fatal(err)
	}
	if e := r.wait("a"); e.Code != 128+15 || !e.Known {
		t.Errorf("exit %+v", e)
	}
	if err := r.Signal("a", unix.SIGTERM); !errors.Is(err, errs.NotFound) {
		t.Errorf("signal the dead: %v", err)
	}
	if err := r.Signal("b", unix.SIGTERM); !errors.Is(err, errs.NotFound) {
		t.Errorf("signal a stranger: %v", err)
	}
}

func TestStdin(t *testing.T) {
	r := start(t)
	l := r.script("a", `cat; exit 3`)
	l.Stdin = true
	p := r.launch(l)
	text := strings.Repeat("0123456789abcdef\n", 20000)
	if _, err := io.WriteString(p.Stdin, text); err != nil {
		t.Fatal(err)
	}
	if err := r.CloseStdin(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if e := r.wait("a"); e.Code != 3 {
		t.Errorf("exit %+v", e)
	}
	if got := output(t, l.Log.Path); got != text {
		t.Errorf("got %d bytes, want %d", len(got), len(text))
	}
}

// A process learns that nobody reads it any more, and does not wait for ever.
func TestHeldOutputIsLetGo(t *testing.T) {
	r := start(t)
	l := r.script("a", `exec yes`)
	l.Output, l.Log = keeper.Hold, keeper.Log{}
	r.launch(l)
	if err := r.CloseOutput(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if e := r.wait("a"); e.Code != 128+13 {
		t.Errorf("exit %+v", e)
	}
	r.launch(r.script("b", `exec sleep 1000`))
	if err := r.CloseOutput(t.Context(), "b"); !errors.Is(err, errs.Conflict) {
		t.Errorf("what goes to a log: %v", err)
	}
	if err := r.Signal("b", unix.SIGKILL); err != nil {
		t.Error(err)
	}
	r.wait("b")
}

func TestHold(t *testing.T) {
	r := start(t)
	l := r.script("a", `cat; echo err >&2; exit 5`)
	l.Stdin, l.Output, l.Log = true, keeper.Hold, keeper.Log{}
	p := r.launch(l)
	go func() {
		_, _ = io.WriteString(p.Stdin, "hello")
		_ = r.CloseStdin(t.Context(), "a")
	}()
	out, err1 := io.ReadAll(p.Stdout)
	complaint, err2 := io.ReadAll(p.Stderr)
	if string(out) != "hello" || string(complaint) != "err\n" || err1 != nil || err2 != nil {
		t.Errorf("out %q %v, err %q %v", out, err1, complaint, err2)
	}
	if e := r.wait("a"); e.Code != 5 {
		t.Errorf("exit %+v", e)
	}
}

func TestRuntimeFails(t *testing.T) {
	r := start(t)
	l := r.script("a", ``)
	var le *keeper.LaunchError
	l.Argv = []string{"sh", "-c", "echo no such rootfs >&2; exit 42"}
	if _, err := r.Launch(t.Context(), l); !errors.As(err, &le) || le.Code != 42 || le.Text != "no such rootfs" {
		t.Errorf("standard error: %#v", err)
	}
	l.RuntimeLog = r.dir + "/runtime.log"
	l.Argv = []string{"sh", "-c", `echo '{"level":"warning","msg":"w"}
{"level":"error","msg":"the real reason"}' >` + l.RuntimeLog + `; exit 1`}
	if _, err := r.Launch(t.Context(), l); !errors.As(err, &le) || le.Text != "the real reason" {
		t.Errorf("its log: %v", err)
	}
	l.RuntimeLog = ""
	l.Argv = []string{"sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x >&2; exit 43"}
	if _, err := r.Launch(t.Context(), l); !errors.As(err, &le) || le.Code != 43 || !strings.HasPrefix(le.Text, "xxx") {
		t.Errorf("more than a pipe holds: %v", err)
	}
	l.Argv = []string{"sh", "-c", "yes no >&2"}
	if _, err := r.Launch(t.Context(), l); !errors.As(err, &le) || !strings.Contains(le.Text, "did not end: no") {
		t.Errorf("without an end: %v", err)
	}
	l.Argv = []string{"/no/such/runtime"}
	if _, err := r.Launch(t.Context(), l); !errors.As(err, &le) || le.Code != -1 {
		t.Errorf("missing: %v", err)
	}
	l.Argv = []string{"true"}
	if _, err := r.Launch(t.Context(), l); err == nil {
		t.Error("no pid file: no error")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	l.Argv = []string{"sleep", "1000"}
	if _, err := r.Launch(ctx, l); !errors.Is(err, errs.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if n := len(r.Processes()); n != 0 {
		t.Errorf("%d processes", n)
	}
	l = r.script("a", `echo fine`)
	r.launch(l) // the id is free again
	r.wait("a")
}

func TestExitDoesNotWaitForOrphans(t *testing.T) {
	r := start(t)
	let := filepath.Join(r.dir, "let")
	l := r.script("a", `(until [ -e `+let+` ]; do sleep 0.02; done; echo late) & echo early; exit 0`)
	r.launch(l)
	r.wait("a") // while its child is there
	if err := os.WriteFile(let, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return strings.HasSuffix(output(t, l.Log.Path), "late\n") })
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never happened")
		}
	}
}

func TestManyShort(t *testing.T) {
	r := start(t)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			id := fmt.Sprintf("p%d", i)
			if _, err := r.Launch(t.Context(), r.script(id, fmt.Sprintf("echo %d; exit %d", i, i))); err != nil {
				t.Errorf("launch %s: %v", id, err)
			}
		})
	}
	wg.Wait()
	for i := range 100 {
		id := fmt.Sprintf("p%d", i)
		if e := r.wait(id); e.Code != i || !e.Known {
			t.Errorf("exit %+v, want %d", e, i)
		}
		if got := output(t, filepath.Join(r.dir, id+".log")); got != fmt.Sprintln(i) {
			t.Errorf("%s said %q", id, got)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.twice) > 0 {
		t.Errorf("reported twice: %v", r.twice)
	}
}

func countFds(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestNoLeaks(t *testing.T) {
	r := start(t)
	round := func() (keeper, node int) {
		for i := range 10 {
			id := fmt.Sprintf("p%d", i)
			l := r.script(id, "cat")
			l.Stdin = true
			l.Output = []keeperOutput{0, 1, 2}[i%3]
			r.launch(l)
			if err := r.CloseStdin(t.Context(), id); err != nil {
				t.Error(err)
			}
			r.wait(id)
			if err := r.Forget(t.Context(), id); err != nil {
				t.Error(err)
			}
			r.mu.Lock()
			delete(r.exits, id)
			r.mu.Unlock()
			l.Argv = []string{"false"}
			if _, err := r.Launch(t.Context(), l); err == nil {
				t.Error("false succeeded")
			}
		}
		return countFds(t, r.Pid()), countFds(t, os.Getpid())
	}
	k1, n1 := round()
	k2, n2 := round()
	if k2 > k1+5 || n2 > n1+5 { // a scratch pipe more is none; a leak in each launch is ten
		t.Errorf("descriptors: keeper %d then %d, node %d then %d", k1, k2, n1, n2)
	}
}

type keeperOutput = keeper.Output
