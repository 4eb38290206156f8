package cri

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"

	"berth/test/machine"
)

// plugin of NRI that notes what it is told, and does what hook says first.
type plugin struct {
	stub stub.Stub

	mu                      sync.Mutex
	told                    []string // "run <pod's name>", "create <container's name>", …
	ids                     map[string]string
	done                    bool // what there is was told
	syncedPods, syncedNames []string
	hook                    func(event string) error
	adjust                  func() (*api.ContainerAdjustment, []*api.ContainerUpdate)
}

// connect adds a plugin to a node, and returns when it has been told what there
// is.
func (n *node) connect(t *testing.T, index string, p *plugin) *plugin {
	t.Helper()
	n.dial(t, index, p)
	machine.Until(t, "the plugin is one of them", func() error {
		if !p.synced() {
			return errors.New("not yet")
		}
		return nil
	})
	return p
}

func (p *plugin) synced() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

func (n *node) dial(t *testing.T, index string, p *plugin) {
	t.Helper()
	p.ids = map[string]string{}
	var err error
	p.stub, err = stub.New(p, stub.WithPluginName("cri-test"), stub.WithPluginIdx(index), stub.WithSocketPath(n.nri), stub.WithOnClose(func() {}), stub.WithLogger(quiet{}))
	machine.Must(t, err)
	machine.Must(t, p.stub.Start(t.Context()))
	t.Cleanup(p.stub.Stop)
}

func (p *plugin) note(event, name, id string) error {
	p.mu.Lock()
	p.told = append(p.told, event+" "+name)
	p.ids[name] = id
	hook := p.hook
	p.mu.Unlock()
	if hook != nil {
		return hook(event)
	}
	return nil
}

// heard waits until the plugin has been told all of want, in that order and
// without anything between.
func (p *plugin) heard(t *testing.T, want ...string) {
	t.Helper()
	machine.Until(t, "the plugin hears "+strings.Join(want, ", "), func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !slices.Equal(p.told, want) {
			return fmt.Errorf("it heard %q", p.told)
		}
		return nil
	})
}

func (p *plugin) set(hook func(event string) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = hook
}

func (p *plugin) id(name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ids[name]
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.mu.Lock()
	for _, pod := range pods {
		p.syncedPods = append(p.syncedPods, pod.GetName())
	}
	for _, c := range containers {
		p.syncedNames = append(p.syncedNames, c.GetName())
	}
	hook := p.hook
	p.done = true
	p.mu.Unlock()
	if hook != nil {
		return nil, hook("synchronize")
	}
	return nil, nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("run", pod.GetName(), pod.GetId())
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.note("update", pod.GetName(), pod.GetId())
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("stop", pod.GetName(), pod.GetId())
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("remove", pod.GetName(), pod.GetId())
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	err := p.note("create", c.GetName(), c.GetId())
	if err == nil && p.adjust != nil {
		adjustment, updates := p.adjust()
		return adjustment, updates, nil
	}
	return nil, nil, err
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("start", c.GetName(), c.GetId())
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	return nil, p.note("update", c.GetName(), c.GetId())
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.note("stop", c.GetName(), c.GetId())
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("remove", c.GetName(), c.GetId())
}

// quiet is the log of plugins.
type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}

// blocker is a hook that waits in one event, once, until it is released.
type blocker struct {
	reached, release chan struct{}
	once             sync.Once
}

func block(p *plugin, event string) *blocker {
	b := &blocker{reached: make(chan struct{}), release: make(chan struct{})}
	p.set(func(e string) error {
		if e == event {
			b.once.Do(func() { close(b.reached); <-b.release })
		}
		return nil
	})
	return b
}

// fail is a hook that fails in one event, once.
func fail(p *plugin, event string) {
	var once sync.Once
	p.set(func(e string) (err error) {
		if e == event {
			once.Do(func() { err = errors.New("not today") })
		}
		return err
	})
}

func (p *plugin) lastTold() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.told)
}

// hookOf waits as b does where is says so.
func hookOf(b *blocker, is func(event string) bool) func(string) error {
	return func(event string) error {
		if is(event) {
			b.once.Do(func() { close(b.reached); <-b.release })
		}
		return nil
	}
}
