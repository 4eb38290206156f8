package stats

import (
	"path/filepath"

	"berth/spec"
)

// tick is what cpuacct.stat counts in: a hundredth of a second, in nanoseconds.
const tick = 10_000_000

// readV1 reads a hierarchy for each controller.
func (r *Reader) readV1(s *spec.Stats, f *files, cgroup string) {
	at := func(controller, file string) []byte { return f.read(filepath.Join(r.root, controller, cgroup, file)) }

	s.CPU.Total = number(at("cpuacct", "cpuacct.usage"))
	usage := at("cpuacct", "cpuacct.stat")
	s.CPU.User, s.CPU.System = field(usage, "user")*tick, field(usage, "system")*tick
	throttled := at("cpu", "cpu.stat")
	s.CPU.ThrottledPeriods, s.CPU.ThrottledTime = field(throttled, "nr_throttled"), field(throttled, "throttled_time")

	used := number(at("memory", "memory.usage_in_bytes"))
	s.Memory.Limit = number(at("memory", "memory.limit_in_bytes"))
	s.Memory.OOMKills = field(at("memory", "memory.oom_control"), "oom_kill")
	mem := at("memory", "memory.stat")
	s.Memory.Usage = WithoutCache(used, field(mem, "total_inactive_file"))
	s.Memory.Cache, s.Memory.RSS = field(mem, "total_cache"), field(mem, "total_rss")
	s.Memory.MajorFault = field(mem, "total_pgmajfault")

	s.Pids.Current, s.Pids.Limit = number(at("pids", "pids.current")), number(at("pids", "pids.max"))

	s.IO.ReadBytes, s.IO.WriteBytes = blkio(at("blkio", "blkio.throttle.io_service_bytes_recursive"))
	s.IO.Reads, s.IO.Writes = blkio(at("blkio", "blkio.throttle.io_serviced_recursive"))
}

// readV2 reads the one hierarchy.
func (r *Reader) readV2(s *spec.Stats, f *files, cgroup string) {
	at := func(file string) []byte { return f.read(filepath.Join(r.root, cgroup, file)) }

	cpu := at("cpu.stat")
	s.CPU.Total = field(cpu, "usage_usec") * 1000
	s.CPU.User, s.CPU.System = field(cpu, "user_usec")*1000, field(cpu, "system_usec")*1000
	s.CPU.ThrottledPeriods, s.CPU.ThrottledTime = field(cpu, "nr_throttled"), field(cpu, "throttled_usec")*1000

	used := number(at("memory.current"))
	s.Memory.Limit = number(at("memory.max"))
	s.Memory.OOMKills = field(at("memory.events"), "oom_kill")
	mem := at("memory.stat")
	s.Memory.Usage = WithoutCache(used, field(mem, "inactive_file"))
	s.Memory.Cache, s.Memory.RSS = field(mem, "file"), field(mem, "anon")
	s.Memory.MajorFault = field(mem, "pgmajfault")

	s.Pids.Current, s.Pids.Limit = number(at("pids.current")), number(at("pids.max"))
	s.IO.ReadBytes, s.IO.WriteBytes, s.IO.Reads, s.IO.Writes = ioStat(at("io.stat"))
}

// WithoutCache is the memory that a cgroup really needs: what it uses less
// the file pages that the kernel would drop first.
func WithoutCache(used, inactiveFile uint64) uint64 {
	if inactiveFile < used {
		return used - inactiveFile
	}
	return used
}
