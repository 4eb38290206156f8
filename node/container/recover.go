package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"berth/base/errs"
	"berth/node/snapshot"
	"berth/spec"
)

// reconnectGrace is how long a container with AutoRemove that ended while no
// node ran stays, for those who were attached to come back and read the rest.
const reconnectGrace = 10 * time.Second

// Survivor is a process that outlived an earlier node.
type Survivor struct {
	Process *Process
	Exit    *Exit // nil while it runs
}

// Recover brings what the records say together with the processes that are
// there. Those that run go on, with their health checks and their ends heard
// of; those that ended meanwhile are put away; what a crash left half made is
// taken away, half removed is removed. After a reboot the containers start
// that their policy brings back.
//
// It has to be called once, after Open and before the first Exited.
func (s *Set) Recover(ctx context.Context, survivors []Survivor) error {
	byID := map[string]Survivor{}
	for _, v := range survivors {
		byID[v.Process.ID] = v
	}
	for _, c := range s.all() {
		survivor, has := byID[c.id]
		delete(byID, c.id)
		if err := s.recoverOne(ctx, c, survivor, has); err != nil {
			s.Log.ErrorContext(ctx, "cannot recover a container", "container", c.id, "error", err)
		}
	}
	for _, v := range byID {
		s.recoverExec(v)
	}
	s.settleExecs()
	if err := s.sweepVolumes(ctx); err != nil {
		return fmt.Errorf("volumes of containers that are gone: %w", err)
	}
	return ctx.Err()
}

func (s *Set) recoverOne(ctx context.Context, c *container, v Survivor, has bool) error {
	if err := c.op.Lock(ctx); err != nil {
		return err
	}
	defer c.op.Unlock()
	if c.given.Load() != nil {
		return s.recoverGiven(ctx, c, v, has)
	}
	view := c.get()
	status := view.State.Status
	if has && v.Exit != nil && !alive(status) && view.State.FinishedAt.Equal(v.Exit.At) {
		has = false // its end is on record; only the owner was not told to forget it
		s.forget.later(c.id)
	}
	switch {
	case has:
		s.adopt(c, v)
		return nil
	case status == spec.Removing || status == spec.Dead || s.rootless(ctx, c):
		return s.remove(ctx, c, view.Config.AutoRemove || c.dropVolumes)
	case alive(status):
		s.endUnseen(ctx, c)
	default:
		s.litterOf(ctx, c)
	}
	s.revive(c)
	return nil
}

// adopt takes over a process that runs, or that ended while nobody looked.
func (s *Set) adopt(c *container, v Survivor) {
	c.mu.Lock()
	c.run = &run{process: v.Process, since: c.view.Load().State.StartedAt}
	c.root.users = 1
	c.changeLocked(func(c *spec.Container) {
		if !alive(c.State.Status) { // the start came after the last record
			c.State.Status, c.State.StartedAt = spec.Running, time.Now().UTC()
		}
		c.State.Pid = v.Process.Pid
	})
	c.mu.Unlock()
	if v.Exit == nil {
		s.watchHealth(c)
		return
	}
	s.stayAWhile(c)
	s.background.Go(func() { s.exited(*v.Exit) })
}

// stayAWhile keeps a container with AutoRemove until those who were attached
// had time to come back.
func (s *Set) stayAWhile(c *container) {
	if !c.get().Config.AutoRemove {
		return
	}
	release := c.keep()
	s.background.Go(func() {
		grace := time.NewTimer(reconnectGrace)
		defer grace.Stop()
		defer release()
		select {
		case <-grace.C:
		case <-s.life.Done():
			return
		}
		if c.op.Lock(s.life) != nil {
			return
		}
		defer c.op.Unlock()
		if c.isGone() || busy(c.status()) {
			return
		}
		if err := s.remove(context.WithoutCancel(s.life), c, true); err != nil {
			s.Log.Error("cannot remove a container that ended", "container", c.id, "error", err)
		}
	})
}

