package container

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// killWait bounds the wait for a process that was killed. One in the middle of
// disk input or output takes its time.
const killWait = 30 * time.Second

// Stop sends signal (the container's own when ""), and kills after timeout
// seconds (the container's own when nil, never when negative). A container
// that does not run is no error; one that waits to be restarted is not any
// more. A caller that goes away does not stop the stop.
func (s *Set) Stop(ctx context.Context, ref string, timeout *int, signal string) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	stop, err := s.stopping(c, timeout, signal)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) error {
		if err := s.halt(ctx, c, stop); err != nil {
			return fmt.Errorf("stop container %s: %w", c.name(), err)
		}
		return nil
	})
}

// stopping is how to stop a container.
type stopping struct {
	signal syscall.Signal
	grace  time.Duration // negative: for ever
}

func (s *Set) stopping(c *container, timeout *int, signal string) (stopping, error) {
	config := c.get().Config
	sig, err := parseSignal(orElse(orElse(signal, config.StopSignal), "TERM"))
	if err != nil {
		return stopping{}, err
	}
	seconds := defaultStopTimeout
	if config.StopTimeout != nil {
		seconds = *config.StopTimeout
	}
	if timeout != nil {
		seconds = *timeout
	}
	if g := c.given.Load(); g != nil && g.Owned && seconds == 0 {
		sig = syscall.SIGKILL // as Kubernetes means it
	}
	return stopping{sig, time.Duration(seconds) * time.Second}, nil
}

// halt ends the process, and the restarts. op is not held.
func (s *Set) halt(ctx context.Context, c *container, stop stopping) error {
	late := stop.signal != syscall.SIGKILL && !s.begun(c)
	end, err := s.askToEnd(ctx, c, stop.signal, !late)
	if end == nil || err != nil {
		return err
	}
	if late {
		if stop.grace, err = s.askLater(ctx, c, end, stop); err != nil {
			return err
		}
	}
	ended, err := waitFor(ctx, end, stop.grace)
	if err == nil && !ended {
		err = s.forceEnd(ctx, c, end)
	}
	if err == nil {
		s.publish(c.get(), "stop")
	}
	return err
}

// beginner is a Runtime that can tell whether a container's process is the
// client's program already, and not still the runtime on its way there: that one
// swallows signals, or dies of them in its own way.
type beginner interface {
	Begun(id string) bool
}

func (s *Set) begun(c *container) bool {
	r, err := s.runtime(c.get())
	if err != nil {
		return true
	}
	b, ok := r.(beginner)
	return !ok || !alive(c.status()) || b.Begun(c.id)
}

// askLater sends the signal once the program is there, and tells what is left of
// the grace. No lock is held while it waits.
func (s *Set) askLater(ctx context.Context, c *container, end *ending, stop stopping) (left time.Duration, err error) {
	asked := time.Now()
	look := time.NewTicker(beginLook)
	defer look.Stop()
	for {
		left = stop.grace
		if stop.grace >= 0 {
			if left -= time.Since(asked); left <= 0 {
				return 0, nil
			}
		}
		select {
		case <-end.done:
			return max(left, 0), nil
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-look.C:
		}
		if s.begun(c) {
			return left, s.signalRun(ctx, c, end, stop.signal)
		}
	}
}

// beginLook is how often one looks whether a program has begun.
const beginLook = 3 * time.Millisecond

// signalRun sends a signal to the run that end is of, if that goes on.
func (s *Set) signalRun(ctx context.Context, c *container, end *ending, sig syscall.Signal) error {
	if err := c.op.Lock(ctx); err != nil {
		return err
	}
	defer c.op.Unlock()
	if c.ending() != end || !alive(c.status()) {
		return nil
	}
	return s.send(ctx, c, sig)
}

// askToEnd sends the signal, if that is to be now, and returns the end to wait
// for, or nil where there is nothing to end.
func (s *Set) askToEnd(ctx context.Context, c *container, sig syscall.Signal, now bool) (*ending, error) {
	if err := c.op.Lock(ctx); err != nil {
		return nil, err
	}
	defer c.op.Unlock()
	switch c.status() {
	case spec.Restarting:
		c.calm()
		c.change(func(c *spec.Container) { c.State.StoppedBy = "user" })
		return nil, s.save(ctx, c)
	case spec.Paused:
		if err := s.resume(ctx, c); err != nil {
			return nil, err
		}
	case spec.Running:
	default:
		return nil, nil
	}
	c.change(func(c *spec.Container) { c.State.StoppedBy = "user" })
	if err := s.save(ctx, c); err != nil {
		return nil, err
	}
	if !now {
		return c.ending(), nil
	}
	return c.ending(), s.send(ctx, c, sig)
}

// forceEnd kills the process of a run that did not end by itself.
func (s *Set) forceEnd(ctx context.Context, c *container, end *ending) error {
	if err := c.op.Lock(ctx); err != nil {
		return err
	}
	var err error
	if c.ending() == end && alive(c.status()) {
		err = s.send(ctx, c, syscall.SIGKILL)
		if err == nil && c.status() == spec.Paused { // paused while we waited
			err = s.resume(ctx, c)
		}
	}
	c.op.Unlock()
	if err != nil {
		return err
	}
	ended, err := waitFor(ctx, end, killWait)
	if err == nil && !ended {
		err = errs.New(errs.Timeout, "container %s was killed, but its process does not end", c.name())
	}
	return err
}

// send signals the first process; one that has just ended is no error.
func (s *Set) send(ctx context.Context, c *container, sig syscall.Signal) error {
	view := c.get()
	r, err := s.runtime(view)
	if err != nil {
		return err
	}
	if err := r.Signal(ctx, c.id, sig, false); err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	s.publish(view, "kill", "signal", strconv.Itoa(int(sig)))
	return nil
}

// waitFor waits for an end: at most so long, or, where that is negative, for
// ever. ctx is done when the node is to end.
func waitFor(ctx context.Context, end *ending, atMost time.Duration) (ended bool, err error) {
	var up <-chan time.Time
	if atMost >= 0 {
		timer := time.NewTimer(atMost)
		defer timer.Stop()
		up = timer.C
	}
	select {
	case <-end.done:
		return true, nil
	case <-up:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}
