package cri

import (
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/spec"
)

// podConfigShown is what a client asked of a pod, in its own words.
func podConfigShown(c spec.PodConfig) *cri.PodSandboxConfig {
	shown := &cri.PodSandboxConfig{
		Metadata: podMetadata(c), Hostname: c.Hostname, LogDirectory: c.LogDir, Labels: c.Labels, Annotations: c.Annotations,
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: c.CgroupParent, Sysctls: c.Sysctls, SecurityContext: podSecurityShown(c.Security)},
	}
	if c.DNS != nil {
		shown.DnsConfig = &cri.DNSConfig{Servers: c.DNS.Servers, Searches: c.DNS.Searches, Options: c.DNS.Options}
	}
	for _, p := range c.Ports {
		shown.PortMappings = append(shown.PortMappings, &cri.PortMapping{
			Protocol: cri.Protocol(cri.Protocol_value[strings.ToUpper(p.Protocol)]), HostIp: p.HostIP,
			HostPort: int32(p.HostPort), ContainerPort: int32(p.ContainerPort), //nolint:gosec // checked when they came
		})
	}
	if c.Overhead != nil {
		shown.Linux.Overhead = resourcesShown(*c.Overhead)
	}
	if c.Resources != nil {
		shown.Linux.Resources = resourcesShown(*c.Resources)
	}
	return shown
}

func podSecurityShown(s spec.PodSecurity) *cri.LinuxSandboxSecurityContext {
	return &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: namespacesShown(s.Namespaces), SelinuxOptions: selinuxShown(s.SELinux),
		RunAsUser: numberShown(s.User), RunAsGroup: numberShown(s.Group), SupplementalGroups: s.Groups,
		SupplementalGroupsPolicy: policyShown(s.StrictGroups), ReadonlyRootfs: s.ReadOnlyRoot, Privileged: s.Privileged,
		Seccomp: profileShown(s.Seccomp), Apparmor: profileShown(s.AppArmor),
	}
}

// containerConfigShown is what a client asked of a container.
func containerConfigShown(c spec.PodContainerConfig) *cri.ContainerConfig {
	shown := &cri.ContainerConfig{
		Metadata: containerMetadata(c), Image: &cri.ImageSpec{Image: c.Image, UserSpecifiedImage: c.UserImage},
		Command: c.Command, Args: c.Args, WorkingDir: c.WorkDir, Labels: c.Labels, Annotations: c.Annotations, LogPath: c.LogPath,
		Stdin: c.Stdin, StdinOnce: c.StdinOnce, Tty: c.TTY,
		Linux: &cri.LinuxContainerConfig{Resources: resourcesShown(c.Resources), SecurityContext: containerSecurityShown(c.Security)},
	}
	if c.StopSignal != "" {
		shown.StopSignal = signalShown(c.StopSignal)
	}
	for _, e := range c.Env {
		key, value, _ := strings.Cut(e, "=")
		shown.Envs = append(shown.Envs, &cri.KeyValue{Key: key, Value: []byte(value)})
	}
	for _, m := range c.Mounts {
		shown.Mounts = append(shown.Mounts, mountShown(m))
	}
	for _, d := range c.Devices {
		shown.Devices = append(shown.Devices, &cri.Device{HostPath: d.Host, ContainerPath: d.Container, Permissions: d.Permissions})
	}
	for _, name := range c.CDI {
		shown.CDIDevices = append(shown.CDIDevices, &cri.CDIDevice{Name: name})
	}
	return shown
}

func containerSecurityShown(s spec.PodSecurity) *cri.LinuxContainerSecurityContext {
	shown := &cri.LinuxContainerSecurityContext{
		Privileged: s.Privileged, NamespaceOptions: namespacesShown(s.Namespaces), SelinuxOptions: selinuxShown(s.SELinux),
		RunAsUser: numberShown(s.User), RunAsGroup: numberShown(s.Group), RunAsUsername: s.UserName, SupplementalGroups: s.Groups,
		SupplementalGroupsPolicy: policyShown(s.StrictGroups), ReadonlyRootfs: s.ReadOnlyRoot, NoNewPrivs: s.NoNewPrivileges,
		MaskedPaths: slices.Clone(s.MaskedPaths), ReadonlyPaths: slices.Clone(s.ReadOnlyPaths),
		Seccomp: profileShown(s.Seccomp), Apparmor: profileShown(s.AppArmor),
	}
	if c := s.Capabilities; c != nil {
		shown.Capabilities = &cri.Capability{AddCapabilities: c.Add, DropCapabilities: c.Drop, AddAmbientCapabilities: c.Ambient}
	}
	return shown
}

func numberShown(n *int64) *cri.Int64Value {
	if n == nil {
		return nil
	}
	return &cri.Int64Value{Value: *n}
}

func selinuxShown(l *spec.SELinuxLabel) *cri.SELinuxOption {
	if l == nil {
		return nil
	}
	return &cri.SELinuxOption{User: l.User, Role: l.Role, Type: l.Type, Level: l.Level}
}

func policyShown(strict bool) cri.SupplementalGroupsPolicy {
	if strict {
		return cri.SupplementalGroupsPolicy_Strict
	}
	return cri.SupplementalGroupsPolicy_Merge
}

func profileShown(p *spec.SecurityProfile) *cri.SecurityProfile {
	if p == nil {
		return nil
	}
	types := map[string]cri.SecurityProfile_ProfileType{
		spec.ProfileDefault: cri.SecurityProfile_RuntimeDefault, spec.ProfileUnconfined: cri.SecurityProfile_Unconfined, spec.ProfileLocalhost: cri.SecurityProfile_Localhost,
	}
	return &cri.SecurityProfile{ProfileType: types[p.Type], LocalhostRef: p.Localhost}
}
