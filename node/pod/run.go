package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"berth/base/errs"
	"berth/base/undo"
	"berth/node/bundle"
	"berth/spec"
)

// RunPod makes a pod and gives its id. A pod of the same name that is ready and
// of the same configuration is that pod.
//
// errs.Invalid: the configuration can never work. errs.NotFound: there is no
// such runtime. errs.Exists: there is a pod of that name that is another one,
// or that is not ready any more. errs.Unavailable: pods can have no network
// now.
func (s *Set) RunPod(ctx context.Context, config spec.PodConfig) (string, error) {
	if err := check(&config); err != nil {
		return "", err
	}
	runtime, err := s.Runtimes(config.Handler)
	if err != nil {
		return "", fmt.Errorf("runtime of pod %s/%s: %w", config.Namespace, config.Name, err)
	}
	for {
		run, err := s.reserve(ctx, &config, runtime, false)
		if err != nil {
			return "", err
		}
		id, err := run.wait(ctx)
		if errors.Is(err, errUnmade) { // of an earlier node: its name is free now
			continue
		}
		return id, err
	}
}

// errUnmade is what the work ends with that takes away what was not made.
var errUnmade = errors.New("it was not made")

// reserve starts to make the pod, or finds the work that makes the one of that
// name, unless it has to be a new one.
func (s *Set) reserve(ctx context.Context, config *spec.PodConfig, runtime string, anew bool) (*call[string], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.names[nameOf(config)]; p != nil {
		if !p.seen() && over(p.run) { // making it has failed, and could not be undone
			s.undoMaking(ctx, p)
		}
		if anew && !p.undoing {
			return nil, errs.New(errs.Exists, "there is a pod %s/%s of this attempt already: %s", config.Namespace, config.Name, p.id)
		}
		return p.run, mayShare(p, config)
	}
	rec := &podRecord{Phase: making, Boot: s.Boot, Restoring: anew, Pod: spec.Pod{
		ID: newID(), Config: *config, State: spec.PodNotReady, Created: time.Now().UTC(), Runtime: runtime,
	}}
	p := newPod(rec)
	s.pods[p.id], s.names[nameOf(config)] = p, p
	p.op <- struct{}{} // it is new: nobody else has it
	p.run = begin(ctx, s, func(ctx context.Context) (string, error) {
		defer p.op.Unlock()
		if err := s.make(ctx, p); err != nil {
			s.spoil()
			return "", fmt.Errorf("run pod %s/%s: %w", config.Namespace, config.Name, err)
		}
		return p.id, nil
	})
	return p.run, nil
}

// mayShare says whether who asks for config means the pod p.
func mayShare(p *pod, config *spec.PodConfig) error {
	rec := p.rec.Load()
	switch {
	case p.undoing:
		return nil // it goes
	case !same(&rec.Pod.Config, config):
		return errs.New(errs.Exists, "there is a pod %s/%s of this attempt already, which is not the same: %s", config.Namespace, config.Name, p.id)
	case rec.Phase != making && rec.Phase != made:
		return errs.New(errs.Exists, "pod %s/%s of this attempt was stopped: %s", config.Namespace, config.Name, p.id)
	}
	return nil
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// make makes the pod. On failure nothing of it is left; what could not be taken
// away now is at the next start. op is held.
func (s *Set) make(ctx context.Context, p *pod) (err error) {
	ctx, end := s.traced(ctx, p.id, "run pod")
	defer func() { end(err) }()
	var u undo.Stack
	defer func() {
		if err != nil {
			u.Run(ctx, &err)
		}
	}()
	u.Add("forget the pod", func(ctx context.Context) error { return s.dismiss(ctx, p) })
	if err := s.label(p); err != nil {
		return err
	}
	if err := s.beginPod(p); err != nil {
		return err
	}
	if err := s.build(ctx, p); err != nil {
		return err
	}
	u.Add("tell plugins", func(ctx context.Context) error {
		s.tellPodStop(ctx, p)
		s.tellPodRemoval(ctx, p)
		return nil
	})
	if err := s.ask(ctx, func(ctx context.Context) error { return s.Hooks.RunPod(ctx, p.get()) }); err != nil {
		return err
	}
	if err := s.change(p, func(r *podRecord) { r.Phase = made }); err != nil {
		return err
	}
	view := p.get()
	s.publish(&view, "create")
	s.publish(&view, "start")
	return nil
}

// dismiss takes away all that there may be of a pod that nobody was told of.
func (s *Set) dismiss(ctx context.Context, p *pod) error {
	if err := s.dismantle(ctx, p); err != nil {
		return err
	}
	if err := s.db.dropPod(p.id); err != nil {
		return err
	}
	s.forget(p)
	bundle.ReleasePodLabels(p.get().ProcessLabel)
	return nil
}

func (s *Set) forget(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, p.id)
	config := p.get().Config
	if s.names[nameOf(&config)] == p {
		delete(s.names, nameOf(&config))
	}
	s.traces.left(p.id, config.Namespace+"/"+config.Name)
}

