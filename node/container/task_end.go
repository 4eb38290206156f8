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

// KillTask sends a signal to the first process of a task, to all of its
// processes, or to an exec. errs.NotFound: it has ended.
func (s *Set) KillTask(ctx context.Context, namespace, id, exec string, sig syscall.Signal, all bool) error {
	c, err := s.findGiven(namespace, id)
	if err != nil {
		return noTask(err, id)
	}
	if exec != "" {
		return s.killTaskExec(ctx, c, exec, sig)
	}
	if err := c.op.Lock(ctx); err != nil {
		return fmt.Errorf("container %s is busy: %w", id, err)
	}
	err = s.finish(ctx, func(ctx context.Context) error {
		defer c.op.Unlock()
		state, ok := s.taskOf(c)
		switch {
		case !ok:
			return noTask(nil, id)
		case state.Status == TaskStopped:
			return errs.New(errs.NotFound, "process already finished")
		case c.given.Load() == nil:
			return s.kill(ctx, c, sig)
		}
		return s.killTask(ctx, c, sig, all)
	})
	if err != nil {
		return fmt.Errorf("kill task of container %s: %w", id, err)
	}
	return nil
}

// killTask signals the process of a given container. op is held.
func (s *Set) killTask(ctx context.Context, c *container, sig syscall.Signal, all bool) error {
	r, err := s.runtime(c.get())
	if err != nil {
		return err
	}
	if !c.task.Load().Killed {
		if err := s.changeTask(c, func(t *taskRecord) { t.Killed = true }); err != nil {
			return err
		}
	}
	if err := r.Signal(ctx, c.id, sig, all); err != nil {
		if errors.Is(err, errs.NotFound) {
			return errs.New(errs.NotFound, "process already finished")
		}
		return err
	}
	s.publish(c.get(), "kill", "signal", strconv.Itoa(int(sig)))
	if sig != syscall.SIGKILL || c.status() != spec.Paused {
		return nil
	}
	if err := s.resume(ctx, c); !errors.Is(err, errs.NotFound) { // else the kill was faster
		return err
	}
	return nil
}

// execSignaler is a Runtime that signals execs itself.
type execSignaler interface {
	SignalExec(ctx context.Context, id, exec string, sig syscall.Signal) error
}

func (s *Set) killTaskExec(ctx context.Context, c *container, exec string, sig syscall.Signal) error {
	e, err := c.exec(exec)
	if err != nil {
		return err
	}
	record := e.record()
	switch {
	case record.Exit != nil:
		return errs.New(errs.NotFound, "process already finished")
	case record.Pid == 0:
		return errs.New(errs.Conflict, "exec %s was not started yet", exec)
	}
	r, err := s.runtime(c.get())
	if err != nil {
		return err
	}
	if signaler, ok := r.(execSignaler); ok {
		err = signaler.SignalExec(ctx, c.id, e.id, sig)
	} else {
		err = s.Processes.Signal(e.id, sig)
	}
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.NotFound, "process already finished")
	}
	return err
}

// DeleteTask takes an ended task away and tells how it ended; one that was
// never started is killed before. errs.Conflict: it runs.
func (s *Set) DeleteTask(ctx context.Context, namespace, id string) (TaskExit, error) {
	c, err := s.findGiven(namespace, id)
	if err != nil {
		return TaskExit{}, noTask(err, id)
	}
	var exit TaskExit // no result by name, as in CreateTask
	err = s.finish(ctx, func(ctx context.Context) error {
		for {
			if err := c.op.Lock(ctx); err != nil {
				return err
			}
			end, err := s.deleteEnded(ctx, c, &exit)
			c.op.Unlock()
			if end == nil || err != nil {
				return err
			}
			ended, err := waitFor(ctx, end, killWait)
			if err == nil && !ended {
				err = errs.New(errs.Timeout, "it was killed, but its process does not end")
			}
			if err != nil {
				return err
			}
		}
	})
	if err != nil {
		return TaskExit{}, fmt.Errorf("delete task of container %s: %w", id, err)
	}
	return exit, nil
}

