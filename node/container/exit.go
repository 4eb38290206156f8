package container

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// Exit is what the owner of the processes tells of an end. The id is that of a
// container or of an exec.
type Exit struct {
	ID    string
	Pid   int
	Code  int  // 128+n when signal n ended it
	Known bool // false: it is gone, and nobody can say how
	At    time.Time
}

// unknownCode stands where nobody can say how a process ended.
const unknownCode = 255

// Exited is told by the owner of the processes that one has ended. It returns
// at once.
func (s *Set) Exited(e Exit) {
	if s.execEnded(e) {
		return
	}
	s.background.Go(func() { s.exited(e) })
}

func (s *Set) exited(e Exit) {
	s.mu.RLock()
	c := s.containers[e.ID]
	s.mu.RUnlock()
	if c == nil {
		s.drop(e.ID)
		return
	}
	if c.op.Lock(s.life) != nil {
		return // the next node hears of it again
	}
	defer c.op.Unlock()
	r := c.current()
	if r == nil || e.Pid != 0 && r.process.Pid != 0 && r.process.Pid != e.Pid {
		s.forget.later(e.ID) // the end of a start that failed, or told twice
		return
	}
	s.ended(context.WithoutCancel(s.life), c, e)
}

// ended puts away what the process needed, notes how it ended, and does what
// policy wants. op is held.
//
// The client of a task is told before that is put away: it then deletes the
// task, which waits for op.
func (s *Set) ended(ctx context.Context, c *container, e Exit) {
	c.quiet()
	r := c.current()
	r.over.Store(true)
	oom := s.oomKilled(c)
	given := c.given.Load() != nil
	if !given {
		s.cleanUp(ctx, c)
	}
	again, wait := s.noteEnd(c, e, oom)
	s.keepEnd(ctx, c, r)
	s.tellDeath(c, r, oom)
	c.tellEnd()
	if given {
		s.cleanUp(ctx, c)
	}
	switch {
	case again:
		s.restartIn(c, wait)
	case c.get().Config.AutoRemove && !c.kept():
		if err := s.remove(ctx, c, true); err != nil {
			s.Log.ErrorContext(ctx, "cannot remove a container that ended", "container", c.id, "error", err)
		}
	}
}

// cleanUp puts away what a run needed; what stays is litter.
func (s *Set) cleanUp(ctx context.Context, c *container) {
	if err := s.putAway(ctx, c, true); err != nil {
		s.Log.WarnContext(ctx, "cannot clean up after a container", "container", c.id, "error", err)
	}
}

// keepEnd makes the end outlive the node.
func (s *Set) keepEnd(ctx context.Context, c *container, r *run) {
	var task error
	if c.given.Load() != nil {
		task = s.writeTask(c)
	}
	if err := errors.Join(task, s.save(ctx, c)); err != nil {
		s.Log.ErrorContext(ctx, "cannot record the end of a container", "container", c.id, "error", err)
	}
	if err := r.process.Close(); err != nil {
		s.Log.WarnContext(ctx, "cannot close the streams of a container", "container", c.id, "error", err)
	}
	s.forget.later(c.id)
}

// tellDeath publishes that the process has ended.
func (s *Set) tellDeath(c *container, r *run, oom bool) {
	view := c.get()
	if oom {
		s.publish(view, "oom")
	}
	s.publish(view, "die", "exitCode", strconv.Itoa(view.State.ExitCode),
		"pid", strconv.Itoa(r.process.Pid), "exitedAt", view.State.FinishedAt.Format(time.RFC3339Nano))
}

// noteEnd changes the state to that after the end, and says whether and when
// the container starts again.
func (s *Set) noteEnd(c *container, e Exit, oom bool) (again bool, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !e.Known {
		e.Code = unknownCode
	}
	again, wait = c.decideLocked(e, time.Since(c.run.since))
	c.run, c.settling, c.dismissed = nil, true, false
	c.changeLocked(func(c *spec.Container) {
		st := &c.State
		st.Status, st.Pid = spec.Stopped, 0
		if again {
			st.Status = spec.Restarting
		}
		st.ExitCode, st.ExitUnknown, st.OOMKilled, st.FinishedAt = e.Code, !e.Known, oom, e.At.UTC()
		st.Health = nil
		c.Networks, c.Ports = nil, nil
	})
	if c.endTaskLocked() {
		wait = max(wait, clientPause)
	}
	return again, wait
}

// tellEnd wakes whoever waits for this end.
func (c *container) tellEnd() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end.exit = exitOf(c.view.Load())
	close(c.end.done)
	c.end = newEnding()
	c.settling = false
	c.tellLocked()
}

// putAway ends what is left of the process and takes down what it needed. It
// may be called again; what fails is tried again before the next start and at
// remove.
func (s *Set) putAway(ctx context.Context, c *container, mounted bool) error {
	view := c.get()
	if c.given.Load() != nil {
		return s.putTaskAway(ctx, c, mounted)
	}
	var network, runtime error
	var both sync.WaitGroup
	both.Go(func() { network = s.unwire(ctx, view) })
	runtime = s.deleteFromRuntime(ctx, view)
	rest := errors.Join(s.releaseMounts(ctx, view), s.returnShm(c.id), s.dropEtc(ctx, c.id))
	if mounted {
		rest = errors.Join(rest, s.unmountRoot(ctx, c))
	} else {
		rest = errors.Join(rest, s.dropRoot(ctx, c.id))
	}
	both.Wait()
	err := errors.Join(runtime, network, rest)
	c.litter.Store(err != nil)
	return err
}

func (s *Set) deleteFromRuntime(ctx context.Context, c *spec.Container) error {
	r, err := s.runtime(c)
	if err != nil {
		return err
	}
	return r.Delete(ctx, keyOf(c))
}

func (s *Set) oomKilled(c *container) bool {
	kills, err := s.Meter.OOMKills(c.cgroup())
	if err != nil && !errors.Is(err, errs.NotFound) {
		s.Log.Warn("cannot tell whether memory ran out", "container", c.id, "error", err)
	}
	return kills > 0
}
