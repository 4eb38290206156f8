package cri

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/spec"
)

// RunPodSandbox makes a pod. Asked again with the same config it gives the same
// one.
func (s *Server) RunPodSandbox(ctx context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	config, err := podConfig(r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	defer s.feed.settle(ctx)
	id, err := s.Pods.RunPod(ctx, config)
	return &cri.RunPodSandboxResponse{PodSandboxId: id}, err
}

// StopPodSandbox ends what runs in a pod and gives its addresses back.
func (s *Server) StopPodSandbox(ctx context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	defer s.feed.settle(ctx)
	return &cri.StopPodSandboxResponse{}, gone(s.Pods.StopPod(ctx, r.GetPodSandboxId()))
}

// RemovePodSandbox removes a pod with its containers.
func (s *Server) RemovePodSandbox(ctx context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	defer s.feed.settle(ctx)
	return &cri.RemovePodSandboxResponse{}, gone(s.Pods.RemovePod(ctx, r.GetPodSandboxId()))
}

// PodSandboxStatus tells of a pod and of its containers.
func (s *Server) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	at := time.Now()
	pod, err := s.Pods.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	answer := &cri.PodSandboxStatusResponse{
		Status: podStatus(pod), ContainersStatuses: s.statusesOf(pod.ID), Timestamp: at.UnixNano(),
	}
	if r.GetVerbose() {
		answer.Info, err = s.podInfo(pod)
	}
	return answer, err
}

func (s *Server) statusesOf(pod string) []*cri.ContainerStatus {
	containers := s.Containers.ContainersOf(pod)
	all := make([]*cri.ContainerStatus, len(containers))
	for i, c := range containers {
		all[i] = s.containerStatus(c)
	}
	return all
}

// ListPodSandbox lists the pods that fit a filter.
func (s *Server) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	items, err := s.listPods(r.GetFilter())
	return &cri.ListPodSandboxResponse{Items: items}, err
}

// StreamPodSandboxes is ListPodSandbox in parts.
func (s *Server) StreamPodSandboxes(r *cri.StreamPodSandboxesRequest, stream cri.RuntimeService_StreamPodSandboxesServer) error {
	items, err := s.listPods(r.GetFilter())
	if err != nil {
		return err
	}
	return send(items, func(part []*cri.PodSandbox) error {
		return stream.Send(&cri.StreamPodSandboxesResponse{PodSandboxes: part})
	})
}

func (s *Server) listPods(f *cri.PodSandboxFilter) ([]*cri.PodSandbox, error) {
	id, found, err := only(f.GetId(), func(id string) (string, error) {
		pod, err := s.Pods.Pod(id)
		return pod.ID, err
	})
	if err != nil || !found {
		return nil, err
	}
	var items []*cri.PodSandbox
	for _, pod := range s.Pods.Pods() {
		fits := (id == "" || pod.ID == id) &&
			(f.GetState() == nil || f.GetState().GetState() == podState(pod.State)) &&
			selects(f.GetLabelSelector(), pod.Config.Labels)
		if fits {
			items = append(items, listedPod(pod))
		}
	}
	return items, nil
}

// UpdatePodSandboxResources notes the limits that the pod's cgroup has been
// given.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, r *cri.UpdatePodSandboxResourcesRequest) (*cri.UpdatePodSandboxResourcesResponse, error) {
	overhead, resources := resourcesOrNil(r.GetOverhead()), resourcesOrNil(r.GetResources())
	return &cri.UpdatePodSandboxResourcesResponse{}, s.Pods.UpdatePod(ctx, r.GetPodSandboxId(), overhead, resources)
}

// podStatus is a pod as PodSandboxStatus shows it.
func podStatus(p spec.Pod) *cri.PodSandboxStatus {
	status := &cri.PodSandboxStatus{
		Id: p.ID, Metadata: podMetadata(p.Config), State: podState(p.State), CreatedAt: nanos(p.Created),
		Network: &cri.PodSandboxNetworkStatus{}, Labels: p.Config.Labels, Annotations: p.Config.Annotations,
		RuntimeHandler: p.Config.Handler,
		Linux:          &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: namespacesShown(p.Config.Security.Namespaces)}},
	}
	for i, ip := range p.IPs {
		if i == 0 {
			status.Network.Ip = ip
			continue
		}
		status.Network.AdditionalIps = append(status.Network.AdditionalIps, &cri.PodIP{Ip: ip})
	}
	return status
}

func listedPod(p spec.Pod) *cri.PodSandbox {
	return &cri.PodSandbox{
		Id: p.ID, Metadata: podMetadata(p.Config), State: podState(p.State), CreatedAt: nanos(p.Created),
		Labels: p.Config.Labels, Annotations: p.Config.Annotations, RuntimeHandler: p.Config.Handler,
	}
}

func podMetadata(c spec.PodConfig) *cri.PodSandboxMetadata {
	return &cri.PodSandboxMetadata{Name: c.Name, Uid: c.UID, Namespace: c.Namespace, Attempt: c.Attempt}
}

func podState(s spec.PodState) cri.PodSandboxState {
	if s == spec.PodReady {
		return cri.PodSandboxState_SANDBOX_READY
	}
	return cri.PodSandboxState_SANDBOX_NOTREADY
}

// nanos is a moment as the CRI has it; 0 for none.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
