package metrics

import (
	"cmp"
	"context"

	"berth/node/stats"
	"berth/spec"
)

const (
	partsOfContainer = stats.Basic | stats.Finer | stats.Pressures | stats.Disks | stats.Pages | stats.Count | stats.Insides
	partsOfPod       = stats.Basic | stats.Finer | stats.Pressures
)

func (s *Service) podMetrics(ctx context.Context) (encoded, error) {
	all := s.households(choosePods(s.Pods, nil))
	written := s.layers.of(ctx, idsOf(containersOf(all)), hasty)
	s.mu.Lock()
	defer s.mu.Unlock()
	fs, err := s.look()
	if err != nil {
		return encoded{}, err
	}
	inside := s.read(ctx, targetsOfAll(all), partsOfContainer)
	whole := s.read(ctx, podTargets(all), partsOfPod)
	nets := s.traffics(all)
	table := s.metrics()
	first, second := s.pen(), s.pen()
	defer s.pens.Put(first)
	defer s.pens.Put(second)
	inHalves(len(all), func(from, to int) {
		write := first
		if from > 0 {
			write = second
		}
		for _, h := range all[from:to] {
			write.begin(h.pod.ID)
			s.tellPod(write, table, h, whole[h.cgroup], nets[h.pod.ID])
			for _, c := range h.containers {
				labels := labelsOf(h.pod, c)
				if r := inside[c.Cgroup]; r != nil {
					x := &subject{reading: r, container: c, written: written[c.ID], disk: fs, meter: s.Meter}
					write.addContainer(c.ID, write.tell(table, container, x, labels))
				} else {
					write.addContainer(c.ID, write.tell(unseen(), container, &subject{reading: &reading{}}, labels))
				}
			}
			write.end()
		}
	})
	return join(first, second), nil
}

// pen gives a pen that has written nothing. Those that were used have room for
// what there is to be written.
func (s *Service) pen() *pen {
	p, _ := s.pens.Get().(*pen)
	if p == nil {
		return &pen{}
	}
	p.all, p.pods = p.all[:0], p.pods[:0]
	return p
}

// tellPod tells of a pod as a whole: of its network if t is what went over that,
// and of its cgroup if r is what was read of it.
func (s *Service) tellPod(write *pen, table []metric, h household, r *reading, t traffic) {
	named := func(container string) []string {
		return []string{cmp.Or(h.cgroup, h.pod.ID), "", "", container, h.pod.Config.Name, h.pod.Config.Namespace}
	}
	if r != nil {
		write.add(write.tell(table, wholePod, &subject{reading: r, meter: s.Meter}, named("")))
	}
	if !t.at.IsZero() {
		x := &subject{reading: &reading{cached: t.cached}, network: t, meter: s.Meter}
		x.Time = t.at
		write.add(write.tell(table, podNetwork, x, named("POD")))
	}
}

func labelsOf(p spec.Pod, c spec.PodContainer) []string {
	image := cmp.Or(c.Config.UserImage, c.ImageRef, c.Config.Image)
	return []string{c.Cgroup, c.ID, image, c.Config.Name, p.Config.Name, p.Config.Namespace}
}
