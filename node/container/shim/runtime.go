package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/base/errs"
	"berth/node/container"
	"berth/spec"
)

// Runtime is the driver of one runtime.
type Runtime struct {
	driver *Driver
	name   string
	binary string
}

var (
	_ container.Runtime      = (*Runtime)(nil)
	_ container.Mounter      = (*Runtime)(nil)
	_ container.Resizer      = (*Runtime)(nil)
	_ container.Reporter     = (*Runtime)(nil)
	_ container.Checkpointer = (*Runtime)(nil)
)

// Name is what --runtime takes.
func (r *Runtime) Name() string { return r.name }

// MountsRootfs says that the shim mounts the root of a container itself.
func (r *Runtime) MountsRootfs() bool { return true }

// Version asks the program for its version. Old ones do not know theirs.
func (r *Runtime) Version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, r.driver.Limits.Call)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.binary, "-v")
	cmd.Env = append(os.Environ(), r.driver.Env...)
	cmd.WaitDelay = drain
	out, err := r.driver.said(ctx, cmd)
	if err != nil {
		return "", fmt.Errorf("runtime %s: %w", r.name, err)
	}
	for line := range strings.Lines(string(out)) {
		if version, found := strings.CutPrefix(strings.TrimSpace(line), "Version:"); found && strings.TrimSpace(version) != "" {
			return strings.TrimSpace(version), nil
		}
	}
	return "unknown", nil
}

// Start lets the process of a created container go.
func (r *Runtime) Start(ctx context.Context, id string) error {
	t, err := r.driver.task(id)
	if err != nil {
		return err
	}
	return r.startError(t.start(ctx))
}

// Signal sends sig to the container's first process, or to all of them.
func (r *Runtime) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	t, err := r.driver.task(id)
	if err != nil {
		return err
	}
	return t.init.kill(ctx, sig, all)
}

// SignalExec sends sig to the process of an exec, by the id of its launch.
func (r *Runtime) SignalExec(ctx context.Context, id, exec string, sig syscall.Signal) error {
	p := r.driver.process(exec)
	if p == nil || p.task.ID != id {
		return errs.New(errs.NotFound, "there is no exec %s in container %s", exec, id)
	}
	return p.kill(ctx, sig, false)
}

// Pause freezes every process of the container.
func (r *Runtime) Pause(ctx context.Context, id string) error {
	return r.driver.ask(ctx, id, "Pause", func(name string) proto.Message { return &taskapi.PauseRequest{ID: name} })
}

// Resume thaws what Pause froze.
func (r *Runtime) Resume(ctx context.Context, id string) error {
	return r.driver.ask(ctx, id, "Resume", func(name string) proto.Message { return &taskapi.ResumeRequest{ID: name} })
}

// Update sets limits of a running container.
func (r *Runtime) Update(ctx context.Context, id string, limits *specs.LinuxResources) error {
	data, err := json.Marshal(limits)
	if err != nil {
		return fmt.Errorf("update: %w", err)
	}
	return r.driver.ask(ctx, id, "Update", func(name string) proto.Message {
		return &taskapi.UpdateTaskRequest{ID: name, Resources: &anypb.Any{TypeUrl: ociTypes + "LinuxResources", Value: data}}
	})
}

// Pids are the processes of the container, as the host numbers them. Of one
// that has its own kernel they are what the shim takes for them.
func (r *Runtime) Pids(ctx context.Context, id string) ([]int, error) {
	t, err := r.driver.living(id)
	if err != nil {
		return nil, err
	}
	var answer taskapi.PidsResponse
	if err := t.shim.call(ctx, r.driver.Limits.Call, "Pids", &taskapi.PidsRequest{ID: t.Name}, &answer); err != nil {
		return nil, err
	}
	pids := make([]int, 0, len(answer.GetProcesses()))
	for _, p := range answer.GetProcesses() {
		pids = append(pids, int(p.GetPid()))
	}
	return pids, nil
}

// Report gives the shim's own metrics of a container.
func (r *Runtime) Report(ctx context.Context, id string) (*spec.Opaque, error) {
	t, err := r.driver.living(id)
	if err != nil {
		return nil, err
	}
	var answer taskapi.StatsResponse
	if err := t.shim.call(ctx, r.driver.Limits.soon(), "Stats", &taskapi.StatsRequest{ID: t.Name}, &answer); err != nil {
		return nil, err
	}
	if answer.GetStats() == nil {
		return nil, errs.New(errs.Unsupported, "runtime %s does not measure its containers", r.name)
	}
	return &spec.Opaque{Type: answer.GetStats().GetTypeUrl(), Value: answer.GetStats().GetValue()}, nil
}

// Resize sets the size of a terminal.
func (r *Runtime) Resize(ctx context.Context, id, exec string, size spec.Size) error {
	t, err := r.driver.living(id)
	if err != nil {
		return err
	}
	p := t.init
	if exec != "" {
		if p = r.driver.process(exec); p == nil || p.task != t {
			return errs.New(errs.NotFound, "there is no exec %s in container %s", exec, id)
		}
	}
	return p.resize(ctx, size)
}

// Checkpoint writes a running container to disk.
func (r *Runtime) Checkpoint(ctx context.Context, id string, c container.Checkpoint) error {
	t, err := r.driver.living(id)
	if err != nil {
		return err
	}
	how := &options.CheckpointOptions{
		Exit: c.Exit, OpenTcp: c.OpenTCP, ExternalUnixSockets: c.ExternalUnixSockets, Terminal: c.Terminal,
		FileLocks: c.FileLocks, EmptyNamespaces: c.EmptyNamespaces, ImagePath: c.Image, WorkPath: c.Work,
	}
	data, err := proto.Marshal(how)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return t.shim.call(ctx, 0, "Checkpoint", &taskapi.CheckpointTaskRequest{
		ID: t.Name, Path: c.Image,
		Options: &anypb.Any{TypeUrl: string(how.ProtoReflect().Descriptor().FullName()), Value: data},
	}, &emptypb.Empty{})
}

// ask calls a method that answers nothing, of a container that lives.
func (d *Driver) ask(ctx context.Context, id, method string, request func(name string) proto.Message) error {
	t, err := d.living(id)
	if err != nil {
		return err
	}
	return t.shim.call(ctx, d.Limits.Call, method, request(t.Name), &emptypb.Empty{})
}

// living finds a container whose process has not ended.
func (d *Driver) living(id string) (*task, error) {
	t, err := d.task(id)
	if err != nil {
		return nil, err
	}
	if t.init.over() {
		return nil, errs.New(errs.NotFound, "container %s has ended", id)
	}
	return t, nil
}

// call calls a method of the shim whose answer says nothing.
func (p *process) call(ctx context.Context, method string, request proto.Message) error {
	var answer proto.Message = &emptypb.Empty{}
	if method == "Delete" {
		answer = &taskapi.DeleteResponse{}
	}
	return p.task.shim.call(ctx, p.task.driver.Limits.Call, method, request, answer)
}

func (p *process) resize(ctx context.Context, size spec.Size) error {
	return p.call(ctx, "ResizePty", &taskapi.ResizePtyRequest{
		ID: p.task.Name, ExecID: p.exec, Width: uint32(size.Cols), Height: uint32(size.Rows),
	})
}
