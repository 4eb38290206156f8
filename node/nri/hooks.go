package nri

import (
	"context"
	"fmt"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/base/span"
	"berth/spec"
)

// step tells plugins of one step. Meanwhile no plugin joins; with none there
// it costs nothing.
func (p *Plugins) step(ctx context.Context, name string, tell func(context.Context, *adaptation.Adaptation) error) (err error) {
	if p.Count() == 0 {
		return nil
	}
	ctx, end := span.Start(ctx, "NRI "+name)
	defer func() { end(err) }()
	if err := tell(ctx, p.current()); err != nil {
		return errs.New(refusal(err), "nri %s: %w", name, err)
	}
	return nil
}

// refusal is the kind of a plugin's error.
func refusal(err error) errs.Kind {
	if kind := errs.KindOf(err); kind == errs.Canceled || kind == errs.Timeout {
		return kind
	}
	return errs.Denied
}

// hold keeps new plugins from joining until release is called.
func (p *Plugins) hold() (release func()) { return p.current().BlockPluginSync().Unblock }

// RunPod tells of a pod whose namespaces and network are there. An error calls
// it off; StopPod and RemovePod have to follow.
func (p *Plugins) RunPod(ctx context.Context, pod spec.Pod) error {
	defer p.hold()()
	told := fromPod(pod)
	defer p.note(pod.ID, alive, unlisted{pod: told})
	return p.step(ctx, "run pod", func(ctx context.Context, l *adaptation.Adaptation) error {
		return l.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: told})
	})
}

// UpdatePod tells that a pod as a whole is to have other resources. An error
// calls it off.
func (p *Plugins) UpdatePod(ctx context.Context, pod spec.Pod, overhead, resources *spec.PodResources) error {
	defer p.hold()()
	return p.step(ctx, "update pod", func(ctx context.Context, l *adaptation.Adaptation) error {
		_, err := l.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{
			Pod: fromPod(pod), OverheadLinuxResources: fromLimits(overhead), LinuxResources: fromLimits(resources),
		})
		return err
	})
}

// PostUpdatePod tells that it has them.
func (p *Plugins) PostUpdatePod(ctx context.Context, pod spec.Pod) error {
	defer p.hold()()
	return p.step(ctx, "post-update pod", func(ctx context.Context, l *adaptation.Adaptation) error {
		return l.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: fromPod(pod)})
	})
}

// StopPod tells of a pod whose containers have ended, before its network goes.
// Told again it does nothing.
func (p *Plugins) StopPod(ctx context.Context, pod spec.Pod) error {
	defer p.hold()()
	if !p.end(pod.ID) {
		return nil
	}
	return p.step(ctx, "stop pod", func(ctx context.Context, l *adaptation.Adaptation) error {
		return l.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: fromPod(pod)})
	})
}

// RemovePod tells of a pod that goes away.
func (p *Plugins) RemovePod(ctx context.Context, pod spec.Pod) error {
	defer p.hold()()
	if !p.gone(pod.ID) {
		return nil
	}
	return p.step(ctx, "remove pod", func(ctx context.Context, l *adaptation.Adaptation) error {
		return l.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: fromPod(pod)})
	})
}

// CreateContainer has the plugins change the spec of a container to be, and
// limits of others. An error calls it off; RemoveContainer has to follow.
func (p *Plugins) CreateContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer, oci *specs.Spec) error {
	told := fromContainer(c, oci)
	told.State = api.ContainerState_CONTAINER_CREATED
	answer, err := p.create(ctx, pod, told)
	if err != nil {
		return err
	}
	p.evict(ctx, answer.GetEvict())
	p.apply(ctx, answer.GetUpdate())
	if answer.GetAdjust() == nil {
		return nil
	}
	dropRemoved(oci, told)
	if err := adjust(oci, answer.GetAdjust(), p.config.Devices); err != nil {
		return fmt.Errorf("nri: adjust the container: %w", err)
	}
	return nil
}

// create leaves told as plugins made it.
func (p *Plugins) create(ctx context.Context, pod spec.Pod, told *api.Container) (answer *api.CreateContainerResponse, err error) {
	defer p.hold()()
	p.listed(pod.ID) // for containers come after RunPod has been answered
	defer p.note(told.Id, alive, unlisted{container: told})
	err = p.step(ctx, "create container", func(ctx context.Context, l *adaptation.Adaptation) (err error) {
		answer, err = l.CreateContainer(ctx, &api.CreateContainerRequest{Pod: fromPod(pod), Container: told})
		return err
	})
	return answer, err
}

