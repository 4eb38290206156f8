package stats

import (
	"bytes"
	"path/filepath"
)

// usageV2 reads the one hierarchy.
func (p *Pass) usageV2(u *Usage, cgroup string, want Parts) {
	at := p.f.in(filepath.Join(p.r.root, cgroup))
	if want&(Basic|Finer) != 0 {
		each(at("cpu.stat"), func(key []byte, n uint64) {
			switch string(key) {
			case "usage_usec":
				u.CPU.Total = n * 1000
			case "user_usec":
				u.CPU.User = n * 1000
			case "system_usec":
				u.CPU.System = n * 1000
			case "nr_periods":
				u.CPU.Periods = n
			case "nr_throttled":
				u.CPU.Throttled = n
			case "throttled_usec":
				u.CPU.ThrottledTime = n * 1000
			}
		})
		p.memoryV2(u, at, want)
	}
	if want&Finer != 0 {
		u.Tasks.Usage = level(at("pids.current"))
	}
	if want&(Finer|Settings) == Finer|Settings {
		u.CPU.Shares = sharesOf(number(at("cpu.weight")))
		quota, period, _ := bytes.Cut(bytes.TrimSpace(at("cpu.max")), []byte(" "))
		u.CPU.Quota, u.CPU.Period = number(quota), number(period)
		u.Tasks.Limit = unbounded(at("pids.max"))
	}
	if want&Disks != 0 {
		u.IO = devicesV2(at("io.stat"))
	}
	if want&Pages != 0 {
		for _, size := range p.r.pages {
			if now := at("hugetlb." + size + ".current"); now != nil {
				u.Huge = append(u.Huge, PageUsage{Size: size, Usage: level(now), Peak: level(at("hugetlb." + size + ".peak"))})
			}
		}
	}
}

func (p *Pass) memoryV2(u *Usage, at func(string) []byte, want Parts) {
	m := &u.Memory
	m.Usage = number(at("memory.current"))
	inactive := uint64(0)
	each(at("memory.stat"), func(key []byte, n uint64) {
		switch string(key) {
		case "anon":
			m.RSS = n
		case "file":
			m.Cache = n
		case "file_mapped":
			m.Mapped = n
		case "inactive_file":
			inactive = n
		case "kernel":
			m.Kernel = n
		case "pgfault":
			m.Faults, m.OwnFaults = n, n
		case "pgmajfault":
			m.MajorFaults, m.OwnMajorFaults = n, n
		}
	})
	m.WorkingSet = WithoutCache(m.Usage, inactive)
	m.Swap = number(at("memory.swap.current"))
	if want&Settings != 0 {
		m.Limit = number(at("memory.max"))
		m.SwapLimit, m.SwapLimited = digits(at("memory.swap.max"))
	}
	if want&Finer == 0 {
		return
	}
	m.Peak = number(at("memory.peak"))
	each(at("memory.events"), func(key []byte, n uint64) {
		switch string(key) {
		case "max":
			m.Failures = n
		case "oom_kill":
			m.OOMKills = n
		}
	})
	if want&Settings == 0 {
		return
	}
	if m.Reservation = number(at("memory.low")); m.Reservation == 0 {
		m.Reservation = number(at("memory.min"))
	}
}

// sharesOf is the share of version 1 that a weight of version 2 is read as, by
// the line that Kubernetes draws between the two.
func sharesOf(weight uint64) uint64 {
	if weight == 0 {
		return 0
	}
	return 2 + (weight-1)*262142/9999
}
