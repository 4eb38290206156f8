package tasks

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"syscall"

	api "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/base/errs"
	"berth/face/containerd/wire"
	"berth/node/container"
	"berth/node/snapshot"
	"berth/spec"
)

// Tasks is the tasks service.
type Tasks struct {
	api.UnimplementedTasksServer
	Givens   Givens
	Running  Running
	Controls Controls
	Meter    Meter
	Contents Contents
	Mounts   Mounts
	// Making is a folder for checkpoints on their way to blobs, which is emptied
	// before anything is served, Restored one for those that tasks go on from:
	// a folder each, by the id that the node has for the container.
	Making, Restored string
	Log              *slog.Logger
}

// Register adds the service to a server.
func (s *Tasks) Register(r grpc.ServiceRegistrar) { api.RegisterTasksServer(r, s) }

// Create makes a container's task; its process waits for Start.
func (s *Tasks) Create(ctx context.Context, r *api.CreateTaskRequest) (*api.CreateTaskResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	if r.GetTaskApiAddress() != "" {
		return nil, wire.Error(errs.New(errs.Unsupported, "tasks are made by this node's runtimes, not by an address"))
	}
	req := container.TaskRequest{
		Streams:  container.Streams{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr()},
		Terminal: r.GetTerminal(), Options: wire.FromAny(r.GetOptions()), Runtime: r.GetRuntimePath(),
	}
	if req.Options != nil && len(req.Options.Value) == 0 {
		req.Options = nil // of a client that has none: those of the container hold
	}
	if err := s.restore(ctx, namespace, r, &req); err != nil {
		return nil, wire.Error(err)
	}
	made, err := s.create(ctx, namespace, r, req)
	if err != nil {
		err = wire.Error(err)
		if status.Code(err) != codes.AlreadyExists { // then that is another's
			s.forget(ctx, namespace, r.GetContainerID())
		}
		return nil, err
	}
	return &api.CreateTaskResponse{ContainerID: r.GetContainerID(), Pid: uint32(made.Pid)}, nil //nolint:gosec // a pid is positive
}

// create makes a task on what is left to mount of its root file system.
func (s *Tasks) create(ctx context.Context, namespace string, r *api.CreateTaskRequest, req container.TaskRequest) (container.TaskState, error) {
	if _, err := s.Running.Task(ctx, namespace, r.GetContainerID(), ""); err == nil {
		return container.TaskState{}, errs.New(errs.Exists, "task %s: already exists", r.GetContainerID())
	}
	left, err := s.Mounts.ForTask(ctx, r.GetContainerID(), r.GetRootfs())
	if err != nil {
		return container.TaskState{}, err
	}
	for _, m := range left {
		if m.GetTarget() != "" { // it would hide the whole root
			return container.TaskState{}, errs.New(errs.Unsupported, "a mount at %q, within the root file system", m.GetTarget())
		}
	}
	req.Rootfs = mounts(left)
	return s.Running.CreateTask(ctx, namespace, r.GetContainerID(), req)
}

func mounts(list []*types.Mount) []snapshot.Mount {
	all := make([]snapshot.Mount, 0, len(list))
	for _, m := range list {
		all = append(all, snapshot.Mount{Type: m.GetType(), Source: m.GetSource(), Options: m.GetOptions()})
	}
	return all
}

// Start lets a task, or an exec in it, go.
func (s *Tasks) Start(ctx context.Context, r *api.StartRequest) (*api.StartResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	pid, err := s.Running.StartTask(ctx, namespace, r.GetContainerID(), r.GetExecID())
	if err != nil {
		return nil, wire.Error(err)
	}
	return &api.StartResponse{Pid: uint32(pid)}, nil //nolint:gosec // a pid is positive
}

// Delete takes an ended task away, and says how it ended.
func (s *Tasks) Delete(ctx context.Context, r *api.DeleteTaskRequest) (*api.DeleteResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	exit, err := s.Running.DeleteTask(ctx, namespace, r.GetContainerID())
	if err != nil {
		return nil, wire.Error(err)
	}
	s.forget(ctx, namespace, r.GetContainerID())
	return deleted("", exit), nil
}

