package bundle_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"berth/base/errs"
	"berth/node/bundle"
	"berth/spec"
)

// podInput is a container of a pod on a machine of which every fact is known.
func podInput(t *testing.T, config spec.PodContainerConfig, change ...func(*bundle.PodInput)) bundle.PodInput {
	t.Helper()
	if config.Security.Namespaces.PID == "" {
		config.Security.Namespaces.PID = spec.NamespaceContainer
	}
	config.Name, config.Image = "main", "sha256:abc"
	h := host()
	h.Controllers["hugetlb"] = true
	in := bundle.PodInput{
		Pod: spec.Pod{
			ID: "pod", Config: spec.PodConfig{Name: "web", Namespace: "default", UID: "u1", Hostname: "web-0"},
			NetNS: "/ns/net", IPCNS: "/ns/ipc", UTSNS: "/ns/uts",
		},
		Container: spec.PodContainer{ID: id, Pod: "pod", Config: config},
		Image:     spec.ImageConfig{Env: []string{"PATH=/usr/bin:/bin", "LANG=C"}, Entrypoint: []string{"/entry"}, Command: []string{"serve"}, WorkDir: "/srv/app", User: "app"},
		Host:      h, Rootfs: rootfs(t), CgroupPath: "/kubepods/pod/" + id, Shm: "/s/shm", ResolvConf: "/s/resolv.conf", Hosts: "/s/hosts", HostnameFile: "/s/hostname",
	}
	for _, c := range change {
		c(&in)
	}
	return in
}

