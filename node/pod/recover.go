package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"berth/base/clock"
	"berth/base/errs"
	"berth/node/bundle"
	"berth/node/snapshot"
	"berth/spec"
)

// load makes the pods and containers that are on record.
func (s *Set) load(ctx context.Context) error {
	found, err := s.db.read(ctx)
	if err != nil {
		return err
	}
	s.strays = found.strays
	for i := range found.pods {
		p := newPod(&found.pods[i])
		config := &found.pods[i].Pod.Config
		s.pods[p.id], s.names[nameOf(config)] = p, p
		p.run = ended(p.id)
	}
	for i := range found.containers {
		rec := &found.containers[i]
		p := s.pods[rec.Container.Pod]
		if p == nil { // a power cut took its pod; what it was made of is swept away
			if err := s.db.dropContainer(rec.Container.Pod, rec.Container.ID); err != nil {
				return err
			}
			continue
		}
		m := newMember(p, rec)
		m.create = ended(m.id)
		m.admitted.Store(true)
		s.containers[m.id], p.members[m.id] = m, m
		p.names[memberName{rec.Container.Config.Name, rec.Container.Config.Attempt}] = m
	}
	return nil
}

// ended is work that is done.
func ended(id string) *call[string] {
	c := &call[string]{done: make(chan struct{}), result: id}
	close(c.done)
	return c
}

// Recover brings the pods together with what is there of them. What takes time
// goes on behind it: what nobody was told of is taken away, what was being
// taken away goes on to be. The containers have to be recovered before.
func (s *Set) Recover(ctx context.Context) error {
	for _, p := range s.allPods() {
		if err := s.recover(ctx, p); err != nil {
			return fmt.Errorf("recover pod %s: %w", p.id, err)
		}
	}
	return nil
}

func (s *Set) allPods() []*pod {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*pod, 0, len(s.pods))
	for _, p := range s.pods {
		all = append(all, p)
	}
	return all
}

func (s *Set) recover(ctx context.Context, p *pod) error {
	rec := p.rec.Load()
	bundle.ReservePodLabels(rec.Pod.ProcessLabel)
	rebooted := rec.Boot != s.Boot
	if rebooted {
		if err := s.afterReboot(p); err != nil {
			return err
		}
	}
	for _, m := range p.all() {
		if err := s.recoverMember(ctx, m); err != nil {
			return err
		}
	}
	switch {
	case rec.Phase == making:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.undoMaking(ctx, p)
	case rec.Phase == stopping, rec.Phase == made && rebooted:
		s.later(p, "stop", s.stop)
	case rec.Phase == removing:
		s.later(p, "remove", s.remove)
	case rec.Phase == made && rec.Restoring:
		begin(s.life, s, func(ctx context.Context) (struct{}, error) { return struct{}{}, s.RemovePod(ctx, p.id) })
	case rec.Phase == made:
		return s.adopt(ctx, p)
	}
	return nil
}

// afterReboot notes in this boot's folder that nothing of the pod runs. Its
// address may still be taken.
func (s *Set) afterReboot(p *pod) error {
	if err := s.makeFolder(p); err != nil {
		return err
	}
	for _, m := range p.all() {
		if err := s.changeMember(m, func(r *containerRecord) { r.Boot, r.Lost = s.Boot, !r.Failure }); err != nil {
			return err
		}
	}
	return s.change(p, func(r *podRecord) {
		r.Boot = s.Boot
		if r.Phase == made {
			r.Phase = stopping
		}
	})
}

// recoverMember decides what becomes of a container that a call was at work on.
func (s *Set) recoverMember(ctx context.Context, m *member) error {
	rec := m.rec.Load()
	if rec.Frozen != "" {
		if err := s.thawed(ctx, m); err != nil {
			s.Log.WarnContext(ctx, "a checkpoint that an earlier node was writing is left", "container", m.id, "folder", rec.Frozen, "err", err)
		}
		rec = m.rec.Load()
	}
	_, err := s.Runner.Given(ctx, Namespace, m.id)
	lost := errors.Is(err, errs.NotFound)
	if err != nil && !lost {
		return err
	}
	switch {
	case rec.Phase == making, rec.Phase == made && lost && !rec.Failure && !rec.Lost && !rec.Started: // nobody was told of it
		next := *rec
		next.Phase = making
		m.rec.Store(&next)
		s.laterMember(m, s.dismissMember)
	case rec.Phase == removing:
		s.laterMember(m, s.removeLocked)
	}
	return nil
}

