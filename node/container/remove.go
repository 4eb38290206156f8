package container

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"berth/base/errs"
	"berth/node/snapshot"
	"berth/spec"
)

// Remove takes a container away, with its anonymous volumes if volumes is
// set. errs.Conflict: it runs, and force is not set.
func (s *Set) Remove(ctx context.Context, ref string, force, volumes bool) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) error { return s.removeFound(ctx, c, force, volumes) })
}

func (s *Set) removeFound(ctx context.Context, c *container, force, volumes bool) error {
	for killed := false; ; killed = true {
		if err := c.op.Lock(ctx); err != nil {
			return err
		}
		if c.isGone() {
			c.op.Unlock()
			if killed {
				return nil // it went by itself when it ended
			}
			return errs.New(errs.NotFound, "no such container: %s", c.name())
		}
		if !busy(c.status()) && c.current() == nil {
			err := s.remove(ctx, c, volumes)
			c.op.Unlock()
			return err
		}
		end, err := s.endForRemoval(ctx, c, force)
		c.op.Unlock()
		if err != nil {
			return fmt.Errorf("remove container %s: %w", c.name(), err)
		}
		if end == nil {
			continue
		}
		ended, err := waitFor(ctx, end, killWait)
		if err == nil && !ended {
			err = errs.New(errs.Timeout, "it was killed, but its process does not end")
		}
		if err != nil {
			c.setRemoving(false)
			return fmt.Errorf("remove container %s: %w", c.name(), err)
		}
	}
}

// endForRemoval kills what runs and calls off restarts. op is held.
func (s *Set) endForRemoval(ctx context.Context, c *container, force bool) (*ending, error) {
	status := c.status()
	if !force {
		return nil, errs.New(errs.Conflict, "it is %s: stop it first, or use force", status)
	}
	if status == spec.Restarting {
		c.calm()
		return nil, nil
	}
	c.setRemoving(true)
	end := c.ending()
	err := s.send(ctx, c, syscall.SIGKILL)
	if err == nil && status == spec.Paused {
		if err = s.resume(ctx, c); errors.Is(err, errs.NotFound) {
			err = nil
		}
	}
	if err != nil {
		c.setRemoving(false)
	}
	return end, err
}

func (c *container) setRemoving(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removing = on
}

// remove takes away a container that does not run. op is held.
func (s *Set) remove(ctx context.Context, c *container, volumes bool) error {
	c.quiet()
	before := c.status()
	view := c.change(func(c *spec.Container) { c.State.Status = spec.Removing })
	if err := s.unmake(ctx, c, volumes); err != nil {
		c.setRemoving(false)
		c.change(func(c *spec.Container) {
			c.State.Status, c.State.Error = spec.Dead, err.Error()
			if errors.Is(err, context.Canceled) && !hasVolume(c.Mounts) {
				c.State.Status = before
			}
		})
		return fmt.Errorf("remove container %s: %w", view.Name, err)
	}
	s.dropFromIndex(c)
	if err := clearDir(s.logDir(c.id)); err != nil {
		s.Log.WarnContext(ctx, "the log of a removed container is left", "container", c.id, "error", err)
	}
	s.background.Go(func() {
		if s.forget.takes(c.id) {
			s.drop(c.id)
		}
	})
	s.publish(view, "destroy")
	c.tellRemoved()
	return nil
}

// unmake removes volumes, root and, at last, the record. Where it is cut off
// before, Recover goes on with it.
func (s *Set) unmake(ctx context.Context, c *container, volumes bool) error {
	if c.litter.Load() {
		if err := s.putAway(ctx, c, false); err != nil {
			return err
		}
	}
	if c.given.Load() != nil {
		return s.unmakeGiven(ctx, c)
	}
	if view := c.get(); hasVolume(view.Mounts) {
		if err := s.removeVolumes(ctx, c, volumes); err != nil {
			return fmt.Errorf("remove its volumes: %w", err)
		}
	}
	if err := s.Snapshots.Remove(ctx, snapshot.Key(c.id)); err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("remove its root: %w", err)
	}
	if err := s.db.remove(ctx, c); err != nil {
		return fmt.Errorf("remove its record: %w", err)
	}
	return nil
}

func (s *Set) dropFromIndex(c *container) {
	s.mu.Lock()
	delete(s.containers, c.id)
	s.unnameLocked(c)
	s.mu.Unlock()
	s.dropExecs(c.id)
}

// tellRemoved wakes those who wait for the removal, and those who wait for a
// run that will never be.
func (c *container) tellRemoved() {
	c.removed.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end.err = errs.New(errs.NotFound, "container %s was removed", c.view.Load().Name)
	close(c.end.done)
	c.end = newEnding()
	c.tellLocked()
}

// removeVolumes gives up the container's volumes and, if asked for, removes
// its own. That it does is on record first: without its volumes the container
// is good for nothing any more.
func (s *Set) removeVolumes(ctx context.Context, c *container, own bool) error {
	c.mu.Lock()
	c.dropVolumes = c.dropVolumes || own
	own = c.dropVolumes
	c.mu.Unlock()
	if err := s.db.write(ctx, c); err != nil {
		return err
	}
	var failed error
	for _, m := range c.get().Mounts {
		if m.Type != "volume" {
			continue
		}
		failed = errors.Join(failed, s.Volumes.Release(ctx, m.Name, c.id))
		if m.Anonymous && own {
			err := s.Volumes.Remove(ctx, m.Name, false)
			if !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Conflict) { // another may use it by its name
				failed = errors.Join(failed, err)
			}
		}
	}
	return failed
}
