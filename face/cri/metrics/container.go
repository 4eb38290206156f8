package metrics

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/node/stats"
	"berth/spec"
)

func (s *Service) containerStats(ctx context.Context, containers []spec.PodContainer, patience time.Duration) []*cri.ContainerStats {
	written := s.layers.of(ctx, idsOf(containers), patience)
	s.mu.Lock()
	readings := s.read(ctx, targetsOf(containers), stats.Basic|stats.Pressures)
	s.mu.Unlock()
	all := make([]*cri.ContainerStats, 0, len(containers))
	for _, c := range containers {
		all = append(all, s.container(c, readings[c.Cgroup], written))
	}
	return all
}

func idsOf(containers []spec.PodContainer) []string {
	ids := make([]string, len(containers))
	for i, c := range containers {
		ids[i] = c.ID
	}
	return ids
}

// container is one container's statistics; r is nil where it does not run.
func (s *Service) container(c spec.PodContainer, r *reading, written map[string]layer) *cri.ContainerStats {
	shown := &cri.ContainerStats{Attributes: &cri.ContainerAttributes{
		Id: c.ID, Metadata: &cri.ContainerMetadata{Name: c.Config.Name, Attempt: c.Config.Attempt},
		Labels: c.Config.Labels, Annotations: c.Config.Annotations,
	}}
	if r != nil {
		shown.Cpu, shown.Memory, shown.Io = cpu(r), memory(r), io(r)
		shown.Swap = s.swap(r)
	}
	if one, ok := written[c.ID]; ok {
		shown.WritableLayer = &cri.FilesystemUsage{
			Timestamp: one.at.UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: s.Root},
			UsedBytes: number(uint64(one.Size)), InodesUsed: number(uint64(one.Inodes)), //nolint:gosec // counts
		}
	}
	return shown
}

func number(n uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: n} }

func cpu(r *reading) *cri.CpuUsage {
	return &cri.CpuUsage{
		Timestamp: r.Time.UnixNano(), UsageCoreNanoSeconds: number(r.CPU.Total), UsageNanoCores: number(r.rate),
		Psi: pressure(r.Pressure.CPU),
	}
}

func memory(r *reading) *cri.MemoryUsage {
	m := &r.Memory
	shown := &cri.MemoryUsage{
		Timestamp: r.Time.UnixNano(), WorkingSetBytes: number(m.WorkingSet), UsageBytes: number(m.Usage), RssBytes: number(m.RSS),
		PageFaults: number(m.Faults), MajorPageFaults: number(m.MajorFaults), Psi: pressure(r.Pressure.Memory),
	}
	if m.Limit > 0 {
		shown.AvailableBytes = number(less(m.Limit, m.WorkingSet))
	}
	return shown
}

// swap is what is swapped out, and what could still be. Version 1 limits memory
// and swap together: what is left of that, and is no memory, is swap's.
func (s *Service) swap(r *reading) *cri.SwapUsage {
	m := &r.Memory
	shown := &cri.SwapUsage{Timestamp: r.Time.UnixNano(), SwapUsageBytes: number(m.Swap)}
	limit := m.SwapLimit
	if !s.Meter.Unified() {
		if limit == 0 || m.Limit == 0 {
			return shown
		}
		limit = less(limit, m.Limit)
	} else if !m.SwapLimited {
		return shown
	}
	shown.SwapAvailableBytes = number(less(limit, m.Swap))
	return shown
}

func less(a, b uint64) uint64 {
	if b >= a {
		return 0
	}
	return a - b
}

func io(r *reading) *cri.IoUsage {
	return &cri.IoUsage{Timestamp: r.Time.UnixNano(), Psi: pressure(r.Pressure.IO)}
}

func pressure(p *stats.Pressure) *cri.PsiStats {
	if p == nil {
		return nil
	}
	return &cri.PsiStats{Full: wait(p.Full), Some: wait(p.Some)}
}

func wait(w stats.Wait) *cri.PsiData {
	return &cri.PsiData{Total: w.Total, Avg10: w.Avg10, Avg60: w.Avg60, Avg300: w.Avg300}
}
