package shim_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/node/bundle"
	"berth/node/container"
	"berth/node/container/shim"
	"berth/spec"
)

// patience bounds the wait for something that is going to happen.
const patience = 20 * time.Second

// bench is a driver, with room for containers, and what it told.
type bench struct {
	t      testing.TB
	dir    string
	driver *shim.Driver
	host   bundle.Host
	config shim.Config
	stop   func()

	mu      sync.Mutex
	exits   map[string][]container.Exit
	topics  []string // of events that shims sent
	changed chan struct{}
	forward func(container.Exit) // is told too
}

func newBench(t testing.TB, change ...func(*shim.Config)) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	dir, err := os.MkdirTemp("/tmp", "shim-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{t: t, dir: dir, exits: map[string][]container.Exit{}, changed: make(chan struct{})}
	if b.host, err = bundle.Detect(); err != nil {
		t.Fatal(err)
	}
	b.config = shim.Config{
		State: filepath.Join(dir, "state"), Address: filepath.Join(dir, "b.sock"), Events: filepath.Join(dir, "b.sock.ttrpc"),
		Sockets: filepath.Join(dir, "s"), Exited: b.told, Env: []string{"GORACE=atexit_sleep_ms=0"}, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level()})),
	}
	for _, c := range change {
		c(&b.config)
	}
	b.serveEvents()
	b.open()
	t.Cleanup(func() { b.stop() })
	return b
}

// open starts a driver, as a node does; stop ends it, as a node's end does.
func (b *bench) open() []container.Survivor {
	b.t.Helper()
	d, err := shim.New(b.config)
	if err != nil {
		b.t.Fatal(err)
	}
	found, err := d.Survivors(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	b.driver = d
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.t.Context()))
	var running sync.WaitGroup
	running.Go(func() { _ = d.Run(ctx) })
	b.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	return found
}

// serveEvents is the node's socket for the events of shims.
func (b *bench) serveEvents() {
	b.t.Helper()
	listener, err := net.Listen("unix", b.config.Events)
	if err != nil {
		b.t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		b.t.Fatal(err)
	}
	eventsapi.RegisterTTRPCEventsService(server, b)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(context.WithoutCancel(b.t.Context()), listener) })
	b.t.Cleanup(func() { _ = server.Close(); serving.Wait() })
}

// Forward takes an event of a shim.
func (b *bench) Forward(_ context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.topics = append(b.topics, r.GetEnvelope().GetNamespace()+" "+r.GetEnvelope().GetTopic())
	return &emptypb.Empty{}, nil
}

// sent is how many events of a topic the shims have sent.
func (b *bench) sent(topic string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(strings.Join(b.topics, "\n")+"\n", topic+"\n")
}

func (b *bench) told(x container.Exit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.exits[x.ID] = append(b.exits[x.ID], x)
	if b.forward != nil {
		b.forward(x)
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// exit waits for the end of a process.
func (b *bench) exit(id string) container.Exit {
	b.t.Helper()
	timeout := time.After(patience)
	for {
		b.mu.Lock()
		got, changed := b.exits[id], b.changed
		b.mu.Unlock()
		if len(got) > 0 {
			return got[0]
		}
		select {
		case <-changed:
		case <-timeout:
			b.t.Fatalf("the end of %s was not told", id)
		}
	}
}

func (b *bench) exitsOf(id string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.exits[id])
}

// install puts a program into PATH as the shim of io.containerd.NAME.v1.
func (b *bench) install(name, program string) string {
	b.t.Helper()
	b.put(name, program)
	b.t.(*testing.T).Setenv("PATH", filepath.Join(b.dir, "bin")+":"+os.Getenv("PATH"))
	return "io.containerd." + name + ".v1"
}

// put makes a program the shim of io.containerd.NAME.v1, and gives its path.
func (b *bench) put(name, program string) string {
	b.t.Helper()
	bin := filepath.Join(b.dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		b.t.Fatal(err)
	}
	to := filepath.Join(bin, "containerd-shim-"+name+"-v1")
	if err := os.Link(program, to); err != nil {
		if err := exec.Command("cp", program, to).Run(); err != nil {
			b.t.Fatal(err)
		}
	}
	return to
}

func (b *bench) runtime(name string) *shim.Runtime {
	b.t.Helper()
	r, err := b.driver.Runtime(name)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// real is containerd's own shim for runc, under another name.
func (b *bench) real() *shim.Runtime {
	b.t.Helper()
	for _, program := range []string{"runc", "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			b.t.Skipf("%s is not installed", program)
		}
	}
	const program = "../../../.cache/peer/containerd-shim-runc-v2"
	path, err := filepath.Abs(program)
	if _, statErr := os.Stat(program); err != nil || statErr != nil {
		b.t.Skipf("%s is missing: test/setup.sh builds it", program)
	}
	return b.runtime(b.install("berthtest", path))
}

// make writes a bundle with a busybox in it.
func (b *bench) make(id string, config spec.ContainerConfig, change ...func(*specs.Spec)) string {
	b.t.Helper()
	dir := filepath.Join(b.dir, "containers", id)
	rootfs := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		b.t.Skip("busybox is not installed")
	}
	if err := exec.Command("cp", busybox, filepath.Join(rootfs, "bin/busybox")).Run(); err != nil {
		b.t.Fatal(err)
	}
	for _, applet := range []string{"sh", "sleep", "true", "false", "cat", "echo", "stty", "seq", "head", "tail", "tty"} {
		if err := os.Symlink("busybox", filepath.Join(rootfs, "bin", applet)); err != nil {
			b.t.Fatal(err)
		}
	}
	s, err := bundle.Spec(bundle.Input{Container: spec.Container{ID: id, Config: config}, Host: b.host, Rootfs: rootfs})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range change {
		c(s)
	}
	if err := bundle.Write(dir, s); err != nil {
		b.t.Fatal(err)
	}
	return dir
}