// DeleteProcess takes an ended exec away, and says how it ended.
func (s *Tasks) DeleteProcess(ctx context.Context, r *api.DeleteProcessRequest) (*api.DeleteResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	if r.GetExecID() == "" {
		return nil, wire.Error(errs.New(errs.Invalid, "exec id cannot be empty"))
	}
	exit, err := s.Running.DeleteExec(ctx, namespace, r.GetContainerID(), r.GetExecID())
	if err != nil {
		return nil, wire.Error(err)
	}
	return deleted(r.GetExecID(), exit), nil
}

func deleted(id string, exit container.TaskExit) *api.DeleteResponse {
	return &api.DeleteResponse{
		ID: id, Pid: uint32(exit.Pid), ExitStatus: exit.Code, ExitedAt: timestamppb.New(exit.At), //nolint:gosec // a pid is positive
	}
}

// Get gives a task, or an exec in it, as it is now.
func (s *Tasks) Get(ctx context.Context, r *api.GetRequest) (*api.GetResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	state, err := s.Running.Task(ctx, namespace, r.GetContainerID(), r.GetExecID())
	if err != nil {
		return nil, wire.Error(err)
	}
	return &api.GetResponse{Process: process(state)}, nil
}

// List gives all tasks of the namespace; no client of the protocol filters.
func (s *Tasks) List(ctx context.Context, _ *api.ListTasksRequest) (*api.ListTasksResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	states, err := s.Running.Tasks(ctx, namespace)
	if err != nil {
		return nil, wire.Error(err)
	}
	answer := &api.ListTasksResponse{Tasks: make([]*task.Process, 0, len(states))}
	for _, state := range states {
		answer.Tasks = append(answer.Tasks, process(state))
	}
	return answer, nil
}

func process(state container.TaskState) *task.Process {
	id := state.Container
	if state.Exec != "" {
		id = state.Exec
	}
	p := &task.Process{
		ID: id, Pid: uint32(state.Pid), Status: statusOf(state.Status), //nolint:gosec // a pid is positive
		Stdin: state.Streams.Stdin, Stdout: state.Streams.Stdout, Stderr: state.Streams.Stderr, Terminal: state.Terminal,
		ExitedAt: timestamppb.New(state.Exit.At),
	}
	if p.GetStatus() == task.Status_STOPPED {
		p.ExitStatus = state.Exit.Code
	}
	return p
}

func statusOf(s container.TaskStatus) task.Status {
	switch s {
	case container.TaskCreated:
		return task.Status_CREATED
	case container.TaskRunning:
		return task.Status_RUNNING
	case container.TaskStopped:
		return task.Status_STOPPED
	case container.TaskPaused:
		return task.Status_PAUSED
	case container.TaskPausing:
		return task.Status_PAUSING
	}
	return task.Status_UNKNOWN
}

// Kill sends a signal.
func (s *Tasks) Kill(ctx context.Context, r *api.KillRequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(namespace string) error {
		return s.Controls.KillTask(ctx, namespace, r.GetContainerID(), r.GetExecID(), syscall.Signal(r.GetSignal()), r.GetAll())
	})
}

// Exec prepares a further process in a task.
func (s *Tasks) Exec(ctx context.Context, r *api.ExecProcessRequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(namespace string) error {
		if r.GetExecID() == "" {
			return errs.New(errs.Invalid, "exec id cannot be empty")
		}
		if err := wire.Identifier(r.GetExecID()); err != nil {
			return fmt.Errorf("invalid exec id %s: %w", r.GetExecID(), err)
		}
		return s.Running.AddExec(ctx, namespace, r.GetContainerID(), container.ExecRequest{
			ID:       r.GetExecID(),
			Streams:  container.Streams{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr()},
			Terminal: r.GetTerminal(), Process: r.GetSpec().GetValue(),
		})
	})
}

