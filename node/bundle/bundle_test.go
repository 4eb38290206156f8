package bundle_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/bundle"
	"berth/spec"
)

var update = flag.Bool("update", false, "write the golden files")

const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// host is a machine of which every fact is known.
func host() bundle.Host {
	return bundle.Host{
		Hostname: "machine",
		Caps: []string{
			"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_ADMIN",
			"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT",
		},
		Rlimits:     map[string]uint64{"nofile": 1024},
		Cgroup:      2,
		Controllers: map[string]bool{"memory": true, "cpu": true, "cpuset": true, "pids": true, "io": true},
		Swap:        true, BlkioWeight: true,
		CPUs: []int{0, 1}, Mems: []int{0},
		Seccomp: true, UserNS: true, Mqueue: true, Init: "/bin/true",
		Remap: bundle.Idmap{
			UIDs: []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}},
			GIDs: []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}},
		},
	}
}

// rootfs is a root file system with some accounts in it.
func rootfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"etc", "srv/app"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/srv/app:/bin/sh\nnohome:x:5:5:::\n")
	write(t, filepath.Join(dir, "etc/group"), "root:x:0:\napp:x:1001:\nvideo:x:44:app\naudio:x:63:\n")
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func input(t *testing.T, config spec.ContainerConfig, mounts ...spec.Mounted) bundle.Input {
	t.Helper()
	return bundle.Input{
		Container: spec.Container{ID: id, Config: config, Mounts: mounts},
		Image: spec.ImageConfig{
			Env: []string{"PATH=/usr/bin:/bin", "LANG=C"}, Entrypoint: []string{"/entry"}, Command: []string{"serve"}, WorkDir: "/srv/app",
		},
		Host: host(), Rootfs: rootfs(t), NetNS: "/run/berth/netns/x",
	}
}

func TestGolden(t *testing.T) {
	timeout := 3
	dir := t.TempDir()
	bind := func(target string, change func(*spec.Mounted)) spec.Mounted {
		m := spec.Mounted{MountPoint: spec.MountPoint{Type: "bind", Source: dir, Target: target}, Host: dir}
		if change != nil {
			change(&m)
		}
		return m
	}
	for name, in := range map[string]bundle.Input{
		"plain": input(t, spec.ContainerConfig{}),
		"full": func() bundle.Input {
			in := input(t, spec.ContainerConfig{
				Entrypoint: []string{"/run"}, Env: []string{"LANG", "A=1", "TERM=vt100"}, User: "app", Groups: []string{"audio", "77"},
				Hostname: "web", Domainname: "example.org", TTY: true, Init: true, StopTimeout: &timeout, WorkDir: "work",
				Annotations: map[string]string{"a/b": "ü \"quoted\" \n"}, CgroupParent: "/tenants/one", OOMScoreAdj: -500,
				Security: spec.Security{
					CapAdd: []string{"net_admin", "CAP_SYS_ADMIN"}, CapDrop: []string{"ALL"}, NoNewPrivileges: true, ReadOnlyRoot: true, Seccomp: "unconfined",
				},
				Resources: spec.Resources{
					Memory: 64 << 20, MemoryReservation: 32 << 20, NanoCPUs: 1_500_000_000, CPUShares: 512, CpusetCPUs: "0-1", CpusetMems: "0", Pids: 100, BlkioWeight: 300,
				},
				Rlimits: []spec.Rlimit{{Name: "nofile", Soft: 512, Hard: 1024}, {Name: "RLIMIT_CORE"}},
				Devices: []spec.Device{{Path: "/dev/full", Target: "/dev/nothing", Permissions: "r"}},
				ShmSize: 1 << 20, Sysctls: map[string]string{"net.core.somaxconn": "99", "kernel.shmmax": "1"},
			},
				bind("/data/deep", func(m *spec.Mounted) { m.ReadOnly = true }),
				bind("/data", func(m *spec.Mounted) { m.Recursive = "disabled"; m.Options = "noexec,z" }),
				spec.Mounted{MountPoint: spec.MountPoint{Type: "tmpfs", Target: "/tmp", TmpfsSize: 4096, TmpfsMode: 0o1777, Options: "exec"}},
				bind("/etc/hosts", nil),
			)
			in.ResolvConf, in.Hosts, in.HostnameFile = "/s/resolv.conf", "/s/hosts", "/s/hostname"
			in.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/hook"}}}
			return in
		}(),
		"host": func() bundle.Input {
			in := input(t, spec.ContainerConfig{PIDMode: "host", IPCMode: "host", UTSMode: "host", CgroupMode: "host"})
			in.NetNS, in.PIDNS, in.IPCNS, in.UTSNS = bundle.HostNamespace, bundle.HostNamespace, bundle.HostNamespace, bundle.HostNamespace
			in.Host.Cgroup = 1
			return in
		}(),
		"userns": func() bundle.Input {
			in := input(t, spec.ContainerConfig{Security: spec.Security{Userns: "auto"}})
			in.Idmap = &in.Host.Remap
			return in
		}(),
		"joined": func() bundle.Input {
			in := input(t, spec.ContainerConfig{Network: spec.NetworkChoice{Mode: "container:x"}})
			in.Hostname, in.IPCNS, in.PIDNS, in.Shm = "other", "/proc/7/ns/ipc", "/proc/7/ns/pid", "/s/shm"
			return in
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			s, err := bundle.Spec(in)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, s, in.Rootfs, "ROOTFS", dir, "SOURCE")
		})
	}
}

