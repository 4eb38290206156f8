package tasks

import (
	"context"
	"runtime"
	"time"

	"github.com/containerd/containerd/api/events"
	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/base/errs"
	"berth/face/containerd/wire"
)

// controllerName is the one controller that there is, by the name that clients
// use where they are told none.
const controllerName = "shim"

// sandboxController starts and stops sandboxes. Their containers are processes
// of this machine, so there is little to it; sandboxes that are a machine of
// their own would be made by a runtime with a protocol for that, and those are
// refused: a task cannot be put into them yet.
type sandboxController struct {
	api.UnimplementedControllerServer
	*Sandboxes
}

// find checks what all methods are told.
func (s sandboxController) find(ctx context.Context, controller string) (namespace string, err error) {
	switch controller {
	case controllerName:
		return wire.Namespace(ctx)
	case "":
		return "", errs.New(errs.Invalid, "sandbox controller name can not be empty")
	}
	return "", errs.New(errs.NotFound, "failed to get sandbox controller by %s", controller)
}

// Create prepares a sandbox of the store to be started.
func (s sandboxController) Create(ctx context.Context, r *api.ControllerCreateRequest) (*api.ControllerCreateResponse, error) {
	namespace, err := s.find(ctx, r.GetSandboxer())
	if err != nil {
		return nil, wire.Error(err)
	}
	name := r.GetSandbox().GetRuntime().GetName()
	if kept, err := s.Set.Get(namespace, r.GetSandboxID()); err == nil && name == "" {
		name = kept.Runtime
	}
	if !s.Plain(name) {
		return nil, wire.Error(errs.New(errs.Unsupported, "runtime %q: sandboxes are made for runtimes only whose containers are processes of this machine", name))
	}
	if err := s.Set.Make(ctx, namespace, r.GetSandboxID()); err != nil {
		return nil, wire.Error(err)
	}
	s.tell(ctx, namespace, "create", &events.SandboxCreate{SandboxID: r.GetSandboxID()})
	return &api.ControllerCreateResponse{SandboxID: r.GetSandboxID()}, nil
}

// Start lets a sandbox run.
func (s sandboxController) Start(ctx context.Context, r *api.ControllerStartRequest) (*api.ControllerStartResponse, error) {
	namespace, err := s.find(ctx, r.GetSandboxer())
	if err != nil {
		return nil, wire.Error(err)
	}
	one, err := s.Set.Start(ctx, namespace, r.GetSandboxID())
	if err != nil {
		return nil, wire.Error(err)
	}
	s.tell(ctx, namespace, "start", &events.SandboxStart{SandboxID: one.ID})
	return &api.ControllerStartResponse{SandboxID: one.ID, CreatedAt: timestamppb.New(one.State.Started), Labels: one.Labels}, nil
}

// Platform says for what a sandbox's containers are made: this machine.
func (s sandboxController) Platform(ctx context.Context, r *api.ControllerPlatformRequest) (*api.ControllerPlatformResponse, error) {
	namespace, err := s.find(ctx, r.GetSandboxer())
	if err == nil {
		_, err = s.Set.Get(namespace, r.GetSandboxID())
	}
	if err != nil {
		return nil, wire.Error(err)
	}
	return &api.ControllerPlatformResponse{Platform: &types.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}}, nil
}

// Stop ends a sandbox; what is not there has ended.
func (s sandboxController) Stop(ctx context.Context, r *api.ControllerStopRequest) (*api.ControllerStopResponse, error) {
	namespace, err := s.find(ctx, r.GetSandboxer())
	if err == nil {
		err = s.Set.Stop(ctx, namespace, r.GetSandboxID())
	}
	if err != nil && errs.KindOf(err) != errs.NotFound {
		return nil, wire.Error(err)
	}
	return &api.ControllerStopResponse{}, nil
}

// Wait answers once a sandbox has ended.
func (s sandboxController) Wait(ctx context.Context, r *api.ControllerWaitRequest) (*api.ControllerWaitResponse, error) {
	namespace, err := s.find(ctx, r.GetSandboxer())
	if err != nil {
		return nil, wire.Error(err)
	}
	at, err := s.Set.Wait(ctx, namespace, r.GetSandboxID())
	if err != nil {
		return nil, wire.Error(err)
	}
	s.tell(ctx, namespace, "exit", &events.SandboxExit{SandboxID: r.GetSandboxID(), ExitedAt: timestamppb.New(at)})
	return &api.ControllerWaitResponse{ExitedAt: timestamppb.New(at)}, nil
}

// Status says how far a sandbox has come; what is not there has ended.
func (s sandboxController) Status(ctx context.Context, r *api.ControllerStatusRequest) (*api.ControllerStatusResponse, error) {
	namespace, err := s.find(ctx, r.GetSandboxer())
	if err != nil {
		return nil, wire.Error(err)
	}
	answer := &api.ControllerStatusResponse{SandboxID: r.GetSandboxID(), State: "SANDBOX_NOTREADY", ExitedAt: timestamppb.New(time.Now())}
	one, err := s.Set.Get(namespace, r.GetSandboxID())
	if err != nil || one.State.Boot == "" {
		return answer, nil //nolint:nilerr // that is the answer
	}
	answer.CreatedAt, answer.ExitedAt = timestamppb.New(one.State.Made), timestamppb.New(one.State.Stopped)
	if one.State.Runs() {
		answer.State = "SANDBOX_READY"
	}
	return answer, nil
}

// Shutdown ends a sandbox and lets go of it.
func (s sandboxController) Shutdown(ctx context.Context, r *api.ControllerShutdownRequest) (*api.ControllerShutdownResponse, error) {
	namespace, err := s.find(ctx, r.GetSandboxer())
	if err == nil {
		err = s.Set.Shutdown(ctx, namespace, r.GetSandboxID())
	}
	if err != nil {
		return nil, wire.Error(err)
	}
	return &api.ControllerShutdownResponse{}, nil
}

func (s sandboxController) tell(ctx context.Context, namespace, what string, event proto.Message) {
	s.Events.Publish(ctx, namespace, "/sandboxes/"+what, event)
}
