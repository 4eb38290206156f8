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
	s.background.Go(func() { s.tellStop(s.life, m) })
}

// told tells plugins of what nobody can call off any more.
func (s *Set) told(ctx context.Context, what, id string, tell func(context.Context) error) {
	if s.Hooks == nil {
		return
	}
	if err := tell(ctx); err != nil && ctx.Err() == nil {
		s.Log.WarnContext(ctx, "a plugin does not take it well", "what", what, "id", id, "err", err)
	}
}

// ask asks plugins for what they may call off.
func (s *Set) ask(ctx context.Context, ask func(context.Context) error) error {
	if s.Hooks == nil {
		return nil
	}
	return ask(ctx)
}

// tellStop tells plugins that a container has ended; once is enough for them.
func (s *Set) tellStop(ctx context.Context, m *member) {
	s.told(ctx, "container stopped", m.id, func(ctx context.Context) error {
		return s.Hooks.StopContainer(ctx, m.pod.get(), s.show(m))
	})
}

func (s *Set) tellRemoval(ctx context.Context, m *member) {
	s.told(ctx, "container removed", m.id, func(ctx context.Context) error {
		return s.Hooks.RemoveContainer(ctx, m.pod.get(), m.rec.Load().Container)
	})
}

func (s *Set) tellPodStop(ctx context.Context, p *pod) {
	s.told(ctx, "pod stopped", p.id, func(ctx context.Context) error { return s.Hooks.StopPod(ctx, p.get()) })
}

func (s *Set) tellPodRemoval(ctx context.Context, p *pod) {
	s.told(ctx, "pod removed", p.id, func(ctx context.Context) error { return s.Hooks.RemovePod(ctx, p.get()) })
}
