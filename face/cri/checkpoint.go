package cri

import (
	"context"
	"path/filepath"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
	"berth/spec"
)

// CheckpointContainer writes a running container to an archive; it runs on.
func (s *Server) CheckpointContainer(ctx context.Context, r *cri.CheckpointContainerRequest) (*cri.CheckpointContainerResponse, error) {
	if !filepath.IsAbs(r.GetLocation()) {
		return nil, errs.New(errs.Invalid, "checkpoint: where to: %q is not an absolute path", r.GetLocation())
	}
	if seconds := r.GetTimeout(); seconds > 0 {
		timed, cancel := context.WithTimeout(ctx, time.Duration(min(seconds, longest))*time.Second)
		defer cancel()
		ctx = timed
	}
	return &cri.CheckpointContainerResponse{}, s.Containers.Checkpoint(ctx, r.GetContainerId(), r.GetLocation())
}

// CheckpointPod writes containers of a pod, all of one moment; they run on.
func (s *Server) CheckpointPod(ctx context.Context, r *cri.CheckpointPodRequest) (*cri.CheckpointPodResponse, error) {
	if err := folderOf("output_path", r.GetOutputPath(), r.GetOptions()); err != nil {
		return nil, err
	}
	return &cri.CheckpointPodResponse{}, s.Pods.CheckpointPod(ctx, r.GetPodSandboxId(), r.GetOutputPath(), r.GetContainerIds())
}

// RestorePod makes a pod of what CheckpointPod wrote. Its containers go on when
// they are started.
func (s *Server) RestorePod(ctx context.Context, r *cri.RestorePodRequest) (*cri.RestorePodResponse, error) {
	if err := folderOf("checkpoint_path", r.GetCheckpointPath(), r.GetOptions()); err != nil {
		return nil, err
	}
	config, err := podConfig(r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	var containers []spec.PodContainerConfig
	for _, c := range r.GetContainerConfigs() {
		container, err := containerConfig(c)
		if err != nil {
			return nil, err
		}
		containers = append(containers, container)
	}
	if len(containers) == 0 {
		return nil, errs.New(errs.Invalid, "restore pod: container_configs: which containers?")
	}
	defer s.feed.settle(ctx)
	id, ids, err := s.Pods.RestorePod(ctx, r.GetCheckpointPath(), config, containers)
	if err != nil {
		return nil, err
	}
	answer := &cri.RestorePodResponse{PodSandboxId: id}
	for i := range ids {
		answer.RestoredContainers = append(answer.RestoredContainers, &cri.RestoredContainer{Name: containers[i].Name, ContainerId: ids[i]})
	}
	return answer, nil
}

// folderOf checks what both are told of the folder, and of options, of which
// there are none.
func folderOf(field, path string, options map[string]string) error {
	if !filepath.IsAbs(path) {
		return errs.New(errs.Invalid, "%s: %q is not an absolute path", field, path)
	}
	for name := range options {
		return errs.New(errs.Invalid, "options: there is none called %q", name)
	}
	return nil
}