// golden compares a spec with the file of that name; words of it that change
// from run to run go by others.
func golden(t *testing.T, name string, s *specs.Spec, words ...string) {
	t.Helper()
	if s.Linux.Seccomp != nil { // long, and the library's business
		s.Linux.Seccomp.Syscalls = nil
	}
	text, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	goldenText(t, name+".json", strings.NewReplacer(words...).Replace(string(text))+"\n")
}

func goldenText(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("differs from %s (see with -update):\n%s", file, text)
	}
}

func TestRefused(t *testing.T) {
	source := t.TempDir()
	bind := func(m spec.MountPoint) spec.Mounted {
		m.Type = "bind"
		return spec.Mounted{MountPoint: m, Host: source}
	}
	for what, tt := range map[string]struct {
		config spec.ContainerConfig
		mounts []spec.Mounted
		change func(*bundle.Input)
		kind   errs.Kind
		says   string
	}{
		"user":           {config: spec.ContainerConfig{User: "nobody-here"}, kind: errs.Invalid, says: "nobody-here"},
		"group":          {config: spec.ContainerConfig{User: "app:nogroup"}, kind: errs.Invalid, says: "nogroup"},
		"groups":         {config: spec.ContainerConfig{Groups: []string{"ghosts"}}, kind: errs.Invalid, says: "ghosts"},
		"capability":     {config: spec.ContainerConfig{Security: spec.Security{CapAdd: []string{"FLY"}}}, kind: errs.Invalid, says: "FLY"},
		"own capability": {config: spec.ContainerConfig{Security: spec.Security{CapAdd: []string{"SYS_RESOURCE"}}}, kind: errs.Unsupported, says: "SYS_RESOURCE"},
		"seccomp":        {config: spec.ContainerConfig{Security: spec.Security{Seccomp: "strict"}}, kind: errs.Invalid, says: "strict"},
		"seccomp json":   {config: spec.ContainerConfig{Security: spec.Security{Seccomp: "{nope"}}, kind: errs.Invalid, says: "seccomp"},
		"rlimit":         {config: spec.ContainerConfig{Rlimits: []spec.Rlimit{{Name: "beer"}}}, kind: errs.Invalid, says: "beer"},
		"rlimit order":   {config: spec.ContainerConfig{Rlimits: []spec.Rlimit{{Name: "core", Soft: 2, Hard: 1}}}, kind: errs.Invalid, says: "core"},
		"rlimit above":   {config: spec.ContainerConfig{Rlimits: []spec.Rlimit{{Name: "nofile", Hard: 4096}}}, kind: errs.Unsupported, says: "1024"},
		"sysctl":         {config: spec.ContainerConfig{Sysctls: map[string]string{"vm.swappiness": "1"}}, kind: errs.Invalid, says: "vm.swappiness"},
		"sysctl trick":   {config: spec.ContainerConfig{Sysctls: map[string]string{"kernel/../vm/swappiness": "1"}}, kind: errs.Invalid, says: "swappiness"},
		"host sysctl":    {config: spec.ContainerConfig{Sysctls: map[string]string{"net.core.somaxconn": "1"}}, change: func(in *bundle.Input) { in.NetNS = bundle.HostNamespace }, kind: errs.Invalid, says: "network"},
		"device":         {config: spec.ContainerConfig{Devices: []spec.Device{{Path: "/dev/nothere"}}}, kind: errs.Invalid, says: "/dev/nothere"},
		"no device":      {config: spec.ContainerConfig{Devices: []spec.Device{{Path: "/etc/passwd"}}}, kind: errs.Invalid, says: "/etc/passwd"},
		"device rights":  {config: spec.ContainerConfig{Devices: []spec.Device{{Path: "/dev/null", Permissions: "rx"}}}, kind: errs.Invalid, says: "rx"},
		"memory":         {config: spec.ContainerConfig{Resources: spec.Resources{Memory: 1024}}, kind: errs.Invalid, says: "1024"},
		"swap":           {config: spec.ContainerConfig{Resources: spec.Resources{Memory: 10 << 20, MemorySwap: 7 << 20}}, kind: errs.Invalid, says: "swap"},
		"cpus":           {config: spec.ContainerConfig{Resources: spec.Resources{NanoCPUs: 3e9}}, kind: errs.Invalid, says: "3 CPUs"},
		"cpu set":        {config: spec.ContainerConfig{Resources: spec.Resources{CpusetCPUs: "0-7"}}, kind: errs.Invalid, says: "0-7"},
		"cpu set syntax": {config: spec.ContainerConfig{Resources: spec.Resources{CpusetCPUs: "1-0"}}, kind: errs.Invalid, says: "1-0"},
		"oom on v2":      {config: spec.ContainerConfig{Resources: spec.Resources{OOMKillDisable: true}}, kind: errs.Unsupported, says: "version 2"},
		"throttle":       {config: spec.ContainerConfig{Resources: spec.Resources{DeviceReadBps: []spec.DeviceThrottle{{Path: "/dev/null"}}}}, kind: errs.Invalid, says: "/dev/null"},
		"no controller":  {config: spec.ContainerConfig{Resources: spec.Resources{Pids: 5}}, change: func(in *bundle.Input) { in.Host.Controllers = nil }, kind: errs.Unsupported, says: "pids"},
		"workdir":        {config: spec.ContainerConfig{WorkDir: "/etc/passwd/x"}, kind: errs.Invalid, says: "/etc/passwd/x"},
		"init":           {config: spec.ContainerConfig{Init: true}, change: func(in *bundle.Input) { in.Host.Init = "" }, kind: errs.Unsupported, says: "init"},
		"no command":     {change: func(in *bundle.Input) { in.Image = spec.ImageConfig{} }, kind: errs.Invalid, says: "command"},
		"remapped root":  {config: spec.ContainerConfig{Security: spec.Security{Privileged: true}}, change: func(in *bundle.Input) { in.Idmap = &in.Host.Remap }, kind: errs.Invalid, says: "privileged"},
		"remapped net":   {change: func(in *bundle.Input) { in.Idmap, in.NetNS = &in.Host.Remap, bundle.HostNamespace }, kind: errs.Invalid, says: "network"},
		"mount on root":  {mounts: []spec.Mounted{bind(spec.MountPoint{Target: "/x/.."})}, kind: errs.Invalid, says: "root"},
		"relative mount": {mounts: []spec.Mounted{bind(spec.MountPoint{Target: "x"})}, kind: errs.Invalid, says: "absolute"},
		"two mounts":     {mounts: []spec.Mounted{bind(spec.MountPoint{Target: "/x"}), bind(spec.MountPoint{Target: "/x/"})}, kind: errs.Invalid, says: "two"},
		"mount option":   {mounts: []spec.Mounted{bind(spec.MountPoint{Target: "/x", Options: "fly"})}, kind: errs.Invalid, says: "fly"},
		"mount type":     {mounts: []spec.Mounted{{MountPoint: spec.MountPoint{Type: "nfs", Target: "/x"}}}, kind: errs.Invalid, says: "nfs"},
		"tmpfs option":   {mounts: []spec.Mounted{{MountPoint: spec.MountPoint{Type: "tmpfs", Target: "/x", Options: "fly"}}}, kind: errs.Invalid, says: "fly"},
		"missing source": {mounts: []spec.Mounted{{MountPoint: spec.MountPoint{Type: "bind", Target: "/x"}, Host: "/not/here"}}, kind: errs.Invalid, says: "/not/here"},
	} {
		in := input(t, tt.config, tt.mounts...)
		if tt.change != nil {
			tt.change(&in)
		}
		_, err := bundle.Spec(in)
		if errs.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v (%s), want %s and %q", what, err, errs.KindOf(err), tt.kind, tt.says)
		}
	}
}

