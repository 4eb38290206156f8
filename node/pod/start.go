package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/node/bundle"
	"berth/node/container"
	"berth/node/snapshot"
	"berth/spec"
)

// StartContainer runs a container. One that runs is no error. errs.Conflict: it
// was started before and has ended, or its pod is not ready.
func (s *Set) StartContainer(ctx context.Context, id string) error {
	m, err := s.findContainer(id)
	if err != nil {
		return err
	}
	err = s.finish(ctx, func(ctx context.Context) error {
		if err := m.op.Lock(ctx); err != nil {
			return fmt.Errorf("start container %s: it is busy: %w", m.id, err)
		}
		defer m.op.Unlock()
		switch is := s.show(m); is.State {
		case spec.Created:
		case spec.Running, spec.Paused:
			return nil
		default:
			return errs.New(errs.Conflict, "start container %s: it is %s", m.id, is.State)
		}
		if m.rec.Load().Phase == removing {
			return errs.New(errs.Conflict, "start container %s: it is being removed", m.id)
		}
		if err := m.pod.enter(); err != nil {
			return fmt.Errorf("start container %s: %w", m.id, err)
		}
		defer m.pod.leave()
		return s.start(ctx, m)
	})
	if ctx.Err() != nil {
		m.unheard.Store(true)
	}
	return err
}

// endUnheard ends the containers that an attempt replaces and of whose start
// nobody was told: a kubelet that is killed while it starts one sees it as
// created when it comes back, and makes the next attempt beside it.
func (s *Set) endUnheard(ctx context.Context, earlier []*member) error {
	for _, m := range earlier {
		if err := m.op.Lock(ctx); err != nil { // the start may be under way
			return err
		}
		m.op.Unlock()
		if err := s.halt(ctx, m, 0); err != nil {
			return fmt.Errorf("end attempt %d: %w", m.rec.Load().Container.Config.Attempt, err)
		}
	}
	return nil
}

// start runs the container. op is held.
func (s *Set) start(ctx context.Context, m *member) (err error) {
	c := m.rec.Load().Container
	ctx, end := s.traced(ctx, m.pod.id, "start container "+c.Config.Name)
	defer func() { end(err) }()
	if err := makeLogFolder(c.LogPath); err != nil {
		return err
	}
	if err := s.changeMember(m, func(r *containerRecord) { r.Started = true }); err != nil {
		return err
	}
	if err := s.ask(ctx, func(ctx context.Context) error {
		return s.Hooks.StartContainer(ctx, m.pod.get(), c)
	}); err != nil {
		return errors.Join(err, s.failed(m, err))
	}
	if err := s.runTask(ctx, m); err != nil { // it says which container it was about
		if s.life.Err() != nil {
			return err // the next node finds out how far it came
		}
		return errors.Join(err, s.giveUp(ctx, m), s.failed(m, err))
	}
	s.told(ctx, "container started", m.id, func(ctx context.Context) error {
		return s.Hooks.PostStartContainer(ctx, m.pod.get(), s.show(m))
	})
	return nil
}

func (s *Set) runTask(ctx context.Context, m *member) error {
	c := m.rec.Load().Container
	req := container.TaskRequest{Terminal: c.Config.TTY, Stdin: c.Config.Stdin}
	if c.LogPath != "" {
		req.Log = &container.LogFile{Path: c.LogPath}
	}
	restore := m.rec.Load().Restore
	if restore {
		req.Restore = filepath.Join(s.partsDir(m), processesPart)
	}
	if _, err := s.Runner.RunTask(ctx, Namespace, m.id, req); err != nil || !restore {
		return err
	}
	if err := s.dropParts(m); err != nil {
		s.Log.WarnContext(ctx, "a checkpoint that a container has gone on from stays on disk until it is removed", "container", m.id, "err", err)
	}
	return nil
}

// giveUpLimit is how long a container may take to end whose start was given up.
const giveUpLimit = 30 * time.Second

// giveUp makes sure that a container does not run after all whose start took so
// long that nobody waited for its end.
func (s *Set) giveUp(ctx context.Context, m *member) error {
	if ctx.Err() == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUpLimit)
	defer cancel()
	now := 0
	return ignoreMissing(s.Runner.Stop(ctx, Key(m.id), &now, ""))
}

// failed notes that the container could not be started, for good: whoever made
// it makes another one.
func (s *Set) failed(m *member, why error) error {
	err := s.changeMember(m, func(r *containerRecord) {
		r.Failure = true
		r.Container.Message, r.Container.Finished = why.Error(), time.Now().UTC()
	})
	if err == nil {
		s.publishMember(m, "start_failed")
	}
	return err
}

// publishMember tells, in the name of the pod, what only this room knows of a
// container.
func (s *Set) publishMember(m *member, action string) {
	pod := m.pod.get()
	s.Events.Publish("pod", action, pod.ID, map[string]string{
		"name": pod.Config.Name, "namespace": pod.Config.Namespace, "uid": pod.Config.UID, "container": m.id,
	})
}

