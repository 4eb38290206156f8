package metrics

import (
	"cmp"
	"context"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/node/stats"
	"berth/spec"
)

const (
	partsOfContainer = stats.Basic | stats.Finer | stats.Pressures | stats.Disks | stats.Pages | stats.Count | stats.Insides
	partsOfPod       = stats.Basic | stats.Finer | stats.Pressures
)

func (s *Service) podMetrics(ctx context.Context) ([]*cri.PodSandboxMetrics, error) {
	all := s.households(choosePods(s.Pods, nil))
	written := s.layers.of(ctx, idsOf(containersOf(all)), hasty)
	table := s.metrics()
	s.mu.Lock()
	defer s.mu.Unlock()
	fs, err := s.look()
	if err != nil {
		return nil, err
	}
	inside := s.read(ctx, targetsOfAll(all), partsOfContainer)
	whole := s.read(ctx, podTargets(all), partsOfPod)
	shown := make([]*cri.PodSandboxMetrics, 0, len(all))
	for _, h := range all {
		one := &cri.PodSandboxMetrics{PodSandboxId: h.pod.ID}
		one.Metrics = s.ofPod(table, h, whole[h.cgroup])
		for _, c := range h.containers {
			of := &cri.ContainerMetrics{ContainerId: c.ID}
			if r := inside[c.Cgroup]; r != nil {
				x := &subject{reading: r, container: c, written: written[c.ID], disk: fs, meter: s.Meter}
				of.Metrics = tell(table, container, x, labelsOf(h.pod, c), len(table)+32)
			} else {
				of.Metrics = unseen(labelsOf(h.pod, c))
			}
			one.ContainerMetrics = append(one.ContainerMetrics, of)
		}
		shown = append(shown, one)
	}
	return shown, nil
}

// ofPod are the metrics of a pod as a whole: of its network, and of its cgroup
// if r is what was read of that.
func (s *Service) ofPod(table []metric, h household, r *reading) []*cri.Metric {
	var all []*cri.Metric
	named := func(container string) []string {
		return []string{cmp.Or(h.cgroup, h.pod.ID), "", "", container, h.pod.Config.Name, h.pod.Config.Namespace}
	}
	if r != nil {
		all = tell(table, wholePod, &subject{reading: r, meter: s.Meter}, named(""), len(table))
	}
	if t, ok := s.traffic(h.pod, h.containers); ok {
		x := &subject{reading: &reading{cached: t.cached}, network: t, meter: s.Meter}
		x.Time = t.at
		all = append(all, tell(table, podNetwork, x, named("POD"), 8*len(t.interfaces))...)
	}
	return all
}

// unseen is what is told of a container that could not be looked at.
func unseen(base []string) []*cri.Metric {
	return []*cri.Metric{{Name: "container_scrape_error", MetricType: cri.MetricType_GAUGE, LabelValues: base, Value: number(1)}}
}

func labelsOf(p spec.Pod, c spec.PodContainer) []string {
	image := cmp.Or(c.Config.UserImage, c.ImageRef, c.Config.Image)
	return []string{c.Cgroup, c.ID, image, c.Config.Name, p.Config.Name, p.Config.Namespace}
}

// tell says what there is about a subject, about expected metrics. They are
// made in one piece: there are many.
func tell(table []metric, of subjects, x *subject, base []string, expected int) []*cri.Metric {
	made := make([]cri.Metric, 0, expected)
	values := make([]cri.UInt64Value, 0, expected)
	base = slices.Clip(base)
	at := int64(0) // what was read just now has no time
	if x.cached {
		at = x.Time.UnixNano()
	}
	list := make([]*cri.Metric, 0, expected)
	for i := range table {
		m := &table[i]
		if m.of&of == 0 {
			continue
		}
		m.tell(x, func(value uint64, extra ...string) {
			if len(made) == cap(made) { // what has been made is pointed to
				made, values = make([]cri.Metric, 0, 64), make([]cri.UInt64Value, 0, 64)
			}
			made, values = made[:len(made)+1], values[:len(values)+1]
			one, v := &made[len(made)-1], &values[len(values)-1]
			v.Value = value
			one.Name, one.Timestamp, one.MetricType, one.Value, one.LabelValues = m.name, at, m.kind, v, base
			if len(extra) > 0 {
				one.LabelValues = append(base, extra...) //nolint:gocritic // base is clipped
			}
			list = append(list, one)
		})
	}
	return list
}