func TestCapabilities(t *testing.T) {
	for _, tt := range []struct {
		security spec.Security
		want     int
		has, not string
	}{
		{spec.Security{}, 14, "CAP_CHOWN", "CAP_SYS_ADMIN"},
		{spec.Security{Privileged: true}, 16, "CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"},
		{spec.Security{CapAdd: []string{"all"}}, 16, "CAP_NET_ADMIN", "CAP_SYS_RESOURCE"},
		{spec.Security{CapAdd: []string{"ALL"}, CapDrop: []string{"NET_ADMIN"}}, 15, "CAP_CHOWN", "CAP_NET_ADMIN"},
		{spec.Security{CapDrop: []string{"ALL"}}, 0, "", "CAP_CHOWN"},
		{spec.Security{CapDrop: []string{"chown"}}, 13, "CAP_KILL", "CAP_CHOWN"},
	} {
		s, err := bundle.Spec(input(t, spec.ContainerConfig{Security: tt.security}))
		if err != nil {
			t.Fatal(err)
		}
		caps := s.Process.Capabilities.Effective
		if len(caps) != tt.want || tt.has != "" && !slices.Contains(caps, tt.has) || slices.Contains(caps, tt.not) || !slices.IsSorted(caps) {
			t.Errorf("%+v: %v", tt.security, caps)
		}
	}
}

