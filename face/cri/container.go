package cri

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
	"berth/spec"
)

// CreateContainer makes a container in a pod. The pod's config is not read
// again: it has not changed.
func (s *Server) CreateContainer(ctx context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	config, err := containerConfig(r.GetConfig())
	if err != nil {
		return nil, err
	}
	if r.GetConfig().GetLinux().GetSecurityContext().GetNamespaceOptions() == nil {
		pod, err := s.Pods.Pod(r.GetPodSandboxId())
		if err != nil {
			return nil, err
		}
		config.Security.Namespaces = pod.Config.Security.Namespaces // as its pod has it
	}
	defer s.feed.settle(ctx)
	id, err := s.Containers.CreateContainer(ctx, r.GetPodSandboxId(), config)
	return &cri.CreateContainerResponse{ContainerId: id}, err
}

// StartContainer starts a created container.
func (s *Server) StartContainer(ctx context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	defer s.feed.settle(ctx)
	return &cri.StartContainerResponse{}, s.Containers.StartContainer(ctx, r.GetContainerId())
}

// longest is as many seconds as a time.Duration holds, and a timer waits.
const longest = int64(100 * 365 * 24 * 3600)

// StopContainer asks a container to end, and ends it after the timeout.
func (s *Server) StopContainer(ctx context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	timeout := time.Duration(min(max(r.GetTimeout(), 0), longest)) * time.Second
	defer s.feed.settle(ctx)
	return &cri.StopContainerResponse{}, gone(s.Containers.StopContainer(ctx, r.GetContainerId(), timeout))
}

// RemoveContainer removes a container, and ends it before that if it runs.
func (s *Server) RemoveContainer(ctx context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	defer s.feed.settle(ctx)
	return &cri.RemoveContainerResponse{}, gone(s.Containers.RemoveContainer(ctx, r.GetContainerId()))
}

// ContainerStatus tells of a container.
func (s *Server) ContainerStatus(ctx context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	c, err := s.Containers.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	answer := &cri.ContainerStatusResponse{Status: s.containerStatus(c)}
	if r.GetVerbose() {
		answer.Info, err = s.containerInfo(ctx, c)
	}
	return answer, err
}

// ListContainers lists the containers that fit a filter.
func (s *Server) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	items, err := s.listContainers(r.GetFilter())
	return &cri.ListContainersResponse{Containers: items}, err
}

// StreamContainers is ListContainers in parts.
func (s *Server) StreamContainers(r *cri.StreamContainersRequest, stream cri.RuntimeService_StreamContainersServer) error {
	items, err := s.listContainers(r.GetFilter())
	if err != nil {
		return err
	}
	return send(items, func(part []*cri.Container) error {
		return stream.Send(&cri.StreamContainersResponse{Containers: part})
	})
}

func (s *Server) listContainers(f *cri.ContainerFilter) ([]*cri.Container, error) {
	id, found, err := only(f.GetId(), func(id string) (string, error) {
		c, err := s.Containers.Container(id)
		return c.ID, err
	})
	if err != nil || !found {
		return nil, err
	}
	pod, found, err := only(f.GetPodSandboxId(), func(id string) (string, error) {
		p, err := s.Pods.Pod(id)
		return p.ID, err
	})
	if err != nil || !found {
		return nil, err
	}
	var items []*cri.Container
	for _, c := range s.Containers.Containers() {
		fits := (id == "" || c.ID == id) && (pod == "" || c.Pod == pod) &&
			(f.GetState() == nil || f.GetState().GetState() == containerState(c.State)) &&
			selects(f.GetLabelSelector(), c.Config.Labels)
		if fits {
			items = append(items, s.listedContainer(c))
		}
	}
	return items, nil
}

// UpdateContainerResources changes the limits of a container.
func (s *Server) UpdateContainerResources(ctx context.Context, r *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	if r.GetWindows() != nil && r.GetLinux() == nil {
		return nil, errs.New(errs.Unsupported, "the limits of Windows containers cannot be changed on Linux")
	}
	err := s.Containers.UpdateContainer(ctx, r.GetContainerId(), resources(r.GetLinux()), r.GetAnnotations())
	return &cri.UpdateContainerResourcesResponse{}, err
}

// ReopenContainerLog has a container's log begin a new file.
func (s *Server) ReopenContainerLog(ctx context.Context, r *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	return &cri.ReopenContainerLogResponse{}, s.Containers.ReopenLog(ctx, r.GetContainerId())
}

func (s *Server) listedContainer(c spec.PodContainer) *cri.Container {
	return &cri.Container{
		Id: c.ID, PodSandboxId: c.Pod, Metadata: containerMetadata(c.Config), Image: s.imageShown(c), ImageRef: c.ImageRef, ImageId: c.ImageID,
		State: containerState(c.State), CreatedAt: nanos(c.Created), Labels: c.Config.Labels, Annotations: c.Config.Annotations,
	}
}

func (s *Server) containerStatus(c spec.PodContainer) *cri.ContainerStatus {
	status := &cri.ContainerStatus{
		Id: c.ID, Metadata: containerMetadata(c.Config), State: containerState(c.State),
		CreatedAt: nanos(c.Created), StartedAt: nanos(c.Started), FinishedAt: nanos(c.Finished), ExitCode: int32(c.ExitCode), //nolint:gosec // of a process: 0 to 255
		Image: s.imageShown(c), ImageRef: c.ImageRef, ImageId: c.ImageID, Reason: c.Reason, Message: c.Message,
		Labels: c.Config.Labels, Annotations: c.Config.Annotations, LogPath: c.LogPath,
		Resources:  &cri.ContainerResources{Linux: resourcesShown(c.Resources)},
		StopSignal: signalShown(c.StopSignal),
	}
	for _, m := range c.Mounts {
		status.Mounts = append(status.Mounts, mountShown(m))
	}
	if c.User != nil {
		status.User = &cri.ContainerUser{Linux: &cri.LinuxContainerUser{Uid: c.User.UID, Gid: c.User.GID, SupplementalGroups: c.User.Groups}}
	}
	return status
}

func containerMetadata(c spec.PodContainerConfig) *cri.ContainerMetadata {
	return &cri.ContainerMetadata{Name: c.Name, Attempt: c.Attempt}
}

// containerState is a state as the CRI has it, which knows no pause.
func containerState(s spec.State) cri.ContainerState {
	switch s {
	case spec.Created:
		return cri.ContainerState_CONTAINER_CREATED
	case spec.Running, spec.Paused:
		return cri.ContainerState_CONTAINER_RUNNING
	case spec.Stopped, spec.Removing, spec.Dead:
		return cri.ContainerState_CONTAINER_EXITED
	}
	return cri.ContainerState_CONTAINER_UNKNOWN
}

// imageShown names the image of a container as people call it: clients create
// containers by the image's ID.
func (s *Server) imageShown(c spec.PodContainer) *cri.ImageSpec {
	shown := &cri.ImageSpec{Image: c.Config.Image, UserSpecifiedImage: c.Config.UserImage}
	if s.Images != nil && c.Config.Image == c.ImageID {
		if name := s.Images.NameOf(c.ImageID, c.Config.UserImage); name != "" {
			shown.Image = name
		}
	}
	return shown
}