// StopContainer asks a container to end and kills it after timeout. One that
// does not run or is not there is no error.
func (s *Set) StopContainer(ctx context.Context, id string, timeout time.Duration) error {
	m, err := s.findContainer(id)
	if err != nil {
		return ignoreMissing(err)
	}
	return s.finishWithin(ctx, timeout+s.Timeout, func(ctx context.Context) error {
		ctx, end := s.traced(ctx, m.pod.id, "stop container "+m.rec.Load().Container.Config.Name)
		err := s.halt(ctx, m, timeout)
		end(err)
		if err != nil {
			return fmt.Errorf("stop container %s: %w", m.id, err)
		}
		return nil
	})
}

// halt ends the container's processes. op is not held: a start that is under
// way meanwhile has come first, or finds the pod stopped.
func (s *Set) halt(ctx context.Context, m *member, timeout time.Duration) error {
	// One whose start has failed may be at it still, if the runtime was slow.
	if is := s.show(m); is.State == spec.Created || is.State == spec.Stopped && !m.rec.Load().Failure {
		return nil
	}
	seconds := int(math.Ceil(max(timeout, 0).Seconds()))
	if err := s.Runner.Stop(ctx, Key(m.id), &seconds, ""); err != nil {
		return ignoreMissing(err)
	}
	s.tellStop(ctx, m)
	return nil
}

// StopFor kills a container and has its status say why: reason in one word or
// two, and message.
func (s *Set) StopFor(ctx context.Context, id, reason, message string) error {
	m, err := s.findContainer(id)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) error {
		if err := m.op.Lock(ctx); err != nil {
			return err
		}
		err := s.changeMember(m, func(r *containerRecord) { r.Container.Reason, r.Container.Message = reason, message })
		m.op.Unlock()
		return errors.Join(err, s.halt(ctx, m, 0))
	})
}

// RemoveContainer takes a container away, and kills it before if it runs. One
// that is not there is no error. Its log stays: it is kubelet's.
func (s *Set) RemoveContainer(ctx context.Context, id string) error {
	m, err := s.findContainer(id)
	if err != nil {
		return ignoreMissing(err)
	}
	return s.finish(ctx, func(ctx context.Context) error { return s.removeMember(ctx, m) })
}

func (s *Set) removeMember(ctx context.Context, m *member) error {
	if err := m.op.Lock(ctx); err != nil {
		return fmt.Errorf("remove container %s: it is busy: %w", m.id, err)
	}
	defer m.op.Unlock()
	s.mu.RLock()
	gone := s.containers[m.id] != m
	s.mu.RUnlock()
	if gone {
		return nil
	}
	return s.removeLocked(ctx, m)
}

// removeLocked takes the container away. op is held.
func (s *Set) removeLocked(ctx context.Context, m *member) (err error) {
	ctx, end := s.traced(ctx, m.pod.id, "remove container "+m.rec.Load().Container.Config.Name)
	defer func() { end(err) }()
	if m.rec.Load().Phase == made {
		if err := s.beginRemoval(ctx, m); err != nil {
			return fmt.Errorf("remove container %s: %w", m.id, err)
		}
	}
	if err := s.clear(ctx, m); err != nil {
		return fmt.Errorf("remove container %s: %w", m.id, err)
	}
	s.forgetMember(m)
	s.tellRemoval(ctx, m)
	return nil
}

// beginRemoval ends the container, and puts on record that it goes and how it
// was at the last: who looks before it is gone is not to see it end in another
// way.
func (s *Set) beginRemoval(ctx context.Context, m *member) error {
	if err := s.halt(ctx, m, 0); err != nil {
		return err
	}
	last := s.show(m)
	return s.changeMember(m, func(r *containerRecord) {
		r.Phase, r.Last = removing, true
		c := &r.Container
		c.State, c.Pid, c.ExitCode, c.Reason, c.Message = last.State, last.Pid, last.ExitCode, last.Reason, last.Message
		c.Started, c.Finished = last.Started, last.Finished
	})
}

// clear takes away all that there is of a container, its record last. op is
// held.
func (s *Set) clear(ctx context.Context, m *member) error {
	if err := ignoreMissing(s.Runner.Remove(ctx, Key(m.id), true, false)); err != nil {
		return err
	}
	if err := s.Runner.UnmountRoot(ctx, Namespace, m.id); err != nil {
		return fmt.Errorf("unmount the root file system: %w", err)
	}
	if s.Seccomp != nil {
		if err := s.Seccomp.Unwatch(ctx, m.id); err != nil {
			return fmt.Errorf("watch system calls no more: %w", err)
		}
	}
	if err := errors.Join(s.unmountImages(ctx, m), unpin(s.targetFile(m)), s.dropParts(m)); err != nil {
		return err
	}
	if err := ignoreMissing(s.Snapshots.Remove(ctx, snapshot.Key(m.id))); err != nil {
		return fmt.Errorf("remove the root file system: %w", err)
	}
	return s.db.dropContainer(m.pod.id, m.id)
}

