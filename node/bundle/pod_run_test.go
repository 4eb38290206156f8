package bundle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/bundle"
	"berth/spec"
	"berth/test/machine"
)

// runtimes runs a test with each OCI runtime of this machine, as root.
func runtimes(t *testing.T, test func(t *testing.T, r runner)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("running containers needs root")
	}
	found := false
	for _, name := range []string{"crun", "runc"} {
		program, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		found = true
		t.Run(name, func(t *testing.T) { test(t, runner{t: t, program: program}) })
	}
	if !found {
		t.Skip("neither crun nor runc is installed")
	}
}

// A runner runs the spec of a pod's container.
type runner struct {
	t       *testing.T
	program string
}

// features are what the runtime says of itself; nothing where it says nothing.
func (r runner) features() *features.Features {
	var f features.Features
	if out, err := exec.Command(r.program, "features").Output(); err == nil {
		if err := json.Unmarshal(out, &f); err != nil {
			r.t.Fatal(err)
		}
	} else if filepath.Base(r.program) == "crun" { // older than the command
		can := true
		f.MountOptions = []string{"rro"}
		f.Linux = &features.Linux{MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &can}}}
	}
	return &f
}

// command is a run of the container that has not begun.
func (r runner) command(ctx context.Context, in bundle.PodInput) *exec.Cmd {
	r.t.Helper()
	s, _, err := bundle.PodSpec(ctx, in)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.run(ctx, s)
}

func (r runner) run(ctx context.Context, s *specs.Spec) *exec.Cmd {
	r.t.Helper()
	dir := r.t.TempDir()
	if s.Version != "1.0.2" && filepath.Base(r.program) == "crun" {
		s.Version = "1.0.2" // as node/container/oci does for one so old
	}
	if err := bundle.Write(dir, s); err != nil {
		r.t.Fatal(err)
	}
	name := machine.Name() + "-" + filepath.Base(filepath.Dir(dir))[:12] + strconv.FormatInt(time.Now().UnixNano(), 36)
	root := filepath.Join(r.t.TempDir(), "state")
	r.t.Cleanup(func() { _ = exec.Command(r.program, "--root", root, "delete", "-f", name).Run() })
	cmd := exec.CommandContext(ctx, r.program, "--root", root, "run", "--bundle", dir, name)
	cmd.Stdin = strings.NewReader("") // a pipe: crun gives /dev/null itself to a user namespace's root
	return cmd
}

// output is what a container writes, both streams, with "exit N" at the end
// where it does not end with 0.
func (r runner) output(in bundle.PodInput) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	out, err := r.command(ctx, in).CombinedOutput()
	return result(r.t, out, err)
}

func result(t *testing.T, out []byte, err error) string {
	t.Helper()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return strings.TrimSpace(string(out)) + fmt.Sprintf(" exit %d", exit.ExitCode())
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// busybox is a root file system with busybox and some accounts. All in it
// belongs to the host's id owner.
func busybox(t *testing.T, owner int) string {
	t.Helper()
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is not installed")
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "root")
	for _, d := range []string{"bin", "etc", "proc", "dev", "sys", "tmp", "mnt", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), text, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "id", "touch", "mount", "hostname", "ls", "stat", "mkdir", "grep", "readlink", "env", "wc", "sleep", "chmod"} {
		if err := os.Link(filepath.Join(dir, "bin/busybox"), filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/work:/bin/sh\n")
	write(t, filepath.Join(dir, "etc/group"), "root:x:0:\ndefault-user:x:1000:\nin-image:x:50000:default-user\n")
	if err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() && strings.Contains(path, "/etc/") {
			err = os.Chmod(path, 0o644)
		}
		if err == nil {
			err = os.Lchown(path, owner, owner)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) { // a user namespace must get there
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const hostRoot = 100000 // whom root is in the tests' user namespaces

func userNamespace() *spec.PodUserNamespace {
	m := []spec.IDMapping{{Container: 0, Host: hostRoot, Length: 65536}}
	return &spec.PodUserNamespace{Mode: spec.NamespacePod, UIDs: m, GIDs: m}
}

// realPod is a pod whose namespaces are those of a process that waits.
func realPod(t *testing.T, security spec.PodSecurity, flags uintptr) spec.Pod {
	t.Helper()
	p := spec.Pod{ID: id, Config: spec.PodConfig{Name: "web", Namespace: "default", UID: "u1", Hostname: "web-0", Security: security}}
	hold := exec.Command("sleep", "60")
	hold.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: unix.SIGKILL}
	if flags&unix.CLONE_NEWUSER != 0 {
		m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: hostRoot, Size: 65536}}
		hold.SysProcAttr.UidMappings, hold.SysProcAttr.GidMappings, hold.SysProcAttr.GidMappingsEnableSetgroups = m, m, true
	}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hold.Process.Kill(); _ = hold.Wait() })
	path := func(flag uintptr, name string) string {
		if flags&flag == 0 {
			return ""
		}
		return fmt.Sprintf("/proc/%d/ns/%s", hold.Process.Pid, name)
	}
	p.NetNS, p.IPCNS, p.UTSNS = path(unix.CLONE_NEWNET, "net"), path(unix.CLONE_NEWIPC, "ipc"), path(unix.CLONE_NEWUTS, "uts")
	p.UserNS, p.PIDNS = path(unix.CLONE_NEWUSER, "user"), path(unix.CLONE_NEWPID, "pid")
	return p
}