// endUnseen notes the end of a process that nobody saw: the machine went
// down, or node and keeper at once.
func (s *Set) endUnseen(ctx context.Context, c *container) {
	s.stayAWhile(c)
	c.mu.Lock()
	c.run = &run{process: &Process{ID: c.id}, since: c.view.Load().State.StartedAt}
	c.root.users = 1
	c.mu.Unlock()
	s.ended(ctx, c, Exit{ID: c.id, At: time.Now()})
}

// rootless says whether the container's root is gone: a removal came that far.
func (s *Set) rootless(ctx context.Context, c *container) bool {
	_, err := s.Snapshots.Stat(ctx, snapshot.Key(c.id))
	return errors.Is(err, errs.NotFound)
}

// litterOf takes down what a start that was cut off left behind.
func (s *Set) litterOf(ctx context.Context, c *container) {
	if _, err := os.Stat(s.bundleDir(c.id)); err != nil {
		return
	}
	if err := s.putAway(ctx, c, false); err != nil {
		s.Log.WarnContext(ctx, "cannot clean up after a start that was cut off", "container", c.id, "error", err)
	}
}

// revive starts a container that policy brings back, and lets go of one that
// was to be removed at its end.
func (s *Set) revive(c *container) {
	view := c.get()
	started := !view.State.StartedAt.IsZero()
	switch {
	case !started || c.pendingRetry():
	case c.rebooted && view.State.Status == spec.Restarting && !comesBack(view):
		c.change(func(c *spec.Container) { c.State.Status = spec.Stopped })
		s.db.note(c)
	case view.State.Status == spec.Restarting || c.rebooted && comesBack(view):
		c.change(func(c *spec.Container) { c.State.Status = spec.Restarting })
		s.restartIn(c, 0)
	case view.State.Status == spec.Stopped && view.Config.AutoRemove && !c.kept():
		s.stayAWhile(c)
	case c.rebooted:
		s.db.note(c) // it has been seen in this boot
	}
}

func (c *container) pendingRetry() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.retry != nil
}

// comesBack says whether policy starts a container after a reboot.
func comesBack(c *spec.Container) bool {
	switch c.Config.Restart.Name {
	case "always":
		return true
	case "unless-stopped":
		return c.State.StoppedBy == ""
	}
	return false
}

// recoverExec lets an exec of an earlier node run on; nobody reads it any
// more, so that its output goes nowhere instead of standing in its way. A
// health check is ended: there will be others.
func (s *Set) recoverExec(v Survivor) {
	id := v.Process.ID
	if e, err := s.findExec(id); err == nil { // a client's
		s.adoptExec(e, v)
		return
	}
	if v.Exit != nil {
		s.forget.later(id) // the owner answers only when all are recovered
		return
	}
	if strings.HasPrefix(id, probePrefix) {
		if err := s.Processes.Signal(id, syscall.SIGKILL); err != nil && !errors.Is(err, errs.NotFound) {
			s.Log.Warn("cannot end a health check", "id", id, "error", err)
		}
	}
	for _, f := range []io.ReadCloser{v.Process.Stdout, v.Process.Stderr} {
		if f == nil {
			continue
		}
		s.background.Go(func() {
			defer context.AfterFunc(s.life, func() { _ = f.Close() })()
			_, _ = io.Copy(io.Discard, f)
		})
	}
}

// sweepVolumes releases what containers that are gone have reserved, and
// removes the anonymous volumes that were theirs alone.
func (s *Set) sweepVolumes(ctx context.Context) error {
	volumes, err := s.Volumes.List(ctx, nil)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		gone := 0
		for _, id := range v.UsedBy {
			if s.Claims(id) {
				continue
			}
			gone++
			if err := s.Volumes.Release(ctx, v.Name, id); err != nil {
				return err
			}
		}
		if v.Anonymous && gone > 0 && gone == len(v.UsedBy) {
			if err := s.Volumes.Remove(ctx, v.Name, false); err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
		}
	}
	return nil
}
