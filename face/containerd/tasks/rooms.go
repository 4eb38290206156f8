// Package tasks answers those services of containerd's protocol that are about
// containers: containers, tasks, and sandboxes. It also tells clients what
// happens to containers, in the words of their protocol.
//
// What a client gave is given back byte for byte: specs, options, extensions.
// State is asked of the node, whose answers come from memory.
package tasks

import (
	"context"
	"io"
	"syscall"

	"github.com/containerd/containerd/api/types"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/node/container"
	"berth/node/stats"
	"berth/spec"
)

// Givens are the containers of a node, as their clients gave them.
type Givens interface {
	CreateGiven(ctx context.Context, g spec.Given) (spec.Given, error)
	Given(ctx context.Context, namespace, id string) (spec.Given, error)
	Givens(ctx context.Context, namespace string) ([]spec.Given, error)
	UpdateGiven(ctx context.Context, namespace, id string, change func(*spec.Given) error) (spec.Given, error)
	RemoveGiven(ctx context.Context, namespace, id string) error
}

// Running is their running side.
type Running interface {
	CreateTask(ctx context.Context, namespace, id string, req container.TaskRequest) (container.TaskState, error)
	StartTask(ctx context.Context, namespace, id, exec string) (pid int, err error)
	DeleteTask(ctx context.Context, namespace, id string) (container.TaskExit, error)
	Task(ctx context.Context, namespace, id, exec string) (container.TaskState, error)
	Tasks(ctx context.Context, namespace string) ([]container.TaskState, error)
	WaitTask(ctx context.Context, namespace, id, exec string) (container.TaskExit, error)
	AddExec(ctx context.Context, namespace, id string, req container.ExecRequest) error
	DeleteExec(ctx context.Context, namespace, id, exec string) (container.TaskExit, error)
}

// Controls are what is done to a running task.
type Controls interface {
	KillTask(ctx context.Context, namespace, id, exec string, sig syscall.Signal, all bool) error
	PauseTask(ctx context.Context, namespace, id string) error
	ResumeTask(ctx context.Context, namespace, id string) error
	ResizeTask(ctx context.Context, namespace, id, exec string, size spec.Size) error
	CloseTaskStdin(ctx context.Context, namespace, id, exec string) error
	UpdateTask(ctx context.Context, namespace, id string, limits *specs.LinuxResources, annotations map[string]string) error
	TaskPids(ctx context.Context, namespace, id string) ([]container.TaskPid, error)
	CheckpointTask(ctx context.Context, namespace, id string, c container.Checkpoint) error
	TaskCgroup(ctx context.Context, namespace, id string) (cgroup string, pid int, report *spec.Opaque, err error)
}

// Meter reads cgroups.
type Meter interface {
	Detail(cgroup string) (stats.Detail, error)
}

// Mounts makes those mounts of root file systems that are no system calls alone.
type Mounts interface {
	// ForTask gives what is left to mount.
	ForTask(ctx context.Context, container string, rootfs []*types.Mount) ([]*types.Mount, error)
	// Release takes down what ForTask made; nothing is no error.
	Release(ctx context.Context, namespace, container string) error
}

// Contents is where checkpoints are kept.
type Contents interface {
	// Open reads a blob that the namespace has.
	Open(ctx context.Context, namespace, digest string) (io.ReadCloser, error)
	// Add takes what is read as a blob of the namespace, and of the lease if
	// there is one.
	Add(ctx context.Context, namespace, lease, name string, r io.Reader) (digest string, size int64, err error)
}
