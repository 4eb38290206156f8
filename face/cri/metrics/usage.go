package metrics

import (
	"context"

	"berth/node/stats"
	"berth/spec"
)

// Usage is what ready pods use, in our own words; all of them where no ids are
// named. errs.NotFound: there is no such pod.
func (s *Service) Usage(ctx context.Context, ids []string) ([]spec.PodStats, error) {
	pods := choosePods(s.Pods, nil)
	if len(ids) > 0 {
		pods = pods[:0]
	}
	for _, id := range ids {
		p, err := s.Pods.Pod(id)
		if err != nil {
			return nil, err
		}
		pods = append(pods, p)
	}
	all := s.households(pods)
	written := s.layers.of(ctx, idsOf(containersOf(all)), hasty)
	const parts = stats.Basic | stats.Finer | stats.Pressures | stats.Disks | stats.Count
	s.mu.Lock()
	defer s.mu.Unlock()
	inside, whole := s.read(ctx, targetsOfAll(all), parts), s.read(ctx, podTargets(all), parts)
	nets := s.traffics(all)
	list := make([]spec.PodStats, 0, len(all))
	for _, h := range all {
		p := h.pod
		one := spec.PodStats{ID: p.ID, Name: p.Config.Name, Namespace: p.Config.Namespace, Containers: []spec.PodContainerStats{}}
		for _, c := range h.containers {
			if r := inside[c.Cgroup]; r != nil {
				shown := spec.PodContainerStats{ID: c.ID, Name: c.Config.Name, Time: r.Time, PodUsage: usage(r)}
				if l, ok := written[c.ID]; ok {
					size := uint64(l.Size) //nolint:gosec // a count
					shown.Written = &size
				}
				one.Containers = append(one.Containers, shown)
			}
		}
		r := whole[h.cgroup]
		if r == nil {
			r = sum(h.containers, inside)
		}
		one.Time, one.PodUsage = r.Time, usage(r)
		one.Network = []spec.InterfaceStats{}
		if t, ok := nets[p.ID]; ok {
			one.Network = t.interfaces
		}
		list = append(list, one)
	}
	return list, nil
}

func usage(r *reading) spec.PodUsage {
	u := spec.PodUsage{
		CPU: r.CPU.Total, CPURate: r.rate, Memory: r.Memory.WorkingSet, Limit: r.Memory.Limit, Processes: r.Processes.Count,
		Throttled: r.CPU.ThrottledTime, OOMKills: r.Memory.OOMKills,
	}
	for _, d := range r.IO {
		u.Reads += d.ReadBytes
		u.Writes += d.WriteBytes
	}
	waited := func(p *stats.Pressure) uint64 {
		if p == nil {
			return 0
		}
		return p.Some.Total
	}
	u.CPUWait, u.MemoryWait, u.IOWait = waited(r.Pressure.CPU), waited(r.Pressure.Memory), waited(r.Pressure.IO)
	return u
}
