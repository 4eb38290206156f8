// Package nri lets plugins take part in the lives of pods and containers, by
// the Node Resource Interface.
//
// Plugins are those that the node starts from a folder and those that connect
// to a socket at any time. Each is told first what there is, and then every
// step of every pod. None is left out: what was told to the plugins that were
// there is, from that moment on, part of what a new one is told first.
//
// A plugin that does not answer in time, or goes away, is dropped; the step
// goes on without it.
package nri

import (
	"context"
	"log/slog"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/spec"
)

// Config says where plugins come from.
type Config struct {
	Socket    string // where plugins connect; "" for DefaultSocket
	PluginDir string // of programs that the node starts; "" for DefaultPluginDir
	ConfigDir string // of their configurations; "" for DefaultConfigDir
	// Registration and Request are the times that a plugin has to introduce
	// itself and to answer; 0 for the usual ones.
	Registration, Request time.Duration
	// Validator is the rules of the built-in validator; nil for none.
	Validator *Validator

	Name, Version string // of the program that plugins are told they talk to
	Devices       Devices
	Log           *slog.Logger
}

// The usual places, as other runtimes have them.
const (
	DefaultSocket    = "/var/run/nri/nri.sock"
	DefaultPluginDir = "/opt/nri/plugins"
	DefaultConfigDir = "/etc/nri/conf.d"
)

// Validator is what plugins may not change.
type Validator struct {
	RejectOCIHooks              bool
	RejectRuntimeDefaultSeccomp bool
	RejectUnconfinedSeccomp     bool
	RejectCustomSeccomp         bool
	RejectNamespaces            bool
	RejectSysctl                bool
	RequiredPlugins             []string
	TolerateMissingAnnotation   string
}

// Pods are the pods that plugins hear of; a pod.Set is one.
type Pods interface {
	Pods() []spec.Pod
	Containers() []spec.PodContainer
	// ContainerSpec is the OCI spec of a container as it runs, or will run.
	ContainerSpec(ctx context.Context, container string) (*specs.Spec, error)
	// AdjustContainer changes limits of a container because a plugin asks for
	// it; no plugin is asked about that again.
	AdjustContainer(ctx context.Context, container string, limits *specs.LinuxResources) error
	// StopContainer ends a container that a plugin evicts.
	StopContainer(ctx context.Context, container string, timeout time.Duration) error
}

// Devices puts CDI devices, named vendor.com/class=name, into a spec.
type Devices interface {
	Inject(s *specs.Spec, names []string) error
}

// Plugins are the plugins of a node.
type Plugins struct {
	config Config

	mu   sync.Mutex
	pods Pods
}

// Open makes ready for plugins. None is there before Run.
func Open(config Config) (*Plugins, error) {
	return &Plugins{config: config}, nil
}

// Run starts the plugins of PluginDir and takes connections until ctx is done.
func (p *Plugins) Run(ctx context.Context, pods Pods) error {
	p.mu.Lock()
	p.pods = pods
	p.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

// RunPod tells of a pod whose namespaces and network are there. An error calls
// it off; StopPod and RemovePod have to follow.
func (p *Plugins) RunPod(ctx context.Context, pod spec.Pod) error { return nil }

// UpdatePod tells that a pod as a whole is to have other resources.
func (p *Plugins) UpdatePod(ctx context.Context, pod spec.Pod, overhead, resources *spec.PodResources) error {
	return nil
}

// PostUpdatePod tells that it has them.
func (p *Plugins) PostUpdatePod(ctx context.Context, pod spec.Pod) error { return nil }

// StopPod tells of a pod whose containers have ended, before its network goes.
// Told again it does nothing.
func (p *Plugins) StopPod(ctx context.Context, pod spec.Pod) error { return nil }

// RemovePod tells of a pod that goes away.
func (p *Plugins) RemovePod(ctx context.Context, pod spec.Pod) error { return nil }

// CreateContainer has the plugins change the spec of a container to be, and
// limits of others. An error calls it off; RemoveContainer has to follow.
func (p *Plugins) CreateContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer, oci *specs.Spec) error {
	return nil
}

// PostCreateContainer tells that it is there.
func (p *Plugins) PostCreateContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error {
	return nil
}

// StartContainer tells that a container is about to start.
func (p *Plugins) StartContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error {
	return nil
}

// PostStartContainer tells that it has.
func (p *Plugins) PostStartContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error {
	return nil
}

// UpdateContainer has the plugins change the limits that a container is to get.
func (p *Plugins) UpdateContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer, limits *specs.LinuxResources) error {
	return nil
}

// PostUpdateContainer tells that it has them.
func (p *Plugins) PostUpdateContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error {
	return nil
}

// StopContainer tells of a container that has ended, by itself or not. Told
// again it does nothing.
func (p *Plugins) StopContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error {
	return nil
}

// RemoveContainer tells of a container that goes away, and that it has ended
// where nobody has said so yet.
func (p *Plugins) RemoveContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error {
	return nil
}