// later goes on with what a call was at when the node ended. What fails is
// tried again by who asks the next time.
func (s *Set) later(p *pod, what string, fn func(context.Context, *pod) error) {
	p.op <- struct{}{} // nobody else is here yet
	begin(s.life, s, func(ctx context.Context) (struct{}, error) {
		defer p.op.Unlock()
		if err := fn(ctx, p); err != nil && s.life.Err() == nil {
			s.Log.WarnContext(ctx, "what an earlier node began with a pod is not done", "what", what, "pod", p.id, "err", err)
		}
		return struct{}{}, nil
	})
}

func (s *Set) laterMember(m *member, fn func(context.Context, *member) error) {
	m.op <- struct{}{} // nobody else is here yet
	begin(s.life, s, func(ctx context.Context) (struct{}, error) {
		defer m.op.Unlock()
		if err := fn(ctx, m); err != nil && s.life.Err() == nil {
			s.Log.WarnContext(ctx, "a container that an earlier node was at work on is not gone", "container", m.id, "err", err)
		}
		return struct{}{}, nil
	})
}

// undoMaking takes away a pod that nobody was told of. Who asks for one of that
// name waits for it. mu is held.
func (s *Set) undoMaking(ctx context.Context, p *pod) {
	p.undoing = true
	p.run = begin(context.WithoutCancel(ctx), s, func(ctx context.Context) (string, error) {
		if err := p.op.Lock(ctx); err != nil {
			return "", err
		}
		defer p.op.Unlock()
		if err := errors.Join(each(p.all(), func(m *member) error { return s.removeMember(ctx, m) })...); err != nil {
			return "", err
		}
		if err := s.dismiss(ctx, p); err != nil {
			s.Log.WarnContext(ctx, "what there is of a pod that was never made is left", "pod", p.id, "err", err)
			return "", fmt.Errorf("there is something left of a pod of that name: %w", err)
		}
		return "", errUnmade
	})
}

// adopt takes over a pod that was ready: it is still if its namespaces are
// there.
func (s *Set) adopt(ctx context.Context, p *pod) error {
	rec := p.rec.Load()
	pod := &rec.Pod
	for _, path := range []string{pod.NetNS, pod.IPCNS, pod.UTSNS, pod.UserNS} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			return s.broken(ctx, p, "a namespace is not there any more")
		}
	}
	if !rec.Pause {
		return nil
	}
	pause, err := s.Runner.Get(ctx, Key(p.id))
	if err != nil || pause.State.Status != spec.Running {
		return s.broken(ctx, p, "its pause process has ended")
	}
	s.watchPause(p)
	return nil
}

func (s *Set) broken(ctx context.Context, p *pod, why string) error {
	s.Log.WarnContext(ctx, "a pod is not ready any more", "pod", p.id, "why", why)
	return s.beginStop(p)
}

