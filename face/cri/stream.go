package cri

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ExecSync runs a command in a container and gives what it wrote.
func (s *Server) ExecSync(ctx context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	return s.Streams.ExecSync(ctx, r)
}

// Exec says where to connect to run a command in a container.
func (s *Server) Exec(ctx context.Context, r *cri.ExecRequest) (*cri.ExecResponse, error) {
	return s.Streams.Exec(ctx, r)
}

// Attach says where to connect to a container's streams.
func (s *Server) Attach(ctx context.Context, r *cri.AttachRequest) (*cri.AttachResponse, error) {
	return s.Streams.Attach(ctx, r)
}

// PortForward says where to connect to reach the ports of a pod.
func (s *Server) PortForward(ctx context.Context, r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	return s.Streams.PortForward(ctx, r)
}
