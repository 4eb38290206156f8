package metrics

import (
	"cmp"
	"context"

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
	s.mu.Lock()
	defer s.mu.Unlock()
	fs, err := s.look()
	if err != nil {
		return nil, err
	}
	inside := s.read(ctx, targetsOfAll(all), partsOfContainer)
	whole := s.read(ctx, podTargets(all), partsOfPod)
	nets := s.traffics(all)
	table := s.metrics()
	shown := make([]*cri.PodSandboxMetrics, len(all))
	inHalves(len(all), func(from, to int) {
		write := &pen{}
		for i := from; i < to; i++ {
			h := all[i]
			shown[i] = &cri.PodSandboxMetrics{PodSandboxId: h.pod.ID}
			s.ofPod(write, table, h, whole[h.cgroup], nets[h.pod.ID]).putPod(shown[i])
			for _, c := range h.containers {
				of := &cri.ContainerMetrics{ContainerId: c.ID}
				if r := inside[c.Cgroup]; r != nil {
					x := &subject{reading: r, container: c, written: written[c.ID], disk: fs, meter: s.Meter}
					write.tell(table, container, x, labelsOf(h.pod, c)).put(of)
				} else {
					of.Metrics = unseen(labelsOf(h.pod, c))
				}
				shown[i].ContainerMetrics = append(shown[i].ContainerMetrics, of)
			}
		}
	})
	return shown, nil
}

// ofPod are the metrics of a pod as a whole: of its network if t is what went
// over that, and of its cgroup if r is what was read of it.
func (s *Service) ofPod(write *pen, table []metric, h household, r *reading, t traffic) encoded {
	var all encoded
	named := func(container string) []string {
		return []string{cmp.Or(h.cgroup, h.pod.ID), "", "", container, h.pod.Config.Name, h.pod.Config.Namespace}
	}
	if r != nil {
		all = write.tell(table, wholePod, &subject{reading: r, meter: s.Meter}, named(""))
	}
	if !t.at.IsZero() {
		x := &subject{reading: &reading{cached: t.cached}, network: t, meter: s.Meter}
		x.Time = t.at
		all = append(all, write.tell(table, podNetwork, x, named("POD"))...)
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
