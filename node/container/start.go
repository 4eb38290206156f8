package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/span"
	"berth/base/undo"
	"berth/node/bundle"
	"berth/spec"
)

// Start runs the container's process. A running container is no error. Where
// the process cannot be started the error holds a *StartError with the exit
// code for it. A caller that goes away does not stop a start that has begun.
func (s *Set) Start(ctx context.Context, ref string) error {
	c, err := s.lock(ctx, ref)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) error {
		defer c.op.Unlock()
		switch c.status() {
		case spec.Running:
			return nil
		case spec.Paused:
			return errs.New(errs.Conflict, "container %s is paused: unpause it", c.name())
		case spec.Removing, spec.Dead:
			return errs.New(errs.Conflict, "container %s is being removed", c.name())
		}
		if c.task.Load().live() {
			err := s.startTask(ctx, c)
			if err == nil {
				s.tellStart(c)
			}
			return err
		}
		if err := c.mayStart(); err != nil {
			return err
		}
		c.fresh()
		return s.start(ctx, c)
	})
}

// mayStart fails with errs.Conflict where only a pod's client may start it.
func (c *container) mayStart() error {
	if g := c.given.Load(); g != nil && g.Owned {
		return errs.New(errs.Conflict, "container %s is in a pod: the pod's client starts it, or another in its place", c.name())
	}
	return nil
}

// start runs the process of a container that has none. op is held.
func (s *Set) start(ctx context.Context, c *container) error {
	if s.life.Err() != nil {
		return errs.New(errs.Unavailable, "the node is shutting down")
	}
	if err := s.launch(ctx, c); err != nil {
		failed := c.change(func(c *spec.Container) {
			c.State.Error, c.State.ExitCode, c.State.ExitUnknown = err.Error(), startCode(err), false
			c.State.Pid, c.Networks, c.Ports = 0, nil, nil
			if c.State.Status != spec.Created {
				c.State.Status = spec.Stopped
			}
		})
		s.db.note(c)
		return fmt.Errorf("start container %s: %w", failed.Name, err)
	}
	s.tellStart(c)
	s.watchHealth(c)
	return nil
}

// launch makes all that the process needs, and the process. On failure
// nothing of it is left.
func (s *Set) launch(ctx context.Context, c *container) (err error) {
	ctx, end := span.Start(ctx, "start container", "container", c.id)
	defer func() { end(err) }()
	if c.given.Load() != nil {
		return s.launchAgain(ctx, c)
	}
	want := c.get()
	runtime, err := s.runtime(want)
	if err != nil {
		return err
	}
	if err := s.cleared(ctx, c); err != nil {
		return err
	}
	if err := s.awaitFiles(ctx, want); err != nil {
		return err
	}
	var u undo.Stack
	defer func() {
		if err != nil {
			u.Run(ctx, &err)
		}
	}()
	made, err := s.furnish(ctx, c, &u)
	if err != nil {
		return err
	}
	if s.Files != nil {
		s.Files.Watch(ctx, want.ImageID, s.rootDir(c.id))
	}
	// A loss of power may have left the record and not the folder.
	if err := os.MkdirAll(filepath.Dir(want.LogPath), 0o700); err != nil {
		return fmt.Errorf("folder of the log: %w", err)
	}
	u.Add("end the process", func(ctx context.Context) error { return runtime.Delete(ctx, c.id) })
	running, ran := span.Start(ctx, runtime.Name()+" run")
	process, err := runtime.Run(running, Launch{
		ID:     c.id,
		Bundle: s.bundleDir(c.id),
		TTY:    want.Config.TTY,
		Stdin:  want.Config.OpenStdin,
		Log:    logFile(want),
	})
	ran(err)
	if err != nil {
		return err
	}
	s.began(c, made, process)
	if err := s.save(ctx, c); err != nil {
		c.lost()
		return fmt.Errorf("record the start: %w", err)
	}
	return nil
}

// cleared makes sure that nothing of an earlier run is left in the way.
func (s *Set) cleared(ctx context.Context, c *container) error {
	if c.litter.Load() {
		if err := s.putAway(ctx, c, false); err != nil {
			return fmt.Errorf("clean up after its last run: %w", err)
		}
	}
	return s.forget.now(ctx, c.id)
}

// began notes that the process runs.
func (s *Set) began(c *container, made furniture, p *Process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now().UTC()
	c.run, c.rebooted = &run{process: p, since: now}, false
	c.changeLocked(func(c *spec.Container) {
		old := c.State
		c.State = spec.ContainerState{
			Status: spec.Running, Pid: p.Pid, StartedAt: now,
			FinishedAt: old.FinishedAt, RestartCount: old.RestartCount,
		}
		c.Mounts, c.Networks, c.Ports = made.mounts, made.wiring.Endpoints, made.wiring.Ports
	})
}

// lost takes back what began noted: the process is about to be ended.
func (c *container) lost() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.run = nil
}

// furniture is what a process finds when it starts.
type furniture struct {
	mounts []spec.Mounted
	wiring wiring
}

