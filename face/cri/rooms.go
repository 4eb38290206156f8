package cri

import (
	"context"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/spec"
)

// Pods are the node's pods. Lists and single ones come from memory.
type Pods interface {
	// RunPod makes a pod that is ready, or finds the one that an earlier call
	// with the same config made.
	RunPod(ctx context.Context, config spec.PodConfig) (id string, err error)
	// StopPod and RemovePod of what is not there are no errors.
	StopPod(ctx context.Context, id string) error
	RemovePod(ctx context.Context, id string) error
	Pod(id string) (spec.Pod, error) // the whole id, or a beginning that only one has
	Pods() []spec.Pod
	UpdatePod(ctx context.Context, id string, overhead, resources *spec.PodResources) error
	// CheckpointPod writes containers of a pod to an empty folder, RestorePod
	// makes a pod of such a folder: its containers, whose ids come in the order
	// of containers, go on when they are started.
	CheckpointPod(ctx context.Context, id, dir string, containers []string) error
	RestorePod(ctx context.Context, dir string, config spec.PodConfig, containers []spec.PodContainerConfig) (id string, ids []string, err error)
}

// Containers are those of the pods.
type Containers interface {
	CreateContainer(ctx context.Context, pod string, config spec.PodContainerConfig) (id string, err error)
	StartContainer(ctx context.Context, id string) error
	// StopContainer and RemoveContainer of what is not there are no errors.
	StopContainer(ctx context.Context, id string, timeout time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	UpdateContainer(ctx context.Context, id string, resources spec.PodResources, annotations map[string]string) error
	ReopenLog(ctx context.Context, id string) error
	Checkpoint(ctx context.Context, id, path string) error
	// ContainerSpec is what the container is, or will be, made of.
	ContainerSpec(ctx context.Context, id string) (*specs.Spec, error)
	Container(id string) (spec.PodContainer, error) // the whole id, or a beginning that only one has
	Containers() []spec.PodContainer
	ContainersOf(pod string) []spec.PodContainer
}

// Images say how people call what a container runs.
type Images interface {
	// NameOf is a name of an image, by its ID: the wanted one where it has
	// that. "": it has none.
	NameOf(id, wanted string) string
}

// Streams run commands in containers and carry bytes to and fro.
type Streams interface {
	Exec(ctx context.Context, request *cri.ExecRequest) (*cri.ExecResponse, error)
	Attach(ctx context.Context, request *cri.AttachRequest) (*cri.AttachResponse, error)
	PortForward(ctx context.Context, request *cri.PortForwardRequest) (*cri.PortForwardResponse, error)
	ExecSync(ctx context.Context, request *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error)
}

// Meter measures pods and their containers.
type Meter interface {
	ContainerStats(ctx context.Context, request *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error)
	ListContainerStats(ctx context.Context, request *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error)
	PodSandboxStats(ctx context.Context, request *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error)
	ListPodSandboxStats(ctx context.Context, request *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error)
	ListMetricDescriptors(ctx context.Context, request *cri.ListMetricDescriptorsRequest) (*cri.ListMetricDescriptorsResponse, error)
	ListPodSandboxMetrics(ctx context.Context, request *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error)
	PodSandboxMetrics(ctx context.Context) ([]*cri.PodSandboxMetrics, error)
}

// Network is what pods are connected to.
type Network interface {
	// PodsReady says why pods cannot have a network; nil: they can.
	PodsReady(ctx context.Context) error
	SetPodCIDR(ctx context.Context, cidr string) error
}

// Handler is a runtime that pods can ask for.
type Handler struct {
	Name string // "" is the node's usual one
	// RecursiveReadOnly and UserNamespaces are what this kernel and this
	// program can do together.
	RecursiveReadOnly, UserNamespaces bool
}

// Features are what depends on the machine, and not on the runtime.
type Features struct {
	// UserNamespacesOnHostNetwork: a pod can have a user namespace of its own
	// and the node's network.
	UserNamespacesOnHostNetwork bool
}

// Node is what the server tells of the machine and of itself.
type Node interface {
	Version() string // of this program
	// Features are what this machine can do with any of them.
	Features() Features
	// Handlers are found out by asking the programs, once.
	Handlers(ctx context.Context) []Handler
	// Ready says why no container can run; nil: they can.
	Ready(ctx context.Context) error
	// Config is what people are shown of how the node is set up. Nothing in it
	// is secret.
	Config() map[string]any
}
