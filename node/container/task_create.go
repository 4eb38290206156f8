package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/base/span"
	"berth/base/undo"
	"berth/spec"
)

// CreateTask makes the task of a given container: its process waits for
// StartTask. errs.Exists: it has one. errs.Conflict: the container is the
// node's own.
func (s *Set) CreateTask(ctx context.Context, namespace, id string, req TaskRequest) (TaskState, error) {
	c, err := s.lockGiven(ctx, namespace, id)
	if err != nil {
		return TaskState{}, err
	}
	var state TaskState // no result by name: what goes on may write it when the caller has gone
	err = s.finish(ctx, func(ctx context.Context) error {
		defer c.op.Unlock()
		if err := s.mayCreateTask(c); err != nil {
			return err
		}
		c.callOff()
		if err := s.makeTask(ctx, c, req, false); err != nil {
			return err
		}
		state, _ = s.taskOf(c)
		return nil
	})
	if err != nil {
		return TaskState{}, fmt.Errorf("create task of container %s: %w", id, err)
	}
	return state, nil
}

func (s *Set) mayCreateTask(c *container) error {
	view := c.get()
	switch {
	case s.life.Err() != nil:
		return errs.New(errs.Unavailable, "the node is shutting down")
	case c.given.Load() == nil:
		return errs.New(errs.Conflict, "it was made by berth run: start it with berth start %s", view.Name)
	case view.State.Status == spec.Removing || view.State.Status == spec.Dead:
		return errs.New(errs.Conflict, "it is being removed")
	case c.task.Load() != nil:
		return errs.New(errs.Exists, "it has a task already")
	}
	return nil
}

// makeTask makes the task of a container that has none; again says that it is
// not its client who wants that. On failure nothing of it is left. op is held.
func (s *Set) makeTask(ctx context.Context, c *container, req TaskRequest, again bool) (err error) {
	ctx, end := span.Start(ctx, "create task", "container", c.id)
	defer func() { end(err) }()
	return s.launchTask(ctx, c, req, taskLaunch{again: again}, func(ctx context.Context, runtime Runtime, launch Launch) error {
		creating, created := span.Start(ctx, runtime.Name()+" create")
		process, err := runtime.Create(creating, launch)
		created(err)
		if err != nil {
			return err
		}
		return s.madeTask(ctx, c, process)
	})
}

// taskLaunch says how a task comes about.
type taskLaunch struct {
	again bool // it is not its client who wants that
	run   bool // its process starts at once
}

// launchTask has everything ready for the task of a container that has none,
// and then has it made by do. On failure nothing of it is left. op is held.
func (s *Set) launchTask(ctx context.Context, c *container, req TaskRequest, how taskLaunch, do func(context.Context, Runtime, Launch) error) (err error) {
	g := c.given.Load()
	oci, err := ociSpec(g)
	if err != nil {
		return err
	}
	runtime, err := s.runtimeNamed(orElse(req.Runtime, g.Runtime))
	if err != nil {
		return err
	}
	if err := s.cleared(ctx, c); err != nil {
		return err
	}
	var u undo.Stack
	defer func() {
		if err != nil {
			u.Run(ctx, &err)
		}
	}()
	u.Add("forget the task", func(context.Context) error { return s.dropTask(c) })
	s.newTask(c, req, oci)
	// On record before anything is there that somebody would have to clear up.
	if err := s.changeTask(c, func(t *taskRecord) { t.Run, t.Starting = how.run, how.run }); err != nil {
		return err
	}
	u.Add("unmount the root", func(ctx context.Context) error { return s.dropRootOf(ctx, c) })
	launch := s.launchOf(c, g, req)
	if err := s.writeTaskBundle(g, launch.Bundle); err != nil {
		return err
	}
	if err := s.mountTaskRoot(ctx, c, runtime, &launch, how.again); err != nil {
		return fmt.Errorf("mount the root file system: %w", err)
	}
	u.Add("end the process", func(ctx context.Context) error { return runtime.Delete(ctx, c.id) })
	return do(ctx, runtime, launch)
}