func TestPodGolden(t *testing.T) {
	dir := t.TempDir()
	for name, in := range map[string]bundle.PodInput{
		"pod-plain": podInput(t, spec.PodContainerConfig{}),
		"pod-full": podInput(t, spec.PodContainerConfig{
			Command: []string{"/run"}, Args: []string{"a", "b"}, WorkDir: "/tmp/work", Env: []string{"LANG=de", "A=1", "junk", "=x", "A=2"}, TTY: true,
			UserImage: "nginx:1", Annotations: map[string]string{"a/b": "c"},
			Mounts: []spec.PodMount{
				{Target: "/data/deep/", Source: dir, ReadOnly: true, Options: []string{"noexec", "nosuid"}},
				{Target: "/data", Source: dir, ReadOnly: true, RecursiveReadOnly: true},
				{Target: "/etc/hosts", Source: dir},
				{Target: "/image", Image: "sha256:def", ImageSubPath: "bin"},
				{Target: "/mapped", Source: dir, UIDs: []spec.IDMapping{{Host: 7, Length: 9}}, GIDs: []spec.IDMapping{{Host: 8, Length: 9}}},
			},
			Devices: []spec.PodDevice{{Host: "/dev/zero", Container: "/dev/nothing", Permissions: "r"}},
			Resources: spec.PodResources{
				CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 1, CPUs: "0-1", Mems: "0", Memory: 1 << 20, MemorySwap: 2 << 20, OOMScoreAdj: -500,
				HugePages: map[string]uint64{"2MB": 4 << 20, "1GB": 0}, Unified: map[string]string{"memory.high": "1000000"},
			},
			Security: spec.PodSecurity{
				Namespaces: spec.PodNamespaces{PID: spec.NamespacePod}, User: new(int64(1000)), Group: new(int64(5)), Groups: []int64{9, 44, 9},
				ReadOnlyRoot: true, NoNewPrivileges: true, Capabilities: &spec.PodCapabilities{Add: []string{"NET_ADMIN", "cap_sys_admin"}, Drop: []string{"CHOWN"}, Ambient: []string{"KILL"}},
				Seccomp: &spec.SecurityProfile{Type: spec.ProfileDefault}, MaskedPaths: []string{"/proc/kcore"}, ReadOnlyPaths: []string{"/proc/sys"},
			},
		}, func(in *bundle.PodInput) {
			in.PIDNS, in.Images, in.Volumes = "/proc/7/ns/pid", map[string]string{"sha256:def/bin": dir}, map[string]string{"/vol": "/s/vol", "/data": "/s/hidden"}
			in.Pod.ProcessLabel, in.Pod.MountLabel = "p:p:p:s0", "m:m:m:s0"
		}),
		"pod-userns": podInput(t, spec.PodContainerConfig{Security: spec.PodSecurity{Namespaces: spec.PodNamespaces{User: userNamespace()}}}, func(in *bundle.PodInput) {
			in.Pod.Config.Security.Namespaces.User, in.Pod.UserNS = userNamespace(), "/ns/user"
			in.Idmap, in.Pod.NetNS = idmapOf(t, userNamespace()), ""
		}),
		"pod-privileged": podInput(t, spec.PodContainerConfig{
			Security: spec.PodSecurity{
				Namespaces: spec.PodNamespaces{PID: spec.NamespaceNode}, Privileged: true, Seccomp: &spec.SecurityProfile{Type: spec.ProfileDefault},
				Capabilities: &spec.PodCapabilities{Drop: []string{"ALL"}}, MaskedPaths: []string{"/proc/kcore"}, ReadOnlyPaths: []string{"/proc/sys"},
			},
		}, func(in *bundle.PodInput) {
			in.Pod.Config.Security.Privileged = true
			in.Pod.NetNS, in.Pod.IPCNS, in.Pod.UTSNS, in.Pod.Config.Hostname = "", "", "", ""
			in.Image.User = ""
		}),
	} {
		t.Run(name, func(t *testing.T) {
			s, _, err := bundle.PodSpec(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			if in.Container.Config.Security.Privileged {
				if len(s.Linux.Devices) == 0 {
					t.Error("no devices of the host")
				}
				s.Linux.Devices = nil // the test's machine's
			}
			for _, d := range s.Linux.Devices {
				d.UID, d.GID = nil, nil
			}
			golden(t, name, s, in.Rootfs, "ROOTFS", dir, "SOURCE")
		})
	}
}

func idmapOf(t *testing.T, ns *spec.PodUserNamespace) *bundle.Idmap {
	t.Helper()
	m, err := bundle.PodIdmap(ns)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestPauseGolden(t *testing.T) {
	in := podInput(t, spec.PodContainerConfig{})
	root := filepath.Join(t.TempDir(), "pause")
	s, err := bundle.PauseSpec(bundle.Pause{Pod: in.Pod, Host: in.Host, Program: "/usr/bin/catatonit", Args: []string{"-P"}, Rootfs: root, CgroupPath: "/kubepods/pod/pause"})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "pod-pause", s, root, "ROOTFS")
	for _, name := range []string{"pause", "proc", "dev"} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestPodRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	write(t, file, "not JSON")
	mount := func(m spec.PodMount) spec.PodContainerConfig {
		m.Target = "/mnt" + m.Target
		return spec.PodContainerConfig{Mounts: []spec.PodMount{m}}
	}
	secure := func(s spec.PodSecurity) spec.PodContainerConfig { return spec.PodContainerConfig{Security: s} }
	limits := func(r spec.PodResources) spec.PodContainerConfig { return spec.PodContainerConfig{Resources: r} }
	profile := func(kind, name string) *spec.SecurityProfile {
		return &spec.SecurityProfile{Type: kind, Localhost: name}
	}
	for what, tt := range map[string]struct {
		config spec.PodContainerConfig
		kind   errs.Kind
		change func(*bundle.PodInput)
	}{
		"no command":             {spec.PodContainerConfig{}, errs.Invalid, func(in *bundle.PodInput) { in.Image = spec.ImageConfig{} }},
		"group without user":     {secure(spec.PodSecurity{Group: new(int64(7))}), errs.Invalid, nil},
		"unknown user":           {secure(spec.PodSecurity{UserName: "nobody-here"}), errs.Invalid, nil},
		"impossible group":       {secure(spec.PodSecurity{Groups: []int64{-1}}), errs.Invalid, nil},
		"unknown capability":     {secure(spec.PodSecurity{Capabilities: &spec.PodCapabilities{Add: []string{"FLY"}}}), errs.Invalid, nil},
		"capability above node":  {secure(spec.PodSecurity{Capabilities: &spec.PodCapabilities{Add: []string{"SYS_BOOT"}}}), errs.Unsupported, nil},
		"privileged in pod":      {secure(spec.PodSecurity{Privileged: true}), errs.Invalid, nil},
		"PID mode":               {secure(spec.PodSecurity{Namespaces: spec.PodNamespaces{PID: "else"}}), errs.Invalid, nil},
		"PID of nobody":          {secure(spec.PodSecurity{Namespaces: spec.PodNamespaces{PID: spec.NamespaceTarget}}), errs.Internal, nil},
		"other user namespace":   {secure(spec.PodSecurity{Namespaces: spec.PodNamespaces{User: userNamespace()}}), errs.Invalid, nil},
		"seccomp type":           {secure(spec.PodSecurity{Seccomp: profile("else", "")}), errs.Invalid, nil},
		"seccomp file":           {secure(spec.PodSecurity{Seccomp: profile(spec.ProfileLocalhost, "/is/not/there")}), errs.Invalid, nil},
		"seccomp text":           {secure(spec.PodSecurity{Seccomp: profile(spec.ProfileLocalhost, file)}), errs.Invalid, nil},
		"seccomp climbs":         {secure(spec.PodSecurity{Seccomp: profile(spec.ProfileLocalhost, "../file")}), errs.Invalid, func(in *bundle.PodInput) { in.ProfileDir = dir + "/x" }},
		"AppArmor of a machine":  {secure(spec.PodSecurity{AppArmor: profile(spec.ProfileLocalhost, "mine")}), errs.Unsupported, nil},
		"AppArmor type":          {secure(spec.PodSecurity{AppArmor: profile("else", "")}), errs.Invalid, nil},
		"AppArmor without name":  {secure(spec.PodSecurity{AppArmor: profile(spec.ProfileLocalhost, "")}), errs.Invalid, nil},
		"mount over root":        {spec.PodContainerConfig{Mounts: []spec.PodMount{{Target: "/a/..", Source: dir}}}, errs.Invalid, nil},
		"relative source":        {mount(spec.PodMount{Source: "data"}), errs.Invalid, nil},
		"source below file":      {mount(spec.PodMount{Source: file + "/below"}), errs.Invalid, nil},
		"mount option":           {mount(spec.PodMount{Source: dir, Options: []string{"suid"}}), errs.Invalid, nil},
		"rro but writable":       {mount(spec.PodMount{Source: dir, RecursiveReadOnly: true}), errs.Invalid, nil},
		"rro that spreads":       {mount(spec.PodMount{Source: dir, ReadOnly: true, RecursiveReadOnly: true, Propagation: spec.PropagationHostToContainer}), errs.Invalid, nil},
		"rro of an old runtime":  {mount(spec.PodMount{Source: dir, ReadOnly: true, RecursiveReadOnly: true}), errs.Unsupported, func(in *bundle.PodInput) { in.Runtime = &features.Features{} }},
		"maps of an old runtime": {mount(spec.PodMount{Source: dir, UIDs: userNamespace().UIDs}), errs.Unsupported, func(in *bundle.PodInput) { in.Runtime = &features.Features{} }},
		"image not mounted":      {mount(spec.PodMount{Image: "sha256:def"}), errs.Internal, nil},
		"device":                 {spec.PodContainerConfig{Devices: []spec.PodDevice{{Host: file, Container: "/dev/x"}}}, errs.Invalid, nil},
		"no CDI":                 {spec.PodContainerConfig{CDI: []string{"vendor.com/class=one"}}, errs.Unsupported, nil},
		"negative memory":        {limits(spec.PodResources{Memory: -1}), errs.Invalid, nil},
		"swap below memory":      {limits(spec.PodResources{Memory: 2, MemorySwap: 1}), errs.Invalid, nil},
		"negative cpu":           {limits(spec.PodResources{CPUShares: -1}), errs.Invalid, nil},
		"cpu set":                {limits(spec.PodResources{CPUs: "zero"}), errs.Invalid, nil},
		"unified on version 1":   {limits(spec.PodResources{Unified: map[string]string{"a": "b"}}), errs.Unsupported, func(in *bundle.PodInput) { in.Host.Cgroup = 1 }},
		"unified climbs":         {limits(spec.PodResources{Unified: map[string]string{"../cgroup.procs": "0"}}), errs.Invalid, func(in *bundle.PodInput) { in.Host.Cgroup = 2 }},
		"no network of its own": {spec.PodContainerConfig{}, errs.Internal, func(in *bundle.PodInput) {
			in.Pod.NetNS, in.Pod.Config.Security.Namespaces.Network = "", spec.NamespacePod
		}},
		"no cgroup": {spec.PodContainerConfig{}, errs.Internal, func(in *bundle.PodInput) { in.CgroupPath = "" }},
	} {
		t.Run(what, func(t *testing.T) {
			in := podInput(t, tt.config)
			if tt.change != nil {
				tt.change(&in)
			}
			_, _, err := bundle.PodSpec(t.Context(), in)
			wantKind(t, err, tt.kind)
		})
	}
}

func TestPodIdmap(t *testing.T) {
	one := []spec.IDMapping{{Host: 1000, Length: 100000}}
	for what, ns := range map[string]*spec.PodUserNamespace{
		"two mappings": {Mode: spec.NamespacePod, UIDs: append(one, one...), GIDs: append(one, one...)},
		"differ":       {Mode: spec.NamespacePod, UIDs: one, GIDs: []spec.IDMapping{{Host: 1001, Length: 100000}}},
		"no root":      {Mode: spec.NamespacePod, UIDs: []spec.IDMapping{{Container: 1, Host: 2, Length: 3}}, GIDs: []spec.IDMapping{{Container: 1, Host: 2, Length: 3}}},
		"empty":        {Mode: spec.NamespacePod, UIDs: []spec.IDMapping{{}}, GIDs: []spec.IDMapping{{}}},
		"none":         {Mode: spec.NamespacePod},
		"container":    {Mode: spec.NamespaceContainer},
		"target":       {Mode: spec.NamespaceTarget},
		"node":         {Mode: spec.NamespaceNode, UIDs: one},
	} {
		if _, err := bundle.PodIdmap(ns); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, ns := range []*spec.PodUserNamespace{nil, {Mode: spec.NamespaceNode}} {
		if m, err := bundle.PodIdmap(ns); m != nil || err != nil {
			t.Errorf("%+v, %v", m, err)
		}
	}
	want := []specs.LinuxIDMapping{{HostID: 1000, Size: 100000}}
	if m := idmapOf(t, &spec.PodUserNamespace{Mode: spec.NamespacePod, UIDs: one, GIDs: one}); !slices.Equal(m.UIDs, want) || !slices.Equal(m.GIDs, want) {
		t.Errorf("%+v", m)
	}
}

// Whatever is asked, what comes out of it stays within the node's own rights
// and within the pod.
func TestPodProperties(t *testing.T) {
	dir := t.TempDir()
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 5))
		coin := func() bool { return r.IntN(2) == 0 }
		some := func(of ...string) []string {
			return slices.DeleteFunc(slices.Clone(of), func(string) bool { return r.IntN(3) > 0 })
		}
		config := spec.PodContainerConfig{
			Env:       some("A=1", "B=2", "A=3", "HOME=/h", "PATH=/p", "C", "=", "A==="),
			Resources: spec.PodResources{Memory: r.Int64N(3) << 24, CPUShares: r.Int64N(1 << 20), CPUQuota: r.Int64N(2) * 1000, OOMScoreAdj: r.Int64N(4000) - 2000},
			Security: spec.PodSecurity{
				Privileged: coin(), StrictGroups: coin(), ReadOnlyRoot: coin(), NoNewPrivileges: coin(), Groups: []int64{r.Int64N(3), r.Int64N(3)},
				Capabilities:  &spec.PodCapabilities{Add: some("ALL", "KILL", "SYS_ADMIN", "NET_ADMIN"), Drop: some("ALL", "KILL", "CHOWN"), Ambient: some("KILL", "CHOWN")},
				MaskedPaths:   some("/a"),
				ReadOnlyPaths: some("/b"),
				Namespaces:    spec.PodNamespaces{PID: []spec.NamespaceMode{spec.NamespaceContainer, spec.NamespaceNode, spec.NamespacePod}[r.IntN(3)]},
			},
		}
		if coin() {
			config.Security.Seccomp = &spec.SecurityProfile{Type: []string{spec.ProfileDefault, spec.ProfileUnconfined}[r.IntN(2)]}
		}
		for _, target := range some("/a", "/a/b", "/a/b/c", "/dev", "/dev/shm", "/proc", "/etc/hosts", "/sys/fs/cgroup", "/a/b/") {
			config.Mounts = append(config.Mounts, spec.PodMount{Target: target, Source: dir, ReadOnly: coin()})
		}
		r.Shuffle(len(config.Mounts), func(i, j int) { config.Mounts[i], config.Mounts[j] = config.Mounts[j], config.Mounts[i] })
		in := podInput(t, config, func(in *bundle.PodInput) {
			in.Pod.Config.Security.Privileged = true
			in.PIDNS = "/proc/7/ns/pid"
			in.Host.OOMScoreAdj = -100
			in.Host.Cgroup = 1 + r.IntN(2)
			in.Host.Swap = coin()
		})
		s, user, err := bundle.PodSpec(t.Context(), in)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		checkPodSpec(t, seed, in, s, user)
	}
}