// label gives the pod its own place under SELinux.
func (s *Set) label(p *pod) (err error) {
	next := *p.rec.Load()
	next.Pod.ProcessLabel, next.Pod.MountLabel, err = bundle.PodLabels(next.Pod.Config)
	p.rec.Store(&next)
	return err
}

// beginPod puts on record that the pod is being made.
func (s *Set) beginPod(p *pod) error {
	if err := s.makeFolder(p); err != nil {
		return err
	}
	return s.db.putPod(p.rec.Load())
}

// build makes what the pod's containers have in common. What does not hang on
// one another is made at once.
func (s *Set) build(ctx context.Context, p *pod) error {
	if err := s.makeNamespaces(ctx, p); err != nil {
		return err
	}
	var network podNetwork
	steps := []func(context.Context) error{
		func(ctx context.Context) (err error) { network, err = s.attach(ctx, p); return err },
		func(ctx context.Context) error { return s.mountShm(ctx, p) },
	}
	failed := each(steps, func(step func(context.Context) error) error { return step(ctx) })
	if err := errors.Join(failed...); err != nil {
		return err
	}
	next := *p.rec.Load()
	next.Pod.Networks, next.Pod.IPs = network.interfaces, network.ips
	p.rec.Store(&next)
	if err := s.writeFiles(p); err != nil {
		return fmt.Errorf("write the files of the pod: %w", err)
	}
	return s.runPause(ctx, p)
}

// makeNamespaces makes those namespaces that the pod has of its own.
func (s *Set) makeNamespaces(ctx context.Context, p *pod) (err error) {
	config := p.get().Config
	want := wanted(&config)
	if !want.Net && !want.IPC && !want.UTS && want.Idmap == nil && len(want.Sysctls) == 0 {
		return nil
	}
	made, err := s.Namespaces.Make(ctx, p.id, want)
	if err != nil {
		return fmt.Errorf("make the namespaces: %w", err)
	}
	next := *p.rec.Load()
	next.Pod.NetNS, next.Pod.IPCNS, next.Pod.UTSNS, next.Pod.UserNS = made.Net, made.IPC, made.UTS, made.User
	p.rec.Store(&next)
	return nil
}

type podNetwork struct {
	interfaces []spec.PodInterface
	ips        []string
}

// attach joins the pod to its network.
func (s *Set) attach(ctx context.Context, p *pod) (made podNetwork, err error) {
	view := p.get()
	if view.NetNS == "" {
		return made, nil
	}
	made.interfaces, made.ips, err = s.Networks.AttachPod(ctx, networkRequest(&view))
	if err != nil {
		return made, fmt.Errorf("attach the pod to its network: %w", err)
	}
	return made, s.Namespaces.Finish(ctx, p.id, view.Config.Sysctls)
}