const podFlags = unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// realInput is a container of pod that runs a line of shell. Its errors go
// where its output goes: runc copies two streams in any order.
func realInput(t *testing.T, pod spec.Pod, script string, change func(*spec.PodContainerConfig)) bundle.PodInput {
	t.Helper()
	host, err := bundle.Detect()
	if err != nil {
		t.Fatal(err)
	}
	idmap, err := bundle.PodIdmap(pod.Config.Security.Namespaces.User)
	if err != nil {
		t.Fatal(err)
	}
	owner := 0
	if idmap != nil {
		owner = hostRoot
	}
	c := spec.PodContainerConfig{
		Name: "main", Command: []string{"/bin/sh", "-c", "exec 2>&1; " + script},
		Security: spec.PodSecurity{Namespaces: spec.PodNamespaces{PID: spec.NamespaceContainer}},
	}
	if change != nil {
		change(&c)
	}
	return bundle.PodInput{
		Pod: pod, Container: spec.PodContainer{ID: id, Config: c}, Host: host, Rootfs: busybox(t, owner), Idmap: idmap,
		CgroupPath: "/" + machine.Name() + "/" + id, Image: spec.ImageConfig{Env: []string{"PATH=/bin"}},
	}
}

func cleanCgroups(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + machine.Name())
		dirs = append(dirs, "/sys/fs/cgroup/"+machine.Name())
		for _, d := range dirs {
			_ = os.Remove(filepath.Join(d, id))
			_ = os.Remove(d)
		}
	})
}

func wantOutput(t *testing.T, got string, lines ...string) {
	t.Helper()
	if want := strings.Join(lines, "\n"); got != want {
		t.Errorf("the container wrote\n%s\nwant\n%s", got, want)
	}
}

func TestRunUsers(t *testing.T) {
	cleanCgroups(t)
	runtimes(t, func(t *testing.T, r runner) {
		pod := realPod(t, spec.PodSecurity{}, podFlags)
		for _, c := range []struct {
			security spec.PodSecurity
			image    string
			want     string
		}{
			{spec.PodSecurity{Groups: []int64{1234}, User: new(int64(1000))}, "", "1000 1000 1000 1234 50000"},
			{spec.PodSecurity{Groups: []int64{1234}, User: new(int64(1000)), StrictGroups: true}, "", "1000 1000 1000 1234"},
			{spec.PodSecurity{User: new(int64(1001)), Group: new(int64(1002))}, "1000", "1001 1002 1002"},
			{spec.PodSecurity{UserName: "default-user", Group: new(int64(7))}, "", "1000 7 7 50000"},
			{spec.PodSecurity{}, "1003:1004", "1003 1004 1004"},
			{spec.PodSecurity{}, "", "0 0 0"},
		} {
			in := realInput(t, pod, "echo $(id -u) $(id -g) $(id -G)", func(config *spec.PodContainerConfig) {
				c.security.Namespaces = config.Security.Namespaces
				config.Security = c.security
			})
			in.Image.User = c.image
			fields := strings.Fields(r.output(in))
			if len(fields) > 2 {
				slices.SortFunc(fields[2:], func(a, b string) int { x, _ := strconv.Atoi(a); y, _ := strconv.Atoi(b); return x - y })
			}
			wantOutput(t, strings.Join(fields, " "), c.want)
		}
	})
}

