package nri

import (
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
)

// adjust changes a spec as plugins asked.
func adjust(oci *specs.Spec, asked *api.ContainerAdjustment, devices Devices) error {
	fill(oci)
	g := generate.SpecGenerator(editor{oci},
		generate.WithCDIDeviceInjector(func(s *specs.Spec, names []string) error {
			if devices == nil {
				return errs.New(errs.Unsupported, "CDI devices: there is no registry of them")
			}
			return devices.Inject(s, names)
		}),
		generate.WithBlockIOResolver(func(class string) (*specs.LinuxBlockIO, error) {
			return nil, errs.New(errs.Unsupported, "class %q of block I/O: there are none", class)
		}),
		generate.WithRdtResolver(func(class string) (*specs.LinuxIntelRdt, error) {
			return &specs.LinuxIntelRdt{ClosID: class}, nil
		}),
	)
	if err := g.Adjust(asked); err != nil {
		return err
	}
	settleRlimits(oci, asked.GetRlimits())
	return nil
}

// dropRemoved drops variables and devices that plugins removed: these are gone
// from what the library made of the request, and the adjustments that it
// answers with do not name them.
func dropRemoved(oci *specs.Spec, left *api.Container) {
	kept := map[string]bool{}
	for _, variable := range left.GetEnv() {
		kept[variableName(variable)] = true
	}
	for _, device := range left.GetLinux().GetDevices() {
		kept[device.GetPath()] = true
	}
	if oci.Process != nil {
		oci.Process.Env = slices.DeleteFunc(oci.Process.Env, func(v string) bool { return !kept[variableName(v)] })
	}
	if oci.Linux != nil {
		oci.Linux.Devices = slices.DeleteFunc(oci.Linux.Devices, func(d specs.LinuxDevice) bool { return !kept[d.Path] })
	}
}

func variableName(variable string) string {
	name, _, _ := strings.Cut(variable, "=")
	return name
}

// fill makes what the generator writes into.
func fill(oci *specs.Spec) {
	if oci.Process == nil {
		oci.Process = &specs.Process{}
	}
	if oci.Linux == nil {
		oci.Linux = &specs.Linux{}
	}
	if oci.Annotations == nil {
		oci.Annotations = map[string]string{}
	}
}

// settleRlimits has a plugin's limit replace the one that was there: the library
// puts it behind, and a runtime refuses two of one kind.
func settleRlimits(oci *specs.Spec, asked []*api.POSIXRlimit) {
	if len(asked) == 0 {
		return
	}
	last := map[string]specs.POSIXRlimit{}
	var kinds []string
	for _, l := range oci.Process.Rlimits {
		if _, twice := last[l.Type]; !twice {
			kinds = append(kinds, l.Type)
		}
		last[l.Type] = l
	}
	oci.Process.Rlimits = nil
	for _, kind := range kinds {
		oci.Process.Rlimits = append(oci.Process.Rlimits, last[kind])
	}
}

// editor is the simple changes that the library's generator is made of.
type editor struct{ oci *specs.Spec }

func (e editor) Spec() *specs.Spec { return e.oci }

func (e editor) resources() *specs.LinuxResources {
	if e.oci.Linux.Resources == nil {
		e.oci.Linux.Resources = &specs.LinuxResources{}
	}
	return e.oci.Linux.Resources
}

func (e editor) cpu() *specs.LinuxCPU {
	if e.resources().CPU == nil {
		e.resources().CPU = &specs.LinuxCPU{}
	}
	return e.resources().CPU
}

func (e editor) memory() *specs.LinuxMemory {
	if e.resources().Memory == nil {
		e.resources().Memory = &specs.LinuxMemory{}
	}
	return e.resources().Memory
}

func (e editor) hooks() *specs.Hooks {
	if e.oci.Hooks == nil {
		e.oci.Hooks = &specs.Hooks{}
	}
	return e.oci.Hooks
}

func (e editor) AddAnnotation(key, value string) { e.oci.Annotations[key] = value }
func (e editor) RemoveAnnotation(key string)     { delete(e.oci.Annotations, key) }

func (e editor) AddDevice(device specs.LinuxDevice) {
	e.RemoveDevice(device.Path)
	e.oci.Linux.Devices = append(e.oci.Linux.Devices, device)
}

func (e editor) RemoveDevice(path string) {
	e.oci.Linux.Devices = slices.DeleteFunc(e.oci.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == path })
}

