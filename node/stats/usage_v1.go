package stats

import (
	"path/filepath"
	"strings"
)

// usageV1 reads a hierarchy for each controller.
func (p *Pass) usageV1(u *Usage, cgroup string, want Parts) {
	r, f := p.r, p.f
	// A folder is opened only where many of its files are read.
	in := func(controller string) func(string) []byte { return f.in(filepath.Join(r.root, controller, cgroup)) }
	below := func(controller string) func(string) []byte { return f.below(r.root, controller, cgroup) }
	if want&(Basic|Finer) != 0 {
		at := below("cpuacct")
		u.CPU.Total = number(at("cpuacct.usage"))
		if want&Finer != 0 {
			each(at("cpuacct.stat"), func(key []byte, n uint64) {
				switch string(key) {
				case "user":
					u.CPU.User = n * tick
				case "system":
					u.CPU.System = n * tick
				}
			})
			p.quotaV1(u, in("cpu"), want)
		}
		p.memoryV1(u, in("memory"), want)
	}
	if want&Finer != 0 {
		at := below("pids")
		u.Tasks.Usage = level(at("pids.current"))
		if want&Settings != 0 {
			u.Tasks.Limit = unbounded(at("pids.max"))
		}
	}
	if want&Disks != 0 {
		at := below("blkio")
		u.IO = devicesV1(at("blkio.throttle.io_service_bytes_recursive"), u.IO, (*DeviceUsage).addBytes)
		if len(u.IO) > 0 { // else nothing was moved
			u.IO = devicesV1(at("blkio.throttle.io_serviced_recursive"), u.IO, (*DeviceUsage).addMoves)
		}
	}
	if want&Pages != 0 && len(r.pages) > 0 {
		at := below("hugetlb")
		for _, size := range r.pages {
			if !p.usesPages(cgroup, size) {
				u.Huge = append(u.Huge, PageUsage{Size: size})
				continue
			}
			if peak := at("hugetlb." + size + ".max_usage_in_bytes"); peak != nil {
				one := PageUsage{Size: size, Peak: level(peak)}
				if one.Peak > 0 {
					one.Usage = level(at("hugetlb." + size + ".usage_in_bytes"))
				}
				u.Huge = append(u.Huge, one)
			}
		}
	}
}

// usesPages says whether anybody below the cgroup at the top has ever used huge
// pages. Where nobody has, which is usual, it need not be asked of each one.
func (p *Pass) usesPages(cgroup, size string) bool {
	top, below, _ := strings.Cut(strings.TrimPrefix(cgroup, "/"), "/")
	if below == "" {
		return true
	}
	file := filepath.Join(p.r.root, "hugetlb", top, "hugetlb."+size+".max_usage_in_bytes")
	used, known := p.paged[file]
	if !known {
		peak := p.f.read(file)
		used = peak == nil || level(peak) > 0
		if p.paged == nil {
			p.paged = map[string]bool{}
		}
		p.paged[file] = used
	}
	return used
}

func (p *Pass) quotaV1(u *Usage, at func(string) []byte, want Parts) {
	each(at("cpu.stat"), func(key []byte, n uint64) {
		switch string(key) {
		case "nr_periods":
			u.CPU.Periods = n
		case "nr_throttled":
			u.CPU.Throttled = n
		case "throttled_time":
			u.CPU.ThrottledTime = n
		}
	})
	if want&Settings == 0 {
		return
	}
	u.CPU.Shares, u.CPU.Period = number(at("cpu.shares")), number(at("cpu.cfs_period_us"))
	u.CPU.Quota = number(at("cpu.cfs_quota_us")) // -1, which is no number, for none
}

func (p *Pass) memoryV1(u *Usage, at func(string) []byte, want Parts) {
	m := &u.Memory
	m.Usage = number(at("memory.usage_in_bytes"))
	inactive := uint64(0)
	each(at("memory.stat"), func(key []byte, n uint64) {
		switch string(key) {
		case "total_rss":
			m.RSS = n
		case "total_cache":
			m.Cache = n
		case "total_mapped_file":
			m.Mapped = n
		case "total_swap":
			m.Swap = n
		case "total_inactive_file":
			inactive = n
		case "total_pgfault":
			m.Faults = n
		case "total_pgmajfault":
			m.MajorFaults = n
		case "pgfault":
			m.OwnFaults = n
		case "pgmajfault":
			m.OwnMajorFaults = n
		}
	})
	m.WorkingSet = WithoutCache(m.Usage, inactive)
	if want&Settings != 0 {
		m.Limit, m.SwapLimit = number(at("memory.limit_in_bytes")), number(at("memory.memsw.limit_in_bytes"))
	}
	if want&Finer == 0 {
		return
	}
	m.Kernel, m.Peak = number(at("memory.kmem.usage_in_bytes")), number(at("memory.max_usage_in_bytes"))
	m.Failures, m.OOMKills = number(at("memory.failcnt")), field(at("memory.oom_control"), "oom_kill")
	if want&Settings != 0 {
		m.Reservation = number(at("memory.soft_limit_in_bytes"))
	}
}