// UpdateContainer changes the limits of a container; of one that runs at once.
func (s *Set) UpdateContainer(ctx context.Context, id string, resources spec.PodResources, annotations map[string]string) error {
	m, err := s.findContainer(id)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) (err error) {
		if err := m.op.Lock(ctx); err != nil {
			return fmt.Errorf("update container %s: it is busy: %w", m.id, err)
		}
		defer m.op.Unlock()
		ctx, end := s.traced(ctx, m.pod.id, "update container "+m.rec.Load().Container.Config.Name)
		defer func() { end(err) }()
		if err := s.update(ctx, m, resources, annotations); err != nil {
			return fmt.Errorf("update container %s: %w", m.id, err)
		}
		return nil
	})
}

func (s *Set) update(ctx context.Context, m *member, resources spec.PodResources, annotations map[string]string) error {
	limits, err := bundle.LinuxResources(resources, s.Host)
	if err != nil {
		return err
	}
	before := limitsOf(limits)
	if err := s.ask(ctx, func(ctx context.Context) error {
		return s.Hooks.UpdateContainer(ctx, m.pod.get(), s.show(m), limits)
	}); err != nil {
		return err
	}
	resources = changed(resources, before, limits)
	if err := s.limit(ctx, m, limits, annotations, func(oci *specs.Spec) error { return bundle.Merge(oci, resources, s.Host) }); err != nil {
		return err
	}
	if err := s.changeMember(m, func(r *containerRecord) {
		r.Container.Resources = bundle.MergeResources(r.Container.Resources, resources)
	}); err != nil {
		return err
	}
	s.told(ctx, "container updated", m.id, func(ctx context.Context) error {
		return s.Hooks.PostUpdateContainer(ctx, m.pod.get(), s.show(m))
	})
	return nil
}

// limit sets limits where they are: in the cgroup of one that runs, in the spec
// of one that does not yet.
func (s *Set) limit(ctx context.Context, m *member, limits *specs.LinuxResources, annotations map[string]string, change func(*specs.Spec) error) error {
	switch is := s.show(m); is.State {
	case spec.Running, spec.Paused:
		return s.Runner.UpdateTask(ctx, Namespace, m.id, limits, annotations)
	case spec.Created:
	default:
		return errs.New(errs.Conflict, "it is %s", is.State)
	}
	oci, err := s.ContainerSpec(ctx, m.id)
	if err != nil {
		return err
	}
	if err := change(oci); err != nil {
		return err
	}
	data, err := json.Marshal(oci)
	if err != nil {
		return err
	}
	return s.Runner.SetGivenSpec(ctx, Namespace, m.id, data)
}

// ContainerSpec is the OCI spec of a container.
func (s *Set) ContainerSpec(ctx context.Context, id string) (*specs.Spec, error) {
	m, err := s.findContainer(id)
	if err != nil {
		return nil, err
	}
	given, err := s.Runner.Given(ctx, Namespace, m.id)
	if err != nil {
		return nil, err
	}
	oci := &specs.Spec{}
	if given.Spec == nil {
		return nil, errs.New(errs.NotFound, "container %s has no spec", m.id)
	}
	return oci, json.Unmarshal(given.Spec.Value, oci)
}

// AdjustContainer changes limits as a plugin wants it: the hooks are not asked.
func (s *Set) AdjustContainer(ctx context.Context, id string, limits *specs.LinuxResources) error {
	m, err := s.findContainer(id)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) error {
		if err := s.limit(ctx, m, limits, nil, func(oci *specs.Spec) error { return lay(oci, limits) }); err != nil {
			return err
		}
		s.adjusted(ctx, m, limits)
		return nil
	})
}

// adjusted has the record say what limits there are now, when nobody works on
// the container: whoever does may be waiting for the plugin.
func (s *Set) adjusted(ctx context.Context, m *member, limits *specs.LinuxResources) {
	begin(ctx, s, func(ctx context.Context) (struct{}, error) {
		err := m.op.Lock(ctx)
		if err == nil {
			defer m.op.Unlock()
			err = s.changeMember(m, func(r *containerRecord) {
				r.Container.Resources = bundle.MergeResources(r.Container.Resources, limitsOf(limits))
			})
		}
		if err != nil {
			s.Log.WarnContext(ctx, "limits that a plugin asked for are not shown", "container", m.id, "err", err)
		}
		return struct{}{}, err
	})
}

// lay lays limits over those of a spec; what they do not say stays.
func lay(oci *specs.Spec, limits *specs.LinuxResources) error {
	if oci.Linux == nil {
		oci.Linux = &specs.Linux{}
	}
	if oci.Linux.Resources == nil {
		oci.Linux.Resources = &specs.LinuxResources{}
	}
	data, err := json.Marshal(limits)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, oci.Linux.Resources)
}

// ReopenLog has a container's log begin anew after somebody has renamed it.
func (s *Set) ReopenLog(ctx context.Context, id string) error {
	m, err := s.findContainer(id)
	if err != nil {
		return err
	}
	if is := s.show(m); is.State != spec.Running && is.State != spec.Paused {
		return errs.New(errs.Conflict, "container %s is %s: its log is not written", m.id, is.State)
	}
	return s.Runner.ReopenLog(ctx, Key(m.id))
}
