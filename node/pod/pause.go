package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"berth/base/errs"
	"berth/base/span"
	"berth/node/bundle"
	"berth/node/container"
	"berth/spec"
)

// A PID namespace lives as long as its first process. Where containers share
// one, a process that only waits and reaps is that: a hidden container whose
// id is the pod's.

// runPause makes the PID namespace that the pod's containers share, where they
// do.
func (s *Set) runPause(ctx context.Context, p *pod) (err error) {
	view := p.get()
	if view.Config.Security.Namespaces.PID != spec.NamespacePod {
		return nil
	}
	ctx, end := span.Start(ctx, "pause process")
	defer func() { end(err) }()
	given, err := s.pauseGiven(&view)
	if err != nil {
		return err
	}
	if err := s.change(p, func(r *podRecord) { r.Pause = true }); err != nil {
		return err
	}
	if _, err := s.Runner.AdmitGiven(ctx, given); err != nil {
		return fmt.Errorf("pause process: %w", err)
	}
	state, err := s.Runner.RunTask(ctx, Namespace, p.id, container.TaskRequest{})
	if err != nil {
		return fmt.Errorf("pause process: %w", err)
	}
	if err := pinPIDNamespace(state.Pid, func() int { return state.Pid }, s.pidFile(p)); err != nil {
		return fmt.Errorf("pause process: %w", err)
	}
	next := *p.rec.Load()
	next.Pod.PIDNS = s.pidFile(p)
	p.rec.Store(&next)
	s.watchPause(p)
	return nil
}

func (s *Set) pauseGiven(pod *spec.Pod) (spec.Given, error) {
	program, err := s.pauseProgram()
	if err != nil {
		return spec.Given{}, fmt.Errorf("pause process: %w", err)
	}
	root := filepath.Join(s.State, "pause", "root")
	if err := os.MkdirAll(root, 0o711); err != nil { //nolint:gosec // a user namespace's root passes through
		return spec.Given{}, err
	}
	oci, err := bundle.PauseSpec(bundle.Pause{
		Pod: *pod, Host: s.Host, Program: program[0], Args: program, Rootfs: root,
		CgroupPath: s.cgroupPath(&pod.Config, pod.ID), Idmap: idmap(&pod.Config),
	})
	if err != nil {
		return spec.Given{}, err
	}
	data, err := json.Marshal(oci)
	if err != nil {
		return spec.Given{}, err
	}
	return spec.Given{
		Namespace: Namespace, ID: pod.ID, Labels: map[string]string{kindLabel: kindPause}, Owned: true, Quiet: true,
		Name: pod.Config.Namespace + "/" + pod.Config.Name, Runtime: pod.Runtime,
		Spec: &spec.Opaque{Type: specType, Value: data}, Sandbox: pod.ID,
	}, nil
}

// pauseProgram is what to run. The Set's own takes two pages.
func (s *Set) pauseProgram() ([]string, error) {
	if len(s.Pause) > 0 {
		return s.Pause, nil
	}
	code := pauseProgram()
	if code == nil {
		return nil, errs.New(errs.Unsupported, "there is no pause program for this machine: name one in the configuration")
	}
	file := filepath.Join(s.State, "pause", "pause")
	if info, err := os.Stat(file); err == nil && info.Size() == int64(len(code)) {
		return []string{file}, nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o711); err != nil { //nolint:gosec // as above
		return nil, err
	}
	next := file + "~" + newID()[:8]                        // several pods may come here at once
	if err := os.WriteFile(next, code, 0o755); err != nil { //nolint:gosec // it is run
		return nil, err
	}
	return []string{file}, os.Rename(next, file)
}

// watchPause makes the pod not ready when its pause process ends by itself, and
// with it every process in the namespace.
func (s *Set) watchPause(p *pod) {
	s.background.Go(func() {
		_, err := s.Runner.WaitTask(s.life, Namespace, p.id, "")
		if s.life.Err() != nil || p.op.Lock(s.life) != nil {
			return
		}
		defer p.op.Unlock()
		if !p.ready() || s.isGone(p) {
			return
		}
		s.Log.ErrorContext(s.life, "the pause process of a pod has ended: its containers are gone with it", "pod", p.id, "err", err)
		if err := s.beginStop(p); err != nil {
			s.Log.ErrorContext(s.life, "that a pod is not ready any more is not on record", "pod", p.id, "err", err)
			return
		}
		view := p.get()
		s.publish(&view, "stop")
	})
}

// removePause ends the pause process, where there may be one.
func (s *Set) removePause(ctx context.Context, p *pod) error {
	if !p.rec.Load().Pause {
		return nil
	}
	if err := ignoreMissing(s.Runner.Remove(ctx, Key(p.id), true, false)); err != nil {
		return err
	}
	return unpin(s.pidFile(p))
}