// ResizePty sets the size of a terminal.
func (s *Tasks) ResizePty(ctx context.Context, r *api.ResizePtyRequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(namespace string) error {
		size := spec.Size{Rows: uint16(min(r.GetHeight(), 1<<16-1)), Cols: uint16(min(r.GetWidth(), 1<<16-1))} //nolint:gosec // bounded
		return s.Controls.ResizeTask(ctx, namespace, r.GetContainerID(), r.GetExecID(), size)
	})
}

// CloseIO lets a process see the end of its input.
func (s *Tasks) CloseIO(ctx context.Context, r *api.CloseIORequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(namespace string) error {
		if !r.GetStdin() {
			_, err := s.Running.Task(ctx, namespace, r.GetContainerID(), r.GetExecID())
			return err
		}
		return s.Controls.CloseTaskStdin(ctx, namespace, r.GetContainerID(), r.GetExecID())
	})
}

// Pause freezes a task.
func (s *Tasks) Pause(ctx context.Context, r *api.PauseTaskRequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(namespace string) error { return s.Controls.PauseTask(ctx, namespace, r.GetContainerID()) })
}

// Resume thaws what Pause froze.
func (s *Tasks) Resume(ctx context.Context, r *api.ResumeTaskRequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(namespace string) error { return s.Controls.ResumeTask(ctx, namespace, r.GetContainerID()) })
}

// Update sets limits of a running task.
func (s *Tasks) Update(ctx context.Context, r *api.UpdateTaskRequest) (*emptypb.Empty, error) {
	return s.do(ctx, func(namespace string) error {
		limits := &specs.LinuxResources{}
		if value := r.GetResources().GetValue(); len(value) > 0 {
			if err := json.Unmarshal(value, limits); err != nil {
				return errs.New(errs.Invalid, "resources: %w", err)
			}
		}
		return s.Controls.UpdateTask(ctx, namespace, r.GetContainerID(), limits, r.GetAnnotations())
	})
}

// do runs what has nothing to say but whether it went well.
func (s *Tasks) do(ctx context.Context, fn func(namespace string) error) (*emptypb.Empty, error) {
	namespace, err := wire.Namespace(ctx)
	if err == nil {
		err = fn(namespace)
	}
	if err != nil {
		return nil, wire.Error(err)
	}
	return &emptypb.Empty{}, nil
}

// ListPids gives the processes of a task, and says which are those of execs.
func (s *Tasks) ListPids(ctx context.Context, r *api.ListPidsRequest) (*api.ListPidsResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	pids, err := s.Controls.TaskPids(ctx, namespace, r.GetContainerID())
	if err != nil {
		return nil, wire.Error(err)
	}
	answer := &api.ListPidsResponse{}
	for _, p := range pids {
		info := &task.ProcessInfo{Pid: uint32(p.Pid)} //nolint:gosec // a pid is positive
		if p.Exec != "" {
			if info.Info, err = wire.Pack(&options.ProcessDetails{ExecID: p.Exec}); err != nil {
				return nil, wire.Error(err)
			}
		}
		answer.Processes = append(answer.Processes, info)
	}
	return answer, nil
}

// Wait answers once a task, or an exec in it, has ended.
func (s *Tasks) Wait(ctx context.Context, r *api.WaitRequest) (*api.WaitResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	exit, err := s.Running.WaitTask(ctx, namespace, r.GetContainerID(), r.GetExecID())
	if err != nil {
		return nil, wire.Error(err)
	}
	return &api.WaitResponse{ExitStatus: exit.Code, ExitedAt: timestamppb.New(exit.At)}, nil
}

// unpack reads a message of an Any, whose name must end as m's does: clients
// write names with and without a host in front.
func unpack(a *anypb.Any, m proto.Message) error {
	if want := m.ProtoReflect().Descriptor().FullName(); a.MessageName() != want && a.GetTypeUrl() != string(want) {
		return errs.New(errs.Invalid, "options of type %q: want %s", a.GetTypeUrl(), want)
	}
	if err := proto.Unmarshal(a.GetValue(), m); err != nil {
		return errs.New(errs.Invalid, "options: %w", err)
	}
	return nil
}
