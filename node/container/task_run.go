package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/base/span"
	"berth/node/snapshot"
	"berth/spec"
)

// RunTask makes the task of a given container and starts it, by one command of
// its runtime. Where it fails there is no task, and the container's state says
// why. errs.Exists: it has a task.
func (s *Set) RunTask(ctx context.Context, namespace, id string, req TaskRequest) (TaskState, error) {
	c, err := s.lockGiven(ctx, namespace, id)
	if err != nil {
		return TaskState{}, err
	}
	var state TaskState // no result by name, as in CreateTask
	err = s.finish(ctx, func(ctx context.Context) error {
		defer c.op.Unlock()
		if err := s.mayCreateTask(c); err != nil {
			return err
		}
		c.callOff()
		if err := s.runTask(ctx, c, req); err != nil {
			c.change(func(c *spec.Container) {
				c.State.Error, c.State.ExitCode, c.State.ExitUnknown = err.Error(), startCode(err), false
			})
			s.db.note(c)
			return err
		}
		state, _ = s.taskOf(c)
		s.tellStart(c)
		return nil
	})
	if err != nil {
		return TaskState{}, fmt.Errorf("start container %s: %w", id, err)
	}
	return state, nil
}

// runTask makes and starts the task of a container that has none. On failure
// nothing of it is left. op is held.
func (s *Set) runTask(ctx context.Context, c *container, req TaskRequest) (err error) {
	ctx, end := span.Start(ctx, "run task", "container", c.id)
	defer func() { end(err) }()
	g := c.given.Load()
	runtime, err := s.runtimeNamed(orElse(req.Runtime, g.Runtime))
	if err != nil {
		return err
	}
	oci, err := ociSpec(g)
	if err != nil {
		return err
	}
	if req, err = s.ownedOutput(c, req, oci); err != nil {
		return err
	}
	if req.Restore != "" || mountsItself(runtime) {
		return s.runByParts(ctx, c, req)
	}
	return s.launchTask(ctx, c, req, taskLaunch{run: true}, func(ctx context.Context, runtime Runtime, launch Launch) error {
		running, ran := span.Start(ctx, runtime.Name()+" run")
		process, err := runtime.Run(running, launch)
		ran(err)
		if err != nil {
			return err
		}
		if err := s.ranTask(ctx, c, process); err != nil {
			c.lost()
			return fmt.Errorf("record the task: %w", err)
		}
		return nil
	})
}

// runByParts is for what cannot be run at once.
func (s *Set) runByParts(ctx context.Context, c *container, req TaskRequest) error {
	if err := s.makeTask(ctx, c, req, false); err != nil {
		return err
	}
	if err := s.startTask(ctx, c); err != nil {
		c.lost()
		return errors.Join(err, s.putAway(context.WithoutCancel(ctx), c, false), s.dropTask(c))
	}
	return nil
}

// ownedOutput completes what a pod's container has not said of its streams: it
// has always a log, of its own where nobody wants one, for those who attach.
func (s *Set) ownedOutput(c *container, req TaskRequest, oci *specs.Spec) (TaskRequest, error) {
	g := c.given.Load()
	if !g.Owned || g.Quiet {
		return req, nil
	}
	if oci.Process != nil {
		req.Terminal = oci.Process.Terminal
	}
	if req.Log == nil {
		req.Log, req.Stdin = &LogFile{Path: g.Log}, g.Stdin
	}
	if req.Log.Path == "" {
		l := LogFile{Path: filepath.Join(s.logDir(c.id), "container.log"), MaxSize: 16 << 20, MaxFiles: 2}
		req.Log = &l
	}
	if err := os.MkdirAll(filepath.Dir(req.Log.Path), 0o755); err != nil { //nolint:gosec // kubelet's folder, which others read
		return req, fmt.Errorf("folder of the log: %w", err)
	}
	c.change(func(c *spec.Container) { c.LogPath = req.Log.Path })
	return req, nil
}

// ranTask notes that the process runs.
func (s *Set) ranTask(ctx context.Context, c *container, p *Process) error {
	now := time.Now().UTC()
	c.mu.Lock()
	c.run, c.rebooted = &run{process: p, since: now}, false
	c.changeLocked(func(c *spec.Container) {
		old := c.State
		c.State = spec.ContainerState{
			Status: spec.Running, Pid: p.Pid, StartedAt: now,
			FinishedAt: old.FinishedAt, RestartCount: old.RestartCount, StoppedBy: old.StoppedBy,
		}
	})
	c.mu.Unlock()
	err := s.changeTask(c, func(t *taskRecord) {
		t.Made, t.Started, t.Pid = true, true, p.Pid
		if t.Cgroup == "" {
			t.Cgroup = cgroupOfProcess(p.Pid)
		}
	})
	if err == nil {
		err = s.save(ctx, c)
	}
	if err == nil {
		s.publish(c.get(), "task_create", s.taskAttrs(c)...)
	}
	return err
}

func (s *Set) isMounted(key string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mounted[key]
}

func (s *Set) setMounted(key string, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if on {
		s.mounted[key] = true
	} else {
		delete(s.mounted, key)
	}
}

// preparer is a Runtime that can make good use of some milliseconds before it
// has to make a container.
type preparer interface {
	Prepare()
}

// MountRoot mounts a snapshot where the root of a given container will be, for
// those who want to look into it before there is one. It stays until
// UnmountRoot, or the end of the container's task, or its removal. One that is
// mounted stays as it is.
func (s *Set) MountRoot(ctx context.Context, namespace, id string, key snapshot.Key) (path string, err error) {
	if err := errors.Join(checkIdentifier("namespace", namespace), checkIdentifier("container id", id)); err != nil {
		return "", err
	}
	ctx, end := span.Start(ctx, "mount root")
	defer func() { end(err) }()
	if p, ok := s.Runtimes[s.Runtime].(preparer); ok {
		p.Prepare()
	}
	return s.mountFor(ctx, givenKey(namespace, id), key)
}

func (s *Set) mountFor(ctx context.Context, id string, key snapshot.Key) (string, error) {
	dir := s.rootDir(id)
	if s.isMounted(id) {
		return dir, nil
	}
	if err := makeBundle(s.bundleDir(id)); err != nil {
		return "", fmt.Errorf("make the folder for the root: %w", err)
	}
	if err := s.Snapshots.Mount(ctx, key, dir); err != nil {
		return "", errors.Join(fmt.Errorf("mount the root: %w", err), s.clearBundle(id))
	}
	s.setMounted(id, true)
	return dir, nil
}

// UnmountRoot takes back what MountRoot has done. One that is not mounted is no
// error. errs.Conflict: the container runs.
func (s *Set) UnmountRoot(ctx context.Context, namespace, id string) error {
	key := givenKey(namespace, id)
	if c, err := s.findGiven(namespace, id); err == nil {
		if err := c.op.Lock(ctx); err != nil {
			return fmt.Errorf("container %s is busy: %w", id, err)
		}
		defer c.op.Unlock()
		if c.task.Load().live() {
			return errs.New(errs.Conflict, "container %s runs", id)
		}
	}
	return s.dropTaskRoot(ctx, key)
}

// mountOwnedRoot mounts the root of a pod's container, if it is not. Where it
// names no snapshot its spec says where the root is.
func (s *Set) mountOwnedRoot(ctx context.Context, c *container) error {
	key := c.given.Load().SnapshotKey
	if key == "" {
		return nil
	}
	_, err := s.mountFor(ctx, c.id, snapshot.Key(key))
	return err
}