func TestRunConfined(t *testing.T) {
	cleanCgroups(t)
	profile := filepath.Join(t.TempDir(), "no-chmod.json")
	write(t, profile, `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO"}]}`)
	runtimes(t, func(t *testing.T, r runner) {
		pod := realPod(t, spec.PodSecurity{}, podFlags)
		status := "grep -E '^(Seccomp|NoNewPrivs|CapBnd|CapAmb):' /proc/self/status"
		plain := r.output(realInput(t, pod, status, nil))
		if !strings.Contains(plain, "Seccomp:\t0") || !strings.Contains(plain, "NoNewPrivs:\t0") || !strings.Contains(plain, "CapBnd:\t00000000a80425fb") {
			t.Errorf("plain: %s", plain)
		}
		tight := r.output(realInput(t, pod, status, func(c *spec.PodContainerConfig) {
			c.Security.NoNewPrivileges = true
			c.Security.Seccomp = &spec.SecurityProfile{Type: spec.ProfileDefault}
			c.Security.Capabilities = &spec.PodCapabilities{Drop: []string{"ALL"}, Add: []string{"KILL"}}
		}))
		if !strings.Contains(tight, "Seccomp:\t2") || !strings.Contains(tight, "NoNewPrivs:\t1") || !strings.Contains(tight, "CapBnd:\t0000000000000020") {
			t.Errorf("tight: %s", tight)
		}
		ambient := r.output(realInput(t, pod, status, func(c *spec.PodContainerConfig) {
			c.Security.User = new(int64(1000))
			c.Security.Capabilities = &spec.PodCapabilities{Ambient: []string{"NET_BIND_SERVICE"}}
		}))
		if !strings.Contains(ambient, "CapAmb:\t0000000000000400") {
			t.Errorf("ambient: %s", ambient)
		}
		wantOutput(t, r.output(realInput(t, pod, "chmod 700 /tmp; touch /tmp/x; /bin/ls; touch /work/x", func(c *spec.PodContainerConfig) {
			c.Security.Seccomp = &spec.SecurityProfile{Type: spec.ProfileLocalhost, Localhost: profile}
			c.Security.MaskedPaths = []string{"/bin/ls"}
			c.Security.ReadOnlyPaths = []string{"/tmp"}
		})),
			"chmod: /tmp: Operation not permitted", "touch: /tmp/x: Read-only file system", "/bin/sh: /bin/ls: Permission denied")
		wantOutput(t, r.output(realInput(t, pod, "touch /work/x; touch /proc/sys/kernel/x", func(c *spec.PodContainerConfig) { c.Security.ReadOnlyRoot = true })),
			"touch: /work/x: Read-only file system", "touch: /proc/sys/kernel/x: No such file or directory exit 1")
	})
}

func TestRunNamespaces(t *testing.T) {
	cleanCgroups(t)
	runtimes(t, func(t *testing.T, r runner) {
		pod := realPod(t, spec.PodSecurity{}, podFlags|unix.CLONE_NEWPID)
		same := func(path string) string {
			link, err := os.Readlink(path)
			if err != nil {
				t.Fatal(err)
			}
			return link
		}
		script := "cd /proc/self/ns; readlink net; readlink ipc; readlink uts; readlink pid; echo $HOSTNAME $HOME $PATH"
		shared := []string{same(pod.NetNS), same(pod.IPCNS), same(pod.UTSNS)}
		for mode, pid := range map[spec.NamespaceMode]string{
			spec.NamespaceNode: same("/proc/self/ns/pid"), spec.NamespaceTarget: same(pod.PIDNS), spec.NamespacePod: same(pod.PIDNS),
		} {
			in := realInput(t, pod, script, func(c *spec.PodContainerConfig) { c.Security.Namespaces.PID = mode })
			in.PIDNS = pod.PIDNS
			wantOutput(t, r.output(in), append(slices.Clone(shared), pid, "web-0 /root /bin")...)
		}
		of := func(name string) string { return same("/proc/self/ns/" + name) }
		onHost := realPod(t, spec.PodSecurity{}, 0)
		onHost.Config.Hostname = ""
		name, _ := os.Hostname()
		got := r.output(realInput(t, onHost, script, nil))
		lines := strings.Split(got, "\n")
		if len(lines) != 5 || lines[3] == of("pid") {
			t.Fatalf("host: %s", got)
		}
		lines[3] = "own"
		wantOutput(t, strings.Join(lines, "\n"), of("net"), of("ipc"), of("uts"), "own", name+" /root /bin")
	})
}

