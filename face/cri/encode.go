package cri

import (
	"maps"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/spec"
)

func namespacesShown(n spec.PodNamespaces) *cri.NamespaceOption {
	shown := &cri.NamespaceOption{Network: modeShown(n.Network), Pid: modeShown(n.PID), Ipc: modeShown(n.IPC), TargetId: n.Target}
	if n.User != nil {
		shown.UsernsOptions = &cri.UserNamespace{Mode: modeShown(n.User.Mode), Uids: mappingsShown(n.User.UIDs), Gids: mappingsShown(n.User.GIDs)}
	}
	return shown
}

func modeShown(mode spec.NamespaceMode) cri.NamespaceMode {
	for shown, is := range modes {
		if is == mode {
			return shown
		}
	}
	return cri.NamespaceMode_POD
}

func mappingsShown(all []spec.IDMapping) []*cri.IDMapping {
	var shown []*cri.IDMapping
	for _, m := range all {
		shown = append(shown, &cri.IDMapping{ContainerId: m.Container, HostId: m.Host, Length: m.Length})
	}
	return shown
}

func mountShown(m spec.PodMount) *cri.Mount {
	shown := &cri.Mount{
		ContainerPath: m.Target, HostPath: m.Source, Readonly: m.ReadOnly, RecursiveReadOnly: m.RecursiveReadOnly, SelinuxRelabel: m.Relabel,
		UidMappings: mappingsShown(m.UIDs), GidMappings: mappingsShown(m.GIDs), ImageSubPath: m.ImageSubPath, MountOptions: m.Options,
	}
	for propagation, is := range propagations {
		if is == m.Propagation {
			shown.Propagation = propagation
		}
	}
	if m.Image != "" {
		shown.Image = &cri.ImageSpec{Image: m.Image, ImageRef: m.Image}
	}
	return shown
}

func resourcesShown(r spec.PodResources) *cri.LinuxContainerResources {
	shown := &cri.LinuxContainerResources{
		CpuPeriod: r.CPUPeriod, CpuQuota: r.CPUQuota, CpuShares: r.CPUShares, CpusetCpus: r.CPUs, CpusetMems: r.Mems,
		MemoryLimitInBytes: r.Memory, MemorySwapLimitInBytes: r.MemorySwap, OomScoreAdj: r.OOMScoreAdj, Unified: r.Unified,
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugePages)) {
		shown.HugepageLimits = append(shown.HugepageLimits, &cri.HugepageLimit{PageSize: size, Limit: r.HugePages[size]})
	}
	return shown
}
