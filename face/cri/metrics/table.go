package metrics

import (
	"strconv"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/node/stats"
	"berth/spec"
)

// metric is one that kubelet is told of, under the name that cAdvisor made
// known. Values are whole numbers: the interface carries no others.
type metric struct {
	name, help string
	kind       cri.MetricType
	extra      []string // labels besides those that all have
	of         subjects
	tell       func(x *subject, say func(value uint64, extra ...string))
}

// subjects are who a metric is about.
type subjects uint

const (
	container subjects = 1 << iota
	wholePod           // its cgroup
	podNetwork
)

// labels that all metrics have. Of a pod as a whole the name and the image are
// empty, and so is the container but for its network's, where it is POD: so
// cAdvisor had it, and so people's queries expect it.
func labels() []string {
	return []string{"id", "name", "image", "container", "pod", "namespace"}
}

func (m *metric) keys() []string { return append(labels(), m.extra...) }

// subject is what metrics are about: a container that runs, a pod's cgroup, or
// a pod's network.
type subject struct {
	*reading
	container spec.PodContainer
	written   layer
	disk      disk
	network   traffic
	meter     *stats.Reader
}

// metrics are all that this kernel has values for.
func (s *Service) metrics() []metric {
	all := cpuMetrics()
	for _, some := range [][]metric{
		memoryMetrics(), processMetrics(), diskMetrics(), networkMetrics(), lifeMetrics(), limitMetrics(s.Meter.Unified()),
	} {
		all = append(all, some...)
	}
	if s.Meter.Pressure() {
		all = append(all, pressureMetrics()...)
	}
	if len(s.Meter.HugePages()) > 0 {
		all = append(all, hugeMetrics()...)
	}
	return all
}

func counter(name, help string, of subjects, value func(x *subject) uint64) metric {
	return metric{"container_" + name, help, cri.MetricType_COUNTER, nil, of, func(x *subject, say func(uint64, ...string)) { say(value(x)) }}
}

func gauge(name, help string, of subjects, value func(x *subject) uint64) metric {
	m := counter(name, help, of, value)
	m.kind = cri.MetricType_GAUGE
	return m
}

const both = container | wholePod

func seconds(nanoseconds uint64) uint64 { return nanoseconds / uint64(time.Second) }

func cpuMetrics() []metric {
	return []metric{
		counter("cpu_usage_seconds_total", "CPU time used, in seconds.", both, func(x *subject) uint64 { return seconds(x.CPU.Total) }),
		counter("cpu_user_seconds_total", "CPU time used in user mode, in seconds.", both, func(x *subject) uint64 { return seconds(x.CPU.User) }),
		counter("cpu_system_seconds_total", "CPU time used in the kernel, in seconds.", both, func(x *subject) uint64 { return seconds(x.CPU.System) }),
		counter("cpu_cfs_periods_total", "Periods of the CPU quota that have passed.", both, func(x *subject) uint64 { return x.CPU.Periods }),
		counter("cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up.", both, func(x *subject) uint64 { return x.CPU.Throttled }),
		counter("cpu_cfs_throttled_seconds_total", "Time spent waiting for the next period of the CPU quota, in seconds.", both, func(x *subject) uint64 { return seconds(x.CPU.ThrottledTime) }),
	}
}

