package cli

import (
	"fmt"

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
	for _, flag := range []struct {
		name, text string
		read       func(string) (int64, error)
		into       *int64
	}{
		{"memory", r.memory, option.Bytes, &out.Memory},
		{"memory-reservation", r.memoryReservation, option.Bytes, &out.MemoryReservation},
		{"memory-swap", r.memorySwap, option.SwapBytes, &out.MemorySwap},
		{"cpus", r.cpus, option.NanoCPUs, &out.NanoCPUs},
	} {
		n, err := flag.read(flag.text)
		if err != nil {
			return spec.Resources{}, fmt.Errorf("--%s: %w", flag.name, err)
		}
		*flag.into = n
	}
	return out, nil
}
