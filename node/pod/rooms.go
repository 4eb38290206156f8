package pod

import (
	"context"
	"io"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"berth/node/container"
	"berth/node/kernelns"
	"berth/node/network"
	"berth/node/snapshot"
	"berth/spec"
)

// Namespace is whose names the ids of the pods' containers are, and where the
// images of Kubernetes are.
const Namespace = "k8s.io"

// Containers run what they are given; a container.Set is one. Where they take
// a ref it is Key's.
type Containers interface {
	Get(ctx context.Context, ref string) (spec.Container, error)
	Stop(ctx context.Context, ref string, seconds *int, signal string) error
	Remove(ctx context.Context, ref string, force, volumes bool) error

	Given(ctx context.Context, namespace, id string) (spec.Given, error)
	Givens(ctx context.Context, namespace string) ([]spec.Given, error)
	// AdmitGiven adds a container; it survives the node at once, and a power
	// cut a moment later.
	AdmitGiven(ctx context.Context, g spec.Given) (spec.Given, error)
	// SetGivenSpec replaces the spec of a container that was not started yet.
	SetGivenSpec(ctx context.Context, namespace, id string, oci []byte) error
	// MountRoot mounts the snapshot where the container's root will be.
	MountRoot(ctx context.Context, namespace, id string, key snapshot.Key) (path string, err error)
	UnmountRoot(ctx context.Context, namespace, id string) error
	RunTask(ctx context.Context, namespace, id string, req container.TaskRequest) (container.TaskState, error)
	UpdateTask(ctx context.Context, namespace, id string, limits *specs.LinuxResources, annotations map[string]string) error
	// PauseTask freezes a container, ResumeTask thaws it; errs.Conflict: it is
	// so already.
	PauseTask(ctx context.Context, namespace, id string) error
	ResumeTask(ctx context.Context, namespace, id string) error
	CheckpointTask(ctx context.Context, namespace, id string, checkpoint container.Checkpoint) error
	ReopenLog(ctx context.Context, ref string) error
	WaitTask(ctx context.Context, namespace, id, exec string) (container.TaskExit, error)
}

// Namespaces makes and keeps kernel namespaces; a kernelns.Set does.
type Namespaces interface {
	// Make gives a pod its namespaces, all or none.
	Make(ctx context.Context, id string, want kernelns.Want) (kernelns.Paths, error)
	// Finish sets the sysctls of interfaces that came after Make.
	Finish(ctx context.Context, id string, sysctls map[string]string) error
	// Remove takes them away; none is no error.
	Remove(ctx context.Context, id string) error
	List() ([]string, error)
}

// Networks join pods to their network.
type Networks interface {
	AttachPod(ctx context.Context, req network.PodRequest) ([]spec.PodInterface, []string, error)
	// DetachPod takes back what there may be of an AttachPod, whole or half;
	// nothing is no error.
	DetachPod(ctx context.Context, req network.PodRequest) error
	// PodAttachments are the ids of the pods of which there is something.
	PodAttachments() []string
}

// Snapshots are the trees that containers stand on; a snapshot.Store is one.
type Snapshots interface {
	Prepare(ctx context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.Active, error)
	View(ctx context.Context, key, parent snapshot.Key, labels map[string]string) (snapshot.View, error)
	Mount(ctx context.Context, key snapshot.Key, target string) error
	Unmount(ctx context.Context, target string) error
	Remove(ctx context.Context, key snapshot.Key) error
	// Diff writes what an active one changes of its parent, as a tar.
	Diff(ctx context.Context, key snapshot.Key, w io.Writer) error
	Walk(ctx context.Context, fn func(snapshot.Info) error) error
}

// Images are those of Namespace.
type Images interface {
	// Resolve finds an image by an id, a digest or a name. errs.NotFound.
	Resolve(ctx context.Context, ref string) (Image, error)
	// Annotations are those of an image's manifest.
	Annotations(ctx context.Context, ref string) (map[string]string, error)
}

// Image is an image as a container needs it.
type Image struct {
	ID     string           // digest of its configuration
	Ref    string           // name@digest, or ID where it has none
	Digest string           // of its manifest, or of the index that it came by
	Name   string           // that people call it by; "" where it has none
	Config spec.ImageConfig // what it says of its containers
	Layers snapshot.Key     // its top layer
}

// Hooks are told of each step and may change what containers get, as NRI has
// it. An error of a hook that comes before its step calls the step off; one
// that comes after undoes it where it made something. Every one is bounded in
// time by whoever implements it.
type Hooks interface {
	RunPod(ctx context.Context, pod spec.Pod) error
	UpdatePod(ctx context.Context, pod spec.Pod, overhead, resources *spec.PodResources) error
	PostUpdatePod(ctx context.Context, pod spec.Pod) error
	StopPod(ctx context.Context, pod spec.Pod) error
	RemovePod(ctx context.Context, pod spec.Pod) error

	// CreateContainer may change oci.
	CreateContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer, oci *specs.Spec) error
	PostCreateContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error
	StartContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error
	PostStartContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error
	// UpdateContainer may change limits.
	UpdateContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer, limits *specs.LinuxResources) error
	PostUpdateContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error
	StopContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error
	RemoveContainer(ctx context.Context, pod spec.Pod, c spec.PodContainer) error
}

// Seccomp watches the system calls of containers whose pod asks for it by an
// annotation.
type Seccomp interface {
	// Watch returns the profile as it has to be for that; profile itself where
	// nothing is asked for.
	Watch(ctx context.Context, pod spec.Pod, c spec.PodContainer, profile *specs.LinuxSeccomp) (*specs.LinuxSeccomp, error)
	Unwatch(ctx context.Context, container string) error
}

// Events is told what happens.
type Events interface {
	Publish(kind, action, id string, attrs map[string]string)
}

// Devices adds devices to a spec by their CDI names.
type Devices interface {
	Inject(oci *specs.Spec, names []string) error
}

// Runtimes finds the runtime of a handler's name, "" being the usual one.
// errs.NotFound: there is none of that name.
type Runtimes func(handler string) (runtime string, err error)

// Features is what a runtime says that it can do; nil where it says nothing.
type Features func(ctx context.Context, runtime string) *features.Features
