package pod

import (
	"cmp"
	"slices"

	"berth/spec"
)

// Pod returns one pod, by its id or a beginning that only it has. errs.NotFound,
// or errs.Conflict where several begin so. What it holds must not be changed.
func (s *Set) Pod(id string) (spec.Pod, error) {
	p, err := s.find(id)
	if err != nil {
		return spec.Pod{}, err
	}
	return p.get(), nil
}

// Pods returns all pods, newest first. What they hold must not be changed.
func (s *Set) Pods() []spec.Pod {
	s.mu.RLock()
	all := make([]spec.Pod, 0, len(s.pods))
	for _, p := range s.pods {
		if p.seen() {
			all = append(all, p.get())
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(all, func(a, b spec.Pod) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// Container returns a container of a pod, by its id or a beginning that only it
// has. Errors as of Pod. What it holds must not be changed.
func (s *Set) Container(id string) (spec.PodContainer, error) {
	m, err := s.findContainer(id)
	if err != nil {
		return spec.PodContainer{}, err
	}
	return s.show(m), nil
}

// Containers returns the containers of all pods, newest first. What they hold
// must not be changed.
func (s *Set) Containers() []spec.PodContainer {
	s.mu.RLock()
	all := make([]*member, 0, len(s.containers))
	for _, m := range s.containers {
		all = append(all, m)
	}
	s.mu.RUnlock()
	return s.showAll(all)
}

// ContainersOf returns the containers of the pod of that id, newest first; none
// where there is no such pod.
func (s *Set) ContainersOf(pod string) []spec.PodContainer {
	s.mu.RLock()
	p := s.pods[pod]
	s.mu.RUnlock()
	if p == nil {
		return nil
	}
	return s.showAll(p.all())
}

// ImageUsers lists the containers that are made of an image, by its ID, or have
// it as a volume.
func (s *Set) ImageUsers(image string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var ids []string
	for id, m := range s.containers {
		c := &m.rec.Load().Container
		if c.ImageID == image || slices.ContainsFunc(c.Mounts, func(mount spec.PodMount) bool { return mount.Image == image }) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (s *Set) showAll(all []*member) []spec.PodContainer {
	list := make([]spec.PodContainer, 0, len(all))
	for _, m := range all {
		if m.seen() {
			list = append(list, s.show(m))
		}
	}
	slices.SortFunc(list, func(a, b spec.PodContainer) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// Reasons of containers that have ended, as Kubernetes words them.
const (
	reasonCompleted = "Completed"
	reasonError     = "Error"
	reasonOOM       = "OOMKilled"
	reasonStart     = "StartError"
	reasonUnknown   = "ContainerStatusUnknown"
)

// startFailed is the exit code of a container that could not be started, as
// Kubernetes has it.
const startFailed = 128

// show is a container as it is now.
func (s *Set) show(m *member) spec.PodContainer {
	rec := m.rec.Load()
	c := rec.Container
	if rec.Failure {
		c.State, c.ExitCode, c.Reason = spec.Stopped, startFailed, reasonStart
		return c
	}
	admitted := m.admitted.Load() // before it is asked for
	is, err := s.Runner.Get(s.life, Key(m.id))
	if err != nil && (rec.Last || !admitted) { // it goes, or comes
		return c
	}
	if err != nil || rec.Lost && is.State.Status == spec.Created { // a power cut took it, or somebody else
		c.State, c.ExitCode, c.Reason = spec.Stopped, unknownCode, cmp.Or(c.Reason, reasonUnknown)
		c.Finished = cmp.Or(c.Finished, c.Created)
		return c
	}
	state := is.State
	c.State, c.Pid, c.Started = state.Status, state.Pid, state.StartedAt
	switch c.State {
	case spec.Created, spec.Running, spec.Paused:
		c.Reason, c.Message = "", ""
		return c
	case spec.Restarting, spec.Removing, spec.Dead:
		c.State = spec.Stopped
	}
	c.Pid, c.ExitCode, c.Finished = 0, state.ExitCode, state.FinishedAt
	c.Reason = cmp.Or(c.Reason, reasonOf(state))
	return c
}

// unknownCode is the exit code where nobody can tell it.
const unknownCode = 255

func reasonOf(state spec.ContainerState) string {
	switch {
	case state.OOMKilled:
		return reasonOOM
	case state.ExitUnknown:
		return reasonUnknown
	case state.ExitCode == 0:
		return reasonCompleted
	}
	return reasonError
}