func memoryMetrics() []metric {
	return []metric{
		gauge("memory_usage_bytes", "Memory in use, page cache included.", both, func(x *subject) uint64 { return x.Memory.Usage }),
		gauge("memory_working_set_bytes", "Memory in use, without page cache that can be dropped.", both, func(x *subject) uint64 { return x.Memory.WorkingSet }),
		gauge("memory_max_usage_bytes", "The most memory that was ever in use.", both, func(x *subject) uint64 { return x.Memory.Peak }),
		gauge("memory_cache", "Bytes of page cache.", both, func(x *subject) uint64 { return x.Memory.Cache }),
		gauge("memory_rss", "Bytes of anonymous memory, transparent huge pages included.", both, func(x *subject) uint64 { return x.Memory.RSS }),
		gauge("memory_swap", "Bytes that are swapped out.", both, func(x *subject) uint64 { return x.Memory.Swap }),
		gauge("memory_mapped_file", "Bytes of files that are mapped.", both, func(x *subject) uint64 { return x.Memory.Mapped }),
		gauge("memory_kernel_usage", "Bytes that the kernel uses for it.", both, func(x *subject) uint64 { return x.Memory.Kernel }),
		counter("memory_failcnt", "How often its memory was at its limit.", both, func(x *subject) uint64 { return x.Memory.Failures }),
		{
			"container_memory_failures_total", "Page faults, minor and major, with those of the cgroups below (hierarchy) and without (container).",
			cri.MetricType_COUNTER,
			[]string{"failure_type", "scope"},
			both,
			func(x *subject, say func(uint64, ...string)) {
				say(x.Memory.OwnFaults, "pgfault", "container")
				say(x.Memory.OwnMajorFaults, "pgmajfault", "container")
				say(x.Memory.Faults, "pgfault", "hierarchy")
				say(x.Memory.MajorFaults, "pgmajfault", "hierarchy")
			},
		},
		counter("oom_events_total", "Processes that were killed for lack of memory.", both, func(x *subject) uint64 { return x.Memory.OOMKills }),
	}
}

func processMetrics() []metric {
	return []metric{
		gauge("processes", "Processes.", container, func(x *subject) uint64 { return x.Processes.Count }),
		gauge("threads", "Threads.", both, func(x *subject) uint64 { return x.Tasks.Usage }),
		gauge("threads_max", "Limit of threads; 0 for none.", both, func(x *subject) uint64 { return x.Tasks.Limit }),
		gauge("file_descriptors", "Open file descriptors.", container, func(x *subject) uint64 { return x.Processes.Files }),
		gauge("sockets", "Open sockets.", container, func(x *subject) uint64 { return x.Processes.Sockets }),
		{
			"container_ulimits_soft", "Soft limits of the first process.", cri.MetricType_GAUGE,
			[]string{"ulimit"},
			container,
			func(x *subject, say func(uint64, ...string)) { say(x.Processes.FilesLimit, "max_open_files") },
		},
		{
			"container_tasks_state", "Processes in each state that any is in.", cri.MetricType_GAUGE,
			[]string{"state"},
			container,
			func(x *subject, say func(uint64, ...string)) {
				in := func(n uint64, state string) {
					if n > 0 {
						say(n, state)
					}
				}
				s := x.Processes.States
				in(s.Running, "running")
				in(s.Sleeping, "sleeping")
				in(s.Waiting, "uninterruptible")
				in(s.Stopped, "stopped")
				in(s.Zombie, "zombie")
			},
		},
	}
}

// perDevice is a counter for each block device. One that has done nothing for
// the container is not in the kernel's list, so that of its writable layer
// stands in.
func perDevice(name, help string, value func(d stats.DeviceUsage) uint64) metric {
	return metric{"container_" + name, help, cri.MetricType_COUNTER, []string{"device"}, container, func(x *subject, say func(uint64, ...string)) {
		for _, d := range x.devices() {
			say(value(d), x.meter.DeviceName(d.Major, d.Minor))
		}
	}}
}

func (x *subject) devices() []stats.DeviceUsage {
	if len(x.IO) > 0 {
		return x.IO
	}
	return []stats.DeviceUsage{{Major: x.disk.Major, Minor: x.disk.Minor}}
}

const sector = 512

