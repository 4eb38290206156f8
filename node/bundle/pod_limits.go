package bundle

import (
	"maps"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

// LinuxResources are a container's limits as runtimes take them, for a new
// spec and for one that runs. Values are those of cgroup version 1, which
// every runtime converts for version 2. Whoever asks for memory and names no
// swap gets none.
func LinuxResources(r spec.PodResources, h Host) (*specs.LinuxResources, error) {
	var out specs.LinuxResources
	var err error
	if out.CPU, err = podCPU(r); err != nil {
		return nil, err
	}
	if out.Memory, err = podMemory(r, h); err != nil {
		return nil, err
	}
	if h.Controllers["hugetlb"] { // as Kubernetes has it, a machine without it is no reason to fail
		for _, size := range slices.Sorted(maps.Keys(r.HugePages)) {
			out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: r.HugePages[size]})
		}
	}
	if len(r.Unified) > 0 {
		if h.Cgroup != 2 {
			return nil, errs.New(errs.Unsupported, "limits by files of cgroup version 2: this machine has version 1")
		}
		for name := range r.Unified {
			if name != filepath.Base(name) || name == "." || name == ".." {
				return nil, errs.New(errs.Invalid, "limit %q is not a file of the container's cgroup", name)
			}
		}
		out.Unified = maps.Clone(r.Unified)
	}
	return &out, nil
}

func podCPU(r spec.PodResources) (*specs.LinuxCPU, error) {
	switch {
	case r.CPUPeriod < 0 || r.CPUQuota < -1 || r.CPUShares < 0:
		return nil, errs.New(errs.Invalid, "cpu: limits cannot be negative")
	case r.CPUShares == 0 && r.CPUPeriod == 0 && r.CPUQuota == 0 && r.CPUs == "" && r.Mems == "":
		return nil, nil
	}
	for _, set := range []string{r.CPUs, r.Mems} {
		if set == "" {
			continue
		}
		if _, err := parseList(set); err != nil {
			return nil, errs.New(errs.Invalid, "cpu: %w", err)
		}
	}
	c := specs.LinuxCPU{Cpus: r.CPUs, Mems: r.Mems}
	if r.CPUShares != 0 {
		shares := min(max(uint64(r.CPUShares), 2), 262144)
		c.Shares = &shares
	}
	if r.CPUPeriod != 0 {
		period := uint64(r.CPUPeriod)
		c.Period = &period
	}
	if r.CPUQuota != 0 {
		c.Quota = &r.CPUQuota
	}
	return &c, nil
}

func podMemory(r spec.PodResources, h Host) (*specs.LinuxMemory, error) {
	switch {
	case r.Memory < 0 || r.MemorySwap < -1:
		return nil, errs.New(errs.Invalid, "memory: limits cannot be negative")
	case r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return nil, errs.New(errs.Invalid, "memory: the limit of memory and swap together is below that of memory")
	case r.Memory == 0 && (r.MemorySwap == 0 || !h.Swap):
		return nil, nil
	}
	m := specs.LinuxMemory{}
	if r.Memory > 0 {
		m.Limit = &r.Memory
	}
	if h.Swap {
		swap := r.MemorySwap
		if swap == 0 {
			swap = r.Memory
		}
		m.Swap = &swap
	}
	return &m, nil
}

// Merge changes the limits of a spec; those that r does not name stay.
func Merge(s *specs.Spec, r spec.PodResources, h Host) error {
	with, err := LinuxResources(r, h)
	if err != nil {
		return err
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	have := s.Linux.Resources
	if c := with.CPU; c != nil {
		if have.CPU == nil {
			have.CPU = &specs.LinuxCPU{}
		}
		replace(&have.CPU.Shares, c.Shares)
		replace(&have.CPU.Period, c.Period)
		replace(&have.CPU.Quota, c.Quota)
		have.CPU.Cpus, have.CPU.Mems = firstOf(c.Cpus, have.CPU.Cpus), firstOf(c.Mems, have.CPU.Mems)
	}
	if m := with.Memory; m != nil {
		if have.Memory == nil {
			have.Memory = &specs.LinuxMemory{}
		}
		replace(&have.Memory.Limit, m.Limit)
		replace(&have.Memory.Swap, m.Swap)
	}
	for _, l := range with.HugepageLimits {
		have.HugepageLimits = slices.DeleteFunc(have.HugepageLimits, func(old specs.LinuxHugepageLimit) bool { return old.Pagesize == l.Pagesize })
		have.HugepageLimits = append(have.HugepageLimits, l)
	}
	have.Unified = overlay(have.Unified, with.Unified)
	if r.OOMScoreAdj != 0 && s.Process != nil {
		score := oomScore(int(r.OOMScoreAdj), h)
		s.Process.OOMScoreAdj = &score
	}
	return nil
}

// replace sets what is named.
func replace[T any](have **T, with *T) {
	if with != nil {
		*have = with
	}
}

func overlay[V any](have, with map[string]V) map[string]V {
	if len(with) == 0 {
		return have
	}
	all := maps.Clone(have)
	if all == nil {
		all = map[string]V{}
	}
	maps.Copy(all, with)
	return all
}

// MergeResources is what a container has after its limits were changed: what
// a status shows.
func MergeResources(have, with spec.PodResources) spec.PodResources {
	pick := func(old *int64, v int64) {
		if v != 0 {
			*old = v
		}
	}
	if with.Memory != 0 && with.MemorySwap == 0 {
		have.MemorySwap = 0
	}
	pick(&have.CPUPeriod, with.CPUPeriod)
	pick(&have.CPUQuota, with.CPUQuota)
	pick(&have.CPUShares, with.CPUShares)
	pick(&have.Memory, with.Memory)
	pick(&have.MemorySwap, with.MemorySwap)
	pick(&have.OOMScoreAdj, with.OOMScoreAdj)
	have.CPUs, have.Mems = firstOf(with.CPUs, have.CPUs), firstOf(with.Mems, have.Mems)
	have.HugePages = overlay(have.HugePages, with.HugePages)
	have.Unified = overlay(have.Unified, with.Unified)
	return have
}
