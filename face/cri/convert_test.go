package cri

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
)

func int64Value(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }

func someResources() *cri.LinuxContainerResources {
	return &cri.LinuxContainerResources{
		CpuPeriod: 1, CpuQuota: 2, CpuShares: 3, MemoryLimitInBytes: 4, OomScoreAdj: 5, CpusetCpus: "0-1", CpusetMems: "0",
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "1GB", Limit: 6}, {PageSize: "2MB", Limit: 7}},
		Unified:        map[string]string{"memory.high": "8"}, MemorySwapLimitInBytes: 9,
	}
}

func someNamespaces() *cri.NamespaceOption {
	ids := []*cri.IDMapping{{HostId: 1, ContainerId: 2, Length: 3}}
	return &cri.NamespaceOption{
		Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_NODE,
		UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids},
	}
}

// somePod has a value in every field that means something on Linux.
func somePod() *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "web", Uid: "u", Namespace: "shop", Attempt: 2},
		Hostname: "host", LogDirectory: "/logs", DnsConfig: &cri.DNSConfig{Servers: []string{"1.1.1.1"}, Searches: []string{"a"}, Options: []string{"b"}},
		PortMappings: []*cri.PortMapping{{Protocol: cri.Protocol_SCTP, ContainerPort: 80, HostPort: 8080, HostIp: "127.0.0.1"}},
		Labels:       map[string]string{"l": "1"}, Annotations: map[string]string{"a": "2"},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/kube", Sysctls: map[string]string{"net.x": "1"}, Overhead: someResources(), Resources: someResources(),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: someNamespaces(), SelinuxOptions: &cri.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "l"},
				RunAsUser: int64Value(1), RunAsGroup: int64Value(2), ReadonlyRootfs: true, SupplementalGroups: []int64{3},
				SupplementalGroupsPolicy: cri.SupplementalGroupsPolicy_Strict, Privileged: true,
				Seccomp:  &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/p.json"},
				Apparmor: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined},
			},
		},
	}
}

func someContainer() *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main", Attempt: 3}, Image: &cri.ImageSpec{Image: "sha256:1", UserSpecifiedImage: "busybox"},
		Command: []string{"c"}, Args: []string{"a"}, WorkingDir: "/w", Envs: []*cri.KeyValue{{Key: "K", Value: []byte("v=w")}},
		Mounts: []*cri.Mount{
			{
				ContainerPath: "/a", HostPath: "/b", Readonly: true, RecursiveReadOnly: true, SelinuxRelabel: true, MountOptions: []string{"noexec", "nodev", "nosuid"},
				UidMappings: []*cri.IDMapping{{HostId: 1, ContainerId: 2, Length: 3}}, GidMappings: []*cri.IDMapping{{HostId: 4, ContainerId: 5, Length: 6}},
			},
			{ContainerPath: "/c", HostPath: "/d", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL},
			{ContainerPath: "/i", Image: &cri.ImageSpec{Image: "sha256:2", ImageRef: "sha256:2"}, ImageSubPath: "etc", Readonly: true},
		},
		Devices: []*cri.Device{{ContainerPath: "/dev/a", HostPath: "/dev/b", Permissions: "rw"}}, CDIDevices: []*cri.CDIDevice{{Name: "v/c=n"}},
		Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "2"}, LogPath: "main/0.log", Stdin: true, StdinOnce: true, Tty: true,
		StopSignal: cri.Signal_SIGNAL_SIGRTMINPLUS15,
		Linux: &cri.LinuxContainerConfig{Resources: someResources(), SecurityContext: &cri.LinuxContainerSecurityContext{
			Capabilities: &cri.Capability{AddCapabilities: []string{"A"}, DropCapabilities: []string{"D"}, AddAmbientCapabilities: []string{"B"}},
			Privileged:   true, NamespaceOptions: someNamespaces(), SelinuxOptions: &cri.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "l"},
			RunAsUser: int64Value(1), RunAsGroup: int64Value(2), RunAsUsername: "n", ReadonlyRootfs: true, SupplementalGroups: []int64{3},
			SupplementalGroupsPolicy: cri.SupplementalGroupsPolicy_Strict, NoNewPrivs: true, MaskedPaths: []string{"/m"}, ReadonlyPaths: []string{"/r"},
			Seccomp:  &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
			Apparmor: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "p"},
		}},
	}
}

