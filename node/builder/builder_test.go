package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
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
	"berth/spec"
)

// TestMain is also a buildkitd that does all that the room wants of one: it
// takes the socket that it inherits, says that it serves, echoes lines, and
// ends when told to. And it is a buildctl.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "buildkitd":
		os.Exit(serve())
	case "buildctl":
		os.Exit(answer(os.Args[1:]))
	}
	os.Exit(m.Run())
}

func serve() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if os.Getenv("FAKE") == "fails" {
		_, _ = io.WriteString(os.Stderr, "there is no worker\n")
		return 1
	}
	listener, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil || os.Getenv("LISTEN_FDS") != "1" || os.Getenv("LISTEN_PID") == "" {
		return 2
	}
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return 3
	}
	_, _ = io.WriteString(conn, "READY=1\n")
	context.AfterFunc(ctx, func() { _ = listener.Close() })
	for {
		client, err := listener.Accept()
		if err != nil {
			return 0
		}
		go func() { _, _ = io.Copy(client, client); _ = client.Close() }()
	}
}

func answer(args []string) int {
	switch {
	case strings.Contains(strings.Join(args, " "), " du "):
		_, _ = io.WriteString(os.Stdout, `[{"id":"a","size":10,"inUse":true,"createdAt":"2026-01-02T03:04:05Z","recordType":"regular","description":"RUN"},{"id":"b","size":5},{"id":"c","size":7,"shared":true}]`+"\n")
	case strings.Contains(strings.Join(args, " "), " prune "):
		_, _ = io.WriteString(os.Stdout, `{"id":"b","size":5}`+"\n"+`{"id":"d","size":1}`+"\n")
	default:
		_, _ = io.WriteString(os.Stderr, "error: no such thing\n")
		return 1
	}
	return 0
}

// world is a builder of such programs.
type world struct {
	*Builder
	config Config
	tidied chan struct{}
	stop   func()
}

// newWorld gives the builder programs and a short patience.
func newWorld(t *testing.T, idle time.Duration) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipped: giving the socket to a group takes root")
	}
	dir, err := os.MkdirTemp("", "bb-") // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"buildkitd", "buildctl"} {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{tidied: make(chan struct{}, 100)}
	w.config = Config{
		Dir: filepath.Join(dir, "root"), State: dir, Server: filepath.Join(dir, "buildkitd"), Idle: idle,
		Worker: Worker{Socket: filepath.Join(dir, "berth.sock"), Namespace: "default", Snapshotter: "lcfs", Cgroup: "/x/build"},
		Tidy:   func(context.Context) error { w.tidied <- struct{}{}; return nil },
		Log:    slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	w.open(t)
	t.Cleanup(func() { _ = w.Stop(context.WithoutCancel(t.Context()), true); w.close() })
	return w
}

// open is the start of a node, close its end.
func (w *world) open(t *testing.T) {
	t.Helper()
	var err error
	if w.Builder, err = Open(t.Context(), w.config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = w.Run(ctx) })
	w.stop = func() { cancel(); running.Wait() }
}

func (w *world) close() { w.stop(); _ = w.Close() }

func (w *world) get(t *testing.T) spec.Builder {
	t.Helper()
	state, err := w.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// started is get once the node knows that it runs.
func (w *world) started(t *testing.T) spec.Builder {
	t.Helper()
	state, err := w.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// dial connects and sees that somebody answers.
func (w *world) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", w.socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := echo(conn); err != nil {
		t.Fatal(err)
	}
	return conn
}

func echo(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, "hello"); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 5))
	return err
}

