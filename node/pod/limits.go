package pod

import (
	"cmp"
	"reflect"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/node/bundle"
	"berth/spec"
)

// limitsOf is limits in the words of Kubernetes.
func limitsOf(r *specs.LinuxResources) spec.PodResources {
	var all spec.PodResources
	if r == nil {
		return all
	}
	if c := r.CPU; c != nil {
		all.CPUPeriod, all.CPUQuota, all.CPUShares = int64(valueOf(c.Period)), valueOf(c.Quota), int64(valueOf(c.Shares))
		all.CPUs, all.Mems = c.Cpus, c.Mems
	}
	if m := r.Memory; m != nil {
		all.Memory, all.MemorySwap = valueOf(m.Limit), valueOf(m.Swap)
	}
	for _, h := range r.HugepageLimits {
		if all.HugePages == nil {
			all.HugePages = map[string]uint64{}
		}
		all.HugePages[h.Pagesize] = h.Limit
	}
	all.Unified = r.Unified
	return all
}

func valueOf[T cmp.Ordered](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// changed lays over have what plugins have made of limits that were before.
func changed(have, before spec.PodResources, limits *specs.LinuxResources) spec.PodResources {
	if now := limitsOf(limits); !reflect.DeepEqual(now, before) {
		return bundle.MergeResources(have, now)
	}
	return have
}
