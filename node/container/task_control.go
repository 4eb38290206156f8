package container

import (
	"context"
	"fmt"
	"os"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/spec"
)

// withTask runs fn on a task that has not ended, its container's op held.
func (s *Set) withTask(ctx context.Context, namespace, id string, fn func(context.Context, *container, Runtime) error) error {
	c, err := s.findGiven(namespace, id)
	if err != nil {
		return noTask(err, id)
	}
	if err := c.op.Lock(ctx); err != nil {
		return fmt.Errorf("container %s is busy: %w", id, err)
	}
	return s.finish(ctx, func(ctx context.Context) error {
		defer c.op.Unlock()
		state, ok := s.taskOf(c)
		if !ok || c.isGone() {
			return noTask(nil, id)
		}
		if state.Status == TaskStopped {
			return errs.New(errs.Conflict, "the task of container %s has ended", id)
		}
		r, err := s.runtime(c.get())
		if err != nil {
			return err
		}
		return fn(ctx, c, r)
	})
}

// PauseTask freezes a task. errs.Conflict: it does not run, or is frozen.
func (s *Set) PauseTask(ctx context.Context, namespace, id string) error {
	return s.withTask(ctx, namespace, id, func(ctx context.Context, c *container, _ Runtime) error { return s.pause(ctx, c) })
}

// ResumeTask thaws a task. errs.Conflict: it is not frozen.
func (s *Set) ResumeTask(ctx context.Context, namespace, id string) error {
	return s.withTask(ctx, namespace, id, func(ctx context.Context, c *container, _ Runtime) error {
		if c.status() != spec.Paused {
			return errs.New(errs.Conflict, "the task of container %s is not paused", id)
		}
		return s.resume(ctx, c)
	})
}

// UpdateTask sets limits of a task; annotations are for runtimes that know
// what to do with them, of which there is none.
func (s *Set) UpdateTask(ctx context.Context, namespace, id string, limits *specs.LinuxResources, _ map[string]string) error {
	return s.withTask(ctx, namespace, id, func(ctx context.Context, c *container, r Runtime) error {
		if limits == nil {
			return nil
		}
		return r.Update(ctx, c.id, limits)
	})
}

// CheckpointTask writes a running task to disk. errs.Unsupported: its runtime
// or this machine cannot.
func (s *Set) CheckpointTask(ctx context.Context, namespace, id string, checkpoint Checkpoint) error {
	return s.withTask(ctx, namespace, id, func(ctx context.Context, c *container, r Runtime) error {
		writer, ok := r.(Checkpointer)
		if !ok {
			return errs.New(errs.Unsupported, "runtime %s cannot write containers to disk", r.Name())
		}
		if !alive(c.status()) {
			return errs.New(errs.Conflict, "the task of container %s is not running", id)
		}
		if err := writer.Checkpoint(ctx, c.id, checkpoint); err != nil {
			return fmt.Errorf("checkpoint of container %s: %w", id, err)
		}
		s.publish(c.get(), "checkpoint", "checkpoint", checkpoint.Image)
		return nil
	})
}

// processOf is the process of a task or of an exec in it, with its id to the
// runtime: "" for the task.
func (s *Set) processOf(namespace, id, exec string) (c *container, p *Process, name string, err error) {
	if c, err = s.findGiven(namespace, id); err != nil {
		return nil, nil, "", noTask(err, id)
	}
	if exec == "" {
		r := c.current()
		if r == nil {
			return nil, nil, "", errs.New(errs.NotFound, "there is no running task of container %s", id)
		}
		return c, r.process, "", nil
	}
	e, err := c.exec(exec)
	if err != nil {
		return nil, nil, "", err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.process == nil || !e.ended.IsZero() {
		return nil, nil, "", errs.New(errs.Conflict, "exec %s does not run", exec)
	}
	return c, e.process, e.id, nil
}

// ResizeTask sets the size of a task's terminal, or of an exec's.
// errs.Conflict: it has none.
func (s *Set) ResizeTask(ctx context.Context, namespace, id, exec string, size spec.Size) error {
	c, p, name, err := s.processOf(namespace, id, exec)
	if err != nil {
		return err
	}
	return s.resize(ctx, c, p.Console, name, size)
}

// resize sets the size of a terminal that we hold, or else the runtime; exec is
// "" for the container's first process.
func (s *Set) resize(ctx context.Context, c *container, console *os.File, exec string, size spec.Size) error {
	r, err := s.runtime(c.get())
	if err != nil {
		return err
	}
	if resizer, ok := r.(Resizer); ok && console == nil {
		return resizer.Resize(ctx, c.id, exec, size)
	}
	return resize(console, size)
}

// CloseTaskStdin lets go of the node's hold on a stdin: the process sees its
// end when the client has closed it too.
func (s *Set) CloseTaskStdin(ctx context.Context, namespace, id, exec string) error {
	_, p, _, err := s.processOf(namespace, id, exec)
	if err != nil || p.CloseStdin == nil {
		return err
	}
	return p.CloseStdin(ctx)
}

// TaskPid is a process of a task, and the exec that it is the first of.
type TaskPid struct {
	Pid  int
	Exec string
}

// TaskPids are the processes of a task that runs.
func (s *Set) TaskPids(ctx context.Context, namespace, id string) ([]TaskPid, error) {
	c, err := s.findGiven(namespace, id)
	if err != nil {
		return nil, noTask(err, id)
	}
	state, ok := s.taskOf(c)
	switch {
	case !ok:
		return nil, noTask(nil, id)
	case state.Status == TaskStopped:
		return nil, nil
	}
	pids, err := s.pids(ctx, c.get())
	if err != nil {
		return nil, fmt.Errorf("processes of container %s: %w", id, err)
	}
	execs := map[int]string{}
	for _, e := range c.clientExecs() {
		if record := e.record(); record.Exit == nil {
			execs[record.Pid] = record.Request.ID
		}
	}
	slices.Sort(pids)
	list := make([]TaskPid, 0, len(pids))
	for _, pid := range pids {
		list = append(list, TaskPid{Pid: pid, Exec: execs[pid]})
	}
	return list, nil
}

// TaskCgroup says where a task is measured: by its cgroup, in every hierarchy,
// and its first process; or by what its runtime reports.
func (s *Set) TaskCgroup(ctx context.Context, namespace, id string) (cgroup string, pid int, report *spec.Opaque, err error) {
	c, err := s.findGiven(namespace, id)
	if err != nil {
		return "", 0, nil, noTask(err, id)
	}
	state, ok := s.taskOf(c)
	if !ok || state.Status == TaskStopped {
		return "", 0, nil, noTask(nil, id)
	}
	r, err := s.runtime(c.get())
	if err != nil {
		return "", 0, nil, err
	}
	if reporter, ok := r.(Reporter); ok {
		if report, err = reporter.Report(ctx, c.id); err != nil {
			return "", 0, nil, fmt.Errorf("metrics of container %s: %w", id, err)
		}
	}
	return c.cgroup(), state.Pid, report, nil
}
