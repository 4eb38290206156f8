package metrics

import (
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/spec"
)

// chooseContainers are the running ones that fit a filter. An id that is no
// container's fits none, as in the other lists of the interface.
func chooseContainers(pods Pods, f *cri.ContainerStatsFilter) []spec.PodContainer {
	if f.GetId() != "" {
		c, err := pods.Container(f.GetId())
		if err != nil {
			return nil
		}
		return slices.DeleteFunc([]spec.PodContainer{c}, func(c spec.PodContainer) bool { return !fitsContainer(pods, c, f) })
	}
	return slices.DeleteFunc(pods.Containers(), func(c spec.PodContainer) bool { return !fitsContainer(pods, c, f) })
}

func fitsContainer(pods Pods, c spec.PodContainer, f *cri.ContainerStatsFilter) bool {
	if !runs(c) || !has(c.Config.Labels, f.GetLabelSelector()) {
		return false
	}
	if f.GetPodSandboxId() == "" || c.Pod == f.GetPodSandboxId() {
		return true
	}
	p, err := pods.Pod(f.GetPodSandboxId())
	return err == nil && p.ID == c.Pod
}

func runs(c spec.PodContainer) bool { return c.State == spec.Running || c.State == spec.Paused }

func choosePods(pods Pods, f *cri.PodSandboxStatsFilter) []spec.Pod {
	all := pods.Pods()
	if f.GetId() != "" {
		p, err := pods.Pod(f.GetId())
		if err != nil {
			return nil
		}
		all = []spec.Pod{p}
	}
	return slices.DeleteFunc(all, func(p spec.Pod) bool {
		return p.State != spec.PodReady || !has(p.Config.Labels, f.GetLabelSelector())
	})
}

func has(labels, wanted map[string]string) bool {
	for key, value := range wanted {
		if is, ok := labels[key]; !ok || is != value {
			return false
		}
	}
	return true
}
