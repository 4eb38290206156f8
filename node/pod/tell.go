package pod

import (
	"context"

	"berth/spec"
)

// Tell takes an event of the bus: plugins hear of containers that end by
// themselves. It waits for nothing.
func (s *Set) Tell(e spec.Event) {
	if s.Hooks == nil || e.Type != "container" || e.Action != "die" || e.Attributes["pod"] == "" {
		return
	}
	s.mu.RLock()
	m := s.containers[e.Attributes["container"]]
	s.mu.RUnlock()
	if m == nil {
		return
	}
	begin(s.life, s, func(ctx context.Context) (struct{}, error) { return struct{}{}, s.tellStop(ctx, m) })
}

// tellStop tells plugins that a container has ended; once is enough for them.
func (s *Set) tellStop(ctx context.Context, m *member) error {
	if s.Hooks == nil {
		return nil
	}
	err := s.hook(ctx, "stop container", func(ctx context.Context) error {
		return s.Hooks.StopContainer(ctx, m.pod.get(), s.show(m))
	})
	if err != nil {
		s.Log.WarnContext(ctx, "a plugin does not take the end of a container well", "container", m.id, "err", err)
	}
	return nil
}