// deleteEnded deletes the task, or kills it if it was only created and returns
// the end to wait for. op is held.
func (s *Set) deleteEnded(ctx context.Context, c *container, exit *TaskExit) (*ending, error) {
	state, ok := s.taskOf(c)
	switch {
	case !ok || c.isGone():
		return nil, noTask(nil, c.get().ID)
	case state.Status == TaskCreated:
		end := c.ending()
		return end, s.send(ctx, c, syscall.SIGKILL)
	case state.Status != TaskStopped:
		return nil, errs.New(errs.Conflict, "it is %s: stop it first", state.Status)
	}
	*exit = state.Exit
	if err := s.deleteTask(ctx, c, state); err != nil {
		return nil, err
	}
	s.postpone(c)
	return nil, nil
}

// deleteTask takes away a task that has ended. op is held.
func (s *Set) deleteTask(ctx context.Context, c *container, state TaskState) error {
	if c.litter.Load() {
		if err := s.putAway(ctx, c, false); err != nil {
			return err
		}
	}
	if c.given.Load() == nil {
		s.forgetExecs(c)
		c.mu.Lock()
		c.dismissed = true
		c.mu.Unlock()
		s.db.note(c)
	} else if err := s.dropTask(c); err != nil {
		return err
	}
	s.publish(c.get(), "task_delete", "pid", strconv.Itoa(state.Exit.Pid), "exitCode", strconv.FormatUint(uint64(state.Exit.Code), 10),
		"exitedAt", state.Exit.At.Format(time.RFC3339Nano))
	return nil
}

// putTaskAway ends what is left of a task's process and takes down what it
// needed. A runtime that copies the output itself is still at it when the
// process has just ended: that one waits until the client deletes the task.
func (s *Set) putTaskAway(ctx context.Context, c *container, justEnded bool) error {
	r, err := s.runtime(c.get())
	if err != nil {
		return err
	}
	if justEnded && mountsItself(r) {
		c.litter.Store(true)
		return nil
	}
	err = errors.Join(r.Delete(ctx, c.id), s.dropRootOf(ctx, c))
	c.litter.Store(err != nil)
	return err
}

// endTaskLocked notes the end of the run in the task, and says whether its
// client is at work on it. mu is held.
func (c *container) endTaskLocked() (killed bool) {
	t := c.task.Load()
	if t == nil {
		return false
	}
	next := *t
	exit := taskExit(t.Pid, exitOf(c.view.Load()))
	next.Exit = &exit
	c.task.Store(&next)
	return t.Killed
}

// unmakeGiven takes away what there is of a given container: its ended task
// and, at last, its record.
func (s *Set) unmakeGiven(ctx context.Context, c *container) error {
	if state, ok := s.taskOf(c); ok {
		if err := s.deleteTask(ctx, c, state); err != nil {
			return fmt.Errorf("delete its task: %w", err)
		}
	}
	if err := s.db.remove(ctx, c); err != nil {
		return fmt.Errorf("remove its record: %w", err)
	}
	return nil
}

// launchAgain makes and starts a task in the place of the last one: nobody
// asked for it but a label, or somebody who does not know of tasks.
func (s *Set) launchAgain(ctx context.Context, c *container) error {
	if state, ok := s.taskOf(c); ok {
		if err := s.deleteTask(ctx, c, state); err != nil {
			return fmt.Errorf("delete its last task: %w", err)
		}
	}
	if err := s.makeTask(ctx, c, c.again(), true); err != nil {
		return err
	}
	err := s.startTask(ctx, c)
	if err == nil {
		return nil
	}
	c.lost()
	return errors.Join(err, s.putAway(context.WithoutCancel(ctx), c, false), s.dropTask(c))
}