func TestRunReadOnlyMounts(t *testing.T) {
	cleanCgroups(t)
	runtimes(t, func(t *testing.T, r runner) {
		pod := realPod(t, spec.PodSecurity{}, podFlags)
		source := t.TempDir()
		sub := filepath.Join(source, "sub")
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", sub, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(sub, unix.MNT_DETACH) })
		mounted := func(change func(*spec.PodMount)) func(*spec.PodContainerConfig) {
			m := spec.PodMount{Target: "/mnt", Source: source}
			change(&m)
			return func(c *spec.PodContainerConfig) { c.Mounts = []spec.PodMount{m} }
		}
		script := "touch /mnt/x; touch /mnt/sub/x"
		wantOutput(t, r.output(realInput(t, pod, script, mounted(func(*spec.PodMount) {}))), "")
		wantOutput(t, r.output(realInput(t, pod, script, mounted(func(m *spec.PodMount) { m.ReadOnly = true }))), "touch: /mnt/x: Read-only file system")
		in := realInput(t, pod, script, mounted(func(m *spec.PodMount) { m.ReadOnly, m.RecursiveReadOnly = true, true }))
		in.Runtime = r.features()
		if !slices.Contains(in.Runtime.MountOptions, "rro") {
			_, _, err := bundle.PodSpec(t.Context(), in)
			wantKind(t, err, errs.Unsupported)
			return
		}
		wantOutput(t, r.output(in), "touch: /mnt/x: Read-only file system", "touch: /mnt/sub/x: Read-only file system exit 1")
		wantOutput(t, r.output(realInput(t, pod, "grep -E ' /mnt ' /proc/mounts | grep -oE 'nosuid,nodev,noexec'", mounted(func(m *spec.PodMount) {
			m.Options = []string{"noexec", "nodev", "nosuid"}
		}))), "nosuid,nodev,noexec")
	})
}

func wantKind(t *testing.T, err error, kind errs.Kind) {
	t.Helper()
	if errs.KindOf(err) != kind {
		t.Errorf("got %v, want a %s error", err, kind)
	}
}

func TestRunMissingSource(t *testing.T) {
	cleanCgroups(t)
	runtimes(t, func(t *testing.T, r runner) {
		pod := realPod(t, spec.PodSecurity{}, podFlags)
		dir := t.TempDir()
		link := filepath.Join(dir, "link")
		if err := os.Symlink(filepath.Join(dir, "there"), link); err != nil {
			t.Fatal(err)
		}
		wantOutput(t, r.output(realInput(t, pod, "touch /mnt/a/x /deep/est/y", func(c *spec.PodContainerConfig) {
			c.Mounts = []spec.PodMount{{Target: "/mnt/a", Source: filepath.Join(dir, "there")}, {Target: "/deep/est", Source: link}}
		})), "")
		for _, name := range []string{"there/x", "there/y"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				t.Error(err)
			}
		}
	})
}

