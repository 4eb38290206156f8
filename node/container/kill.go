package container

import (
	"context"
	"fmt"
	"syscall"

	"berth/base/errs"
	"berth/spec"
)

// Kill sends signal (KILL when "") to the container's first process.
// errs.Conflict: it does not run. With KILL it returns when the container has
// ended.
func (s *Set) Kill(ctx context.Context, ref, signal string) error {
	sig, err := parseSignal(orElse(signal, "KILL"))
	if err != nil {
		return err
	}
	c, err := s.lock(ctx, ref)
	if err != nil {
		return err
	}
	end := c.ending()
	err = s.kill(ctx, c, sig)
	c.op.Unlock()
	if err != nil {
		return fmt.Errorf("kill container %s: %w", c.name(), err)
	}
	if sig != syscall.SIGKILL {
		return nil
	}
	select {
	case <-end.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// kill sends a signal as the user's wish. op is held.
func (s *Set) kill(ctx context.Context, c *container, sig syscall.Signal) error {
	view := c.get()
	if view.State.Status == spec.Paused && sig == syscall.SIGKILL {
		return s.killPaused(ctx, c)
	}
	if err := running(view); err != nil {
		return err
	}
	if sig == syscall.SIGKILL || sig == stopSignal(view) {
		if err := s.stoppedByUser(ctx, c); err != nil {
			return err
		}
	}
	return s.send(ctx, c, sig)
}

// killPaused kills a container whose processes have to be thawed to die.
func (s *Set) killPaused(ctx context.Context, c *container) error {
	if err := s.stoppedByUser(ctx, c); err != nil {
		return err
	}
	if err := s.send(ctx, c, syscall.SIGKILL); err != nil {
		return err
	}
	err := s.resume(ctx, c)
	if errs.KindOf(err) == errs.NotFound { // the kill was faster
		return nil
	}
	return err
}

// stoppedByUser keeps policies from starting the container again.
func (s *Set) stoppedByUser(ctx context.Context, c *container) error {
	c.change(func(c *spec.Container) { c.State.StoppedBy = "user" })
	return s.save(ctx, c)
}

func stopSignal(c *spec.Container) syscall.Signal {
	sig, err := parseSignal(orElse(c.Config.StopSignal, "TERM"))
	if err != nil {
		return syscall.SIGTERM
	}
	return sig
}