func TestPrivileged(t *testing.T) {
	s, err := bundle.Spec(input(t, spec.ContainerConfig{Security: spec.Security{Privileged: true}}))
	if err != nil {
		t.Fatal(err)
	}
	if s.Linux.Seccomp != nil || s.Linux.MaskedPaths != nil || s.Linux.ReadonlyPaths != nil || !s.Linux.Resources.Devices[0].Allow {
		t.Error("confined all the same")
	}
	if !slices.ContainsFunc(s.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == "/dev/null" && d.Major == 1 && d.Minor == 3 }) {
		t.Errorf("no /dev/null among %d devices", len(s.Linux.Devices))
	}
	for _, m := range s.Mounts {
		if strings.HasPrefix(m.Destination, "/sys") && slices.Contains(m.Options, "ro") {
			t.Errorf("%s is read-only", m.Destination)
		}
	}
}

func TestDeviceFolder(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("device nodes need root")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "sub/zero"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	s, err := bundle.Spec(input(t, spec.ContainerConfig{Devices: []spec.Device{{Path: dir, Target: "/dev/mine"}}}))
	if err != nil {
		t.Fatal(err)
	}
	if d := s.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/mine/sub/zero" || d[0].Minor != 5 {
		t.Errorf("%+v", d)
	}
	if rules := s.Linux.Resources.Devices; len(rules) != 2 || *rules[1].Minor != 5 || rules[1].Access != "rwm" {
		t.Errorf("%+v", rules)
	}
}