// shared is a folder on a mount that spreads.
func shared(t *testing.T, flag uintptr) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", flag, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestRunPropagation(t *testing.T) {
	cleanCgroups(t)
	runtimes(t, func(t *testing.T, r runner) {
		pod := realPod(t, spec.PodSecurity{Privileged: true}, podFlags)
		with := func(source string, p spec.MountPropagation) func(*spec.PodContainerConfig) {
			return func(c *spec.PodContainerConfig) {
				c.Security.Privileged = true
				c.Mounts = []spec.PodMount{{Target: "/mnt", Source: source, Propagation: p}}
			}
		}
		for p, want := range map[spec.MountPropagation]struct{ inside, outside bool }{
			spec.PropagationPrivate:         {false, false},
			spec.PropagationHostToContainer: {true, false},
			spec.PropagationBidirectional:   {true, true},
		} {
			t.Run(string(p), func(t *testing.T) {
				dir := shared(t, unix.MS_SHARED)
				r := runner{t, r.program}
				cmd := r.command(t.Context(), realInput(t, pod,
					"mkdir /mnt/own && mount -t tmpfs tmpfs /mnt/own && touch /mnt/own/file && echo ready && read go && ls /mnt/below", with(dir, p)))
				cmd.Stdin = nil
				stdin, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				stdout, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				ready := make([]byte, 6)
				if _, err := io.ReadFull(stdout, ready); err != nil {
					t.Fatalf("%v: %s", err, stderr.String())
				}
				if _, err := os.Stat(filepath.Join(dir, "own/file")); (err == nil) != want.outside {
					t.Errorf("a mount made inside is seen outside: %v, want %v", err == nil, want.outside)
				}
				t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "own"), unix.MNT_DETACH) })
				if err := unix.Mount("tmpfs", filepath.Join(dir, "below"), "tmpfs", 0, "size=64k"); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "below"), unix.MNT_DETACH) })
				write(t, filepath.Join(dir, "below/file"), "")
				if _, err := io.WriteString(stdin, "go\n"); err != nil {
					t.Fatal(err)
				}
				rest, _ := io.ReadAll(stdout)
				if err := cmd.Wait(); err != nil {
					t.Fatalf("%v: %s", err, stderr.String())
				}
				if got := strings.Contains(string(rest), "file"); got != want.inside {
					t.Errorf("a mount made outside is seen inside: %v, want %v", got, want.inside)
				}
			})
		}
		alone := shared(t, unix.MS_PRIVATE)
		for _, p := range []spec.MountPropagation{spec.PropagationBidirectional, spec.PropagationHostToContainer, "sideways"} {
			_, _, err := bundle.PodSpec(t.Context(), realInput(t, pod, "true", with(alone, p)))
			wantKind(t, err, errs.Invalid)
		}
	})
}

func TestRunUserNamespace(t *testing.T) {
	cleanCgroups(t)
	runtimes(t, func(t *testing.T, r runner) {
		security := spec.PodSecurity{Namespaces: spec.PodNamespaces{User: userNamespace()}}
		script := "cat /proc/self/uid_map; cat /proc/self/gid_map; id -u; stat -c %u /bin /proc/self/root; touch /work/x; echo x >/dev/null && ls /sys/class/net"
		pod := realPod(t, security, podFlags|unix.CLONE_NEWUSER)
		in := realInput(t, pod, script, nil)
		got := strings.Join(strings.Fields(r.output(in)), " ")
		wantOutput(t, got, "0 100000 65536 0 100000 65536 0 0 0 lo")
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(in.Rootfs, "work/x"), &st); err != nil || st.Uid != hostRoot {
			t.Errorf("a file made inside belongs to %d outside (%v)", st.Uid, err)
		}
		onHost := realPod(t, security, unix.CLONE_NEWIPC|unix.CLONE_NEWUTS|unix.CLONE_NEWUSER)
		wantOutput(t, r.output(realInput(t, onHost, "touch /sys/kernel/x; readlink /proc/self/ns/net", func(c *spec.PodContainerConfig) {
			c.Security.Namespaces.User = userNamespace()
		})), "touch: /sys/kernel/x: Read-only file system", func() string { l, _ := os.Readlink("/proc/self/ns/net"); return l }())

		data := t.TempDir()
		write(t, filepath.Join(data, "file"), "")
		in = realInput(t, pod, "stat -c %u /mnt/file", func(c *spec.PodContainerConfig) {
			c.Mounts = []spec.PodMount{{Target: "/mnt", Source: data, UIDs: userNamespace().UIDs, GIDs: userNamespace().GIDs}}
		})
		in.Runtime = r.features()
		if e := in.Runtime.Linux; e == nil || e.MountExtensions == nil {
			_, _, err := bundle.PodSpec(t.Context(), in)
			wantKind(t, err, errs.Unsupported)
			return
		}
		wantOutput(t, r.output(in), "0")
	})
}

func TestRunPrivileged(t *testing.T) {
	cleanCgroups(t)
	runtimes(t, func(t *testing.T, r runner) {
		pod := realPod(t, spec.PodSecurity{Privileged: true}, podFlags)
		in := realInput(t, pod, "grep CapEff /proc/self/status; grep Seccomp: /proc/self/status; grep -c ' /sys sysfs rw' /proc/mounts; ls /dev/kmsg; hostname other && hostname", func(c *spec.PodContainerConfig) {
			c.Security.Privileged = true
			c.Security.Seccomp = &spec.SecurityProfile{Type: spec.ProfileLocalhost, Localhost: "/is/not/read"}
			c.Security.MaskedPaths = []string{"/dev"}
			c.Resources.OOMScoreAdj = -999
		})
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		eff := ""
		for line := range strings.Lines(string(status)) {
			if strings.HasPrefix(line, "CapEff:") {
				eff = strings.TrimSpace(line)
			}
		}
		kmsg := "/dev/kmsg"
		if _, err := os.Stat(kmsg); err != nil {
			kmsg = "ls: /dev/kmsg: No such file or directory"
		}
		wantOutput(t, r.output(in), eff, "Seccomp:\t0", "1", kmsg, "other")
	})
}

