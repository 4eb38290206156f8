package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth/base/clock"
	"berth/base/errs"
	"berth/spec"
)

// backoff is between restarts by policy; goodRun is how long a process has to
// run for the next wait to be short again.
var backoff = clock.Backoff{First: 100 * time.Millisecond, Most: time.Minute}

const goodRun = 10 * time.Second

// Restart stops the container as Stop does, and starts it.
func (s *Set) Restart(ctx context.Context, ref string, timeout *int, signal string) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if err := c.mayStart(); err != nil {
		return err
	}
	stop, err := s.stopping(c, timeout, signal)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) error {
		release := c.keep()
		defer release()
		if err := s.halt(ctx, c, stop); err != nil {
			return fmt.Errorf("restart container %s: %w", c.name(), err)
		}
		if err := c.op.Lock(ctx); err != nil {
			return err
		}
		defer c.op.Unlock()
		if c.isGone() {
			return errs.New(errs.NotFound, "container %s was removed", c.name())
		}
		if !alive(c.status()) { // else somebody else was faster
			c.fresh()
			if err := s.start(ctx, c); err != nil {
				return err
			}
		}
		s.publish(c.get(), "restart")
		return nil
	})
}

// decideLocked says whether policy starts the container again after this exit,
// and after what wait. mu is held.
func (c *container) decideLocked(e Exit, ran time.Duration) (again bool, wait time.Duration) {
	view := c.view.Load()
	if c.removing || view.State.StoppedBy != "" || view.State.Status == spec.Created {
		return false, 0
	}
	if ran >= goodRun {
		c.retries = 0
	}
	if c.rebooted && view.Config.Restart.Name == "on-failure" {
		return false, 0 // that the machine went down is no failure of the container
	}
	if !wants(view.Config.Restart, e.Known && e.Code == 0, view.State.RestartCount) {
		return false, 0
	}
	wait = backoff.Wait(c.retries)
	c.retries++
	return true, wait
}

// wants says whether a policy starts a container again that has been started
// again so many times.
func wants(p spec.RestartPolicy, success bool, count int) bool {
	switch p.Name {
	case "always", "unless-stopped":
		return true
	case "on-failure":
		return !success && (p.MaxRetries == 0 || count < p.MaxRetries)
	}
	return false
}

// restartIn starts the container after a while, unless something happens to it.
func (s *Set) restartIn(c *container, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retry = time.AfterFunc(wait, func() { s.background.Go(func() { s.restartNow(c) }) })
}

func (s *Set) restartNow(c *container) {
	if c.op.Lock(s.life) != nil {
		return
	}
	defer c.op.Unlock()
	if c.status() != spec.Restarting || c.isGone() {
		return
	}
	c.change(func(c *spec.Container) {
		c.State.RestartCount++
		c.State.StoppedBy = "" // a reboot brings back who is to run always
	})
	err := s.start(context.WithoutCancel(s.life), c)
	if err == nil || errors.Is(err, errs.Unavailable) && s.life.Err() != nil {
		return
	}
	s.Log.Warn("cannot start a container again", "container", c.id, "error", err)
	s.retryStart(c)
}

// retryStart treats a start by policy that failed as a run that failed.
func (s *Set) retryStart(c *container) {
	c.mu.Lock()
	again, wait := c.decideLocked(Exit{Code: unknownCode, Known: true}, 0)
	if again {
		c.changeLocked(func(c *spec.Container) { c.State.Status = spec.Restarting })
	}
	c.mu.Unlock()
	s.db.note(c)
	if again {
		s.restartIn(c, wait)
	}
}

// calm ends a restart that waits: somebody has decided.
func (c *container) calm() {
	c.callOff()
	c.change(func(c *spec.Container) { c.State.StoppedBy = "" })
}

// callOff ends a restart that waits.
func (c *container) callOff() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retry != nil {
		c.retry.Stop()
		c.retry = nil
	}
	c.retries = 0
	if c.view.Load().State.Status == spec.Restarting {
		c.changeLocked(func(c *spec.Container) { c.State.Status = spec.Stopped })
	}
}

// fresh makes it as if the container had never been started again by policy.
func (c *container) fresh() {
	c.calm()
	c.change(func(c *spec.Container) { c.State.RestartCount = 0 })
}

// keep prevents the removal of a container with AutoRemove until release.
func (c *container) keep() (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keepers++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.keepers--
	}
}

func (c *container) kept() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keepers > 0
}