func (e editor) AddOrReplaceLinuxNamespace(kind, path string) error {
	ns := specs.LinuxNamespace{Type: specs.LinuxNamespaceType(kind), Path: path}
	switch ns.Type {
	case specs.PIDNamespace, specs.NetworkNamespace, specs.MountNamespace, specs.IPCNamespace,
		specs.UTSNamespace, specs.UserNamespace, specs.CgroupNamespace, specs.TimeNamespace:
	default:
		return errs.New(errs.Invalid, "namespace %q: there is no such kind", kind)
	}
	if err := e.RemoveLinuxNamespace(kind); err != nil {
		return err
	}
	e.oci.Linux.Namespaces = append(e.oci.Linux.Namespaces, ns)
	return nil
}

func (e editor) RemoveLinuxNamespace(kind string) error {
	e.oci.Linux.Namespaces = slices.DeleteFunc(e.oci.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.LinuxNamespaceType(kind)
	})
	return nil
}

func (e editor) AddPreStartHook(h specs.Hook) {
	e.hooks().Prestart = append(e.hooks().Prestart, h) //nolint:staticcheck // deprecated, and still asked for
}

func (e editor) AddPostStartHook(h specs.Hook) { e.hooks().Poststart = append(e.hooks().Poststart, h) }

func (e editor) AddPostStopHook(h specs.Hook) { e.hooks().Poststop = append(e.hooks().Poststop, h) }

func (e editor) AddProcessEnv(name, value string) {
	process := e.oci.Process
	process.Env = slices.DeleteFunc(process.Env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	process.Env = append(process.Env, name+"="+value)
}

func (e editor) ClearProcessEnv() { e.oci.Process.Env = nil }

func (e editor) AddLinuxResourcesDevice(allow bool, kind string, major, minor *int64, access string) {
	r := e.resources()
	r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access})
}

func (e editor) AddLinuxResourcesHugepageLimit(size string, limit uint64) {
	r := e.resources()
	r.HugepageLimits = slices.DeleteFunc(r.HugepageLimits, func(l specs.LinuxHugepageLimit) bool { return l.Pagesize == size })
	r.HugepageLimits = append(r.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
}

func (e editor) AddLinuxResourcesUnified(key, value string) {
	if e.resources().Unified == nil {
		e.resources().Unified = map[string]string{}
	}
	e.resources().Unified[key] = value
}

func (e editor) AddMount(m specs.Mount) { e.oci.Mounts = append(e.oci.Mounts, m) }
func (e editor) ClearMounts()           { e.oci.Mounts = nil }
func (e editor) Mounts() []specs.Mount  { return e.oci.Mounts }
func (e editor) RemoveMount(target string) {
	e.oci.Mounts = slices.DeleteFunc(e.oci.Mounts, func(m specs.Mount) bool { return m.Destination == target })
}

func (e editor) AddLinuxSysctl(key, value string) {
	if e.oci.Linux.Sysctl == nil {
		e.oci.Linux.Sysctl = map[string]string{}
	}
	e.oci.Linux.Sysctl[key] = value
}
func (e editor) RemoveLinuxSysctl(key string) { delete(e.oci.Linux.Sysctl, key) }

func (e editor) SetProcessArgs(args []string)    { e.oci.Process.Args = args }
func (e editor) SetProcessOOMScoreAdj(adj int)   { e.oci.Process.OOMScoreAdj = &adj }
func (e editor) SetLinuxCgroupsPath(path string) { e.oci.Linux.CgroupsPath = path }

func (e editor) SetLinuxResourcesCPUCpus(cpus string)             { e.cpu().Cpus = cpus }
func (e editor) SetLinuxResourcesCPUMems(mems string)             { e.cpu().Mems = mems }
func (e editor) SetLinuxResourcesCPUPeriod(period uint64)         { e.cpu().Period = &period }
func (e editor) SetLinuxResourcesCPUQuota(quota int64)            { e.cpu().Quota = &quota }
func (e editor) SetLinuxResourcesCPURealtimePeriod(period uint64) { e.cpu().RealtimePeriod = &period }

func (e editor) SetLinuxResourcesCPURealtimeRuntime(runtime int64) {
	e.cpu().RealtimeRuntime = &runtime
}
func (e editor) SetLinuxResourcesCPUShares(shares uint64) { e.cpu().Shares = &shares }
func (e editor) SetLinuxResourcesMemoryLimit(limit int64) { e.memory().Limit = &limit }

// SetLinuxResourcesMemorySwap moves a limit that is there: the library has swap
// follow memory always, and a kernel without such limits would refuse a new one.
func (e editor) SetLinuxResourcesMemorySwap(swap int64) {
	if e.memory().Swap != nil {
		e.memory().Swap = &swap
	}
}

func (e editor) SetLinuxRootPropagation(p string) error {
	e.oci.Linux.RootfsPropagation = p
	return nil
}
