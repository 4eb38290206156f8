package cri

import (
	"context"
	"encoding/json"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/base/errs"
	"berth/spec"
)

// What is told of a pod and of a container besides their statuses, where it is
// asked for in words. People's scripts read it: the process to enter, the path
// of the network namespace. So it has the names that containerd gives it.

type podWords struct {
	Pid            int                     `json:"pid"`
	RuntimeHandler string                  `json:"runtimeHandler"`
	RuntimeType    string                  `json:"runtimeType"`
	Config         *cri.PodSandboxConfig   `json:"config"`
	Overhead       *cri.ContainerResources `json:"overhead,omitempty"`
	Resources      *cri.ContainerResources `json:"resources,omitempty"`
	RuntimeSpec    *specs.Spec             `json:"runtimeSpec"`
	Networks       []spec.PodInterface     `json:"networks,omitempty"`
}

type containerWords struct {
	SandboxID   string               `json:"sandboxID"`
	Pid         int                  `json:"pid"`
	RuntimeType string               `json:"runtimeType"`
	Config      *cri.ContainerConfig `json:"config"`
	RuntimeSpec *specs.Spec          `json:"runtimeSpec,omitempty"`
}

func (s *Server) podInfo(p spec.Pod) (map[string]string, error) {
	words := podWords{
		Pid: s.pidOf(p), RuntimeHandler: p.Config.Handler, RuntimeType: p.Runtime, Config: podConfigShown(p.Config),
		RuntimeSpec: podSpec(p), Networks: p.Networks,
	}
	if p.Config.Overhead != nil {
		words.Overhead = &cri.ContainerResources{Linux: resourcesShown(*p.Config.Overhead)}
	}
	if p.Config.Resources != nil {
		words.Resources = &cri.ContainerResources{Linux: resourcesShown(*p.Config.Resources)}
	}
	return info(words)
}

// pidOf is a process that is in the pod's namespaces; 0 where there is none
// now. A pod has none of its own.
func (s *Server) pidOf(p spec.Pod) int {
	for _, c := range s.Containers.ContainersOf(p.ID) {
		if c.Pid > 0 {
			return c.Pid
		}
	}
	return 0
}

// podSpec says in OCI's words what a pod is: namespaces.
func podSpec(p spec.Pod) *specs.Spec {
	oci := &specs.Spec{
		Version: specs.Version, Hostname: p.Config.Hostname, Annotations: p.Config.Annotations,
		Linux: &specs.Linux{CgroupsPath: p.Config.CgroupParent, Sysctl: p.Config.Sysctls},
	}
	for _, ns := range []specs.LinuxNamespace{
		{Type: specs.NetworkNamespace, Path: p.NetNS},
		{Type: specs.IPCNamespace, Path: p.IPCNS},
		{Type: specs.UTSNamespace, Path: p.UTSNS},
		{Type: specs.PIDNamespace, Path: p.PIDNS},
		{Type: specs.UserNamespace, Path: p.UserNS},
	} {
		if ns.Path != "" {
			oci.Linux.Namespaces = append(oci.Linux.Namespaces, ns)
		}
	}
	return oci
}

func (s *Server) containerInfo(ctx context.Context, c spec.PodContainer) (map[string]string, error) {
	words := containerWords{SandboxID: c.Pod, Pid: c.Pid, Config: containerConfigShown(c.Config)}
	if p, err := s.Pods.Pod(c.Pod); err == nil {
		words.RuntimeType = p.Runtime
	}
	oci, err := s.Containers.ContainerSpec(ctx, c.ID)
	if err != nil && errs.KindOf(err) != errs.NotFound {
		return nil, fmt.Errorf("spec of container %s: %w", c.ID, err)
	}
	words.RuntimeSpec = oci
	return info(words)
}

// info is a value under the key where tools look for it.
func info(v any) (map[string]string, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("info: %w", err)
	}
	return map[string]string{"info": string(text)}, nil
}