func TestAccounts(t *testing.T) {
	root := rootfs(t)
	for _, tt := range []struct{ user, want string }{
		{"", "0:0 [0] HOME=/root"},
		{"app", "1000:1001 [1001 44] HOME=/srv/app"},
		{"1000", "1000:1001 [1001 44] HOME=/srv/app"},
		{"app:audio", "1000:63 [63] HOME=/srv/app"},
		{"4711", "4711:0 [0] HOME=/"},
		{"4711:12", "4711:12 [12] HOME=/"},
		{"nohome", "5:5 [5] HOME=/"},
	} {
		in := input(t, spec.ContainerConfig{User: tt.user})
		in.Rootfs = root
		s, err := bundle.Spec(in)
		if err != nil {
			t.Fatal(err)
		}
		u := s.Process.User
		got := fmt.Sprintf("%d:%d %v %s", u.UID, u.GID, u.AdditionalGids, s.Process.Env[len(s.Process.Env)-1])
		if got != tt.want {
			t.Errorf("%q: %s, want %s", tt.user, got, tt.want)
		}
	}
}

// An image decides what its /etc is; it gets nothing of the host by that.
func TestHostileRoot(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "passwd"), "spy:x:66:66::/:/bin/sh\n")
	for what, make := range map[string]func(root string) error{
		"absolute link": func(root string) error {
			return os.Symlink(filepath.Join(outside, "passwd"), filepath.Join(root, "etc/passwd"))
		},
		"climbing link": func(root string) error {
			return os.Symlink(strings.Repeat("../", 20)+outside+"/passwd", filepath.Join(root, "etc/passwd"))
		},
		"pipe":   func(root string) error { return unix.Mkfifo(filepath.Join(root, "etc/passwd"), 0o666) },
		"folder": func(root string) error { return os.Mkdir(filepath.Join(root, "etc/passwd"), 0o755) },
		"loop":   func(root string) error { return os.Symlink("passwd", filepath.Join(root, "etc/passwd")) },
		"linked etc": func(root string) error {
			return errors.Join(os.RemoveAll(filepath.Join(root, "etc")), os.Symlink(outside, filepath.Join(root, "etc")))
		},
	} {
		root := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(root, "etc"), 0o755), make(root)); err != nil {
			t.Fatal(err)
		}
		in := input(t, spec.ContainerConfig{User: "spy"})
		in.Rootfs = root
		if _, err := bundle.Spec(in); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
		in.Container.Config.User = "12"
		if s, err := bundle.Spec(in); err != nil || s.Process.User.UID != 12 {
			t.Errorf("%s: a number: %+v, %v", what, s, err)
		}
	}
	// Working directories are made within, whatever the links say.
	in := input(t, spec.ContainerConfig{WorkDir: "/way/out/deep"})
	if err := errors.Join(os.Symlink(outside, filepath.Join(in.Rootfs, "way"))); err != nil {
		t.Fatal(err)
	}
	_, err := bundle.Spec(in)
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Errorf("made %v outside (%v)", left, err)
	}
	in = input(t, spec.ContainerConfig{WorkDir: "/a/b/../c"})
	if _, err := bundle.Spec(in); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(in.Rootfs, "a/c")); err != nil || !info.IsDir() {
		t.Errorf("the working directory was not made: %v", err)
	}
}

func TestArgs(t *testing.T) {
	image := spec.ImageConfig{Entrypoint: []string{"e"}, Command: []string{"c"}}
	for _, tt := range []struct {
		entrypoint, command []string
		want                string
	}{
		{nil, nil, "[e c]"},
		{nil, []string{"x"}, "[e x]"},
		{[]string{"y"}, nil, "[y]"},
		{[]string{"y"}, []string{"x"}, "[y x]"},
		{[]string{}, []string{"x"}, "[x]"},
	} {
		got, err := bundle.Args(spec.ContainerConfig{Entrypoint: tt.entrypoint, Command: tt.command}, image)
		if fmt.Sprint(got) != tt.want || err != nil {
			t.Errorf("%v %v: %v, %v", tt.entrypoint, tt.command, got, err)
		}
	}
	if _, err := bundle.Args(spec.ContainerConfig{Entrypoint: []string{}}, image); !errors.Is(err, errs.Invalid) {
		t.Errorf("nothing to run: %v", err)
	}
}

