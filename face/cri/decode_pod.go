package cri

import (
	"maps"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
	"berth/spec"
)

// podConfig reads what a client asks of a pod.
func podConfig(c *cri.PodSandboxConfig, handler string) (spec.PodConfig, error) {
	meta := c.GetMetadata()
	if meta.GetName() == "" || meta.GetUid() == "" || meta.GetNamespace() == "" {
		return spec.PodConfig{}, errs.New(errs.Invalid, "a pod needs metadata: a name, a namespace and a uid")
	}
	linux := c.GetLinux()
	config := spec.PodConfig{
		Name: meta.GetName(), Namespace: meta.GetNamespace(), UID: meta.GetUid(), Attempt: meta.GetAttempt(),
		Hostname: c.GetHostname(), LogDir: c.GetLogDirectory(), DNS: dns(c.GetDnsConfig()),
		Labels: maps.Clone(c.GetLabels()), Annotations: maps.Clone(c.GetAnnotations()), Handler: handler,
		CgroupParent: linux.GetCgroupParent(), Sysctls: maps.Clone(linux.GetSysctls()),
		Overhead: resourcesOrNil(linux.GetOverhead()), Resources: resourcesOrNil(linux.GetResources()),
	}
	var err error
	if config.Ports, err = ports(c.GetPortMappings()); err != nil {
		return config, err
	}
	config.Security, err = podSecurity(linux.GetSecurityContext())
	return config, err
}

// dns is nil where nothing is said: the pod then has what the node has.
func dns(c *cri.DNSConfig) *spec.PodDNS {
	if len(c.GetServers())+len(c.GetSearches())+len(c.GetOptions()) == 0 {
		return nil
	}
	return &spec.PodDNS{Servers: slices.Clone(c.GetServers()), Searches: slices.Clone(c.GetSearches()), Options: slices.Clone(c.GetOptions())}
}

func ports(all []*cri.PortMapping) ([]spec.PodPort, error) {
	var read []spec.PodPort
	for _, p := range all {
		protocol, known := map[cri.Protocol]string{cri.Protocol_TCP: "tcp", cri.Protocol_UDP: "udp", cri.Protocol_SCTP: "sctp"}[p.GetProtocol()]
		if !known {
			return nil, errs.New(errs.Invalid, "port %d: there is no protocol %d", p.GetContainerPort(), p.GetProtocol())
		}
		if !isPort(p.GetHostPort()) || !isPort(p.GetContainerPort()) {
			return nil, errs.New(errs.Invalid, "port %d of the pod on port %d of the host: ports are 1 to 65535", p.GetContainerPort(), p.GetHostPort())
		}
		read = append(read, spec.PodPort{HostIP: p.GetHostIp(), HostPort: int(p.GetHostPort()), ContainerPort: int(p.GetContainerPort()), Protocol: protocol})
	}
	return read, nil
}

func isPort(n int32) bool { return n >= 0 && n <= 65535 }

func podSecurity(c *cri.LinuxSandboxSecurityContext) (s spec.PodSecurity, err error) {
	s = spec.PodSecurity{
		User: number(c.GetRunAsUser()), Group: number(c.GetRunAsGroup()),
		Groups:       slices.Clone(c.GetSupplementalGroups()),
		StrictGroups: c.GetSupplementalGroupsPolicy() == cri.SupplementalGroupsPolicy_Strict,
		Privileged:   c.GetPrivileged(), ReadOnlyRoot: c.GetReadonlyRootfs(), SELinux: selinux(c.GetSelinuxOptions()),
	}
	if s.Group != nil && s.User == nil {
		return s, errs.New(errs.Invalid, "run_as_group without run_as_user")
	}
	if s.Namespaces, err = namespaces(c.GetNamespaceOptions()); err != nil {
		return s, err
	}
	if s.Namespaces.Network == spec.NamespaceContainer || s.Namespaces.IPC == spec.NamespaceContainer || s.Namespaces.PID == spec.NamespaceTarget {
		return s, errs.New(errs.Invalid, "a pod's namespaces are its own or the node's")
	}
	if s.Seccomp, err = profile("seccomp", c.GetSeccomp(), c.GetSeccompProfilePath()); err != nil { //nolint:staticcheck // older clients still send it
		return s, err
	}
	s.AppArmor, err = profile("apparmor", c.GetApparmor(), "")
	return s, err
}

func number(v *cri.Int64Value) *int64 {
	if v == nil {
		return nil
	}
	n := v.GetValue()
	return &n
}

func selinux(o *cri.SELinuxOption) *spec.SELinuxLabel {
	if o == nil {
		return nil
	}
	return &spec.SELinuxLabel{User: o.GetUser(), Role: o.GetRole(), Type: o.GetType(), Level: o.GetLevel()}
}

// modes are those of namespaces, in both directions.
var modes = map[cri.NamespaceMode]spec.NamespaceMode{
	cri.NamespaceMode_POD:       spec.NamespacePod,
	cri.NamespaceMode_CONTAINER: spec.NamespaceContainer,
	cri.NamespaceMode_NODE:      spec.NamespaceNode,
	cri.NamespaceMode_TARGET:    spec.NamespaceTarget,
}