// What a client says is kept, every field of it.
func TestConfigsComeBack(t *testing.T) {
	pod, err := podConfig(somePod(), "runc")
	if err != nil {
		t.Fatal(err)
	}
	if back := podConfigShown(pod); !proto.Equal(back, somePod()) || pod.Handler != "runc" {
		t.Errorf("pod:\n got %v\nwant %v", back, somePod())
	}
	container, err := containerConfig(someContainer())
	if err != nil {
		t.Fatal(err)
	}
	if back := containerConfigShown(container); !proto.Equal(back, someContainer()) {
		t.Errorf("container:\n got %v\nwant %v", back, someContainer())
	}
}

// The messages above leave nothing out: a field that the CRI gains fails here.
func TestConfigsAreWhole(t *testing.T) {
	without := map[protoreflect.FullName]bool{}
	for _, name := range []protoreflect.FullName{
		"PodSandboxConfig.windows", "ContainerConfig.windows", // of another system
		"LinuxSandboxSecurityContext.seccomp_profile_path", "LinuxContainerSecurityContext.seccomp_profile_path", // older than what is there
		"LinuxContainerSecurityContext.apparmor_profile",
		"ImageSpec.annotations", "ImageSpec.runtime_handler", // of pulls
		"NamespaceOption.target_id", // goes with TARGET only
	} {
		without["runtime.v1."+name] = true
	}
	said, all := map[protoreflect.FullName]bool{}, map[protoreflect.FullName]bool{}
	var walk func(protoreflect.Message)
	walk = func(m protoreflect.Message) {
		fields := m.Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			all[f.FullName()] = true
			if f.Enum() != nil || m.Has(f) { // a zero of an enumeration says something too
				said[f.FullName()] = true
			}
			if !m.Has(f) || f.Message() == nil || f.IsMap() {
				continue
			}
			if f.IsList() {
				for n := range m.Get(f).List().Len() {
					walk(m.Get(f).List().Get(n).Message())
				}
				continue
			}
			walk(m.Get(f).Message())
		}
	}
	walk(somePod().ProtoReflect())
	walk(someContainer().ProtoReflect())
	for name := range all {
		if said[name] == without[name] {
			t.Errorf("%s: said %v, left out on purpose %v", name, said[name], without[name])
		}
	}
}

func TestRefusedPods(t *testing.T) {
	for name, spoil := range map[string]func(*cri.PodSandboxConfig){
		"no name":      func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" },
		"no uid":       func(c *cri.PodSandboxConfig) { c.Metadata.Uid = "" },
		"port":         func(c *cri.PodSandboxConfig) { c.PortMappings[0].HostPort = 70000 },
		"protocol":     func(c *cri.PodSandboxConfig) { c.PortMappings[0].Protocol = 9 },
		"group alone":  func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.RunAsUser = nil },
		"own network":  func(c *cri.PodSandboxConfig) { options(c).Network = cri.NamespaceMode_CONTAINER },
		"unknown mode": func(c *cri.PodSandboxConfig) { options(c).Pid = 9 },
		"target":       func(c *cri.PodSandboxConfig) { options(c).Pid = cri.NamespaceMode_TARGET },
		"two mappings": func(c *cri.PodSandboxConfig) { u := options(c).UsernsOptions; u.Uids = append(u.Uids, u.Uids[0]) },
		"unlike mappings": func(c *cri.PodSandboxConfig) {
			options(c).UsernsOptions.Gids = []*cri.IDMapping{{HostId: 9, Length: 3}}
		},
		"mapped node":   func(c *cri.PodSandboxConfig) { options(c).UsernsOptions.Mode = cri.NamespaceMode_NODE },
		"userns of one": func(c *cri.PodSandboxConfig) { options(c).UsernsOptions.Mode = cri.NamespaceMode_CONTAINER },
		"nameless":      func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Seccomp.LocalhostRef = "" },
		"type":          func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Seccomp.ProfileType = 9 },
	} {
		c := somePod()
		spoil(c)
		if _, err := podConfig(c, ""); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := podConfig(nil, ""); errs.KindOf(err) != errs.Invalid {
		t.Error("no config:", err)
	}
	c, err := podConfig(&cri.PodSandboxConfig{Metadata: somePod().GetMetadata(), DnsConfig: &cri.DNSConfig{}}, "")
	if err != nil || c.DNS != nil || c.Security.Namespaces.PID != "pod" || c.Security.Seccomp != nil || c.Resources != nil {
		t.Errorf("a pod of which little is said: %+v, %v", c, err)
	}
}