func checkPodSpec(t *testing.T, seed uint64, in bundle.PodInput, s *specs.Spec, user spec.PodUser) {
	t.Helper()
	fail := func(format string, args ...any) {
		t.Helper()
		text, _ := json.Marshal(s)
		t.Fatalf("seed %d: %s\n%s", seed, fmt.Sprintf(format, args...), text)
	}
	asked := in.Container.Config.Security
	caps := s.Process.Capabilities
	for _, name := range slices.Concat(caps.Bounding, caps.Ambient, caps.Inheritable) {
		if !slices.Contains(in.Host.Caps, name) || !slices.Contains(caps.Bounding, name) {
			fail("capability %s", name)
		}
		if !asked.Privileged && slices.Contains(asked.Capabilities.Drop, strings.TrimPrefix(name, "CAP_")) {
			fail("%s was dropped", name)
		}
	}
	if len(s.Process.User.AdditionalGids) != len(user.Groups) || !slices.Contains(user.Groups, user.GID) {
		fail("user %+v", user)
	}
	if *s.Process.OOMScoreAdj < -100 || *s.Process.OOMScoreAdj > 1000 {
		fail("oom score %d", *s.Process.OOMScoreAdj)
	}
	l := s.Linux
	if asked.Privileged && (l.Seccomp != nil || len(l.MaskedPaths) > 0 || len(l.ReadonlyPaths) > 0 || s.Process.ApparmorProfile != "") {
		fail("privileged and confined")
	}
	if !asked.Privileged && (!slices.Equal(l.MaskedPaths, asked.MaskedPaths) || !slices.Equal(l.ReadonlyPaths, asked.ReadOnlyPaths)) {
		fail("paths")
	}
	if l.Resources.Devices[0].Allow != asked.Privileged {
		fail("devices")
	}
	names := map[string]bool{}
	for _, v := range s.Process.Env {
		name, _, set := strings.Cut(v, "=")
		if !set || name == "" || names[name] {
			fail("environment %q", v)
		}
		names[name] = true
	}
	own, seen := map[string]bool{}, map[string]bool{}
	for _, m := range in.Container.Config.Mounts {
		own[filepath.Clean(m.Target)] = true
	}
	for _, m := range s.Mounts {
		for later := range seen {
			if strings.HasPrefix(later, m.Destination+"/") && own[later] && own[m.Destination] {
				fail("%s hides %s", m.Destination, later)
			}
		}
		if own[m.Destination] && m.Source != in.Container.Config.Mounts[0].Source {
			fail("%s is the node's", m.Destination)
		}
		seen[m.Destination] = true
	}
	kinds := map[specs.LinuxNamespaceType]string{}
	for _, ns := range l.Namespaces {
		if _, twice := kinds[ns.Type]; twice {
			fail("two namespaces %s", ns.Type)
		}
		kinds[ns.Type] = ns.Path
	}
	if kinds[specs.NetworkNamespace] != in.Pod.NetNS || kinds[specs.IPCNamespace] != in.Pod.IPCNS || kinds[specs.UTSNamespace] != in.Pod.UTSNS {
		fail("namespaces")
	}
}

