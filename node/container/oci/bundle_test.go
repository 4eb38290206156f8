package oci_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/node/bundle"
	"berth/spec"
)

// What a spec promises is what a process finds, whichever runtime reads it.
func TestBundles(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		host := filepath.Join(b.dir, "host")
		if err := os.MkdirAll(filepath.Join(host, "sub"), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(host, "file"), []byte("from the host\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		bind := func(target string, m spec.MountPoint) spec.Mounted {
			m.Type, m.Target = "bind", target
			return spec.Mounted{MountPoint: m, Host: host}
		}
		shell := func(c spec.ContainerConfig, line string) spec.ContainerConfig {
			c.Command = []string{"sh", "-c", line}
			return c
		}
		for what, tt := range map[string]struct {
			config spec.ContainerConfig
			input  func(*bundle.Input)
			want   string
			skip   bool
		}{
			"defaults": {
				config: shell(spec.ContainerConfig{}, `echo $HOME $PATH; pwd; id -u; grep CapEff /proc/self/status; wc -c </proc/interrupts; touch /proc/sys/x 2>/dev/null || echo ro; test -e /dev/null && test -c /dev/random && echo devices; grep -c ' /sys/fs/cgroup' /proc/mounts >/dev/null && echo cgroups`),
				want:   "/root /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n/\n0\nCapEff:\t00000000a80425fb\n0\nro\ndevices\ncgroups\n",
			},
			"user and folder": {
				config: shell(spec.ContainerConfig{User: "app", Groups: []string{"77"}, WorkDir: "/new/deep"}, `id -u; id -g; id -G; pwd; echo $HOME; grep CapEff /proc/self/status`),
				want:   "1000\n1000\n1000 44 77\n/new/deep\n/home/app\nCapEff:\t0000000000000000\n",
			},
			"names": {
				config: shell(spec.ContainerConfig{Hostname: "web", Domainname: "example.org"}, `hostname; echo $HOSTNAME; cat /proc/sys/kernel/domainname`),
				want:   "web\nweb\nexample.org\n",
			},
			"limits": {
				config: shell(spec.ContainerConfig{
					Rlimits: []spec.Rlimit{{Name: "nofile", Soft: 100, Hard: 200}}, ShmSize: 1 << 20, Sysctls: map[string]string{"kernel.shmmni": "17"},
					Security: spec.Security{NoNewPrivileges: true, ReadOnlyRoot: true}, OOMScoreAdj: 300,
				}, `ulimit -n; ulimit -Hn; cat /proc/sys/kernel/shmmni; grep NoNewPrivs /proc/self/status; touch /x 2>/dev/null || echo ro; df /dev/shm | tail -1 | grep -o ' 1024 ' | tail -1; cat /proc/self/oom_score_adj`),
				want: "100\n200\n17\nNoNewPrivs:\t1\nro\n 1024 \n300\n",
			},
			"resources": {
				config: shell(spec.ContainerConfig{Resources: spec.Resources{Memory: 64 << 20, MemoryReservation: 32 << 20, NanoCPUs: 500_000_000, CPUShares: 512, CpusetCPUs: "0", Pids: 50}},
					`cd /sys/fs/cgroup; cat pids/pids.max memory/memory.limit_in_bytes memory/memory.soft_limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares cpuset/cpuset.cpus`),
				want: "50\n67108864\n33554432\n50000\n512\n0\n",
				skip: b.host.Cgroup != 1,
			},
			"mounts": {
				input: func(in *bundle.Input) {
					in.Container.Mounts = []spec.Mounted{
						bind("/rw", spec.MountPoint{}), bind("/ro", spec.MountPoint{ReadOnly: true}),
						{MountPoint: spec.MountPoint{Type: "tmpfs", Target: "/ro/sub", TmpfsSize: 1 << 20}},
						{MountPoint: spec.MountPoint{Type: "tmpfs", Target: "/scratch", TmpfsMode: 0o700}},
					}
				},
				config: shell(spec.ContainerConfig{}, `cat /rw/file /ro/file; touch /rw/file && echo writable; touch /ro/file 2>/dev/null || echo ro; stat -c %a /scratch; df /ro/sub | tail -1 | grep -o ' 1024 ' | tail -1; touch /ro/sub/x && echo tmpfs`),
				want:   "from the host\nfrom the host\nwritable\nro\n700\n 1024 \ntmpfs\n",
			},
			"init": {
				config: shell(spec.ContainerConfig{Init: true}, `cat /proc/1/comm | grep -c init; test $$ -ne 1 && echo child`),
				want:   "1\nchild\n",
				skip:   b.host.Init == "",
			},
			"device": {
				config: shell(spec.ContainerConfig{Devices: []spec.Device{{Path: "/dev/loop-control", Target: "/dev/mine", Permissions: "r"}}}, `test -c /dev/mine && true </dev/mine && echo read; (true >/dev/mine) 2>/dev/null || echo denied`),
				want:   "read\ndenied\n",
				skip:   !exists("/dev/loop-control"),
			},
			"privileged": {
				config: shell(spec.ContainerConfig{Security: spec.Security{Privileged: true}}, `test -c /dev/kmsg && echo devices; grep Seccomp: /proc/self/status; mount -t tmpfs none /tmp && echo mounted`),
				want:   "devices\nSeccomp:\t0\nmounted\n",
			},
			"no capabilities": {
				config: shell(spec.ContainerConfig{Security: spec.Security{CapDrop: []string{"ALL"}, CapAdd: []string{"chown"}}}, `grep CapEff /proc/self/status`),
				want:   "CapEff:\t0000000000000001\n",
			},
			"host namespaces": {
				input: func(in *bundle.Input) {
					in.NetNS, in.PIDNS, in.IPCNS, in.UTSNS = bundle.HostNamespace, bundle.HostNamespace, bundle.HostNamespace, bundle.HostNamespace
				},
				config: shell(spec.ContainerConfig{}, `for n in net pid ipc uts; do readlink /proc/self/ns/$n; done; test $$ -ne 1 && hostname`),
				want:   links("net", "pid", "ipc", "uts") + b.host.Hostname + "\n",
			},
			"user namespace": {
				input:  func(in *bundle.Input) { in.Idmap = &in.Host.Remap },
				config: shell(spec.ContainerConfig{WorkDir: "/tmp"}, `id -u; tail -1 /proc/self/uid_map | wc -w; readlink /proc/self/ns/user; pwd`),
				want:   "0\n3\n*\n/tmp\n",
				skip:   !b.host.UserNS,
			},
		} {
			if tt.skip {
				t.Logf("%s: not on this machine", what)
				continue
			}
			b.input = tt.input
			l := b.make(tt.config)
			if what == "user namespace" {
				for _, dir := range []string{b.dir, l.Bundle, filepath.Join(l.Bundle, "rootfs")} {
					if err := os.Chmod(dir, 0o755); err != nil {
						t.Fatal(err)
					}
				}
			}
			if _, err := b.runtime.Run(t.Context(), l); err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			code, out := b.keeper.exit(l.ID)
			if code != 0 || !like(out, tt.want) {
				t.Errorf("%s: exit %d, output\n%swant\n%s", what, code, out, tt.want)
			}
		}
		b.input = nil
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// like compares by lines; a wanted * fits any.
func like(got, want string) bool {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range w {
		if i >= len(g) || w[i] != "*" && g[i] != w[i] {
			return false
		}
	}
	return len(g) == len(w)
}

func links(names ...string) string {
	text := ""
	for _, n := range names {
		l, _ := os.Readlink("/proc/self/ns/" + n)
		text += l + "\n"
	}
	return text
}

func TestSharedMount(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		source := filepath.Join(b.dir, "shared")
		if err := os.MkdirAll(filepath.Join(source, "in"), 0o755); err != nil {
			t.Fatal(err)
		}
		m := spec.Mounted{MountPoint: spec.MountPoint{Type: "bind", Target: "/s", Propagation: "rshared"}, Host: source}
		in := bundle.Input{
			Container: spec.Container{ID: newID(), Config: command("true"), Mounts: []spec.Mounted{m}}, Host: b.host, Rootfs: b.dir,
		}
		if _, err := bundle.Spec(in); err == nil {
			t.Skip("everything is shared on this machine")
		}
		for _, step := range []func() error{
			func() error { return unix.Mount(source, source, "", unix.MS_BIND, "") },
			func() error { return unix.Mount("", source, "", unix.MS_SHARED, "") },
		} {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() { _ = unix.Unmount(source, unix.MNT_DETACH) })
		b.input = func(in *bundle.Input) {
			in.Container.Mounts = []spec.Mounted{m}
			in.Container.Config.Security.CapAdd = []string{"SYS_ADMIN"}
		}
		l := b.make(command("sh", "-c", "mount -t tmpfs none /s/in && touch /s/in/seen && sleep 1000"))
		b.run(l)
		await(t, func() bool { _, err := os.Stat(filepath.Join(source, "in/seen")); return err == nil })
		if err := b.runtime.Delete(t.Context(), l.ID); err != nil {
			t.Error(err)
		}
		_ = unix.Unmount(filepath.Join(source, "in"), unix.MNT_DETACH)
	})
}

// Two containers with one IPC namespace see one /dev/shm.
func TestBorrowShm(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		first := b.make(command("sh", "-c", "echo shared >/dev/shm/file; sleep 1000"))
		p := b.run(first)
		await(t, func() bool { _, err := os.Stat("/proc/" + itoa(p.Pid) + "/root/dev/shm/file"); return err == nil })
		shm := filepath.Join(b.dir, "shm")
		if err := os.Mkdir(shm, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := bundle.BorrowShm(p.Pid, shm); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(shm, unix.MNT_DETACH) })
		b.input = func(in *bundle.Input) { in.IPCNS, in.Shm = "/proc/"+itoa(p.Pid)+"/ns/ipc", shm }
		second := b.make(command("cat", "/dev/shm/file"))
		b.run(second)
		if code, out := b.keeper.exit(second.ID); code != 0 || out != "shared\n" {
			t.Errorf("exit %d, output %q", code, out)
		}
	})
}
