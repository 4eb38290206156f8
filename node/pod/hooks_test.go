package pod_test

import (
	"context"
	"slices"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

// hooks write down what they are told, and say no to what is named.
type hooks struct {
	mu     sync.Mutex
	calls  []string
	refuse map[string]bool
	see    func(call string)
}

func (h *hooks) told(call string) error {
	h.mu.Lock()
	h.calls = append(h.calls, call)
	no, see := h.refuse[call], h.see
	h.mu.Unlock()
	if see != nil {
		see(call)
	}
	if no {
		return errs.New(errs.Denied, "the plugin refuses: %s", call)
	}
	return nil
}

func (h *hooks) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.calls)
}

func (h *hooks) RunPod(context.Context, spec.Pod) error { return h.told("run pod") }
func (h *hooks) UpdatePod(_ context.Context, _ spec.Pod, _, _ *spec.PodResources) error {
	return h.told("update pod")
}
func (h *hooks) PostUpdatePod(context.Context, spec.Pod) error { return h.told("pod updated") }
func (h *hooks) StopPod(context.Context, spec.Pod) error       { return h.told("stop pod") }
func (h *hooks) RemovePod(context.Context, spec.Pod) error     { return h.told("remove pod") }

func (h *hooks) CreateContainer(_ context.Context, _ spec.Pod, _ spec.PodContainer, oci *specs.Spec) error {
	oci.Process.Env = append(oci.Process.Env, "PLUGIN=here")
	return h.told("create")
}

func (h *hooks) PostCreateContainer(context.Context, spec.Pod, spec.PodContainer) error {
	return h.told("created")
}

func (h *hooks) StartContainer(context.Context, spec.Pod, spec.PodContainer) error {
	return h.told("start")
}

func (h *hooks) PostStartContainer(context.Context, spec.Pod, spec.PodContainer) error {
	return h.told("started")
}

func (h *hooks) UpdateContainer(_ context.Context, _ spec.Pod, _ spec.PodContainer, limits *specs.LinuxResources) error {
	shares := uint64(7)
	limits.CPU = &specs.LinuxCPU{Shares: &shares}
	return h.told("update")
}

func (h *hooks) PostUpdateContainer(context.Context, spec.Pod, spec.PodContainer) error {
	return h.told("updated")
}

func (h *hooks) StopContainer(context.Context, spec.Pod, spec.PodContainer) error {
	return h.told("stop")
}

func (h *hooks) RemoveContainer(context.Context, spec.Pod, spec.PodContainer) error {
	return h.told("remove")
}