// Run takes away, until ctx is done, what calls that failed or were cut off
// have left.
func (s *Set) Run(ctx context.Context) error {
	wait := clock.Backoff{First: time.Second, Most: time.Minute, Jitter: 0.1}
	for n := 0; ; {
		left, err := s.sweep(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			s.Log.WarnContext(ctx, "some leftovers of pods stay", "err", err)
			n++
		case left:
			n++
		default:
			n = 0
		}
		var again <-chan time.Time
		if n > 0 {
			again = time.After(wait.Wait(n))
		}
		select {
		case <-again:
		case <-s.spoiled:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// spoil has Run look for what a failed call has left.
func (s *Set) spoil() {
	select {
	case s.spoiled <- struct{}{}:
	default: // it has yet to look
	}
}

// sweep takes away what stands for pods and containers that there are not. left
// says that there is something that has to be tried again.
func (s *Set) sweep(ctx context.Context) (left bool, err error) {
	for _, p := range s.allPods() {
		left = s.retry(ctx, p) || left
	}
	return left, errors.Join(s.sweepGivens(ctx), s.sweepSnapshots(ctx), s.sweepNetworks(ctx), s.sweepNamespaces(ctx), s.sweepParts(ctx), s.sweepFolders())
}

// retry takes a pod away again whose making failed, and could not be undone; and
// writes its record for which there was no room.
func (s *Set) retry(ctx context.Context, p *pod) (left bool) {
	if p.unwritten.Load() && p.op.Lock(ctx) == nil {
		if !s.isGone(p) {
			p.unwritten.Store(s.db.putPod(p.rec.Load()) != nil)
			left = p.unwritten.Load()
		}
		p.op.Unlock()
	}
	for _, m := range p.all() {
		if m.rec.Load().Phase != making || m.creating() {
			continue
		}
		if err := s.removeMember(ctx, m); err != nil {
			s.Log.WarnContext(ctx, "what there is of a container that was never made is left", "container", m.id, "err", err)
			left = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.rec.Load().Phase != making || !over(p.run) || s.pods[p.id] != p {
		return left
	}
	s.undoMaking(ctx, p)
	return true
}

func over[T any](c *call[T]) bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// sweepGivens removes containers that were made for pods that there are not.
func (s *Set) sweepGivens(ctx context.Context) error {
	all, err := s.Runner.Givens(ctx, Namespace)
	if err != nil {
		return err
	}
	var failed error
	for _, g := range all {
		if g.Owned && !s.Claims(g.ID) {
			s.swept(ctx, "container", g.ID)
			failed = errors.Join(failed, ignoreMissing(s.Runner.Remove(ctx, Key(g.ID), true, false)), s.Runner.UnmountRoot(ctx, Namespace, g.ID))
		}
	}
	return failed
}

func (s *Set) sweepSnapshots(ctx context.Context) error {
	lost := map[snapshot.Key]string{}
	err := s.Snapshots.Walk(ctx, func(i snapshot.Info) error {
		if id := i.Labels[containerLabel]; id != "" && i.Kind != snapshot.KindCommitted && !s.Claims(id) {
			lost[i.Key] = id
		}
		return nil
	})
	for key, container := range lost {
		s.swept(ctx, "snapshot", string(key))
		if s.Seccomp != nil {
			err = errors.Join(err, s.Seccomp.Unwatch(ctx, container))
		}
		err = errors.Join(err, ignoreMissing(s.Snapshots.Remove(ctx, key)))
	}
	return err
}

func (s *Set) sweepNetworks(ctx context.Context) error {
	var failed error
	for _, id := range s.Networks.PodAttachments() {
		if !s.Claims(id) {
			s.swept(ctx, "network", id)
			failed = errors.Join(failed, s.Networks.DetachPod(ctx, networkRequest(&spec.Pod{ID: id})))
		}
	}
	return failed
}

func (s *Set) sweepNamespaces(ctx context.Context) error {
	ids, err := s.Namespaces.List()
	for _, id := range ids {
		if !s.Claims(id) {
			s.swept(ctx, "namespaces", id)
			err = errors.Join(err, s.Namespaces.Remove(ctx, id))
		}
	}
	return err
}

// sweepFolders removes the folders of pods that were gone but for them.
func (s *Set) sweepFolders() error {
	s.mu.Lock()
	strays := s.strays
	s.strays = nil
	s.mu.Unlock()
	var failed error
	for _, id := range strays {
		if err := s.discardFolder(id); err != nil {
			failed = errors.Join(failed, err)
			s.mu.Lock()
			s.strays = append(s.strays, id)
			s.mu.Unlock()
		}
	}
	return failed
}

func (s *Set) swept(ctx context.Context, kind, id string) {
	s.Log.InfoContext(ctx, "swept away what a crash had left of a pod", "kind", kind, "id", id)
}
