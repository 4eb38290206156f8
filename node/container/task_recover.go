package container

import (
	"context"
	"errors"
	"time"

	"berth/spec"
)

// recoverGiven brings a given container together with the file of its task and
// the process that is there, or is not. op is held.
func (s *Set) recoverGiven(ctx context.Context, c *container, v Survivor, has bool) error {
	if status := c.status(); status == spec.Removing || status == spec.Dead {
		return errors.Join(s.discardTask(ctx, c), s.remove(ctx, c, true))
	}
	record, err := s.readTask(c.id)
	if err != nil {
		return err
	}
	if record != nil && record.Run && !record.Made && has { // its start was answered by nobody, but it runs
		record.Made, record.Started, record.Pid = true, true, v.Process.Pid
		c.change(func(c *spec.Container) {
			c.State = spec.ContainerState{Status: spec.Running, StartedAt: time.Now().UTC(), FinishedAt: c.State.FinishedAt}
		})
	}
	switch {
	case record == nil && !has:
		s.litterOf(ctx, c)
		c.rest(spec.ContainerState{ExitCode: unknownCode, ExitUnknown: true})
	case record == nil || !record.Made: // deleted, or never made: whoever asked has no answer
		err = s.discardTask(ctx, c)
		c.rest(spec.ContainerState{ExitCode: unknownCode, ExitUnknown: true})
	case record.Exit != nil && alive(c.status()): // what follows of its end was cut off
		s.endAgain(ctx, c, record)
	case record.Exit != nil:
		s.restoreTask(c, record)
		s.litterOf(ctx, c)
		x := record.Exit
		c.rest(spec.ContainerState{ExitCode: int(x.Code), ExitUnknown: x.Code == unknownCode && c.get().State.ExitUnknown, FinishedAt: x.At})
		if has {
			s.forget.later(c.id)
		}
	default:
		s.restoreTask(c, record)
		return s.adoptTask(ctx, c, v, has)
	}
	s.revive(c)
	return err
}

// endAgain does what follows of an end that is on record.
func (s *Set) endAgain(ctx context.Context, c *container, record *taskRecord) {
	s.restoreTask(c, record)
	c.mu.Lock()
	c.run = &run{process: &Process{ID: c.id, Pid: record.Pid}, since: c.view.Load().State.StartedAt}
	c.mu.Unlock()
	x := record.Exit
	s.ended(ctx, c, Exit{ID: c.id, Pid: x.Pid, Code: int(x.Code), Known: x.Code != unknownCode, At: x.At})
}

// discardTask takes away what there may be of a task that is not to be.
func (s *Set) discardTask(ctx context.Context, c *container) error {
	return errors.Join(s.putAway(ctx, c, false), s.dropTask(c))
}

// rest makes it that the container does not run, for whichever reason.
func (c *container) rest(as spec.ContainerState) {
	c.change(func(c *spec.Container) {
		old := c.State
		c.State.Pid = 0
		if !alive(old.Status) && as.FinishedAt.IsZero() {
			return
		}
		c.State.Status = spec.Stopped
		if old.Status == spec.Restarting {
			c.State.Status = spec.Restarting
		}
		c.State.ExitCode, c.State.ExitUnknown, c.State.FinishedAt = as.ExitCode, as.ExitUnknown, as.FinishedAt
		if as.FinishedAt.IsZero() {
			c.State.FinishedAt = time.Now().UTC()
		}
	})
}

// restoreTask makes the task and its execs as their records say.
func (s *Set) restoreTask(c *container, record *taskRecord) {
	c.mu.Lock()
	c.request = &record.Request
	c.task.Store(&task{taskRecord: *record, end: c.end})
	c.mu.Unlock()
	for _, r := range record.Execs {
		process, err := r.Request.process()
		if err != nil {
			continue // it was checked before it was written
		}
		e := newTaskExec(c, r.ID, r.Request, process)
		e.started, e.failed, e.told, e.pid = r.Started, r.Failed, r.Started, r.Pid
		if r.Exit != nil {
			e.end(Exit{Code: int(r.Exit.Code), Known: r.Exit.Code != unknownCode, At: r.Exit.At})
		}
		_ = s.addExec(e) // the ids in one record differ
	}
}

// adoptTask takes over the process of a task, created or running, or notes that
// there is none any more.
func (s *Set) adoptTask(ctx context.Context, c *container, v Survivor, has bool) error {
	t := c.task.Load()
	if !has {
		if t.Started {
			c.change(func(c *spec.Container) { c.State.Status = spec.Running })
		}
		s.endUnseen(ctx, c)
		s.revive(c)
		return nil
	}
	frozen := c.status() == spec.Paused
	c.mu.Lock()
	c.run = &run{process: v.Process, since: c.view.Load().State.StartedAt}
	c.changeLocked(func(c *spec.Container) {
		c.State.Pid, c.State.Status = v.Process.Pid, spec.Created
		if t.Started && frozen {
			c.State.Status = spec.Paused
		} else if t.Started {
			c.State.Status = spec.Running
		}
	})
	c.mu.Unlock()
	if t.Starting && !t.Started {
		if err := s.goOnStarting(ctx, c, v); err != nil {
			return err
		}
	}
	if v.Exit != nil {
		s.background.Go(func() { s.exited(*v.Exit) })
	}
	return nil
}

// goOnStarting finishes a start that was cut off. Nobody knows how far it had
// come: where the process waits no more, the runtime says no, and that is that.
func (s *Set) goOnStarting(ctx context.Context, c *container, v Survivor) error {
	if v.Exit == nil {
		r, err := s.runtime(c.get())
		if err != nil {
			return err
		}
		if err := r.Start(ctx, c.id); err != nil {
			s.Log.InfoContext(ctx, "a process was started when its node went down", "container", c.id, "answer", err)
		}
	}
	if err := s.startedTask(ctx, c); err != nil {
		return err
	}
	s.tellStart(c)
	return nil
}

// adoptExec takes over a client's exec that runs, or that ended while nobody
// looked.
func (s *Set) adoptExec(e *execution, v Survivor) {
	e.began(v.Process)
	e.mu.Lock()
	e.told = true
	ended := !e.ended.IsZero()
	e.mu.Unlock()
	switch {
	case ended: // that is on record; only the owner was not told to forget it
		s.forget.later(e.id)
	case v.Exit != nil:
		s.background.Go(func() { s.execEnded(*v.Exit) })
	}
}

// settleExecs ends the execs that were started and are not there any more.
func (s *Set) settleExecs() {
	s.execMu.Lock()
	defer s.execMu.Unlock()
	for _, e := range s.execs {
		e.mu.Lock()
		lost := e.request != nil && e.started && e.process == nil && e.ended.IsZero()
		e.mu.Unlock()
		if lost {
			s.background.Go(func() { s.endExec(e, Exit{ID: e.id, At: time.Now()}) })
		}
	}
}