func TestMerge(t *testing.T) {
	h := host()
	h.Controllers["hugetlb"] = true
	whole := spec.PodResources{
		CPUPeriod: 1000, CPUQuota: 2000, CPUShares: 3, CPUs: "0", Mems: "0", Memory: 4 << 20, MemorySwap: 8 << 20, OOMScoreAdj: 5,
		HugePages: map[string]uint64{"2MB": 1}, Unified: map[string]string{"a": "b"},
	}
	s := &specs.Spec{Process: &specs.Process{}}
	for range 2 { // the second changes nothing
		if err := bundle.Merge(s, whole, h); err != nil {
			t.Fatal(err)
		}
		want, err := bundle.LinuxResources(whole, h)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(s.Linux.Resources, want) || *s.Process.OOMScoreAdj != 5 {
			t.Errorf("%+v, want %+v", s.Linux.Resources, want)
		}
	}
	if err := bundle.Merge(s, spec.PodResources{Memory: 6 << 20, CPUQuota: -1, HugePages: map[string]uint64{"2MB": 2, "1GB": 3}}, h); err != nil {
		t.Fatal(err)
	}
	got := s.Linux.Resources
	if *got.Memory.Limit != 6<<20 || *got.Memory.Swap != 6<<20 || *got.CPU.Quota != -1 || *got.CPU.Period != 1000 || *got.CPU.Shares != 3 || got.CPU.Cpus != "0" ||
		!slices.Equal(got.HugepageLimits, []specs.LinuxHugepageLimit{{Pagesize: "1GB", Limit: 3}, {Pagesize: "2MB", Limit: 2}}) || got.Unified["a"] != "b" {
		text, _ := json.Marshal(got)
		t.Errorf("%s", text)
	}
	wantKind(t, bundle.Merge(s, spec.PodResources{CPUPeriod: -1}, h), errs.Invalid)

	shown := bundle.MergeResources(whole, spec.PodResources{Memory: 6 << 20, CPUs: "1", HugePages: map[string]uint64{"1GB": 3}})
	want := whole
	want.Memory, want.MemorySwap, want.CPUs, want.HugePages = 6<<20, 0, "1", map[string]uint64{"2MB": 1, "1GB": 3}
	if !reflect.DeepEqual(shown, want) {
		t.Errorf("%+v, want %+v", shown, want)
	}
	if !maps.Equal(whole.HugePages, map[string]uint64{"2MB": 1}) {
		t.Error("merging changed what it merged into")
	}

	h.Swap = false
	without, err := bundle.LinuxResources(spec.PodResources{Memory: 6 << 20, MemorySwap: 9 << 20}, h)
	if err != nil || without.Memory.Swap != nil {
		t.Errorf("%+v, %v", without, err)
	}
}

