package tasks

import (
	"context"
	"runtime"
	"slices"
	"sync"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	api "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/filters"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/base/errs"
	"berth/face/containerd/wire"
	"berth/node/container"
	"berth/node/stats"
)

// Metrics gives what the tasks use that any of the filters lets through. Those
// that cannot be measured, for they have ended, are left out.
func (s *Tasks) Metrics(ctx context.Context, r *api.MetricsRequest) (*api.MetricsResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	filter, err := filters.ParseAll(r.GetFilters()...)
	if err != nil {
		return nil, wire.Error(errs.New(errs.Invalid, "%w", err))
	}
	states, err := s.Running.Tasks(ctx, namespace)
	if err != nil {
		return nil, wire.Error(err)
	}
	states = slices.DeleteFunc(states, func(state container.TaskState) bool {
		return state.Exec != "" || !filter.Match(adaptTask(state))
	})
	measured := make([]*types.Metric, len(states))
	var all sync.WaitGroup
	workers := min(runtime.GOMAXPROCS(0), 8)
	for first := range workers {
		all.Go(func() {
			for i := first; i < len(states); i += workers {
				measured[i] = s.measure(ctx, namespace, states[i].Container)
			}
		})
	}
	all.Wait()
	return &api.MetricsResponse{Metrics: slices.DeleteFunc(measured, func(m *types.Metric) bool { return m == nil })}, nil
}

func adaptTask(state container.TaskState) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		switch {
		case len(path) != 1:
			return "", false
		case path[0] == "id":
			return state.Container, true
		case path[0] == "namespace":
			return state.Namespace, true
		}
		return "", false
	})
}

// measure reads what one task uses; nil where nothing can be said.
func (s *Tasks) measure(ctx context.Context, namespace, id string) *types.Metric {
	m := &types.Metric{ID: id, Timestamp: timestamppb.Now()}
	cgroup, _, report, err := s.Controls.TaskCgroup(ctx, namespace, id)
	switch {
	case err != nil:
	case report != nil:
		m.Data = wire.Any(report)
		return m
	default:
		var d stats.Detail
		if d, err = s.Meter.Detail(cgroup); err == nil {
			m.Data, err = wire.Pack(metrics(d))
		}
	}
	if err != nil {
		if errs.KindOf(err) != errs.NotFound {
			s.Log.WarnContext(ctx, "a task was not measured", "namespace", namespace, "container", id, "err", err)
		}
		return nil
	}
	return m
}

// metrics are a cgroup's numbers in the message for its version.
func metrics(d stats.Detail) proto.Message {
	if d.Unified {
		return metricsV2(d)
	}
	return metricsV1(d)
}

func metricsV1(d stats.Detail) *v1.Metrics {
	m := &v1.Metrics{
		Pids: &v1.PidsStat{Current: d.Pids.Usage, Limit: d.Pids.Limit},
		CPU: &v1.CPUStat{
			Usage:      &v1.CPUUsage{Total: d.CPU["usage"], User: d.CPU["user"], Kernel: d.CPU["system"], PerCPU: d.PerCPU},
			Throttling: &v1.Throttle{Periods: d.CPU["nr_periods"], ThrottledPeriods: d.CPU["nr_throttled"], ThrottledTime: d.CPU["throttled_time"]},
		},
		Memory: memoryV1(d), Blkio: &v1.BlkIOStat{IoServiceBytesRecursive: movedV1(d.Bytes), IoServicedRecursive: movedV1(d.Moves)},
		MemoryOomControl: &v1.MemoryOomControl{
			OomKillDisable: d.Events["oom_kill_disable"], UnderOom: d.Events["under_oom"], OomKill: d.Events["oom_kill"],
		},
		CgroupStats: &v1.CgroupStats{},
	}
	for size, level := range d.Huge {
		m.Hugetlb = append(m.Hugetlb, &v1.HugetlbStat{Pagesize: size, Usage: level.Usage, Max: level.Peak, Failcnt: level.Failures})
	}
	return m
}

