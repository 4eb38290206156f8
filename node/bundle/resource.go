package bundle

import (
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// minMemory is what a runtime needs to get a process going at all.
const minMemory = 6 << 20

// Resources are limits as runtimes take them, for a spec and for an update.
// Values are those of cgroup version 1, which every runtime converts for
// version 2. Limits that make no sense are errs.Invalid, those that this
// machine cannot keep errs.Unsupported.
func Resources(r spec.Resources, h Host) (*specs.LinuxResources, error) {
	var out specs.LinuxResources
	var err error
	if out.Memory, err = memory(r, h); err != nil {
		return nil, err
	}
	if out.CPU, err = cpu(r, h); err != nil {
		return nil, err
	}
	if out.BlockIO, err = blockIO(r, h); err != nil {
		return nil, err
	}
	if r.Pids != 0 {
		if err := need(h, "pids", "limit of processes"); err != nil {
			return nil, err
		}
		limit := max(r.Pids, -1)
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	return &out, nil
}

// need is the error of a limit whose controller is missing.
func need(h Host, controller, what string) error {
	if h.Controllers[controller] {
		return nil
	}
	return errs.New(errs.Unsupported, "%s: this machine has no %s cgroup", what, controller)
}

func memory(r spec.Resources, h Host) (*specs.LinuxMemory, error) {
	if r.Memory == 0 && r.MemoryReservation == 0 && r.MemorySwap == 0 && !r.OOMKillDisable {
		return nil, nil
	}
	if err := need(h, "memory", "memory limit"); err != nil {
		return nil, err
	}
	switch {
	case r.Memory < 0 || r.MemoryReservation < 0 || r.MemorySwap < -1:
		return nil, errs.New(errs.Invalid, "memory: limits cannot be negative")
	case r.Memory > 0 && r.Memory < minMemory:
		return nil, errs.New(errs.Invalid, "memory: %d bytes are too few, the least is %d", r.Memory, minMemory)
	case r.MemoryReservation > 0 && r.MemoryReservation < minMemory:
		return nil, errs.New(errs.Invalid, "memory reservation: %d bytes are too few, the least is %d", r.MemoryReservation, minMemory)
	case r.Memory > 0 && r.MemoryReservation > r.Memory:
		return nil, errs.New(errs.Invalid, "memory: the reservation is above the limit")
	case r.MemorySwap > 0 && r.Memory == 0:
		return nil, errs.New(errs.Invalid, "memory: a limit of swap needs a limit of memory")
	case r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return nil, errs.New(errs.Invalid, "memory: the limit of memory and swap together is below that of memory")
	case r.MemorySwap > 0 && !h.Swap:
		return nil, errs.New(errs.Unsupported, "memory: this kernel does not limit swap")
	case r.OOMKillDisable && h.Cgroup == 2:
		return nil, errs.New(errs.Unsupported, "memory: cgroup version 2 cannot keep the kernel from killing")
	}
	m := &specs.LinuxMemory{}
	if r.Memory > 0 {
		m.Limit = &r.Memory
		if h.Swap {
			swap := r.MemorySwap
			if swap == 0 {
				swap = 2 * r.Memory // as docker has it
			}
			m.Swap = &swap
		}
	} else if r.MemorySwap == -1 && h.Swap {
		m.Swap = &r.MemorySwap
	}
	if r.MemoryReservation > 0 {
		m.Reservation = &r.MemoryReservation
	}
	if r.OOMKillDisable {
		m.DisableOOMKiller = &r.OOMKillDisable
	}
	return m, nil
}

func cpu(r spec.Resources, h Host) (*specs.LinuxCPU, error) {
	c := specs.LinuxCPU{Cpus: r.CpusetCPUs, Mems: r.CpusetMems}
	switch {
	case r.NanoCPUs < 0 || r.CPUQuota < -1 || r.CPUPeriod < 0 || r.CPUShares < 0:
		return nil, errs.New(errs.Invalid, "cpu: limits cannot be negative")
	case r.NanoCPUs > 0 && (r.CPUQuota != 0 || r.CPUPeriod != 0):
		return nil, errs.New(errs.Invalid, "cpu: a number of CPUs and a quota or period exclude each other")
	case r.NanoCPUs > 0 && r.NanoCPUs > int64(len(h.CPUs))*1e9:
		return nil, errs.New(errs.Invalid, "cpu: %g CPUs are more than the %d that there are", float64(r.NanoCPUs)/1e9, len(h.CPUs))
	case r.NanoCPUs > 0 && r.NanoCPUs < 1e7:
		return nil, errs.New(errs.Invalid, "cpu: %g CPUs are too few, the least is 0.01", float64(r.NanoCPUs)/1e9)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return nil, errs.New(errs.Invalid, "cpu: a period of %d µs is not between 1000 and 1000000", r.CPUPeriod)
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return nil, errs.New(errs.Invalid, "cpu: a quota of %d µs is below 1000", r.CPUQuota)
	}
	if err := checkSet("cpu", r.CpusetCPUs, h.CPUs, h); err != nil {
		return nil, err
	}
	if err := checkSet("memory node", r.CpusetMems, h.Mems, h); err != nil {
		return nil, err
	}
	quota, period := r.CPUQuota, uint64(r.CPUPeriod)
	if r.NanoCPUs > 0 {
		period = 100000
		quota = r.NanoCPUs / 10000 // of 100000 µs
	}
	if quota != 0 {
		c.Quota = &quota
	}
	if period != 0 {
		c.Period = &period
	}
	if r.CPUShares > 0 {
		shares := min(max(uint64(r.CPUShares), 2), 262144)
		c.Shares = &shares
	}
	if c == (specs.LinuxCPU{}) {
		return nil, nil
	}
	if quota != 0 || period != 0 || c.Shares != nil {
		if err := need(h, "cpu", "cpu limit"); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

// checkSet checks a list such as 0-3,7 against what there is.
func checkSet(what, asked string, have []int, h Host) error {
	if asked == "" {
		return nil
	}
	list, err := parseList(asked)
	if err != nil {
		return errs.New(errs.Invalid, "%s set %q: %w", what, asked, err)
	}
	for _, n := range list {
		if !slices.Contains(have, n) {
			return errs.New(errs.Invalid, "%s set %q: there is no %s %d for containers on this machine", what, asked, what, n)
		}
	}
	return need(h, "cpuset", what+" set")
}

// parseList reads 0-3,7.
func parseList(text string) ([]int, error) {
	const most = 1 << 16
	var list []int
	for part := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		from, to, ranged := strings.Cut(part, "-")
		first, err := strconv.ParseUint(from, 10, 16)
		if err != nil {
			return nil, errs.New(errs.Invalid, "%q is not a list of numbers and ranges", text)
		}
		last := first
		if ranged {
			if last, err = strconv.ParseUint(to, 10, 16); err != nil || last < first {
				return nil, errs.New(errs.Invalid, "%q is not a list of numbers and ranges", text)
			}
		}
		if len(list)+int(last-first) > most {
			return nil, errs.New(errs.Invalid, "the list is too long")
		}
		for n := first; n <= last; n++ {
			list = append(list, int(n))
		}
	}
	return list, nil
}

func blockIO(r spec.Resources, h Host) (*specs.LinuxBlockIO, error) {
	var b specs.LinuxBlockIO
	any := false
	if r.BlkioWeight != 0 {
		if r.BlkioWeight < 10 || r.BlkioWeight > 1000 {
			return nil, errs.New(errs.Invalid, "blkio weight %d is not between 10 and 1000", r.BlkioWeight)
		}
		if !h.BlkioWeight {
			return nil, errs.New(errs.Unsupported, "blkio weight: this kernel does not weigh disk traffic")
		}
		b.Weight, any = &r.BlkioWeight, true
	}
	for _, list := range []struct {
		asked []spec.DeviceThrottle
		out   *[]specs.LinuxThrottleDevice
	}{
		{r.DeviceReadBps, &b.ThrottleReadBpsDevice},
		{r.DeviceWriteBps, &b.ThrottleWriteBpsDevice},
		{r.DeviceReadIOps, &b.ThrottleReadIOPSDevice},
		{r.DeviceWriteIOps, &b.ThrottleWriteIOPSDevice},
	} {
		for _, t := range list.asked {
			throttle, err := throttle(t)
			if err != nil {
				return nil, err
			}
			*list.out, any = append(*list.out, throttle), true
		}
	}
	if !any {
		return nil, nil
	}
	return &b, need(h, "io", "limit of disk traffic")
}

func throttle(t spec.DeviceThrottle) (specs.LinuxThrottleDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(t.Path, &st); err != nil {
		return specs.LinuxThrottleDevice{}, errs.New(errs.Invalid, "device %s: %w", t.Path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return specs.LinuxThrottleDevice{}, errs.New(errs.Invalid, "device %s: not a block device", t.Path)
	}
	if t.Rate > math.MaxInt64 {
		return specs.LinuxThrottleDevice{}, errs.New(errs.Invalid, "device %s: a rate of %d is too high", t.Path, t.Rate)
	}
	var out specs.LinuxThrottleDevice
	out.Major, out.Minor, out.Rate = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), t.Rate
	return out, nil
}
