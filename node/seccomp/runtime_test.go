package seccomp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/spec"
	"berth/test/machine"
)

// box is a container's bundle.
type box struct {
	runtime, dir, id string
	spec             *specs.Spec
}

func newBox(t *testing.T, runtime string, command ...string) *box {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, tool := range []string{runtime, "busybox"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	b := &box{runtime: runtime, dir: t.TempDir()}
	t.Cleanup(func() {
		for _, dir := range []string{"*/berth-seccomp/" + b.id, "*/berth-seccomp"} {
			left, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", dir))
			for _, group := range left {
				unix.Rmdir(group)
			}
		}
	})
	b.id = fmt.Sprintf("%s-%d", machine.Name(), time.Now().UnixNano())
	bin := filepath.Join(b.dir, "rootfs", "bin")
	busybox, _ := exec.LookPath("busybox")
	program, err := os.ReadFile(busybox)
	if err := errors.Join(err, os.MkdirAll(bin, 0o755), os.WriteFile(filepath.Join(bin, "busybox"), program, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "mount", "sleep", "swapoff", "hostname", "true", "cat", "ls", "touch"} {
		if err := os.Symlink("busybox", filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"proc", "dev", "mnt"} {
		if err := os.Mkdir(filepath.Join(b.dir, "rootfs", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	caps := []string{"CAP_SYS_CHROOT", "CAP_KILL"}
	b.spec = &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: append([]string{"/bin/sh", "-c"}, command...), Env: []string{"PATH=/bin"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/berth-seccomp/" + b.id,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}},
		},
	}
	profile, err := seccomp.GetDefaultProfile(b.spec)
	if err != nil {
		t.Fatal(err)
	}
	b.spec.Linux.Seccomp = profile
	return b
}

func (b *box) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, b.runtime, append([]string{"--root", filepath.Join(b.dir, "state")}, args...)...)
}

// run has the container run to its end, and gives what it said.
func (b *box) run(t *testing.T) (string, error) {
	t.Helper()
	text, err := json.Marshal(b.spec)
	if err := errors.Join(err, os.WriteFile(filepath.Join(b.dir, "config.json"), text, 0o600)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := b.command(ctx, "run", "--bundle", b.dir, b.id)
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if ctx.Err() != nil {
		err = errors.Join(err, ctx.Err())
	}
	_ = b.command(context.Background(), "delete", "--force", b.id).Run()
	return out.String(), err
}

func (b *box) watch(t *testing.T, w *Watcher, action string) {
	t.Helper()
	pod := spec.Pod{ID: "pod-1", Config: spec.PodConfig{Namespace: "shop", Name: "web", Annotations: map[string]string{annotation: action}}}
	profile, err := w.Watch(t.Context(), pod, spec.PodContainer{ID: b.id, Config: spec.PodContainerConfig{Name: "app"}}, b.spec.Linux.Seccomp)
	if err != nil {
		t.Fatal(err)
	}
	b.spec.Linux.Seccomp, b.spec.Version = profile, "1.1.0"
}

// work runs the Watcher until the test, or stop, ends it.
func work(t *testing.T, w *Watcher) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(time.Minute); !is(); {
		select {
		case <-limit:
			t.Fatalf("%s: not after 20 s", what)
		case <-tick.C:
		}
	}
}

func counted(w *Watcher) map[string]uint64 {
	all := map[string]uint64{}
	for _, c := range w.Counts() {
		all[c.Syscall] = c.Calls
	}
	return all
}

func eachRuntime(t *testing.T, test func(t *testing.T, runtime string)) {
	t.Helper()
	for _, runtime := range []string{"runc", "crun"} {
		t.Run(runtime, func(t *testing.T) { test(t, runtime) })
	}
}

// heard are the events that were published.
type heard struct {
	mu     sync.Mutex
	events []map[string]string
}

func (h *heard) Publish(kind, action, id string, attrs map[string]string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	attrs["id"], attrs["event"] = id, kind+" "+action
	h.events = append(h.events, attrs)
}

func TestDeny(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		events := &heard{}
		w := open(t, Config{Events: events})
		work(t, w)
		b := newBox(t, runtime, "mount -t tmpfs x /mnt; swapoff /x; swapoff /x; mkdir /mnt/ok && echo went on")
		b.watch(t, w, "deny")
		out, err := b.run(t)
		if err != nil || !strings.Contains(out, "went on") || !strings.Contains(out, "not permitted") && !strings.Contains(out, "denied") {
			t.Errorf("%v: %s", err, out)
		}
		if got := counted(w); got["mount"] == 0 || got["swapoff"] != 2 || len(got) != 2 {
			t.Errorf("counted %v", got)
		}
		c := w.Counts()[0]
		if c.Name != "shop/web/app" || c.Container != b.id {
			t.Errorf("count %+v", c)
		}
		events.mu.Lock()
		defer events.mu.Unlock()
		if len(events.events) < 2 || events.events[0]["event"] != "container seccomp" || events.events[0]["id"] != b.id ||
			events.events[0]["syscall"] != "mount" || events.events[0]["pod"] != "pod-1" || events.events[0]["count"] != "1" {
			t.Errorf("events %v", events.events)
		}
	})
}

func TestAudit(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		w := open(t, Config{Trusting: true})
		work(t, w)
		b := newBox(t, runtime, "mount -t tmpfs x /mnt && cat /proc/mounts")
		caps := append(b.spec.Process.Capabilities.Bounding, "CAP_SYS_ADMIN") // the filter alone stands in the way
		b.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
		b.watch(t, w, "audit")
		out, err := b.run(t)
		if err != nil || !strings.Contains(out, "/mnt tmpfs") {
			t.Errorf("%v: %s", err, out)
		}
		if got := counted(w); got["mount"] == 0 {
			t.Errorf("counted %v", got)
		}
	})
}

