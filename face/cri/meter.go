package cri

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerStats measures a container.
func (s *Server) ContainerStats(ctx context.Context, r *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	return s.Meter.ContainerStats(ctx, r)
}

// ListContainerStats measures the containers that fit a filter.
func (s *Server) ListContainerStats(ctx context.Context, r *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	return s.Meter.ListContainerStats(ctx, r)
}

// StreamContainerStats is ListContainerStats in parts.
func (s *Server) StreamContainerStats(r *cri.StreamContainerStatsRequest, stream cri.RuntimeService_StreamContainerStatsServer) error {
	all, err := s.Meter.ListContainerStats(stream.Context(), &cri.ListContainerStatsRequest{Filter: r.GetFilter()})
	if err != nil {
		return err
	}
	return send(all.GetStats(), func(part []*cri.ContainerStats) error {
		return stream.Send(&cri.StreamContainerStatsResponse{ContainerStats: part})
	})
}

// PodSandboxStats measures a pod.
func (s *Server) PodSandboxStats(ctx context.Context, r *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	return s.Meter.PodSandboxStats(ctx, r)
}

// ListPodSandboxStats measures the pods that fit a filter.
func (s *Server) ListPodSandboxStats(ctx context.Context, r *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	return s.Meter.ListPodSandboxStats(ctx, r)
}

// StreamPodSandboxStats is ListPodSandboxStats in parts.
func (s *Server) StreamPodSandboxStats(r *cri.StreamPodSandboxStatsRequest, stream cri.RuntimeService_StreamPodSandboxStatsServer) error {
	all, err := s.Meter.ListPodSandboxStats(stream.Context(), &cri.ListPodSandboxStatsRequest{Filter: r.GetFilter()})
	if err != nil {
		return err
	}
	return send(all.GetStats(), func(part []*cri.PodSandboxStats) error {
		return stream.Send(&cri.StreamPodSandboxStatsResponse{PodSandboxStats: part})
	})
}

// ListMetricDescriptors names the metrics that there are.
func (s *Server) ListMetricDescriptors(ctx context.Context, r *cri.ListMetricDescriptorsRequest) (*cri.ListMetricDescriptorsResponse, error) {
	return s.Meter.ListMetricDescriptors(ctx, r)
}

// ListPodSandboxMetrics gives the metrics of all pods.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, r *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	return s.Meter.ListPodSandboxMetrics(ctx, r)
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in parts.
func (s *Server) StreamPodSandboxMetrics(_ *cri.StreamPodSandboxMetricsRequest, stream cri.RuntimeService_StreamPodSandboxMetricsServer) error {
	all, err := s.Meter.PodSandboxMetrics(stream.Context())
	if err != nil {
		return err
	}
	return send(all, func(part []*cri.PodSandboxMetrics) error {
		return stream.Send(&cri.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part})
	})
}