func options(c *cri.PodSandboxConfig) *cri.NamespaceOption {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func TestRefusedContainers(t *testing.T) {
	for name, spoil := range map[string]func(*cri.ContainerConfig){
		"no name":          func(c *cri.ContainerConfig) { c.Metadata = nil },
		"no image":         func(c *cri.ContainerConfig) { c.Image = nil },
		"log outside":      func(c *cri.ContainerConfig) { c.LogPath = "../other.log" },
		"env":              func(c *cri.ContainerConfig) { c.Envs[0].Key = "A=B" },
		"signal":           func(c *cri.ContainerConfig) { c.StopSignal = 99 },
		"group alone":      func(c *cri.ContainerConfig) { s := c.Linux.SecurityContext; s.RunAsUser, s.RunAsUsername = nil, "" },
		"nowhere":          func(c *cri.ContainerConfig) { c.Mounts[1].ContainerPath = "" },
		"nothing":          func(c *cri.ContainerConfig) { c.Mounts[1].HostPath = "" },
		"both":             func(c *cri.ContainerConfig) { c.Mounts[2].HostPath = "/x" },
		"nameless image":   func(c *cri.ContainerConfig) { c.Mounts[2].Image.Image = "" },
		"writable image":   func(c *cri.ContainerConfig) { c.Mounts[2].Readonly = false },
		"sub path of path": func(c *cri.ContainerConfig) { c.Mounts[1].ImageSubPath = "x" },
		"propagation":      func(c *cri.ContainerConfig) { c.Mounts[1].Propagation = 9 },
		"rro, writable":    func(c *cri.ContainerConfig) { c.Mounts[0].Readonly = false },
		"rro, propagated": func(c *cri.ContainerConfig) {
			c.Mounts[0].Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		},
		"option": func(c *cri.ContainerConfig) { c.Mounts[0].MountOptions = []string{"suid"} },
		"old seccomp": func(c *cri.ContainerConfig) {
			s := c.Linux.SecurityContext
			s.Seccomp, s.SeccompProfilePath = nil, "what" //nolint:staticcheck // older clients
		},
		"NUL in the folder":  func(c *cri.ContainerConfig) { c.WorkingDir = "/a\x00b" },
		"NUL in the command": func(c *cri.ContainerConfig) { c.Command = []string{"sh\x00"} },
		"NUL in a variable":  func(c *cri.ContainerConfig) { c.Envs[0].Value = []byte{0} },
		"NUL in a mount":     func(c *cri.ContainerConfig) { c.Mounts[1].HostPath = "/\x00" },
		"IPC of its own one": func(c *cri.ContainerConfig) { c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_TARGET },
	} {
		c := someContainer()
		spoil(c)
		if _, err := containerConfig(c); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOldProfiles(t *testing.T) {
	for said, want := range map[string]string{
		"": "", "runtime/default": "default", "docker/default": "default", "unconfined": "unconfined", "localhost//a/b.json": "localhost /a/b.json", "localhost/name": "localhost name",
	} {
		p, err := profile("seccomp", nil, said)
		got := ""
		if p != nil {
			if got = p.Type; p.Localhost != "" {
				got += " " + p.Localhost
			}
		}
		if err != nil || got != want {
			t.Errorf("%q is %q, %v; want %q", said, got, err, want)
		}
	}
}

func TestSignals(t *testing.T) {
	for number := range cri.Signal_name {
		name, err := signal(cri.Signal(number))
		want := cri.Signal(number)
		if want == cri.Signal_SIGNAL_RUNTIME_DEFAULT {
			want = cri.Signal_SIGNAL_SIGTERM
		}
		if got := signalShown(name); err != nil || got != want {
			t.Errorf("%v is %q and then %v, %v", cri.Signal(number), name, got, err)
		}
	}
	for name, want := range map[string]cri.Signal{"quit": cri.Signal_SIGNAL_SIGQUIT, "SIGRTMIN+3": cri.Signal_SIGNAL_SIGRTMINPLUS3, "SIGNONE": 0} {
		if got := signalShown(name); got != want {
			t.Errorf("%s is %v", name, got)
		}
	}
}