func TestStop(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		type end struct{ container, reason, message string }
		ends := make(chan end, 1)
		b := newBox(t, runtime, "mount -t tmpfs x /mnt; swapoff /x; swapoff /x; exec sleep 1000")
		// Long enough for a busy machine to come to the second swapoff.
		w := open(t, Config{Grace: 3 * time.Second, Stop: func(ctx context.Context, container, reason, message string) error {
			ends <- end{container, reason, message}
			return b.command(ctx, "kill", container, "KILL").Run()
		}})
		work(t, w)
		b.watch(t, w, "stop")
		if _, err := b.run(t); err == nil {
			t.Error("it ended well")
		}
		select {
		case got := <-ends:
			if got.container != b.id || got.reason != "seccomp killed" || !strings.HasPrefix(got.message, "Used forbidden syscalls: mount (") || !strings.HasSuffix(got.message, "x), swapoff (2x)") {
				t.Errorf("stopped: %+v", got)
			}
		default:
			t.Error("nobody stopped it")
		}
	})
}

// A recorded profile is enough for what was recorded, and for no more.
func TestRecord(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		localhost := t.TempDir()
		w := open(t, Config{Trusting: true, Localhost: localhost})
		work(t, w)
		b := newBox(t, runtime, "ls /bin; mkdir /mnt/dir; echo done; swapoff /x")
		b.watch(t, w, "record=shop/web.json")
		if out, err := b.run(t); !strings.Contains(out, "done") || err == nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got := counted(w); got["swapoff"] != 1 || len(got) != 1 {
			t.Errorf("counted %v: the profile holds while it is recorded", got)
		}
		var got recorded
		eventually(t, "the profile", func() bool {
			text, err := os.ReadFile(filepath.Join(localhost, "shop/web.json"))
			return err == nil && json.Unmarshal(text, &got) == nil
		})
		if err := w.Unwatch(t.Context(), b.id); err != nil {
			t.Fatal(err)
		}
		names := got.Syscalls[0].Names
		if !slices.Contains(names, "mkdir") || slices.Contains(names, "swapoff") || slices.Contains(names, "chmod") || len(names) > 120 {
			t.Errorf("%d names: %v", len(names), names)
		}
		all, err := w.Profiles(t.Context())
		if err != nil || len(all) != 1 || all[0].Name != "shop_web_app" || !slices.Equal(all[0].Calls, names) || !slices.Equal(all[0].From, []string{"shop/web/app"}) {
			t.Errorf("profiles %v, %v", all, err)
		}

		text, _ := os.ReadFile(filepath.Join(localhost, "shop/web.json"))
		loaded, err := seccomp.LoadProfile(string(text), b.spec)
		if err != nil {
			t.Fatal(err)
		}
		again := newBox(t, runtime, "ls /bin; mkdir /mnt/dir; echo done")
		again.spec.Linux.Seccomp = loaded
		if out, err := again.run(t); err != nil || !strings.Contains(out, "done") {
			t.Errorf("under the recorded profile: %v: %s", err, out)
		}
		other := newBox(t, runtime, "busybox chmod 700 /mnt")
		other.spec.Linux.Seccomp = loaded
		if out, err := other.run(t); err == nil {
			t.Errorf("something else under the recorded profile: %s", out)
		}
	})
}

