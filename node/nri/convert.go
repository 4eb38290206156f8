package nri

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/spec"
)

// fromPod is a pod in the words of plugins.
func fromPod(pod spec.Pod) *api.PodSandbox {
	c := &pod.Config
	return &api.PodSandbox{
		Id: pod.ID, Name: c.Name, Namespace: c.Namespace, Uid: c.UID,
		Labels: notNil(c.Labels), Annotations: notNil(c.Annotations),
		RuntimeHandler: c.Handler, Ips: slices.Clone(pod.IPs),
		Linux: &api.LinuxPodSandbox{
			PodOverhead: fromLimits(c.Overhead), PodResources: fromLimits(c.Resources),
			CgroupParent: c.CgroupParent, Namespaces: podNamespaces(pod),
		},
	}
}

func notNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return maps.Clone(m)
}

func podNamespaces(pod spec.Pod) []*api.LinuxNamespace {
	var all []*api.LinuxNamespace
	for _, ns := range []struct {
		kind specs.LinuxNamespaceType
		path string
	}{
		{specs.NetworkNamespace, pod.NetNS},
		{specs.IPCNamespace, pod.IPCNS},
		{specs.UTSNamespace, pod.UTSNS},
		{specs.PIDNamespace, pod.PIDNS},
		{specs.UserNamespace, pod.UserNS},
	} {
		if ns.path != "" {
			all = append(all, &api.LinuxNamespace{Type: string(ns.kind), Path: ns.path})
		}
	}
	return all
}

// fromLimits has every value, 0 where none is set, as Kubernetes' own have.
func fromLimits(r *spec.PodResources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	all := &api.LinuxResources{
		Cpu: &api.LinuxCPU{
			Shares: api.UInt64(uint64(r.CPUShares)), Quota: api.Int64(r.CPUQuota), Period: api.UInt64(uint64(r.CPUPeriod)),
			Cpus: r.CPUs, Mems: r.Mems,
		},
		Memory:  &api.LinuxMemory{Limit: api.Int64(r.Memory)},
		Unified: maps.Clone(r.Unified),
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugePages)) {
		all.HugepageLimits = append(all.HugepageLimits, &api.HugepageLimit{PageSize: size, Limit: r.HugePages[size]})
	}
	return all
}

