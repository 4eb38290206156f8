package container

import (
	"context"
	"fmt"
	"strings"

	"berth/base/errs"
	"berth/spec"
)

// Rename gives the container another name. errs.Exists: it is in use.
func (s *Set) Rename(ctx context.Context, ref, name string) error {
	name = strings.TrimPrefix(name, "/")
	if err := checkName(name); err != nil {
		return err
	}
	c, err := s.lock(ctx, ref)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) error {
		defer c.op.Unlock()
		if c.given.Load() != nil {
			return errs.New(errs.Unsupported, "container %s was made by another client: rename it by that one", c.name())
		}
		return s.rename(ctx, c, name)
	})
}

func (s *Set) rename(ctx context.Context, c *container, name string) error {
	old := c.name()
	if old == name {
		return errs.New(errs.Invalid, "container %s has that name already", old)
	}
	s.mu.Lock()
	err := s.takeLocked(name, c.id)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	c.setName(name)
	if err := s.db.write(ctx, c); err != nil {
		c.setName(old)
		s.free(c.id, name)
		return fmt.Errorf("rename container %s: %w", old, err)
	}
	s.free(c.id, old)
	s.Networks.Rename(c.id, name)
	s.publish(c.get(), "rename", "oldName", old)
	return nil
}

func (c *container) setName(name string) {
	c.change(func(c *spec.Container) { c.Name, c.Config.Name = name, name })
}