// newTask makes the task that is about to be made, in memory.
func (s *Set) newTask(c *container, req TaskRequest, oci *specs.Spec) {
	s.forgetExecs(c) // added when the last task was just going
	made := &task{taskRecord: taskRecord{Request: req, Root: s.rootDir(c.id)}}
	if oci.Linux != nil && filepath.IsAbs(oci.Linux.CgroupsPath) {
		made.Cgroup = filepath.Clean(oci.Linux.CgroupsPath)
	}
	if oci.Root != nil && filepath.IsAbs(oci.Root.Path) {
		made.Root = filepath.Clean(oci.Root.Path)
	}
	c.mu.Lock()
	made.end = c.end
	c.task.Store(made)
	c.request = &made.Request
	c.changeLocked(func(view *spec.Container) { view.Runtime = orElse(req.Runtime, c.given.Load().Runtime) })
	c.mu.Unlock()
}

// launchOf is what the runtime is asked for.
func (s *Set) launchOf(c *container, g *spec.Given, req TaskRequest) Launch {
	options := req.Options
	if options == nil {
		options = g.Options
	}
	l := Launch{
		ID: c.id, Bundle: s.bundleDir(c.id), TTY: req.Terminal, Name: g.ID, Namespace: g.Namespace,
		Rootfs: req.Rootfs, Options: options, Restore: req.Restore,
	}
	if req.Log != nil {
		l.Log, l.Stdin = *req.Log, req.Stdin
	} else {
		l.Streams = &req.Streams
	}
	return l
}

// writeTaskBundle makes the bundle: the client's spec, byte for byte, and the
// folder for the root.
func (s *Set) writeTaskBundle(g *spec.Given, dir string) error {
	if err := makeBundle(dir); err != nil {
		return fmt.Errorf("make the bundle: %w", err)
	}
	namespaces, err := namespacesOf(g.Spec.Value)
	if err != nil {
		return errs.New(errs.Invalid, "the OCI spec of container %s: %w", g.ID, err)
	}
	if err := admitUsers(dir, namespaces); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), g.Spec.Value, 0o600); err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	return nil
}

// mountTaskRoot mounts what the client has said. That may be long ago when the
// task is made again: what it named may be gone, but not the snapshot it meant.
func (s *Set) mountTaskRoot(ctx context.Context, c *container, runtime Runtime, l *Launch, again bool) (err error) {
	ctx, end := span.Start(ctx, "mount root")
	defer func() { end(err) }()
	root := s.rootDir(c.id)
	if c.given.Load().Owned {
		return s.mountOwnedRoot(ctx, c)
	}
	if again && c.task.Load().Root == root {
		key, err := s.rootKey(ctx, c)
		if err == nil {
			l.Rootfs = nil
			return s.Snapshots.Mount(ctx, key, root)
		}
		if len(l.Rootfs) == 0 {
			return err
		}
	}
	if mountsItself(runtime) || len(l.Rootfs) == 0 {
		return nil
	}
	mounts := l.Rootfs
	l.Rootfs = nil
	return s.Roots.Mount(ctx, mounts, root)
}

func mountsItself(r Runtime) bool {
	m, ok := r.(Mounter)
	return ok && m.MountsRootfs()
}

// madeTask notes that there is a process that waits for its start.
func (s *Set) madeTask(ctx context.Context, c *container, p *Process) error {
	c.mu.Lock()
	c.run, c.rebooted = &run{process: p, since: time.Now().UTC()}, false
	c.changeLocked(func(c *spec.Container) {
		c.State.Status, c.State.Pid, c.State.Error = spec.Created, p.Pid, ""
	})
	c.mu.Unlock()
	err := s.changeTask(c, func(t *taskRecord) {
		t.Made, t.Pid = true, p.Pid
		if t.Cgroup == "" {
			t.Cgroup = cgroupOfProcess(p.Pid)
		}
	})
	if err == nil {
		err = s.save(ctx, c)
	}
	if err != nil {
		c.lost()
		return fmt.Errorf("record the task: %w", err)
	}
	s.publish(c.get(), "task_create", s.taskAttrs(c)...)
	return nil
}