func namespaces(o *cri.NamespaceOption) (n spec.PodNamespaces, err error) {
	n.Network, n.PID, n.IPC, n.Target = modes[o.GetNetwork()], modes[o.GetPid()], modes[o.GetIpc()], o.GetTargetId()
	switch {
	case n.Network == "" || n.PID == "" || n.IPC == "":
		return n, errs.New(errs.Invalid, "namespaces: there is no such mode: %v", o)
	case n.Network == spec.NamespaceTarget || n.IPC == spec.NamespaceTarget:
		return n, errs.New(errs.Invalid, "only the processes of another container can be seen, not its network or its IPC")
	case n.PID == spec.NamespaceTarget && n.Target == "":
		return n, errs.New(errs.Invalid, "whose processes are to be seen: target_id is empty")
	}
	n.User, err = userNamespace(o.GetUsernsOptions())
	return n, err
}

// userNamespace is nil for that of the node.
func userNamespace(u *cri.UserNamespace) (*spec.PodUserNamespace, error) {
	if u == nil {
		return nil, nil
	}
	switch u.GetMode() {
	case cri.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) > 0 {
			return nil, errs.New(errs.Invalid, "user namespace of the node: it maps no ids")
		}
		return nil, nil
	case cri.NamespaceMode_POD:
	default:
		return nil, errs.New(errs.Invalid, "user namespace: mode %s: want POD or NODE", u.GetMode())
	}
	own := &spec.PodUserNamespace{Mode: spec.NamespacePod, UIDs: mappings(u.GetUids()), GIDs: mappings(u.GetGids())}
	if len(own.UIDs) != 1 || len(own.GIDs) != 1 {
		return nil, errs.New(errs.Invalid, "user namespace of a pod: want one mapping of uids and one of gids, got %d and %d", len(own.UIDs), len(own.GIDs))
	}
	if own.UIDs[0] != own.GIDs[0] {
		return nil, errs.New(errs.Invalid, "user namespace of a pod: uids and gids are to be mapped alike: %v and %v", own.UIDs[0], own.GIDs[0])
	}
	return own, nil
}

func mappings(all []*cri.IDMapping) []spec.IDMapping {
	var read []spec.IDMapping
	for _, m := range all {
		read = append(read, spec.IDMapping{Container: m.GetContainerId(), Host: m.GetHostId(), Length: m.GetLength()})
	}
	return read
}

// profile reads a profile of seccomp or of AppArmor. old is how earlier clients
// say it, where nothing else is said. Nothing at all is nil.
func profile(what string, p *cri.SecurityProfile, old string) (*spec.SecurityProfile, error) {
	if p == nil {
		return oldProfile(what, old)
	}
	switch p.GetProfileType() {
	case cri.SecurityProfile_RuntimeDefault:
		return &spec.SecurityProfile{Type: spec.ProfileDefault}, nil
	case cri.SecurityProfile_Unconfined:
		return &spec.SecurityProfile{Type: spec.ProfileUnconfined}, nil
	case cri.SecurityProfile_Localhost:
		if p.GetLocalhostRef() == "" {
			return nil, errs.New(errs.Invalid, "%s: which profile of this machine: localhost_ref is empty", what)
		}
		// Some clients write the type into the name too.
		return &spec.SecurityProfile{Type: spec.ProfileLocalhost, Localhost: strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")}, nil
	}
	return nil, errs.New(errs.Invalid, "%s: there is no type of profiles %d", what, p.GetProfileType())
}

func oldProfile(what, old string) (*spec.SecurityProfile, error) {
	switch old {
	case "":
		return nil, nil
	case "runtime/default", "docker/default":
		return &spec.SecurityProfile{Type: spec.ProfileDefault}, nil
	case "unconfined":
		return &spec.SecurityProfile{Type: spec.ProfileUnconfined}, nil
	}
	if name, ok := strings.CutPrefix(old, "localhost/"); ok && name != "" {
		return &spec.SecurityProfile{Type: spec.ProfileLocalhost, Localhost: name}, nil
	}
	return nil, errs.New(errs.Invalid, "%s: %q is no profile", what, old)
}

func resourcesOrNil(r *cri.LinuxContainerResources) *spec.PodResources {
	if r == nil {
		return nil
	}
	read := resources(r)
	return &read
}

func resources(r *cri.LinuxContainerResources) spec.PodResources {
	read := spec.PodResources{
		CPUPeriod: r.GetCpuPeriod(), CPUQuota: r.GetCpuQuota(), CPUShares: r.GetCpuShares(),
		CPUs: r.GetCpusetCpus(), Mems: r.GetCpusetMems(),
		Memory: r.GetMemoryLimitInBytes(), MemorySwap: r.GetMemorySwapLimitInBytes(), OOMScoreAdj: r.GetOomScoreAdj(),
		Unified: maps.Clone(r.GetUnified()),
	}
	for _, h := range r.GetHugepageLimits() {
		if read.HugePages == nil {
			read.HugePages = map[string]uint64{}
		}
		read.HugePages[h.GetPageSize()] = h.GetLimit()
	}
	return read
}