func memoryV1(d stats.Detail) *v1.MemoryStat {
	entry := func(name string) *v1.MemoryEntry {
		l := d.Levels[name]
		return &v1.MemoryEntry{Usage: l.Usage, Max: l.Peak, Limit: l.Limit, Failcnt: l.Failures}
	}
	m := d.Memory
	return &v1.MemoryStat{
		Usage: entry("memory"), Swap: entry("swap"), Kernel: entry("kernel"), KernelTCP: entry("tcp"),
		Cache: m["cache"], RSS: m["rss"], RSSHuge: m["rss_huge"], MappedFile: m["mapped_file"], Dirty: m["dirty"], Writeback: m["writeback"],
		PgPgIn: m["pgpgin"], PgPgOut: m["pgpgout"], PgFault: m["pgfault"], PgMajFault: m["pgmajfault"],
		InactiveAnon: m["inactive_anon"], ActiveAnon: m["active_anon"], InactiveFile: m["inactive_file"], ActiveFile: m["active_file"],
		Unevictable:             m["unevictable"],
		HierarchicalMemoryLimit: m["hierarchical_memory_limit"], HierarchicalSwapLimit: m["hierarchical_memsw_limit"],
		TotalCache: m["total_cache"], TotalRSS: m["total_rss"], TotalRSSHuge: m["total_rss_huge"], TotalMappedFile: m["total_mapped_file"],
		TotalDirty: m["total_dirty"], TotalWriteback: m["total_writeback"],
		TotalPgPgIn: m["total_pgpgin"], TotalPgPgOut: m["total_pgpgout"], TotalPgFault: m["total_pgfault"], TotalPgMajFault: m["total_pgmajfault"],
		TotalInactiveAnon: m["total_inactive_anon"], TotalActiveAnon: m["total_active_anon"],
		TotalInactiveFile: m["total_inactive_file"], TotalActiveFile: m["total_active_file"], TotalUnevictable: m["total_unevictable"],
	}
}

func movedV1(all []stats.Moved) []*v1.BlkIOEntry {
	entries := make([]*v1.BlkIOEntry, 0, len(all))
	for _, one := range all {
		entries = append(entries, &v1.BlkIOEntry{Op: one.Kind, Major: one.Major, Minor: one.Minor, Value: one.Value})
	}
	return entries
}

func metricsV2(d stats.Detail) *v2.Metrics {
	m := &v2.Metrics{
		Pids: &v2.PidsStat{Current: d.Pids.Usage, Limit: d.Pids.Limit},
		CPU: &v2.CPUStat{
			UsageUsec: d.CPU["usage_usec"], UserUsec: d.CPU["user_usec"], SystemUsec: d.CPU["system_usec"],
			NrPeriods: d.CPU["nr_periods"], NrThrottled: d.CPU["nr_throttled"], ThrottledUsec: d.CPU["throttled_usec"],
			NrBursts: d.CPU["nr_bursts"], BurstUsec: d.CPU["burst_usec"],
		},
		Memory: memoryV2(d), Io: &v2.IOStat{},
		MemoryEvents: &v2.MemoryEvents{
			Low: d.Events["low"], High: d.Events["high"], Max: d.Events["max"],
			Oom: d.Events["oom"], OomKill: d.Events["oom_kill"], OomGroupKill: d.Events["oom_group_kill"],
		},
	}
	for _, one := range d.IO {
		m.Io.Usage = append(m.Io.Usage, &v2.IOEntry{
			Major: one.Major, Minor: one.Minor,
			Rbytes: one.Values["rbytes"], Wbytes: one.Values["wbytes"], Rios: one.Values["rios"], Wios: one.Values["wios"],
		})
	}
	for size, level := range d.Huge {
		m.Hugetlb = append(m.Hugetlb, &v2.HugeTlbStat{Pagesize: size, Current: level.Usage, Max: level.Limit, Failcnt: level.Failures})
	}
	return m
}

func memoryV2(d stats.Detail) *v2.MemoryStat {
	m, used, swap := d.Memory, d.Levels["memory"], d.Levels["swap"]
	return &v2.MemoryStat{
		Usage: used.Usage, UsageLimit: used.Limit, MaxUsage: used.Peak,
		SwapUsage: swap.Usage, SwapLimit: swap.Limit, SwapMaxUsage: swap.Peak,
		Anon: m["anon"], File: m["file"], KernelStack: m["kernel_stack"], Slab: m["slab"], Sock: m["sock"], Shmem: m["shmem"],
		FileMapped: m["file_mapped"], FileDirty: m["file_dirty"], FileWriteback: m["file_writeback"], AnonThp: m["anon_thp"],
		InactiveAnon: m["inactive_anon"], ActiveAnon: m["active_anon"], InactiveFile: m["inactive_file"], ActiveFile: m["active_file"],
		Unevictable: m["unevictable"], SlabReclaimable: m["slab_reclaimable"], SlabUnreclaimable: m["slab_unreclaimable"],
		Pgfault: m["pgfault"], Pgmajfault: m["pgmajfault"],
		WorkingsetRefault:  m["workingset_refault_anon"] + m["workingset_refault_file"],
		WorkingsetActivate: m["workingset_activate_anon"] + m["workingset_activate_file"], WorkingsetNodereclaim: m["workingset_nodereclaim"],
		Pgrefill: m["pgrefill"], Pgscan: m["pgscan"], Pgsteal: m["pgsteal"], Pgactivate: m["pgactivate"], Pgdeactivate: m["pgdeactivate"],
		Pglazyfree: m["pglazyfree"], Pglazyfreed: m["pglazyfreed"],
		ThpFaultAlloc: m["thp_fault_alloc"], ThpCollapseAlloc: m["thp_collapse_alloc"],
	}
}