func eventually(t *testing.T, what string, fn func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for !fn() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// The first client starts it; it is not stopped while one is there, and when
// none is for a while.
func TestStartsWithTheFirstClientAndStopsWhenIdle(t *testing.T) {
	w := newWorld(t, 300*time.Millisecond)
	if state := w.get(t); state.Running || state.Idle != 0 || state.Client != filepath.Join(w.State, "buildctl") {
		t.Errorf("before anybody came: %+v", state)
	}
	conn := w.dial(t)
	state := w.started(t)
	if !state.Running || state.Pid <= 1 || state.Connections != 1 || state.Started.IsZero() {
		t.Errorf("with a client: %+v", state)
	}
	if err := w.Stop(t.Context(), false); !errors.Is(err, errs.Conflict) {
		t.Errorf("stop with a client: %v", err)
	}
	late := time.After(time.Second)
	for range time.Tick(100 * time.Millisecond) {
		if err := echo(conn); err != nil {
			t.Fatalf("it was stopped while a client was there: %v", err)
		}
		select {
		case <-late:
		default:
			continue
		}
		break
	}
	_ = conn.Close()
	eventually(t, "it is stopped when idle", func() bool { return !w.get(t).Running })
	eventually(t, "the file of its pid goes", func() bool { _, err := os.Stat(w.pidFile()); return os.IsNotExist(err) })
	if share, err := w.Share(t.Context()); err != nil || share != (spec.DiskShare{Total: 3, Active: 1, Size: 15, Reclaimable: 5}) {
		t.Errorf("what the cache takes: %+v, %v", share, err)
	}
	w.dial(t)
	if again := w.started(t); !again.Running || again.Pid == state.Pid {
		t.Errorf("the next client: %+v after %+v", again, state)
	}
}

// Killed, it is replaced for the next client, and what it left is put away.
func TestKilled(t *testing.T) {
	w := newWorld(t, 0)
	<-w.tidied // when it opens, for what was killed with an earlier node
	conn := w.dial(t)
	pid := w.started(t).Pid
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := echo(conn); err == nil {
		t.Error("a client was not told")
	}
	w.dial(t)
	if again := w.started(t); again.Pid == pid || !again.Running {
		t.Errorf("after the kill: %+v", again)
	}
	<-w.tidied
}

// The next node finds it, clients notice nothing, and it can be stopped.
func TestOutlivesTheNode(t *testing.T) {
	for _, pidFile := range []bool{true, false} {
		w := newWorld(t, 0)
		conn := w.dial(t)
		before := w.started(t)
		w.close()
		if !pidFile { // the node was killed before it had written it
			if err := errors.Join(os.Remove(w.pidFile()), os.WriteFile(filepath.Join(w.Dir, "buildkitd.lock"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if err := echo(conn); err != nil {
			t.Fatal(err)
		}
		w.open(t)
		if state := w.get(t); !state.Running || state.Pid != before.Pid || state.Connections != 1 {
			t.Errorf("after the node came back: %+v, before %+v", state, before)
		}
		w.dial(t)
		if err := w.Stop(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(before.Pid, 0); w.get(t).Running || err == nil && !isZombie(before.Pid) {
			t.Errorf("it was told to stop: %v", err)
		}
		w.dial(t)
		if again := w.started(t); !again.Running || again.Pid == before.Pid {
			t.Errorf("after it was stopped: %+v", again)
		}
	}
}

// isZombie: the test is the parent of what an earlier node of it started.
func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// Killed together with its node it is replaced too.
func TestKilledWithTheNode(t *testing.T) {
	w := newWorld(t, 0)
	w.dial(t)
	pid := w.started(t).Pid
	w.close()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is gone", func() bool { return isZombie(pid) })
	w.open(t)
	w.dial(t)
	if again := w.started(t); again.Pid == pid || !again.Running {
		t.Errorf("after both were killed: %+v", again)
	}
}

// An adopted one that is killed is replaced.
func TestAdoptedAndKilled(t *testing.T) {
	w := newWorld(t, 0)
	w.dial(t)
	w.close()
	w.open(t)
	pid := w.started(t).Pid
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another can be reached", func() bool {
		conn, err := net.Dial("unix", w.socket())
		if err != nil {
			return false
		}
		defer conn.Close()
		return echo(conn) == nil
	})
	if again := w.started(t); again.Pid == pid {
		t.Errorf("after the kill: %+v", again)
	}
}

// Without programs, or with some that do not start, clients are turned away
// and those who ask are told why.
func TestDoesNotStart(t *testing.T) {
	w := newWorld(t, 0)
	t.Setenv("FAKE", "fails")
	_, err := w.Start(t.Context())
	if !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "there is no worker") {
		t.Errorf("a buildkitd that fails: %v", err)
	}
	conn, err := net.Dial("unix", w.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := echo(conn); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a client of it: %v", err)
	}
	t.Setenv("FAKE", "")
	w.dial(t)

	if err := w.Stop(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(w.State, "buildkitd")); err != nil {
		t.Fatal(err)
	}
	if _, err = w.Start(t.Context()); !errors.Is(err, errs.NotFound) {
		t.Errorf("a program that is not there: %v", err)
	}
	w.Server = ""
	t.Setenv("PATH", "/nowhere")
	if _, err = w.Get(t.Context()); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "make buildkit") {
		t.Errorf("no program: %v", err)
	}
}

// Many that start at once start one.
func TestOneForAll(t *testing.T) {
	w := newWorld(t, 0)
	var all sync.WaitGroup
	pids := make(chan int, 20)
	for range cap(pids) {
		all.Go(func() {
			state, err := w.Start(t.Context())
			if err != nil {
				t.Error(err)
			}
			pids <- state.Pid
		})
	}
	all.Wait()
	close(pids)
	first := <-pids
	for pid := range pids {
		if pid != first {
			t.Errorf("processes %d and %d", first, pid)
		}
	}
}

func TestCache(t *testing.T) {
	w := newWorld(t, 0)
	if share, err := w.Share(t.Context()); err != nil || share.Total != 0 {
		t.Errorf("what the cache takes before any build: %+v, %v", share, err)
	}
	cache, err := w.Cache(t.Context(), []string{"type==regular"})
	if err != nil || len(cache.Entries) != 3 || cache.Size != 15 || cache.Reclaimable != 5 {
		t.Errorf("cache: %+v, %v", cache, err)
	}
	if e := cache.Entries[0]; e.Description != "RUN" || e.Created.Year() != 2026 || !e.InUse {
		t.Errorf("entry: %+v", e)
	}
	pruned, err := w.Prune(t.Context(), spec.BuildCachePrune{All: true, Unused: 60, Keep: 1 << 20, Filter: []string{"a==b"}})
	if err != nil || len(pruned.Entries) != 2 || pruned.Reclaimable != 6 {
		t.Errorf("pruned: %+v, %v", pruned, err)
	}
	if _, err := w.ask(t.Context(), []string{"nosuch"}); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("what buildctl cannot do: %v", err)
	}
}

func TestSettings(t *testing.T) {
	w := newWorld(t, 0)
	w.Settings = filepath.Join(w.State, "mine.toml")
	w.Limit = 5e9
	text := "root = '/elsewhere'\n[worker.containerd]\nnamespace = 'x'\nnetworkMode = 'cni'\nmax-parallelism = 3\n[registry.'r:5000']\nhttp = true\n"
	if err := os.WriteFile(w.Settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := w.writeSettings()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"root = '" + w.Dir + "'", "namespace = 'default'", "networkMode = 'cni'", "max-parallelism = 3", "http = true", "snapshotter = 'lcfs'",
		"address = ['fd://']", "maxUsedSpace = '5000000000'", "defaultCgroupParent = '/x/build'", "insecure-entitlements = ['network.host', 'security.insecure']",
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	w.Network = "host"
	if path, err = w.writeSettings(); err != nil {
		t.Fatal(err)
	}
	if got, _ = os.ReadFile(path); !strings.Contains(string(got), "networkMode = 'host'") {
		t.Errorf("the network asked for is not in\n%s", got)
	}
	if err := os.WriteFile(w.Settings, []byte("root ="), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.writeSettings(); !errors.Is(err, errs.Invalid) {
		t.Errorf("settings that are none: %v", err)
	}
}

func TestCountConnections(t *testing.T) {
	const head = "Num       RefCount Protocol Flags    Type St Inode Path\n"
	for _, test := range []struct {
		table string
		want  int
	}{
		{"", 0},
		{head, 0},
		{head + "0: 00000002 00000000 00010000 0001 01 17 /r/b.sock.new\n", 0},
		{head + "0: 00000003 00000000 00000000 0001 03 18 /r/b.sock.new\n0: 00000003 00000000 00000000 0001 03 19\n0: 00000003 00000000 00000000 0001 03 20 /other/r/b.sock.new\n", 1},
		{head + "0: 00000003 00000000 00000000 0001 03 18 /r/b.sock\n0: 00000003 00000000 00000000 0001 03 18 x /r/b.sock.new\n", 0},
	} {
		if got := countConnections([]byte(test.table), "/r/b.sock.new"); got != test.want {
			t.Errorf("%d in\n%s, want %d", got, test.table, test.want)
		}
	}
}
