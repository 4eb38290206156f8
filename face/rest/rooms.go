package rest

import (
	"context"
	"io"
	"iter"
	"time"

	"berth/node/container"
	"berth/node/logfile"
	"berth/spec"
)

// Containers is what the API needs of a node's containers. Each method is
// promised in node/container.
type Containers interface {
	Catalogue
	Lifecycle
	Observation
	Terminal
	Executor
	FileAccess
}

// Catalogue makes, finds and removes containers.
type Catalogue interface {
	Create(ctx context.Context, config spec.ContainerConfig) (spec.Container, error)
	Get(ctx context.Context, ref string) (spec.Container, error)
	List(ctx context.Context, all bool, filter spec.Filter) ([]spec.Container, error)
	Sizes(ctx context.Context, ref string) (spec.ContainerSizes, error)
	Rename(ctx context.Context, ref, name string) error
	Update(ctx context.Context, ref string, update spec.ContainerUpdate) (spec.Container, error)
	Remove(ctx context.Context, ref string, force, volumes bool) error
	Prune(ctx context.Context, filter spec.Filter) (spec.Pruned, error)
}

// Lifecycle starts and ends containers.
type Lifecycle interface {
	Start(ctx context.Context, ref string) error
	Stop(ctx context.Context, ref string, timeout *int, signal string) error
	Kill(ctx context.Context, ref, signal string) error
	Restart(ctx context.Context, ref string, timeout *int, signal string) error
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
	Wait(ctx context.Context, ref, condition string) (spec.Exit, error)
	Connect(ctx context.Context, ref, network string, config spec.EndpointConfig) error
	Disconnect(ctx context.Context, ref, network string) error
}

// Observation tells how containers fare.
type Observation interface {
	Top(ctx context.Context, ref string, psArgs []string) (spec.ProcessTable, error)
	Stats(ctx context.Context, refs []string) ([]spec.Stats, error)
	Logs(ctx context.Context, ref string, q logfile.Query, fn func(logfile.Line) error) error
	LogPosition(ctx context.Context, ref string) (logfile.Position, error)
	NextEnd(ctx context.Context, ref string) (<-chan struct{}, error)
}

// Terminal reaches the first process of a container.
type Terminal interface {
	Stdin(ctx context.Context, ref string) (io.WriteCloser, error)
	Resize(ctx context.Context, ref string, size spec.Size) error
}

// Executor runs further processes in containers.
type Executor interface {
	CreateExec(ctx context.Context, ref string, config spec.ExecConfig) (spec.Exec, error)
	StartExec(ctx context.Context, id string) (*container.ExecSession, error)
	WaitExec(ctx context.Context, id string) (spec.Exec, error)
	ResizeExec(ctx context.Context, id string, size spec.Size) error
	GetExec(ctx context.Context, id string) (spec.Exec, error)
}

// FileAccess reads and writes the files of containers.
type FileAccess interface {
	Changes(ctx context.Context, ref string) ([]spec.Change, error)
	Export(ctx context.Context, ref string, w io.Writer) error
	StatPath(ctx context.Context, ref, path string) (spec.PathStat, error)
	CopyFrom(ctx context.Context, ref, path string, w io.Writer) (spec.PathStat, error)
	CopyTo(ctx context.Context, ref, path string, archive io.Reader, overwrite bool) error
	Commit(ctx context.Context, ref string, req spec.CommitRequest) (spec.Image, error)
}

// Images is what the API needs of a node's images.
type Images interface {
	Pull(ctx context.Context, req spec.PullRequest, progress func(spec.Progress)) (spec.Image, error)
	Push(ctx context.Context, req spec.PushRequest, progress func(spec.Progress)) error
	Load(ctx context.Context, archive io.Reader, progress func(spec.Progress)) ([]spec.Image, error)
	Save(ctx context.Context, refs []string, format string, w io.Writer) error
	List(ctx context.Context, filter spec.Filter) ([]spec.Image, error)
	Get(ctx context.Context, ref string) (spec.Image, error)
	Tag(ctx context.Context, source, name string) error
	Remove(ctx context.Context, ref string, force bool) ([]spec.RemovedImage, error)
	History(ctx context.Context, ref string) ([]spec.HistoryEntry, error)
	Prune(ctx context.Context, all bool, filter spec.Filter) (spec.Pruned, error)
	Scrub(ctx context.Context, req spec.ScrubRequest, tell func(spec.ScrubProgress)) (spec.ScrubResult, error)
}

// Networks is what the API needs of a node's networks.
type Networks interface {
	Create(ctx context.Context, config spec.NetworkConfig) (spec.Network, error)
	Get(ref string) (spec.Network, error)
	List(filter spec.Filter) ([]spec.Network, error)
	Remove(ctx context.Context, ref string) error
	Prune(ctx context.Context, filter spec.Filter) (spec.Pruned, error)
}

// Volumes is what the API needs of a node's volumes.
type Volumes interface {
	Create(ctx context.Context, config spec.VolumeConfig) (spec.Volume, error)
	Get(ctx context.Context, name string) (spec.Volume, error)
	List(ctx context.Context, filter spec.Filter) ([]spec.Volume, error)
	Remove(ctx context.Context, name string, force bool) error
	Prune(ctx context.Context, all bool, filter spec.Filter) (spec.Pruned, error)
}

// Events tells what happens on the node.
type Events interface {
	Subscribe(ctx context.Context, since, until time.Time, filter spec.Filter) (iter.Seq2[spec.Event, error], error)
}

// System describes the node.
type System interface {
	Info(ctx context.Context) (spec.Info, error)
	Version() spec.Version
	DiskUsage(ctx context.Context) (spec.DiskUsage, error)
}

// Builder is what the API needs of a node's builder.
type Builder interface {
	Get(ctx context.Context) (spec.Builder, error)
	Start(ctx context.Context) (spec.Builder, error)
	Stop(ctx context.Context, force bool) error
	Cache(ctx context.Context, filters []string) (spec.BuildCache, error)
	Prune(ctx context.Context, request spec.BuildCachePrune) (spec.BuildCache, error)
	Share(ctx context.Context) (spec.DiskShare, error)
}

// Pods is what the API needs of a node's pods. Lists come from memory.
type Pods interface {
	Pod(id string) (spec.Pod, error)
	Pods() []spec.Pod
	Containers() []spec.PodContainer
	ContainersOf(pod string) []spec.PodContainer
	StopPod(ctx context.Context, id string) error
	RemovePod(ctx context.Context, id string) error
	Trace(pod string) []spec.PodTraceStep
}

// PodMeter tells what ready pods use; all where none is named.
type PodMeter interface {
	Usage(ctx context.Context, ids []string) ([]spec.PodStats, error)
}

// Profiles are the recorded profiles of seccomp, in the order of their names.
type Profiles interface {
	Profiles(ctx context.Context) ([]spec.SeccompProfile, error)
}
