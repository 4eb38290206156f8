package container

import (
	"context"
	"fmt"

	"berth/base/errs"
	"berth/spec"
)

// Pause freezes a running container. errs.Conflict: not running, or paused.
func (s *Set) Pause(ctx context.Context, ref string) error {
	c, err := s.lock(ctx, ref)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) error {
		defer c.op.Unlock()
		return s.pause(ctx, c)
	})
}

// pause freezes the container. op is held.
func (s *Set) pause(ctx context.Context, c *container) error {
	view := c.get()
	if err := running(view); err != nil {
		return err
	}
	r, err := s.runtime(view)
	if err != nil {
		return err
	}
	if err := r.Pause(ctx, c.id); err != nil {
		return fmt.Errorf("pause container %s: %w", view.Name, err)
	}
	return s.noteFrozen(ctx, c, spec.Paused, "pause")
}

// Unpause thaws a paused container. errs.Conflict: it is not.
func (s *Set) Unpause(ctx context.Context, ref string) error {
	c, err := s.lock(ctx, ref)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) error {
		defer c.op.Unlock()
		if c.status() != spec.Paused {
			return errs.New(errs.Conflict, "container %s is not paused", c.name())
		}
		return s.resume(ctx, c)
	})
}

// resume thaws the container. op is held.
func (s *Set) resume(ctx context.Context, c *container) error {
	r, err := s.runtime(c.get())
	if err != nil {
		return err
	}
	if err := r.Resume(ctx, c.id); err != nil {
		return fmt.Errorf("unpause container %s: %w", c.name(), err)
	}
	return s.noteFrozen(ctx, c, spec.Running, "unpause")
}

// noteFrozen is durable at once: no process list tells later whether one is frozen.
func (s *Set) noteFrozen(ctx context.Context, c *container, status spec.State, action string) error {
	view := c.change(func(c *spec.Container) { c.State.Status = status })
	s.publish(view, action)
	return s.db.write(ctx, c)
}
