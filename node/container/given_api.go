package container

import (
	"context"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

func soon() error { return errs.New(errs.Unsupported, "not there yet") }

// CreateGiven adds a container whose spec its client wrote. errs.Exists: the
// namespace has one of that id.
func (s *Set) CreateGiven(ctx context.Context, g spec.Given) (spec.Given, error) { return g, soon() }

// Given returns one container; those of the node are in "default".
func (s *Set) Given(ctx context.Context, namespace, id string) (spec.Given, error) {
	return spec.Given{}, soon()
}

// Givens returns the containers of a namespace, or with "" all.
func (s *Set) Givens(ctx context.Context, namespace string) ([]spec.Given, error) { return nil, soon() }

// UpdateGiven changes what a client may change of a container.
func (s *Set) UpdateGiven(ctx context.Context, namespace, id string, change func(*spec.Given) error) (spec.Given, error) {
	return spec.Given{}, soon()
}

// RemoveGiven takes a container away that has no task.
func (s *Set) RemoveGiven(ctx context.Context, namespace, id string) error { return soon() }

// CreateTask makes a container's task, which waits for StartTask.
func (s *Set) CreateTask(ctx context.Context, namespace, id string, req TaskRequest) (TaskState, error) {
	return TaskState{}, soon()
}

// StartTask lets a task, or an exec in it, go.
func (s *Set) StartTask(ctx context.Context, namespace, id, exec string) (pid int, err error) {
	return 0, soon()
}

// AddExec prepares a further process in a task.
func (s *Set) AddExec(ctx context.Context, namespace, id string, req ExecRequest) error {
	return soon()
}

// Task returns a task, or an exec in it, as it is now.
func (s *Set) Task(ctx context.Context, namespace, id, exec string) (TaskState, error) {
	return TaskState{}, soon()
}

// Tasks returns all tasks of a namespace.
func (s *Set) Tasks(ctx context.Context, namespace string) ([]TaskState, error) { return nil, soon() }

// KillTask sends a signal.
func (s *Set) KillTask(ctx context.Context, namespace, id, exec string, sig syscall.Signal, all bool) error {
	return soon()
}

// DeleteTask takes an ended task away.
func (s *Set) DeleteTask(ctx context.Context, namespace, id string) (TaskExit, error) {
	return TaskExit{}, soon()
}

// DeleteExec takes an ended exec away.
func (s *Set) DeleteExec(ctx context.Context, namespace, id, exec string) (TaskExit, error) {
	return TaskExit{}, soon()
}

// WaitTask waits for the end of a task, or of an exec in it.
func (s *Set) WaitTask(ctx context.Context, namespace, id, exec string) (TaskExit, error) {
	return TaskExit{}, soon()
}

// PauseTask freezes a task.
func (s *Set) PauseTask(ctx context.Context, namespace, id string) error { return soon() }

// ResumeTask thaws it.
func (s *Set) ResumeTask(ctx context.Context, namespace, id string) error { return soon() }

// ResizeTask sets the size of a terminal.
func (s *Set) ResizeTask(ctx context.Context, namespace, id, exec string, size spec.Size) error {
	return soon()
}

// CloseTaskStdin lets go of the node's hold on a stdin.
func (s *Set) CloseTaskStdin(ctx context.Context, namespace, id, exec string) error { return soon() }

// UpdateTask sets limits.
func (s *Set) UpdateTask(ctx context.Context, namespace, id string, limits *specs.LinuxResources, annotations map[string]string) error {
	return soon()
}

// TaskPids are the processes of a task.
func (s *Set) TaskPids(ctx context.Context, namespace, id string) ([]TaskPid, error) {
	return nil, soon()
}

// CheckpointTask writes a task to disk.
func (s *Set) CheckpointTask(ctx context.Context, namespace, id string, c Checkpoint) error {
	return soon()
}

// TaskCgroup says where a task is measured.
func (s *Set) TaskCgroup(ctx context.Context, namespace, id string) (cgroup string, pid int, report *spec.Opaque, err error) {
	return "", 0, nil, soon()
}
