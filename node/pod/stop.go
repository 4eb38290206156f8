package pod

import (
	"context"
	"errors"
	"fmt"
	"os"

	"berth/base/errs"
	"berth/base/span"
	"berth/node/bundle"
	"berth/spec"
)

// StopPod ends the containers of a pod, all at once, and takes its network and
// its namespaces away. What is there to read of it and of its containers stays.
// A pod that was stopped or is not there is no error. What fails is tried again
// by the next call.
func (s *Set) StopPod(ctx context.Context, id string) error {
	p, err := s.find(id)
	if err != nil {
		return ignoreMissing(err)
	}
	return s.finish(ctx, func(ctx context.Context) error {
		if err := p.op.Lock(ctx); err != nil {
			return fmt.Errorf("stop pod %s: it is busy: %w", p.id, err)
		}
		defer p.op.Unlock()
		return s.stop(ctx, p)
	})
}

// stop stops the pod unless it has stopped. op is held.
func (s *Set) stop(ctx context.Context, p *pod) (err error) {
	switch p.phase() {
	case stopped, removing:
		return nil
	}
	ctx, end := s.traced(ctx, p.id, "stop pod")
	defer func() { end(err) }()
	if err := s.beginStop(p); err != nil {
		return err
	}
	if err := s.stopMembers(ctx, p); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	s.tellPodStop(ctx, p) // while the namespaces are there
	if err := s.dismantle(ctx, p); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	if err := s.change(p, func(r *podRecord) {
		r.Phase, r.Pause = stopped, false
		r.Pod.NetNS, r.Pod.IPCNS, r.Pod.UTSNS, r.Pod.UserNS, r.Pod.PIDNS = "", "", "", "", ""
	}); err != nil {
		return err
	}
	view := p.get()
	s.publish(&view, "stop")
	return nil
}

// beginStop lets no more containers be made or started. mu orders it with
// enter.
func (s *Set) beginStop(p *pod) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase() == stopping {
		return nil
	}
	return s.change(p, func(r *podRecord) { r.Phase = stopping })
}

// stopMembers ends the pod's containers, its pause container last.
func (s *Set) stopMembers(ctx context.Context, p *pod) (err error) {
	ctx, end := span.Start(ctx, "stop containers")
	defer func() { end(err) }()
	select { // who makes or starts a container is nearly done
	case <-p.quiet():
	case <-ctx.Done():
		return ctx.Err()
	}
	return errors.Join(each(p.all(), func(m *member) error {
		if err := s.halt(ctx, m, 0); err != nil {
			return fmt.Errorf("stop container %s: %w", m.id, err)
		}
		return nil
	})...)
}

// dismantle takes away what build made, whole or half. op is held.
func (s *Set) dismantle(ctx context.Context, p *pod) (err error) {
	ctx, end := span.Start(ctx, "dismantle")
	defer func() { end(err) }()
	view := p.get()
	if err := s.removePause(ctx, p); err != nil {
		return fmt.Errorf("end the pause process: %w", err)
	}
	if err := s.detach(ctx, &view); err != nil {
		return err
	}
	if err := errors.Join(unmountAll(s.podPath(p, shm)), unmountAll(s.podPath(p, etc))); err != nil {
		return err
	}
	if err := s.Namespaces.Remove(ctx, p.id); err != nil {
		return fmt.Errorf("remove the namespaces: %w", err)
	}
	return nil
}

// detach takes the pod off its network. Of a pod with a network of its own
// nobody knows how far an attach came.
func (s *Set) detach(ctx context.Context, view *spec.Pod) error {
	if view.Config.Security.Namespaces.Network == spec.NamespaceNode {
		return nil
	}
	req := networkRequest(view)
	if _, err := os.Stat(req.NetNS); err != nil {
		req.NetNS = "" // it went with a reboot
	}
	if err := s.Networks.DetachPod(ctx, req); err != nil {
		return fmt.Errorf("detach the pod from its network: %w", err)
	}
	return nil
}

// RemovePod takes a pod away with all of its containers, and stops it before
// if need be. One that is not there is no error.
func (s *Set) RemovePod(ctx context.Context, id string) error {
	p, err := s.find(id)
	if err != nil {
		return ignoreMissing(err)
	}
	return s.finish(ctx, func(ctx context.Context) error {
		if err := p.op.Lock(ctx); err != nil {
			return fmt.Errorf("remove pod %s: it is busy: %w", p.id, err)
		}
		defer p.op.Unlock()
		if s.isGone(p) {
			return nil
		}
		if err := s.remove(ctx, p); err != nil {
			return fmt.Errorf("remove pod %s: %w", p.id, err)
		}
		return nil
	})
}

func (s *Set) isGone(p *pod) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.pods[p.id] != p
}

// remove takes the pod away. op is held.
func (s *Set) remove(ctx context.Context, p *pod) (err error) {
	ctx, end := s.traced(ctx, p.id, "remove pod")
	defer func() { end(err) }()
	if err := s.stop(ctx, p); err != nil {
		return err
	}
	if p.phase() != removing {
		if err := s.change(p, func(r *podRecord) { r.Phase = removing }); err != nil {
			return err
		}
	}
	if err := errors.Join(each(p.all(), func(m *member) error { return s.removeMember(ctx, m) })...); err != nil {
		return err
	}
	s.tellPodRemoval(ctx, p)
	if err := s.db.dropPod(p.id); err != nil {
		return err
	}
	s.forget(p)
	bundle.ReleasePodLabels(p.get().ProcessLabel)
	view := p.get()
	s.publish(&view, "remove")
	return nil
}

// UpdatePod notes what the pod as a whole has now; whoever made its cgroup has
// set that already.
func (s *Set) UpdatePod(ctx context.Context, id string, overhead, resources *spec.PodResources) error {
	p, err := s.find(id)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) error {
		if err := p.op.Lock(ctx); err != nil {
			return fmt.Errorf("update pod %s: it is busy: %w", p.id, err)
		}
		defer p.op.Unlock()
		if !p.ready() {
			return errs.New(errs.Conflict, "pod %s is not ready", p.id)
		}
		if err := s.ask(ctx, func(ctx context.Context) error {
			return s.Hooks.UpdatePod(ctx, p.get(), overhead, resources)
		}); err != nil {
			return fmt.Errorf("update pod %s: %w", p.id, err)
		}
		if err := s.change(p, func(r *podRecord) {
			if overhead != nil {
				r.Pod.Config.Overhead = overhead
			}
			if resources != nil {
				r.Pod.Config.Resources = resources
			}
		}); err != nil {
			return err
		}
		s.told(ctx, "pod updated", p.id, func(ctx context.Context) error { return s.Hooks.PostUpdatePod(ctx, p.get()) })
		return nil
	})
}
