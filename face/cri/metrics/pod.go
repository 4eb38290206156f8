package metrics

import (
	"context"
	"path"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/node/stats"
	"berth/spec"
)

// household is a pod with its containers that run.
type household struct {
	pod        spec.Pod
	containers []spec.PodContainer
	// cgroup is that of the whole pod; "" where others have a part in it.
	cgroup string
}

func (s *Service) households(pods []spec.Pod) []household {
	of := make(map[string][]spec.PodContainer, len(pods))
	for _, c := range s.Pods.Containers() {
		if runs(c) {
			of[c.Pod] = append(of[c.Pod], c)
		}
	}
	users := map[string]int{}
	for _, p := range s.Pods.Pods() {
		if p.State == spec.PodReady {
			users[parent(p)]++
		}
	}
	all := make([]household, 0, len(pods))
	for _, p := range pods {
		h := household{pod: p, containers: of[p.ID]}
		if at := parent(p); at != "/" && users[at] == 1 && p.State == spec.PodReady {
			h.cgroup = at
		}
		all = append(all, h)
	}
	return all
}

func parent(p spec.Pod) string { return path.Join("/", p.Config.CgroupParent) }

func targetsOfAll(all []household) (targets []target) {
	for _, h := range all {
		targets = append(targets, targetsOf(h.containers)...)
	}
	return targets
}

func podTargets(all []household) (targets []target) {
	for _, h := range all {
		if h.cgroup != "" {
			targets = append(targets, target{cgroup: h.cgroup, started: h.pod.Created, asked: limitsOf(h.pod.Config.Resources)})
		}
	}
	return targets
}

func containersOf(all []household) (list []spec.PodContainer) {
	for _, h := range all {
		list = append(list, h.containers...)
	}
	return list
}

func (s *Service) podStats(ctx context.Context, pods []spec.Pod, patience time.Duration) []*cri.PodSandboxStats {
	all := s.households(pods)
	written := s.layers.of(ctx, idsOf(containersOf(all)), patience)
	s.mu.Lock()
	defer s.mu.Unlock()
	inside := s.read(ctx, targetsOfAll(all), stats.Basic|stats.Pressures|stats.Count)
	whole := s.read(ctx, podTargets(all), stats.Basic|stats.Pressures|stats.Count)
	nets := s.traffics(all)
	shown := make([]*cri.PodSandboxStats, 0, len(all))
	for _, h := range all {
		one := s.podShown(h, inside, whole, written)
		if t, ok := nets[h.pod.ID]; ok {
			one.Linux.Network = network(t)
		}
		shown = append(shown, one)
	}
	return shown
}

func (s *Service) podShown(h household, inside, whole map[string]*reading, written map[string]layer) *cri.PodSandboxStats {
	p := h.pod
	linux := &cri.LinuxPodSandboxStats{}
	for _, c := range h.containers {
		linux.Containers = append(linux.Containers, s.container(c, inside[c.Cgroup], written))
	}
	r := whole[h.cgroup]
	if r == nil {
		r = sum(h.containers, inside)
	}
	linux.Cpu, linux.Memory, linux.Io = cpu(r), memory(r), io(r)
	linux.Process = &cri.ProcessUsage{Timestamp: r.Time.UnixNano(), ProcessCount: number(r.Processes.Count)}
	return &cri.PodSandboxStats{
		Attributes: &cri.PodSandboxAttributes{
			Id:       p.ID,
			Metadata: &cri.PodSandboxMetadata{Name: p.Config.Name, Uid: p.Config.UID, Namespace: p.Config.Namespace, Attempt: p.Config.Attempt},
			Labels:   p.Config.Labels, Annotations: p.Config.Annotations,
		},
		Linux: linux,
	}
}

// sum is what containers use together. Waiting is not summed: they may have
// waited at the same time.
func sum(containers []spec.PodContainer, of map[string]*reading) *reading {
	all := &reading{}
	limited := len(containers) > 0
	for _, c := range containers {
		r := of[c.Cgroup]
		if r == nil {
			continue
		}
		if r.Time.After(all.Time) {
			all.Time = r.Time
		}
		all.rate += r.rate
		all.CPU.Total += r.CPU.Total
		all.CPU.ThrottledTime += r.CPU.ThrottledTime
		all.Processes.Count += r.Processes.Count
		all.IO = append(all.IO, r.IO...)
		m, n := &all.Memory, &r.Memory
		m.Usage, m.WorkingSet, m.RSS = m.Usage+n.Usage, m.WorkingSet+n.WorkingSet, m.RSS+n.RSS
		m.OOMKills += n.OOMKills
		m.Faults, m.MajorFaults, m.Limit = m.Faults+n.Faults, m.MajorFaults+n.MajorFaults, m.Limit+n.Limit
		limited = limited && n.Limit > 0
	}
	if !limited {
		all.Memory.Limit = 0
	}
	if all.Time.IsZero() {
		all.Time = time.Now()
	}
	return all
}

func network(t traffic) *cri.NetworkUsage {
	shown := &cri.NetworkUsage{Timestamp: t.at.UnixNano()}
	for n := range slices.Values(t.interfaces) {
		one := &cri.NetworkInterfaceUsage{
			Name: n.Name, RxBytes: number(n.RxBytes), RxErrors: number(n.RxErrors), TxBytes: number(n.TxBytes), TxErrors: number(n.TxErrors),
		}
		if shown.DefaultInterface == nil {
			shown.DefaultInterface = one
		} else {
			shown.Interfaces = append(shown.Interfaces, one)
		}
	}
	return shown
}
