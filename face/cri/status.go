package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// kubeVersion is what clients have asked for and been told since v1alpha1.
	kubeVersion = "0.1.0"
	apiVersion  = "v1"
	runtimeName = "berth"
)

// Version says who answers, and what it speaks.
func (s *Server) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{
		Version: kubeVersion, RuntimeName: runtimeName, RuntimeVersion: s.Node.Version(), RuntimeApiVersion: apiVersion,
	}, nil
}

// Status says whether containers can run and be connected, and what the
// runtimes can do.
func (s *Server) Status(ctx context.Context, r *cri.StatusRequest) (*cri.StatusResponse, error) {
	answer := &cri.StatusResponse{
		Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
			condition(cri.RuntimeReady, "RuntimeNotReady", s.Node.Ready(ctx)),
			condition(cri.NetworkReady, "NetworkPluginNotReady", s.Network.PodsReady(ctx)),
		}},
		// Of every container; whether there can be user namespaces at all is the
		// handlers' to say.
		Features: &cri.RuntimeFeatures{
			SupplementalGroupsPolicy: true, MountOptions: true, UserNamespacesHostNetwork: s.Node.Features().UserNamespacesOnHostNetwork,
		},
	}
	for _, h := range s.Node.Handlers(ctx) {
		answer.RuntimeHandlers = append(answer.RuntimeHandlers, &cri.RuntimeHandler{
			Name:     h.Name,
			Features: &cri.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: h.RecursiveReadOnly, UserNamespaces: h.UserNamespaces},
		})
	}
	if !r.GetVerbose() {
		return answer, nil
	}
	config, err := json.Marshal(s.Node.Config())
	if err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	answer.Info = map[string]string{"config": string(config), "golang": fmt.Sprintf("%q", runtime.Version())}
	return answer, nil
}

// condition is met where there is no error.
func condition(kind, reason string, err error) *cri.RuntimeCondition {
	if err == nil {
		return &cri.RuntimeCondition{Type: kind, Status: true}
	}
	return &cri.RuntimeCondition{Type: kind, Reason: reason, Message: err.Error()}
}

// RuntimeConfig says who makes cgroups.
func (s *Server) RuntimeConfig(context.Context, *cri.RuntimeConfigRequest) (*cri.RuntimeConfigResponse, error) {
	return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: cri.CgroupDriver_CGROUPFS}}, nil
}

// UpdateRuntimeConfig takes the range of addresses that the cluster gives this
// node's pods.
func (s *Server) UpdateRuntimeConfig(ctx context.Context, r *cri.UpdateRuntimeConfigRequest) (*cri.UpdateRuntimeConfigResponse, error) {
	cidr := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if cidr == "" {
		return &cri.UpdateRuntimeConfigResponse{}, nil
	}
	if err := s.Network.SetPodCIDR(ctx, cidr); err != nil {
		return nil, err
	}
	return &cri.UpdateRuntimeConfigResponse{}, nil
}