// launch prepares a container that is taken away with the test.
func (b *bench) launch(r *shim.Runtime, id string, config spec.ContainerConfig, change ...func(*specs.Spec)) container.Launch {
	b.t.Helper()
	l := container.Launch{
		ID: id, Bundle: b.make(id, config, change...), TTY: config.TTY, Stdin: config.OpenStdin,
		Log: container.LogFile{Path: filepath.Join(b.dir, id+".log")},
	}
	b.t.Cleanup(func() {
		if err := b.runtime(r.Name()).Delete(context.WithoutCancel(b.t.Context()), id); err != nil {
			b.t.Errorf("clean up: %v", err)
		}
		b.nothingLeft(id)
	})
	return l
}

func (b *bench) run(r *shim.Runtime, l container.Launch) *container.Process {
	b.t.Helper()
	p, err := r.Run(b.t.Context(), l)
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

func (b *bench) ok(err error, what string) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
}

// shims are the processes of shims that work in the bench's folders.
func (b *bench) shims() []int {
	var pids []int
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range links {
		exe, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(exe, filepath.Join(b.dir, "bin")) {
			continue
		}
		var pid int
		if n, _ := fmt.Sscanf(link, "/proc/%d/exe", &pid); n == 1 && !zombie(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// nothingLeft looks for what may be left of a container.
func (b *bench) nothingLeft(id string) {
	b.t.Helper()
	for _, pattern := range []string{
		"/sys/fs/cgroup/berth/" + id, "/sys/fs/cgroup/*/berth/" + id,
		"/run/containerd/runc/default/" + id, "/run/containerd/runc/team/" + id, // as the tests name theirs; others may run here too
		filepath.Join(b.config.State, "shim/.fifo", id), filepath.Join(b.config.State, "shim/*", id),
		filepath.Join(b.dir, "containers", id, "log"),
	} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			b.t.Errorf("left behind: %v", left)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), filepath.Join(b.dir, "containers", id)) {
		b.t.Errorf("a mount of %s is left", id)
	}
}

// noShims waits for the last shim to be gone, with its socket.
func (b *bench) noShims() {
	b.t.Helper()
	await(b.t, "the shims to be gone", func() bool { return len(b.shims()) == 0 })
	if left, _ := filepath.Glob(filepath.Join(b.config.Sockets, "*")); len(left) > 0 {
		b.t.Errorf("sockets are left: %v", left)
	}
}

func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for !done() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func command(args ...string) spec.ContainerConfig { return spec.ContainerConfig{Command: args} }

func process(terminal bool, args ...string) *specs.Process {
	return &specs.Process{
		Terminal: terminal, Args: args, Cwd: "/", Env: []string{"PATH=/bin"},
		Capabilities: &specs.LinuxCapabilities{},
	}
}

// level is that of the log: BERTH_TEST_DEBUG=1 has shims say more.
func level() slog.Level {
	if os.Getenv("BERTH_TEST_DEBUG") != "" {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

func atoi(s string) int {
	n, _ := strconv.Atoi(strings.TrimSpace(s))
	return n
}