func diskMetrics() []metric {
	onDisk := func(name, help string, value func(x *subject) uint64) metric {
		return metric{"container_" + name, help, cri.MetricType_GAUGE, []string{"device"}, container, func(x *subject, say func(uint64, ...string)) {
			say(value(x), x.disk.Device)
		}}
	}
	return []metric{
		onDisk("fs_inodes_free", "Free inodes of the file system that its root is on.", func(x *subject) uint64 { return x.disk.InodesFree }),
		onDisk("fs_inodes_total", "Inodes of the file system that its root is on.", func(x *subject) uint64 { return x.disk.Inodes }),
		onDisk("fs_limit_bytes", "Size of the file system that its root is on.", func(x *subject) uint64 { return x.disk.Size }),
		{
			"container_fs_usage_bytes", "Bytes that it has written into its root file system.", cri.MetricType_GAUGE,
			[]string{"device"},
			container,
			func(x *subject, say func(uint64, ...string)) {
				if !x.written.at.IsZero() {
					say(uint64(x.written.Size), x.disk.Device) //nolint:gosec // a count
				}
			},
		},
		perDevice("fs_reads_bytes_total", "Bytes read from block devices.", func(d stats.DeviceUsage) uint64 { return d.ReadBytes }),
		perDevice("fs_reads_total", "Reads from block devices.", func(d stats.DeviceUsage) uint64 { return d.Reads }),
		perDevice("fs_sector_reads_total", "Sectors read from block devices.", func(d stats.DeviceUsage) uint64 { return d.ReadBytes / sector }),
		perDevice("fs_writes_bytes_total", "Bytes written to block devices.", func(d stats.DeviceUsage) uint64 { return d.WriteBytes }),
		perDevice("fs_writes_total", "Writes to block devices.", func(d stats.DeviceUsage) uint64 { return d.Writes }),
		perDevice("fs_sector_writes_total", "Sectors written to block devices.", func(d stats.DeviceUsage) uint64 { return d.WriteBytes / sector }),
		{
			"container_blkio_device_usage_total", "Bytes to and from block devices, by operation.", cri.MetricType_COUNTER,
			[]string{"device", "major", "minor", "operation"},
			container, blockOperations,
		},
	}
}

func blockOperations(x *subject, say func(uint64, ...string)) {
	for _, d := range x.devices() {
		name := x.meter.DeviceName(d.Major, d.Minor)
		major, minor := strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10)
		say(d.ReadBytes, name, major, minor, "Read")
		say(d.WriteBytes, name, major, minor, "Write")
		if len(x.IO) == 0 {
			continue // nothing else was ever asked of it, either
		}
		say(d.DiscardBytes, name, major, minor, "Discard")
		if !x.meter.Unified() {
			say(d.SyncBytes, name, major, minor, "Sync")
			say(d.AsyncBytes, name, major, minor, "Async")
		}
	}
}

func networkMetrics() []metric {
	of := func(name, help string, value func(n spec.InterfaceStats) uint64) metric {
		return metric{"container_network_" + name, help, cri.MetricType_COUNTER, []string{"interface"}, podNetwork, func(x *subject, say func(uint64, ...string)) {
			for _, n := range x.network.interfaces {
				say(value(n), n.Name)
			}
		}}
	}
	return []metric{
		of("receive_bytes_total", "Bytes received.", func(n spec.InterfaceStats) uint64 { return n.RxBytes }),
		of("receive_packets_total", "Packets received.", func(n spec.InterfaceStats) uint64 { return n.RxPackets }),
		of("receive_packets_dropped_total", "Packets dropped while receiving.", func(n spec.InterfaceStats) uint64 { return n.RxDropped }),
		of("receive_errors_total", "Errors while receiving.", func(n spec.InterfaceStats) uint64 { return n.RxErrors }),
		of("transmit_bytes_total", "Bytes sent.", func(n spec.InterfaceStats) uint64 { return n.TxBytes }),
		of("transmit_packets_total", "Packets sent.", func(n spec.InterfaceStats) uint64 { return n.TxPackets }),
		of("transmit_packets_dropped_total", "Packets dropped while sending.", func(n spec.InterfaceStats) uint64 { return n.TxDropped }),
		of("transmit_errors_total", "Errors while sending.", func(n spec.InterfaceStats) uint64 { return n.TxErrors }),
	}
}