// taskAttrs tell of a task in an event.
func (s *Set) taskAttrs(c *container) []string {
	t := c.task.Load()
	return []string{
		"pid", strconv.Itoa(t.Pid), "bundle", s.bundleDir(c.id), "terminal", strconv.FormatBool(t.Request.Terminal),
		"stdin", t.Request.Streams.Stdin, "stdout", t.Request.Streams.Stdout, "stderr", t.Request.Streams.Stderr,
		"checkpoint", t.Request.Restore,
	}
}

// cgroupOfProcess asks the kernel where a process is that its client gave no
// absolute place.
func cgroupOfProcess(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	found := ""
	for line := range strings.Lines(string(data)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		if controllers == "memory" || controllers == "" && found == "" {
			found = path
		}
	}
	return found
}

// StartTask lets the process of a created task go, or an exec in it.
// errs.Conflict: it was started before.
func (s *Set) StartTask(ctx context.Context, namespace, id, exec string) (int, error) {
	c, err := s.findGiven(namespace, id)
	if err != nil {
		return 0, noTask(err, id)
	}
	if exec != "" {
		return s.startTaskExec(ctx, c, exec)
	}
	if err := c.op.Lock(ctx); err != nil {
		return 0, fmt.Errorf("container %s is busy: %w", id, err)
	}
	pid := 0 // no result by name, as in CreateTask
	err = s.finish(ctx, func(ctx context.Context) error {
		defer c.op.Unlock()
		t := c.task.Load()
		switch {
		case t == nil || !t.Made:
			return noTask(nil, id)
		case t.Exit != nil:
			return errs.New(errs.Conflict, "it has ended")
		case t.Started:
			return errs.New(errs.Conflict, "it was started before")
		}
		if err := s.startTask(ctx, c); err != nil {
			return err
		}
		pid = c.task.Load().Pid
		s.tellStart(c)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("start task of container %s: %w", id, err)
	}
	return pid, nil
}

// startTask lets the process go. That it was about to is on record before, so
// that a node that comes after this one does not take a process that runs for
// one that waits. op is held.
func (s *Set) startTask(ctx context.Context, c *container) (err error) {
	ctx, end := span.Start(ctx, "start task", "container", c.id)
	defer func() { end(err) }()
	runtime, err := s.runtime(c.get())
	if err != nil {
		return err
	}
	if err := s.changeTask(c, func(t *taskRecord) { t.Starting = true }); err != nil {
		return err
	}
	if err := runtime.Start(ctx, c.id); err != nil {
		return errors.Join(err, s.changeTask(c, func(t *taskRecord) { t.Starting = false }))
	}
	if c.task.Load().Pid == 0 { // restored: there was no process before
		if err := s.learnPid(ctx, c, runtime); err != nil {
			return err
		}
	}
	return s.startedTask(ctx, c)
}

// learnPid asks for the process that came to be with the start.
func (s *Set) learnPid(ctx context.Context, c *container, r Runtime) error {
	pids, err := r.Pids(ctx, c.id)
	if err != nil || len(pids) == 0 {
		return err
	}
	first := slices.Min(pids)
	c.mu.Lock()
	if c.run != nil {
		process := *c.run.process
		process.Pid = first
		c.run = &run{process: &process, since: c.run.since}
	}
	c.changeLocked(func(c *spec.Container) { c.State.Pid = first })
	c.mu.Unlock()
	return s.changeTask(c, func(t *taskRecord) { t.Pid = first })
}

func (s *Set) startedTask(ctx context.Context, c *container) error {
	now := time.Now().UTC()
	c.mu.Lock()
	if c.run != nil {
		c.run.since = now
	}
	c.changeLocked(func(c *spec.Container) {
		old := c.State
		c.State = spec.ContainerState{
			Status: spec.Running, Pid: old.Pid, StartedAt: now, FinishedAt: old.FinishedAt,
			RestartCount: old.RestartCount, StoppedBy: old.StoppedBy,
		}
	})
	c.mu.Unlock()
	if err := s.changeTask(c, func(t *taskRecord) { t.Started = true }); err != nil {
		return err
	}
	return s.save(ctx, c)
}

// tellStart publishes that the container's process runs.
func (s *Set) tellStart(c *container) {
	view := c.get()
	s.publish(view, "start", "pid", strconv.Itoa(view.State.Pid))
}