// fromContainer is a container in the words of plugins. oci may be nil.
func fromContainer(c spec.PodContainer, oci *specs.Spec) *api.Container {
	if oci == nil {
		oci = &specs.Spec{}
	}
	annotations := notNil(oci.Annotations)
	maps.Copy(annotations, c.Config.Annotations)
	told := &api.Container{
		Id: c.ID, PodSandboxId: c.Pod, Name: c.Config.Name,
		State:  containerState(c.State),
		Labels: notNil(c.Config.Labels), Annotations: annotations,
		Mounts: api.FromOCIMounts(oci.Mounts), Hooks: api.FromOCIHooks(oci.Hooks),
		Linux:     fromLinux(c, oci),
		Pid:       uint32(c.Pid),
		CreatedAt: unixNano(c.Created), StartedAt: unixNano(c.Started), FinishedAt: unixNano(c.Finished),
		ExitCode: int32(c.ExitCode), StatusReason: c.Reason, StatusMessage: c.Message,
		Image: &api.Image{Name: c.Config.Image, Digest: c.ImageRef, ConfigDigest: c.ImageID},
	}
	for _, name := range c.Config.CDI {
		told.CDIDevices = append(told.CDIDevices, &api.CDIDevice{Name: name})
	}
	if c.Config.UserImage != "" {
		told.Image.Name = c.Config.UserImage
	}
	if process := oci.Process; process != nil {
		told.Args, told.Env = slices.Clone(process.Args), slices.Clone(process.Env)
		told.User = &api.User{Uid: process.User.UID, Gid: process.User.GID, AdditionalGids: slices.Clone(process.User.AdditionalGids)}
		for _, l := range process.Rlimits {
			told.Rlimits = append(told.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
	}
	return told
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func containerState(s spec.State) api.ContainerState {
	switch s {
	case spec.Created:
		return api.ContainerState_CONTAINER_CREATED
	case spec.Running:
		return api.ContainerState_CONTAINER_RUNNING
	case spec.Paused:
		return api.ContainerState_CONTAINER_PAUSED
	case spec.Stopped, spec.Removing, spec.Dead:
		return api.ContainerState_CONTAINER_STOPPED
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}

func fromLinux(c spec.PodContainer, oci *specs.Spec) *api.LinuxContainer {
	told := &api.LinuxContainer{SeccompProfile: fromProfile(c.Config.Security.Seccomp), CgroupsPath: c.Cgroup}
	if process := oci.Process; process != nil {
		if process.OOMScoreAdj != nil {
			told.OomScoreAdj = api.Int(process.OOMScoreAdj)
		}
		told.IoPriority = api.FromOCILinuxIOPriority(process.IOPriority)
		if process.Scheduler != nil {
			told.Scheduler = api.FromOCILinuxScheduler(process.Scheduler)
		}
	}
	linux := oci.Linux
	if linux == nil {
		return told
	}
	told.Namespaces = api.FromOCILinuxNamespaces(linux.Namespaces)
	told.Devices = api.FromOCILinuxDevices(linux.Devices)
	told.Resources = api.FromOCILinuxResources(linux.Resources, nil)
	told.CgroupsPath = linux.CgroupsPath
	told.Sysctl = maps.Clone(linux.Sysctl)
	told.NetDevices = api.FromOCILinuxNetDevices(linux.NetDevices)
	if linux.Seccomp != nil {
		told.SeccompPolicy = api.FromOCILinuxSeccomp(linux.Seccomp)
	}
	if rdt := linux.IntelRdt; rdt != nil {
		told.Rdt = &api.LinuxRdt{
			ClosId: api.String(rdt.ClosID), Schemata: api.RepeatedString(rdt.Schemata), EnableMonitoring: api.Bool(rdt.EnableMonitoring),
		}
	}
	return told
}

func fromProfile(p *spec.SecurityProfile) *api.SecurityProfile {
	if p == nil {
		return nil
	}
	kind := api.SecurityProfile_RUNTIME_DEFAULT
	switch p.Type {
	case spec.ProfileUnconfined:
		kind = api.SecurityProfile_UNCONFINED
	case spec.ProfileLocalhost:
		kind = api.SecurityProfile_LOCALHOST
	}
	return &api.SecurityProfile{ProfileType: kind, LocalhostRef: p.Localhost}
}

// toLimits is limits with nothing in them that was not asked for.
func toLimits(r *api.LinuxResources) *specs.LinuxResources {
	limits := r.ToOCI()
	if *limits.CPU == (specs.LinuxCPU{}) {
		limits.CPU = nil
	}
	if *limits.Memory == (specs.LinuxMemory{}) {
		limits.Memory = nil
	}
	return limits
}

// mergeLimits sets in limits what plugins asked for.
func mergeLimits(limits *specs.LinuxResources, asked *api.LinuxResources) {
	if asked == nil {
		return
	}
	change := toLimits(asked)
	if from := change.CPU; from != nil {
		if limits.CPU == nil {
			limits.CPU = &specs.LinuxCPU{}
		}
		to := limits.CPU
		set(&to.Shares, from.Shares)
		set(&to.Quota, from.Quota)
		set(&to.Period, from.Period)
		set(&to.RealtimeRuntime, from.RealtimeRuntime)
		set(&to.RealtimePeriod, from.RealtimePeriod)
		to.Cpus, to.Mems = cmp.Or(from.Cpus, to.Cpus), cmp.Or(from.Mems, to.Mems)
	}
	if from := change.Memory; from != nil {
		if limits.Memory == nil {
			limits.Memory = &specs.LinuxMemory{}
		}
		to := limits.Memory
		set(&to.Limit, from.Limit)
		set(&to.Reservation, from.Reservation)
		set(&to.Swap, from.Swap)
		set(&to.Swappiness, from.Swappiness)
		set(&to.DisableOOMKiller, from.DisableOOMKiller)
	}
	if change.HugepageLimits != nil {
		limits.HugepageLimits = change.HugepageLimits
	}
	if change.Pids != nil {
		limits.Pids = change.Pids
	}
	if change.Unified != nil {
		limits.Unified = change.Unified
	}
}

func set[T any](to **T, from *T) {
	if from != nil {
		*to = from
	}
}