func TestExec(t *testing.T) {
	in := input(t, spec.ContainerConfig{Env: []string{"A=1"}, Groups: []string{"audio"}, Security: spec.Security{NoNewPrivileges: true}})
	exec := bundle.ExecInput{Container: in.Container, Image: in.Image, Host: in.Host, Rootfs: in.Rootfs}
	exec.Config = spec.ExecConfig{Command: []string{"id"}, User: "app", Env: []string{"B=2", "LANG"}, TTY: true, WorkDir: "/w"}
	p, err := bundle.Exec(exec)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(p.Env); got != "[PATH=/usr/bin:/bin HOSTNAME=0123456789ab TERM=xterm A=1 B=2 HOME=/srv/app]" {
		t.Error(got)
	}
	if p.User.UID != 1000 || p.Cwd != "/w" || !p.Terminal || !p.NoNewPrivileges || len(p.Capabilities.Effective) != 0 || len(p.Capabilities.Bounding) != 14 || slices.Contains(p.User.AdditionalGids, 63) {
		t.Errorf("%+v %+v", p, p.Capabilities)
	}
	exec.Config = spec.ExecConfig{Command: []string{"id"}, Privileged: true}
	if p, err = bundle.Exec(exec); err != nil || len(p.Capabilities.Effective) != 16 || p.Cwd != "/srv/app" || !slices.Contains(p.User.AdditionalGids, 63) {
		t.Errorf("%+v, %v", p, err)
	}
	exec.Config = spec.ExecConfig{}
	if _, err := bundle.Exec(exec); !errors.Is(err, errs.Invalid) {
		t.Errorf("no command: %v", err)
	}
}

func TestSeccompProfile(t *testing.T) {
	in := input(t, spec.ContainerConfig{Security: spec.Security{Seccomp: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}],"listenerPath":"/x"}`}})
	s, err := bundle.Spec(in)
	if err != nil || len(s.Linux.Seccomp.Syscalls) != 1 || s.Version != "1.1.0" {
		t.Errorf("%+v, %v", s, err)
	}
	s, err = bundle.Spec(input(t, spec.ContainerConfig{}))
	if err != nil || len(s.Linux.Seccomp.Syscalls) < 5 || s.Version != "1.0.2" {
		t.Errorf("%+v, %v", s, err)
	}
	data, _ := json.Marshal(s)
	t.Logf("config.json: %d bytes", len(data))
}

func TestResourcesV1NoSwap(t *testing.T) {
	h := host()
	h.Swap, h.Cgroup = false, 1
	r, err := bundle.Resources(spec.Resources{Memory: 10 << 20, OOMKillDisable: true}, h)
	if err != nil || r.Memory.Swap != nil || *r.Memory.Limit != 10<<20 || !*r.Memory.DisableOOMKiller {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err = bundle.Resources(spec.Resources{}, h); err != nil || r.Memory != nil || r.CPU != nil || r.Pids != nil || r.BlockIO != nil {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestDetect(t *testing.T) {
	h, err := bundle.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if h.Hostname == "" || len(h.CPUs) == 0 || h.Cgroup != 1 && h.Cgroup != 2 || h.Remap.UIDs[0].Size != 65536 {
		t.Errorf("%+v", h)
	}
	if os.Getuid() == 0 && !slices.Contains(h.Caps, "CAP_CHOWN") {
		t.Errorf("root without rights: %v", h.Caps)
	}
}

func BenchmarkSpec(b *testing.B) {
	h, err := bundle.Detect()
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	for b.Loop() {
		s, err := bundle.Spec(bundle.Input{
			Container: spec.Container{ID: id, Config: spec.ContainerConfig{Command: []string{"true"}}}, Host: h, Rootfs: dir,
		})
		if err != nil {
			b.Fatal(err)
		}
		if err := bundle.Write(dir, s); err != nil {
			b.Fatal(err)
		}
	}
}
