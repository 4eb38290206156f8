// Package metrics answers what the Container Runtime Interface asks of usage:
// the statistics of pods and containers, and the metrics that kubelet shows
// under /metrics/cadvisor.
//
// Everything is read when it is asked for, in one pass over the cgroups, and
// serves whoever asks within the next second. Between two questions nothing
// runs. Only what containers wrote into their root file systems is remembered
// for longer, since it can take long to count: see layers.
//
// What a pod uses is what its cgroup says where it has one to itself, as kubelet
// gives each pod one, else the sum of its containers.
package metrics

import (
	"context"
	"log/slog"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/node/snapshot"
	"berth/node/stats"
	"berth/spec"
)

// fresh is how long what was read serves others.
const fresh = time.Second

// Pods are the node's pods with their containers, from memory.
type Pods interface {
	Pod(id string) (spec.Pod, error) // the whole id, or a beginning that only one has
	Pods() []spec.Pod
	Container(id string) (spec.PodContainer, error) // likewise
	Containers() []spec.PodContainer
}

// Layers count what was written into the root file systems of containers. A
// snapshot.Store does; the key is the container's id.
type Layers interface {
	Usage(ctx context.Context, key snapshot.Key) (snapshot.Usage, error)
}

// Config is what a Service reads from.
type Config struct {
	Pods   Pods
	Layers Layers
	Meter  *stats.Reader
	// Root is a folder on the file system that containers write to.
	Root string
	Log  *slog.Logger
}

// Service measures pods and containers.
type Service struct {
	Config
	layers layers
	pens   sync.Pool // of *pen

	mu   sync.Mutex // held while cgroups are read, which nothing can hold up
	seen map[string]*reading
	nets map[string]traffic
	disk disk
	// crowd is how many readings make it worth to look whose they are.
	crowd int
}

// New makes a service. What a call has begun to count, and not ended, goes on
// after it until ctx is done or Close.
func New(ctx context.Context, c Config) *Service {
	s := &Service{Config: c, seen: map[string]*reading{}, nets: map[string]traffic{}, crowd: fewKnown}
	s.layers.init(ctx, c.Layers, c.Log)
	return s
}

// Close breaks off what is still being counted.
func (s *Service) Close() error {
	s.layers.end()
	s.layers.wait.Wait()
	return nil
}

// ContainerStats measures one container. Of one that does not run there is
// what it has written.
func (s *Service) ContainerStats(ctx context.Context, r *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	c, err := s.Pods.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &cri.ContainerStatsResponse{Stats: s.containerStats(ctx, []spec.PodContainer{c}, patient)[0]}, nil
}

// ListContainerStats measures the running containers that fit a filter.
func (s *Service) ListContainerStats(ctx context.Context, r *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	chosen := chooseContainers(s.Pods, r.GetFilter())
	return &cri.ListContainerStatsResponse{Stats: s.containerStats(ctx, chosen, hasty)}, nil
}

// PodSandboxStats measures one pod.
func (s *Service) PodSandboxStats(ctx context.Context, r *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	p, err := s.Pods.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &cri.PodSandboxStatsResponse{Stats: s.podStats(ctx, []spec.Pod{p}, patient)[0]}, nil
}

// ListPodSandboxStats measures the ready pods that fit a filter.
func (s *Service) ListPodSandboxStats(ctx context.Context, r *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	return &cri.ListPodSandboxStatsResponse{Stats: s.podStats(ctx, choosePods(s.Pods, r.GetFilter()), hasty)}, nil
}

// ListMetricDescriptors names the metrics that this kernel has values for.
func (s *Service) ListMetricDescriptors(context.Context, *cri.ListMetricDescriptorsRequest) (*cri.ListMetricDescriptorsResponse, error) {
	r := &cri.ListMetricDescriptorsResponse{}
	for _, m := range s.metrics() {
		r.Descriptors = append(r.Descriptors, &cri.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: m.keys()})
	}
	return r, nil
}

// ListPodSandboxMetrics gives all metrics of the ready pods, in a message that is
// written already: who wants to see its fields reads it anew.
func (s *Service) ListPodSandboxMetrics(ctx context.Context, _ *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	all, err := s.podMetrics(ctx)
	if err != nil {
		return nil, err
	}
	return all.response(), nil
}

// PodSandboxMetrics are those of ListPodSandboxMetrics, one by one.
func (s *Service) PodSandboxMetrics(ctx context.Context) ([]*cri.PodSandboxMetrics, error) {
	all, err := s.podMetrics(ctx)
	return all.each(), err
}
