package cri

import (
	"context"
	"path/filepath"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
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

// CheckpointPod would write a pod as a whole. That needs all its containers
// frozen at one cut, and criu to write what is frozen already.
func (s *Server) CheckpointPod(_ context.Context, r *cri.CheckpointPodRequest) (*cri.CheckpointPodResponse, error) {
	if _, err := s.Pods.Pod(r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return nil, errs.New(errs.Unsupported, "a pod cannot be written to a checkpoint as a whole: checkpoint its containers one by one")
}

// RestorePod would make a pod of what CheckpointPod wrote.
func (s *Server) RestorePod(context.Context, *cri.RestorePodRequest) (*cri.RestorePodResponse, error) {
	return nil, errs.New(errs.Unsupported, "no pod can be made of a checkpoint")
}