// Annotations that change what a runtime does reach it only where that is
// allowed.
func TestAnnotationsThatRuntimesObey(t *testing.T) {
	in := podInput(t, spec.PodContainerConfig{Annotations: map[string]string{
		"run.oci.hooks.stdout": "/etc/passwd", "org.systemd.property.ExecStart": "x", "module.wasm.image/variant": "compat",
		"io.kubernetes.container.hash": "1", "io.kubernetes.cri.sandbox-id": "another's",
	}})
	in.Pod.Config.Annotations = map[string]string{"run.oci.keep_original_groups": "1", "run.oci.hooks.stdout": "/dev/null"}
	for allowed, want := range map[string][]string{
		"":                            {},
		"run.oci.keep_*":              {"run.oci.keep_original_groups=1"},
		"run.oci.*":                   {"run.oci.hooks.stdout=/etc/passwd", "run.oci.keep_original_groups=1"},
		"module.wasm.image/variant":   {"module.wasm.image/variant=compat"},
		"org.systemd.property.Memory": {},
	} {
		in.Annotations = []string{allowed}
		s, _, err := bundle.PodSpec(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		if s.Annotations["io.kubernetes.container.hash"] != "1" || s.Annotations["io.kubernetes.cri.sandbox-id"] != in.Pod.ID {
			t.Errorf("annotations %v", s.Annotations)
		}
		got := []string{}
		for name, value := range s.Annotations {
			if !strings.HasPrefix(name, "io.kubernetes.") {
				got = append(got, name+"="+value)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("allowed %q: %q, want %q", allowed, got, want)
		}
	}
}

func TestDevicesByCDI(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "vendor.json"), `{"cdiVersion":"0.6.0","kind":"vendor.com/class","devices":[
		{"name":"one","containerEdits":{"deviceNodes":[{"path":"/dev/vendor1","hostPath":"/dev/zero","type":"c","major":1,"minor":5}],"env":["ONE=1"]}},
		{"name":"two","containerEdits":{"env":["TWO=2"],"mounts":[{"hostPath":"/lib","containerPath":"/vendor/lib","options":["ro","bind"]}]}}]}`)
	registry, err := bundle.OpenDevices(dir)
	if err != nil {
		t.Fatal(err)
	}
	config := spec.PodContainerConfig{
		CDI: []string{"vendor.com/class=one"}, Annotations: map[string]string{"cdi.k8s.io/plugin_x": "vendor.com/class=two,vendor.com/class=one"},
	}
	in := podInput(t, config, func(in *bundle.PodInput) { in.Devices = registry })
	s, _, err := bundle.PodSpec(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if d := s.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/vendor1" || d[0].Minor != 5 {
		t.Errorf("devices %+v", d)
	}
	if rules := s.Linux.Resources.Devices; len(rules) != 2 || !rules[1].Allow || *rules[1].Minor != 5 {
		t.Errorf("rules %+v", rules)
	}
	if !slices.Contains(s.Process.Env, "ONE=1") || !slices.Contains(s.Process.Env, "TWO=2") {
		t.Errorf("environment %q", s.Process.Env)
	}
	if !slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/vendor/lib" }) {
		t.Error("no mount")
	}
	write(t, filepath.Join(dir, "later.yaml"), "cdiVersion: 0.6.0\nkind: later.com/class\ndevices:\n- name: x\n  containerEdits:\n    env: [\"X=1\"]\n")
	in.Container.Config.CDI = []string{"later.com/class=x"} // from a file written after the registry was opened
	if s, _, err = bundle.PodSpec(t.Context(), in); err != nil || !slices.Contains(s.Process.Env, "X=1") {
		t.Errorf("%v", err)
	}
	in.Container.Config.CDI = []string{"vendor.com/class=three"}
	_, _, err = bundle.PodSpec(t.Context(), in)
	wantKind(t, err, errs.Invalid)
}