// PostCreateContainer tells that it is there.
func (p *Plugins) PostCreateContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error {
	defer p.hold()()
	p.listed(c.ID)
	return p.step(ctx, "post-create container", func(ctx context.Context, l *adaptation.Adaptation) error {
		return l.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: fromPod(pod), Container: p.describe(ctx, c)})
	})
}

// StartContainer tells that a container is about to start. An error calls it
// off.
func (p *Plugins) StartContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error {
	defer p.hold()()
	return p.step(ctx, "start container", func(ctx context.Context, l *adaptation.Adaptation) error {
		return l.StartContainer(ctx, &api.StartContainerRequest{Pod: fromPod(pod), Container: p.describe(ctx, c)})
	})
}

// PostStartContainer tells that it has.
func (p *Plugins) PostStartContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error {
	defer p.hold()()
	return p.step(ctx, "post-start container", func(ctx context.Context, l *adaptation.Adaptation) error {
		return l.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: fromPod(pod), Container: p.describe(ctx, c)})
	})
}

// UpdateContainer has the plugins change the limits that a container is to
// get, and limits of others. An error calls it off.
func (p *Plugins) UpdateContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer, limits *specs.LinuxResources) error {
	answer, err := p.update(ctx, pod, c, limits)
	if err != nil || answer == nil {
		return err
	}
	p.evict(ctx, answer.GetEvict())
	var others []*api.ContainerUpdate
	for _, u := range answer.GetUpdate() {
		switch {
		case u == nil:
		case u.GetContainerId() == c.ID:
			mergeLimits(limits, u.GetLinux().GetResources())
		default:
			others = append(others, u)
		}
	}
	p.apply(ctx, others)
	return nil
}

func (p *Plugins) update(ctx context.Context, pod spec.Pod, c spec.PodContainer, limits *specs.LinuxResources) (answer *api.UpdateContainerResponse, err error) {
	defer p.hold()()
	err = p.step(ctx, "update container", func(ctx context.Context, l *adaptation.Adaptation) (err error) {
		answer, err = l.UpdateContainer(ctx, &api.UpdateContainerRequest{
			Pod: fromPod(pod), Container: p.describe(ctx, c), LinuxResources: api.FromOCILinuxResources(limits, nil),
		})
		return err
	})
	return answer, err
}

// PostUpdateContainer tells that it has them.
func (p *Plugins) PostUpdateContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error {
	defer p.hold()()
	return p.step(ctx, "post-update container", func(ctx context.Context, l *adaptation.Adaptation) error {
		return l.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: fromPod(pod), Container: p.describe(ctx, c)})
	})
}

// StopContainer tells of a container that has ended, by itself or not. Told
// again it does nothing.
func (p *Plugins) StopContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error {
	answer, err := p.stop(ctx, pod, c)
	p.apply(ctx, answer.GetUpdate())
	return err
}

func (p *Plugins) stop(ctx context.Context, pod spec.Pod, c spec.PodContainer) (answer *api.StopContainerResponse, err error) {
	defer p.hold()()
	if !p.end(c.ID) {
		return nil, nil
	}
	err = p.step(ctx, "stop container", func(ctx context.Context, l *adaptation.Adaptation) (err error) {
		answer, err = l.StopContainer(ctx, &api.StopContainerRequest{Pod: fromPod(pod), Container: p.describe(ctx, c)})
		return err
	})
	return answer, err
}

// RemoveContainer tells of a container that goes away, and that it has ended
// where nobody has said so yet.
func (p *Plugins) RemoveContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error {
	if err := p.StopContainer(ctx, pod, c); err != nil {
		p.config.Log.WarnContext(ctx, "plugins told of a container's end", "container", c.ID, "err", err)
	}
	defer p.hold()()
	if !p.gone(c.ID) {
		return nil
	}
	return p.step(ctx, "remove container", func(ctx context.Context, l *adaptation.Adaptation) error {
		return l.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: fromPod(pod), Container: p.describe(ctx, c)})
	})
}