func TestRunLimitsAndExec(t *testing.T) {
	cleanCgroups(t)
	runtimes(t, func(t *testing.T, r runner) {
		pod := realPod(t, spec.PodSecurity{}, podFlags)
		in := realInput(t, pod, "echo $(cat /proc/self/oom_score_adj); read end", func(c *spec.PodContainerConfig) {
			c.Resources = spec.PodResources{Memory: 32 << 20, CPUShares: 512, CPUPeriod: 100000, CPUQuota: 50000, OOMScoreAdj: 900}
			c.Security.User = new(int64(1000))
			c.Env = []string{"A=b", "junk", "A=c"}
		})
		s, user, err := bundle.PodSpec(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		if user.UID != 1000 || !slices.Equal(user.Groups, []int64{1000, 50000}) {
			t.Errorf("user %+v", user)
		}
		cmd := r.run(t.Context(), s)
		cmd.Stdin = nil
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		score := make([]byte, 4)
		if _, err := io.ReadFull(stdout, score); err != nil || string(score) != "900\n" {
			t.Fatalf("oom_score_adj is %q (%v)", score, err)
		}
		further := *s.Process
		further.Args = []string{"/bin/sh", "-c", "id -u; id -G; echo $A"}
		text, err := json.Marshal(further)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "process.json")
		write(t, file, string(text))
		args := slices.Clone(cmd.Args[1:3]) // --root …
		command := exec.Command(r.program, append(args, "exec", "--process", file, cmd.Args[len(cmd.Args)-1])...)
		command.Stdin = strings.NewReader("") // a pipe: runtimes give the user of the process what it has, /dev/null too
		out, err := command.CombinedOutput()
		wantOutput(t, result(t, out, err), "1000", "1000 50000", "c")
		if _, err := os.Stat("/sys/fs/cgroup/memory" + in.CgroupPath); err == nil {
			for file, want := range map[string]string{
				"memory/memory.limit_in_bytes": "33554432", "cpu/cpu.shares": "512", "cpu/cpu.cfs_quota_us": "50000",
			} {
				controller, name, _ := strings.Cut(file, "/")
				got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, in.CgroupPath, name))
				if strings.TrimSpace(string(got)) != want {
					t.Errorf("%s is %s (%v), want %s", name, got, err, want)
				}
			}
		}
		if _, err := io.WriteString(stdin, "end\n"); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRunPause(t *testing.T) {
	cleanCgroups(t)
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("go is not installed: no static program to run")
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "main.go"), `package main

import "os"

func main() {
	_, err := os.Create("/file")
	println(os.Getpid(), os.Getuid(), os.Args[1], err != nil)
}
`)
	program := filepath.Join(dir, "pause")
	build := exec.Command("go", "build", "-o", program, filepath.Join(dir, "main.go"))
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	runtimes(t, func(t *testing.T, r runner) {
		for _, user := range []*spec.PodUserNamespace{nil, userNamespace()} {
			flags := uintptr(podFlags)
			if user != nil {
				flags |= unix.CLONE_NEWUSER
			}
			pod := realPod(t, spec.PodSecurity{Namespaces: spec.PodNamespaces{User: user}}, flags)
			in := realInput(t, pod, "", nil) // for its root's folder, idmap and host
			root := filepath.Join(filepath.Dir(in.Rootfs), "empty")
			s, err := bundle.PauseSpec(bundle.Pause{
				Pod: pod, Host: in.Host, Program: program, Args: []string{"hold"}, Rootfs: root, CgroupPath: in.CgroupPath, Idmap: in.Idmap,
			})
			if err != nil {
				t.Fatal(err)
			}
			out, err := r.run(t.Context(), s).CombinedOutput()
			wantOutput(t, result(t, out, err), "1 0 hold true")
		}
	})
}
