package rest

import (
	"context"
	"errors"
	"slices"
	"strings"

	"berth/base/errs"
	"berth/spec"
)

// PodRef finds, embedded in an input, one pod.
type PodRef struct {
	Ref string `path:"ref" minLength:"1" maxLength:"1024" doc:"id, the beginning of an id that only one has, a name, or namespace/name"`
}

func (r *routes) pods() {
	set := r.server.Pods
	answer(r, "GET /pods", "PodList", "List pods, newest first",
		func(_ context.Context, in *Chosen) ([]spec.Pod, error) {
			filter, err := in.filter()
			if err != nil {
				return nil, err
			}
			return some(choosePods(set.Pods(), filter))
		})
	answer(r, "GET /pods/containers", "PodContainers", "List the containers of pods, newest first",
		func(_ context.Context, in *struct {
			Pod string `query:"pod" doc:"only of this one"`
		},
		) ([]spec.PodContainer, error) {
			if in.Pod == "" {
				return some(set.Containers(), nil)
			}
			p, err := r.pod(in.Pod)
			if err != nil {
				return nil, err
			}
			return some(set.ContainersOf(p.ID), nil)
		})
	answer(r, "GET /pods/stats", "PodStats", "Tell what ready pods use",
		func(ctx context.Context, in *struct {
			Pods []string `query:"pod,explode" doc:"only these"`
		},
		) ([]spec.PodStats, error) {
			ids := make([]string, len(in.Pods))
			for i, ref := range in.Pods {
				p, err := r.pod(ref)
				if err != nil {
					return nil, err
				}
				ids[i] = p.ID
			}
			return some(r.server.PodMeter.Usage(ctx, ids))
		})
	answer(r, "GET /pods/{ref}", "PodGet", "Describe a pod",
		func(_ context.Context, in *PodRef) (spec.Pod, error) { return r.pod(in.Ref) })
	answer(r, "GET /pods/{ref}/trace", "PodTrace", "Tell step by step what was done for a pod",
		func(_ context.Context, in *PodRef) ([]spec.PodTraceStep, error) { return r.podTrace(in.Ref) })
	act(r, "POST /pods/{ref}/stop", "PodStop", "Stop a pod's containers and take its network away",
		func(ctx context.Context, in *PodRef) error {
			p, err := r.pod(in.Ref)
			if err != nil {
				return err
			}
			return set.StopPod(ctx, p.ID)
		})
	act(r, "DELETE /pods/{ref}", "PodRemove", "Remove a pod with its containers",
		func(ctx context.Context, in *struct {
			PodRef
			Force bool `query:"force" doc:"stop it if it is ready"`
		},
		) error {
			p, err := r.pod(in.Ref)
			switch {
			case err != nil:
				return err
			case p.State == spec.PodReady && !in.Force:
				return errs.New(errs.Conflict, "pod %s is ready: stop it first, or use force", in.Ref)
			}
			return set.RemovePod(ctx, p.ID)
		})
}

// pod finds a pod as people name it. Of several that are one and the same for
// Kubernetes it is the ready one, else the newest.
func (r *routes) pod(ref string) (spec.Pod, error) {
	p, err := r.server.Pods.Pod(ref)
	if !errors.Is(err, errs.NotFound) {
		return p, err
	}
	var found []spec.Pod
	for _, p := range r.server.Pods.Pods() {
		if ref == p.Config.Name || ref == p.Config.Namespace+"/"+p.Config.Name {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return spec.Pod{}, errs.New(errs.NotFound, "no such pod: %s", ref)
	}
	for _, p := range found[1:] {
		if p.Config.Namespace != found[0].Config.Namespace {
			return spec.Pod{}, errs.New(errs.Conflict, "there are pods %s in the namespaces %s and %s: name the namespace as well",
				ref, found[0].Config.Namespace, p.Config.Namespace)
		}
	}
	if i := slices.IndexFunc(found, func(p spec.Pod) bool { return p.State == spec.PodReady }); i >= 0 {
		return found[i], nil
	}
	return found[0], nil
}

// podTrace also knows pods that are gone, by their whole ids.
func (r *routes) podTrace(ref string) ([]spec.PodTraceStep, error) {
	p, err := r.pod(ref)
	if err == nil {
		return some(r.server.Pods.Trace(p.ID), nil)
	}
	if steps := r.server.Pods.Trace(ref); errors.Is(err, errs.NotFound) && len(steps) > 0 {
		return steps, nil
	}
	return nil, err
}

// choosePods keeps the pods that fit: of several values of one key any may.
func choosePods(all []spec.Pod, filter spec.Filter) (chosen []spec.Pod, err error) {
	for key, values := range filter {
		for _, value := range values {
			if _, err := podFits(spec.Pod{}, key, value); err != nil {
				return nil, err
			}
		}
	}
	for _, p := range all {
		fitsAll := true
		for key, values := range filter {
			fitsAll = fitsAll && slices.ContainsFunc(values, func(value string) bool {
				fits, err := podFits(p, key, value)
				return fits && err == nil
			})
		}
		if fitsAll {
			chosen = append(chosen, p)
		}
	}
	return chosen, nil
}

// podFits says whether a pod is what one part of a filter asks for.
func podFits(p spec.Pod, key, value string) (bool, error) {
	switch key {
	case "id":
		return strings.HasPrefix(p.ID, value), nil
	case "name":
		return strings.Contains(p.Config.Name, value), nil
	case "namespace":
		return p.Config.Namespace == value, nil
	case "uid":
		return p.Config.UID == value, nil
	case "state", "status":
		if state := spec.PodState(value); state != spec.PodReady && state != spec.PodNotReady {
			return false, errs.New(errs.Invalid, "filter %s=%s: want ready or notready", key, value)
		}
		return string(p.State) == value, nil
	case "label":
		name, wanted, valued := strings.Cut(value, "=")
		is, has := p.Config.Labels[name]
		return has && (!valued || is == wanted), nil
	}
	return false, errs.New(errs.Invalid, "filter %q: want id, name, namespace, uid, state or label", key)
}