// furnish makes root, mounts, network and bundle; what is independent at the
// same time.
func (s *Set) furnish(ctx context.Context, c *container, u *undo.Stack) (made furniture, err error) {
	want := c.get()
	// The folder comes first: a start that is cut off is known by it.
	if err := makeBundle(s.bundleDir(c.id)); err != nil {
		return made, err
	}
	// The log's folder may have gone with the power, soon after create.
	if err := os.MkdirAll(s.logDir(c.id), 0o700); err != nil {
		return made, err
	}
	var root string
	var rootErr, wireErr error
	var both sync.WaitGroup
	both.Go(func() {
		ctx, end := span.Start(ctx, "join networks")
		made.wiring, wireErr = s.wire(ctx, want)
		end(wireErr)
	})
	mounting, mounted := span.Start(ctx, "mount root")
	root, rootErr = s.mountRoot(mounting, c)
	mounted(rootErr)
	both.Wait()
	if rootErr == nil {
		u.Add("unmount the root", func(ctx context.Context) error { return s.unmountRoot(ctx, c) })
	}
	if wireErr == nil {
		u.Add("leave the networks", func(ctx context.Context) error { return s.unwire(ctx, want) })
	}
	if err := errors.Join(wireErr, rootErr); err != nil {
		return made, err
	}
	if made.mounts, err = s.acquireMounts(ctx, want, u); err != nil {
		return made, err
	}
	asIs := *want
	asIs.Mounts, asIs.Networks, asIs.Ports = made.mounts, made.wiring.Endpoints, made.wiring.Ports
	_, end := span.Start(ctx, "write bundle")
	err = s.writeBundle(ctx, asIs, c.image, root, made.wiring, u)
	end(err)
	return made, err
}

// writeBundle makes the files that the container sees, and config.json.
func (s *Set) writeBundle(ctx context.Context, c spec.Container, image spec.ImageConfig, root string, w wiring, u *undo.Stack) error {
	in := bundle.Input{
		Container: c,
		Image:     image,
		Host:      s.Host,
		Rootfs:    root,
		NetNS:     w.namespace,
		Idmap:     s.idmap(&c),
	}
	var err error
	if in.PIDNS, err = s.namespace(c.Config.PIDMode, "pid"); err != nil {
		return err
	}
	if in.IPCNS, err = s.namespace(c.Config.IPCMode, "ipc"); err != nil {
		return err
	}
	if c.Config.UTSMode == "host" {
		in.UTSNS = bundle.HostNamespace
	}
	if err := s.borrowShm(&in, u); err != nil {
		return err
	}
	if err := s.writeFiles(ctx, &in, u); err != nil {
		return err
	}
	config, err := bundle.Spec(in)
	if err != nil {
		return err
	}
	if err := admitUsers(s.bundleDir(c.ID), config.Linux.Namespaces); err != nil {
		return err
	}
	return bundle.Write(s.bundleDir(c.ID), config)
}

// namespace finds what a mode such as host or container:<id> stands for.
func (s *Set) namespace(mode, kind string) (string, error) {
	if mode == "host" {
		return bundle.HostNamespace, nil
	}
	id, shared := strings.CutPrefix(mode, sharedPrefix)
	if !shared {
		return "", nil
	}
	pid, err := s.pidOf(id)
	if err != nil {
		return "", fmt.Errorf("join the %s namespace: %w", kind, err)
	}
	return fmt.Sprintf("/proc/%d/ns/%s", pid, kind), nil
}

// pidOf is the process of a container that has to run.
func (s *Set) pidOf(id string) (int, error) {
	c, err := s.find(id)
	if err != nil {
		return 0, err
	}
	view := c.get()
	if !alive(view.State.Status) {
		return 0, errs.New(errs.Conflict, "container %s is not running", view.Name)
	}
	return view.State.Pid, nil
}

// borrowShm gives the container the /dev/shm of the one whose IPC namespace it
// joins. The runtime binds it; ours goes when the process runs, or does not.
func (s *Set) borrowShm(in *bundle.Input, u *undo.Stack) error {
	id, shared := strings.CutPrefix(in.Container.Config.IPCMode, sharedPrefix)
	if !shared {
		return nil
	}
	pid, err := s.pidOf(id)
	if err != nil {
		return err
	}
	in.Shm = filepath.Join(s.bundleDir(in.Container.ID), "shm")
	if err := os.Mkdir(in.Shm, 0o711); err != nil {
		return err
	}
	if err := bundle.BorrowShm(pid, in.Shm); err != nil {
		return fmt.Errorf("share /dev/shm: %w", err)
	}
	u.Add("unmount /dev/shm", func(context.Context) error { return s.returnShm(in.Container.ID) })
	return nil
}

func (s *Set) returnShm(id string) error {
	err := unix.Unmount(filepath.Join(s.bundleDir(id), "shm"), unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // not mounted
	}
	return err
}

// logFile is where the container's output goes, with the usual bounds.
func logFile(c *spec.Container) LogFile {
	l := LogFile{Path: c.LogPath, MaxSize: c.Config.Log.MaxSize, MaxFiles: c.Config.Log.MaxFiles}
	if l.MaxSize == 0 {
		l.MaxSize = 16 << 20
	}
	if l.MaxFiles == 0 {
		l.MaxFiles = 3
	}
	return l
}

// save makes the container's record durable where something hangs on it, and
// else notes it.
func (s *Set) save(ctx context.Context, c *container) error {
	// A network's own record of the container is written along with ours.
	if view := c.get(); view.Config.Restart.Name != "no" || len(view.Networks) > 0 {
		return s.db.write(ctx, c)
	}
	s.db.note(c)
	return nil
}