func lifeMetrics() []metric {
	return []metric{
		gauge("last_seen", "When it was last looked at, in seconds since 1970.", both, func(x *subject) uint64 { return since1970(x.Time) }),
		scrapeError(0),
		gauge("start_time_seconds", "When it was started, in seconds since 1970.", container, func(x *subject) uint64 { return since1970(x.container.Started) }),
	}
}

func scrapeError(value uint64) metric {
	return gauge("scrape_error", "1 if it could not be looked at, else 0.", container, func(*subject) uint64 { return value })
}

// unseen is all that is told of a container that could not be looked at.
func unseen() []metric { return []metric{scrapeError(1)} }

func since1970(t time.Time) uint64 {
	if t.Unix() < 0 {
		return 0
	}
	return uint64(t.Unix())
}

func limitMetrics(unified bool) []metric {
	return []metric{
		gauge("spec_cpu_period", "Period of the CPU quota, in microseconds.", both, func(x *subject) uint64 { return x.CPU.Period }),
		gauge("spec_cpu_quota", "CPU quota, in microseconds for each period; 0 for none.", both, func(x *subject) uint64 { return x.CPU.Quota }),
		gauge("spec_cpu_shares", "Share of the CPU where there is not enough of it.", both, func(x *subject) uint64 {
			// Version 2 keeps a weight, which is a coarser measure than what was
			// asked for.
			if asked := x.container.Resources.CPUShares; unified && asked > 0 {
				return uint64(asked)
			}
			return x.CPU.Shares
		}),
		gauge("spec_memory_limit_bytes", "Limit of memory; 0 for none.", both, func(x *subject) uint64 { return x.Memory.Limit }),
		gauge("spec_memory_reservation_limit_bytes", "Memory that it is let keep where there is not enough; 0 for none.", both, func(x *subject) uint64 { return x.Memory.Reservation }),
		gauge("spec_memory_swap_limit_bytes", "Limit of swap, on cgroup version 1 of memory and swap together; 0 for none.", both, func(x *subject) uint64 { return x.Memory.SwapLimit }),
	}
}

func pressureMetrics() []metric {
	of := func(resource string, of func(x *subject) *stats.Pressure) []metric {
		tell := func(wait func(*stats.Pressure) uint64) func(*subject, func(uint64, ...string)) {
			return func(x *subject, say func(uint64, ...string)) {
				if p := of(x); p != nil {
					say(seconds(wait(p)))
				}
			}
		}
		return []metric{
			{
				"container_pressure_" + resource + "_waiting_seconds_total", "Time in which some tasks waited for " + resource + ", in seconds.",
				cri.MetricType_COUNTER, nil, both, tell(func(p *stats.Pressure) uint64 { return p.Some.Total }),
			},
			{
				"container_pressure_" + resource + "_stalled_seconds_total", "Time in which all tasks waited for " + resource + ", in seconds.",
				cri.MetricType_COUNTER, nil, both, tell(func(p *stats.Pressure) uint64 { return p.Full.Total }),
			},
		}
	}
	all := of("cpu", func(x *subject) *stats.Pressure { return x.Pressure.CPU })
	all = append(all, of("memory", func(x *subject) *stats.Pressure { return x.Pressure.Memory })...)
	return append(all, of("io", func(x *subject) *stats.Pressure { return x.Pressure.IO })...)
}

func hugeMetrics() []metric {
	of := func(name, help string, value func(stats.PageUsage) uint64) metric {
		return metric{"container_hugetlb_" + name, help, cri.MetricType_GAUGE, []string{"pagesize"}, container, func(x *subject, say func(uint64, ...string)) {
			for _, h := range x.Huge {
				say(value(h), h.Size)
			}
		}}
	}
	return []metric{
		of("usage_bytes", "Bytes of huge pages in use.", func(h stats.PageUsage) uint64 { return h.Usage }),
		of("max_usage_bytes", "The most bytes of huge pages that were ever in use.", func(h stats.PageUsage) uint64 { return h.Peak }),
	}
}
