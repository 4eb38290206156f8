package nri

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"

	"berth/base/errs"
	"berth/spec"
)

// stage is how far plugins have followed a pod or a container. What has none
// was not told of, or has gone.
type stage int

const (
	alive stage = iota + 1
	ended
)

// unlisted is what plugins were told of before Pods lists it.
type unlisted struct {
	pod       *api.PodSandbox
	container *api.Container
}

// recall takes what the node finds at its start for told.
func (p *Plugins) recall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pod := range p.pods.Pods() {
		p.stages[pod.ID] = alive
		if pod.State != spec.PodReady {
			p.stages[pod.ID] = ended
		}
	}
	for _, c := range p.pods.Containers() {
		p.stages[c.ID] = alive
		if containerState(c.State) == api.ContainerState_CONTAINER_STOPPED {
			p.stages[c.ID] = ended
		}
	}
}

// note that plugins have been told; gone forgets.
func (p *Plugins) note(id string, s stage, u unlisted) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stages[id] = s
	p.unlisted[id] = u
}

func (p *Plugins) listed(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.unlisted, id)
}

// end says whether plugins have yet to be told that id has ended.
func (p *Plugins) end(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stages[id] != alive {
		return false
	}
	p.stages[id] = ended
	return true
}

// gone says whether plugins know of id; they do no more.
func (p *Plugins) gone(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, known := p.stages[id]
	delete(p.stages, id)
	delete(p.unlisted, id)
	return known
}

// synchronize tells a new plugin what there is. No step is told meanwhile, so
// it misses none: the library sees to that. What the plugin wants changed is
// done after it is let in, as a container's own step may be waiting for that.
func (p *Plugins) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	pods, containers := p.known(ctx)
	updates, err := tell(ctx, pods, containers)
	if err != nil {
		return err
	}
	if len(updates) > 0 {
		select {
		case p.asked <- updates:
		default:
			p.config.Log.WarnContext(ctx, "updates that a new plugin asked for are lost", "updates", len(updates))
		}
	}
	return nil
}

// known is all pods and containers that plugins know.
func (p *Plugins) known(ctx context.Context) (pods []*api.PodSandbox, containers []*api.Container) {
	p.mu.Lock()
	stages, rest, rooms := maps.Clone(p.stages), maps.Clone(p.unlisted), p.pods
	p.mu.Unlock()
	listed := map[string]bool{}
	for _, pod := range rooms.Pods() {
		if listed[pod.ID] = stages[pod.ID] != 0; listed[pod.ID] {
			pods = append(pods, fromPod(pod))
		}
	}
	for _, c := range rooms.Containers() {
		if listed[c.ID] = stages[c.ID] != 0; listed[c.ID] {
			containers = append(containers, p.describe(ctx, c))
		}
	}
	for id, u := range rest {
		switch {
		case listed[id]:
		case u.pod != nil:
			pods = append(pods, u.pod)
		default:
			containers = append(containers, u.container)
		}
	}
	return pods, containers
}

// describe is a container with what its spec says of it, where that is known.
func (p *Plugins) describe(ctx context.Context, c spec.PodContainer) *api.Container {
	rooms := p.rooms()
	if rooms == nil {
		return fromContainer(c, nil)
	}
	oci, err := rooms.ContainerSpec(ctx, c.ID)
	if err != nil {
		p.config.Log.DebugContext(ctx, "plugins are told less of a container", "container", c.ID, "err", err)
	}
	return fromContainer(c, oci)
}

// applyLimit bounds what one plugin's wish may take.
const applyLimit = 10 * time.Second

// apply changes limits of containers, and gives back those that it could not.
// A container that is not there (yet) has nothing to change.
func (p *Plugins) apply(ctx context.Context, updates []*api.ContainerUpdate) []*api.ContainerUpdate {
	var failed []*api.ContainerUpdate
	for _, u := range updates {
		limits := u.GetLinux().GetResources()
		if limits == nil {
			continue
		}
		err := p.adjust(ctx, u.GetContainerId(), limits)
		if err == nil || errs.KindOf(err) == errs.NotFound {
			continue
		}
		p.config.Log.WarnContext(ctx, "update that a plugin asked for", "container", u.GetContainerId(), "err", err)
		if !u.GetIgnoreFailure() {
			failed = append(failed, u)
		}
	}
	return failed
}

func (p *Plugins) adjust(ctx context.Context, container string, limits *api.LinuxResources) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), applyLimit)
	defer cancel()
	pods := p.rooms()
	if pods == nil || !slices.ContainsFunc(pods.Containers(), func(c spec.PodContainer) bool { return c.ID == container }) {
		return errs.New(errs.NotFound, "container %s", container)
	}
	return pods.AdjustContainer(ctx, container, toLimits(limits))
}

func (p *Plugins) evict(ctx context.Context, evictions []*api.ContainerEviction) {
	for _, e := range evictions {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), applyLimit)
		if err := p.rooms().StopContainer(ctx, e.GetContainerId(), 0); err != nil {
			p.config.Log.WarnContext(ctx, "eviction that a plugin asked for", "container", e.GetContainerId(), "err", err)
		}
		cancel()
	}
}

func (p *Plugins) rooms() Pods {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pods
}

// unsolicited does what a plugin asks for by itself, and says what could not
// be done.
func (p *Plugins) unsolicited(ctx context.Context, updates []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	return p.apply(ctx, updates), nil
}