// kept are descriptors that outlive a Watcher.
type kept struct {
	mu    sync.Mutex
	files map[string]int
}

func (k *kept) Hold(_ context.Context, name string, files ...*os.File) error {
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return raw.Control(func(fd uintptr) { k.files[name], _ = unix.Dup(int(fd)) })
}

func (k *kept) Held() (map[string][]*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := map[string][]*os.File{}
	for name, fd := range k.files {
		own, err := unix.Dup(fd)
		if err != nil {
			return nil, err
		}
		all[name] = []*os.File{os.NewFile(uintptr(own), name)}
	}
	return all, nil
}

func (k *kept) Drop(_ context.Context, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	unix.Close(k.files[name])
	delete(k.files, name)
	return nil
}

func (k *kept) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.files)
}

// Calls made while there is no node wait for the next one.
func TestNodeThatEnds(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		state, keeper := t.TempDir(), &kept{files: map[string]int{}}
		b := newBox(t, runtime, "swapoff /x; while [ ! -e /mnt/go ]; do :; done; mount -t tmpfs x /mnt; swapoff /x; echo went on")
		w := open(t, Config{State: state, Keeper: keeper})
		stop := work(t, w)
		b.watch(t, w, "deny")
		var wg sync.WaitGroup
		wg.Go(func() {
			if out, err := b.run(t); strings.Count(out, "not permitted") < 2 || !strings.Contains(out, "went on") {
				t.Errorf("%v: %s", err, out)
			}
		})
		eventually(t, "a call", func() bool { return counted(w)["swapoff"] == 1 })
		stop()
		if err := os.WriteFile(filepath.Join(b.dir, "rootfs/mnt/go"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // so that the call waits
		next := open(t, Config{State: state, Keeper: keeper})
		stopNext := work(t, next)
		wg.Wait()
		if files, _ := os.ReadDir(next.dir()); len(files) != 3 {
			t.Errorf("files %v", files)
		}
		if got := counted(next); got["swapoff"] != 2 || got["mount"] == 0 {
			t.Errorf("counted %v", got)
		}
		eventually(t, "no descriptor in the keeper", func() bool { return keeper.count() == 0 })
		stopNext()
	})
}

// What is executed in a container is watched with it.
func TestExec(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		w := open(t, Config{})
		work(t, w)
		b := newBox(t, runtime, "touch /mnt/up; while [ ! -e /mnt/go ]; do sleep 0.05; done")
		b.watch(t, w, "deny")
		var wg sync.WaitGroup
		wg.Go(func() { b.run(t) })
		eventually(t, "the container", func() bool { _, err := os.Stat(filepath.Join(b.dir, "rootfs/mnt/up")); return err == nil })
		out, err := b.command(t.Context(), "exec", b.id, "/bin/swapoff", "/x").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "not permitted") {
			t.Errorf("%v: %s", err, out)
		}
		if got := counted(w); got["swapoff"] != 1 || len(got) != 1 {
			t.Errorf("counted %v", got)
		}
		if err := os.WriteFile(filepath.Join(b.dir, "rootfs/mnt/go"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	})
}

// A descriptor for nobody is refused, and so is what is no descriptor.
func TestStrangers(t *testing.T) {
	w := open(t, Config{})
	work(t, w)
	eachRuntime(t, func(t *testing.T, runtime string) {
		b := newBox(t, runtime, "swapoff /x; echo went on")
		b.watch(t, w, "deny")
		if err := w.Unwatch(t.Context(), b.id); err != nil {
			t.Fatal(err)
		}
		if out, _ := b.run(t); !strings.Contains(out, "went on") || len(w.Counts()) != 0 {
			t.Errorf("%s, counted %v", out, w.Counts())
		}
	})
}
