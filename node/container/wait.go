package container

import (
	"context"

	"berth/base/errs"
	"berth/spec"
)

// The conditions of Wait.
const (
	NotRunning = "not-running" // at once if it does not run and is not about to
	NextExit   = "next-exit"
	Removed    = "removed"
)

// Wait waits until the container fits condition (NotRunning when "") and tells
// how it ended last. The exits of containers that were removed stay known for
// some minutes, by their id.
func (s *Set) Wait(ctx context.Context, ref, condition string) (spec.Exit, error) {
	if condition != "" && condition != NotRunning && condition != NextExit && condition != Removed {
		return spec.Exit{}, errs.New(errs.Invalid, "wait for %q: want %s, %s or %s", condition, NotRunning, NextExit, Removed)
	}
	c, err := s.find(ref)
	if errs.KindOf(err) == errs.NotFound {
		if exit, ok := s.db.exit(ref); ok {
			return exit, nil
		}
	}
	if err != nil {
		return spec.Exit{}, err
	}
	if condition == NextExit {
		return c.nextExit(ctx)
	}
	return c.waitUntil(ctx, func(view *spec.Container) bool {
		return c.removed.Load() || condition != Removed && !busy(view.State.Status)
	})
}

func (c *container) nextExit(ctx context.Context) (spec.Exit, error) {
	end := c.ending()
	select {
	case <-end.done:
		return end.exit, end.err
	case <-ctx.Done():
		return spec.Exit{}, ctx.Err()
	}
}

// waitUntil waits for a state that fits.
func (c *container) waitUntil(ctx context.Context, fits func(*spec.Container) bool) (spec.Exit, error) {
	for {
		view, settled, changed := c.watch()
		if settled && fits(view) {
			return exitOf(view), nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return spec.Exit{}, ctx.Err()
		}
	}
}
