package cli

import (
	"github.com/spf13/pflag"

	"berth/cli/option"
	"berth/spec"
)

// resourceFlags are the limits that run, create and update take.
type resourceFlags struct {
	memory, memoryReservation, memorySwap string
	cpus, cpusetCPUs, cpusetMems          string
	cpuShares, cpuPeriod, cpuQuota, pids  int64
	blkioWeight                           uint16
}

func (r *resourceFlags) add(flags *pflag.FlagSet) {
	flags.StringVarP(&r.memory, "memory", "m", "", "most memory, as in 512m")
	flags.StringVar(&r.memoryReservation, "memory-reservation", "", "memory kept when it gets scarce, as in 256m")
	flags.StringVar(&r.memorySwap, "memory-swap", "", "most memory and swap together; -1 for no limit")
	flags.StringVar(&r.cpus, "cpus", "", "number of CPUs, as in 1.5")
	flags.Int64VarP(&r.cpuShares, "cpu-shares", "c", 0, "weight against other containers; 1024 is usual")
	flags.Int64Var(&r.cpuPeriod, "cpu-period", 0, "microseconds of a scheduler period")
	flags.Int64Var(&r.cpuQuota, "cpu-quota", 0, "microseconds of CPU in each period")
	flags.StringVar(&r.cpusetCPUs, "cpuset-cpus", "", "CPUs to run on, as in 0-3 or 0,1")
	flags.StringVar(&r.cpusetMems, "cpuset-mems", "", "memory nodes to use, as in 0-3 or 0,1")
	flags.Int64Var(&r.pids, "pids-limit", 0, "most processes and threads; -1 for no limit")
	flags.Uint16Var(&r.blkioWeight, "blkio-weight", 0, "weight of disk traffic, 10 to 1000")
}

func (r *resourceFlags) resources() (spec.Resources, error) {
	out := spec.Resources{
		CPUShares: r.cpuShares, CPUPeriod: r.cpuPeriod, CPUQuota: r.cpuQuota,
		CpusetCPUs: r.cpusetCPUs, CpusetMems: r.cpusetMems,
		Pids: r.pids, BlkioWeight: r.blkioWeight,
	}
	var err error
	for _, step := range []func(){
		func() { out.Memory, err = option.Bytes(r.memory) },
		func() { out.MemoryReservation, err = option.Bytes(r.memoryReservation) },
		func() { out.MemorySwap, err = option.SwapBytes(r.memorySwap) },
		func() { out.NanoCPUs, err = option.NanoCPUs(r.cpus) },
	} {
		if step(); err != nil {
			return spec.Resources{}, err
		}
	}
	return out, nil
}
