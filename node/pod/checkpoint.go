package pod

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/undo"
	"berth/node/container"
	"berth/node/folder"
	"berth/node/snapshot"
	"berth/spec"
)

// The parts of a checkpoint, as other runtimes of Kubernetes write them and
// tools read them.
const (
	processesPart = "checkpoint"      // folder of what CRIU has of the processes
	changesPart   = "rootfs-diff.tar" // what the container has changed of its image
	specPart      = "spec.dump"
	configPart    = "config.dump"
	statusPart    = "status.dump"
	logPart       = "container.log"
	deletedPart   = "deleted.files"         // what some have beside changesPart
	shmPart       = "devshm-checkpoint.tar" // what is in /dev/shm
	podPart       = "pod.dump"
)

// checkpointLimit is how long a checkpoint may take whose client sets no limit.
const checkpointLimit = time.Hour

// Checkpoint writes a container to an archive at path: its processes, what it
// has changed of its image, its spec and its log, all of one moment. Then it
// runs on. There is an archive only when it is whole. Whoever goes away before
// gets none; CRIU is at most waited for, since a container that it is ended in
// would not survive that.
//
// errs.Conflict: it does not run. errs.Unsupported: its runtime or this machine
// cannot.
func (s *Set) Checkpoint(ctx context.Context, id, path string) error {
	m, err := s.findContainer(id)
	if err != nil {
		return err
	}
	return s.through(ctx, checkpointLimit, func(ctx context.Context) error {
		if err := s.checkpoint(ctx, m, path); err != nil {
			return fmt.Errorf("checkpoint container %s: %w", m.id, err)
		}
		return nil
	})
}

// checkpoint gathers the archive's parts in a folder beside it.
func (s *Set) checkpoint(ctx context.Context, m *member, path string) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), partsPrefix)
	if err != nil {
		return err
	}
	var u undo.Stack
	u.Add("forget that it was done", func(ctx context.Context) error { return s.unmark(ctx, m, dir) })
	u.Add("remove the parts", func(context.Context) error { return os.RemoveAll(dir) })
	defer func() { u.Run(ctx, &err) }()
	parts := filepath.Join(dir, "parts")
	if err := s.capture(ctx, []*member{m}, places{all: dir, top: parts, of: func(*member) string { return parts }}); err != nil {
		return err
	}
	return packInto(ctx, parts, path)
}

// partsPrefix is what folders beside archives are called by.
const partsPrefix = ".checkpoint-"

// CheckpointPod writes containers of a pod, all of one moment, to the empty
// folder dir. Then they run on. On failure the folder is empty.
//
// errs.Invalid: not such a folder, or containers that are not the pod's or
// named twice. errs.Conflict: the pod is not ready, or a container does not run.
func (s *Set) CheckpointPod(ctx context.Context, id, dir string, containers []string) error {
	p, err := s.find(id)
	if err != nil {
		return err
	}
	members, err := s.chosen(p, containers)
	if err != nil {
		return fmt.Errorf("checkpoint pod %s: %w", p.id, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		return errs.New(errs.Invalid, "checkpoint pod %s: %s is no empty folder", p.id, dir)
	}
	return s.through(ctx, checkpointLimit, func(ctx context.Context) (err error) {
		if err := p.enter(); err != nil {
			return fmt.Errorf("checkpoint pod: %w", err)
		}
		defer p.leave()
		var u undo.Stack
		u.Add("forget that it was done", func(ctx context.Context) error {
			return errors.Join(each(members, func(m *member) error { return s.unmark(ctx, m, dir) })...)
		})
		u.Add("empty the folder", func(context.Context) error {
			if err == nil {
				return nil
			}
			return empty(dir)
		})
		defer func() { u.Run(ctx, &err) }()
		if err := s.capture(ctx, members, places{all: dir, top: dir, of: func(m *member) string { return filepath.Join(dir, m.id) }}); err != nil {
			return fmt.Errorf("checkpoint pod %s: %w", p.id, err)
		}
		if err := errors.Join(writePart(dir, podPart, describe(p.get(), members)), syncBelow(dir), ctx.Err()); err != nil {
			return fmt.Errorf("checkpoint pod %s: %w", p.id, err)
		}
		return nil
	})
}

// chosen are the containers of the pod that a request names, in the order that
// several are always locked in.
func (s *Set) chosen(p *pod, ids []string) ([]*member, error) {
	if len(ids) == 0 {
		return nil, errs.New(errs.Invalid, "which containers?")
	}
	var members []*member
	for _, id := range ids {
		m, err := s.findContainer(id)
		switch {
		case err != nil:
			return nil, err
		case m.pod != p:
			return nil, errs.New(errs.Invalid, "container %s is not of this pod", id)
		case slices.Contains(members, m):
			return nil, errs.New(errs.Invalid, "container %s is named twice", id)
		}
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b *member) int { return strings.Compare(a.id, b.id) })
	return members, nil
}

// places are the folders of a checkpoint.
type places struct {
	all string // where everything is
	top string // of what containers have in common
	of  func(*member) string
}

// capture writes containers of a pod, all of one moment. They run on when it
// returns. Until they are unmarked a node that comes after this one takes it
// back, and all that is written.
func (s *Set) capture(ctx context.Context, members []*member, to places) (err error) {
	for _, m := range members {
		if err := m.op.Lock(ctx); err != nil {
			return fmt.Errorf("container %s is busy: %w", m.id, err)
		}
		defer m.op.Unlock()
		if m.rec.Load().Frozen != "" { // an earlier one could not thaw it, or is about to unmark it
			if err := s.thaw(ctx, m); err != nil {
				return fmt.Errorf("container %s stands still: %w", m.id, err)
			}
		}
		if is := s.show(m); is.State != spec.Running {
			return errs.New(errs.Conflict, "container %s is %s", m.id, is.State)
		}
	}
	ctx, end := s.traced(ctx, members[0].pod.id, "checkpoint")
	defer func() { end(err) }()
	var u undo.Stack
	defer func() { u.Run(ctx, &err) }() // they run on, whatever happens
	for _, m := range members {
		u.Add("thaw container "+m.id, func(ctx context.Context) error { return s.thaw(ctx, m) })
	}
	if err := errors.Join(each(members, func(m *member) error { return s.freeze(ctx, m, to.all) })...); err != nil {
		return err
	}
	for _, m := range members {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.write(ctx, m, to.of(m)); err != nil {
			return fmt.Errorf("container %s: %w", m.id, err)
		}
	}
	if err := s.writeShm(ctx, members[0].pod, filepath.Join(to.top, shmPart)); err != nil {
		return fmt.Errorf("/dev/shm: %w", err)
	}
	return ctx.Err()
}

// freeze has a container stand still. That it does is on record before. op is
// held, as for thaw and write.
func (s *Set) freeze(ctx context.Context, m *member, dir string) error {
	if err := s.changeMember(m, func(r *containerRecord) { r.Frozen = dir }); err != nil {
		return err
	}
	return s.Runner.PauseTask(ctx, Namespace, m.id)
}

// thaw has a container run on; one that does or that has ended is no error. A
// runtime that fails is asked again for a while: nobody else would.
func (s *Set) thaw(ctx context.Context, m *member) error {
	for pause := 10 * time.Millisecond; ; pause *= 2 {
		err := s.Runner.ResumeTask(ctx, Namespace, m.id)
		if err == nil || s.show(m).State != spec.Paused {
			return nil
		}
		if pause > time.Second {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

// unmark says that there is nothing in dir to take back any more. A container
// that could not be thawed stays marked, for the next checkpoint or node.
func (s *Set) unmark(ctx context.Context, m *member, dir string) error {
	if err := m.op.Lock(ctx); err != nil {
		return err
	}
	defer m.op.Unlock()
	if m.rec.Load().Frozen != dir || s.show(m).State == spec.Paused {
		return nil
	}
	return s.changeMember(m, func(r *containerRecord) { r.Frozen = "" })
}

// thawed takes back what an earlier node was at: a container that stands still
// for a checkpoint that nobody writes any more runs on.
func (s *Set) thawed(ctx context.Context, m *member) error {
	dir := m.rec.Load().Frozen
	err := errors.Join(s.thaw(ctx, m), empty(dir))
	if strings.HasPrefix(filepath.Base(dir), partsPrefix) {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		return err
	}
	return s.changeMember(m, func(r *containerRecord) { r.Frozen = "" })
}

// write writes a container that stands still to a folder.
func (s *Set) write(ctx context.Context, m *member, dir string) error {
	c := s.show(m)
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.MkdirAll(in(processesPart), 0o700); err != nil {
		return err
	}
	// CRIU goes on when its runtime is killed, in the middle of a process.
	if err := s.Runner.CheckpointTask(context.WithoutCancel(ctx), Namespace, m.id, container.Checkpoint{
		Image: in(processesPart), Work: dir, FileLocks: true, OpenTCP: true, Terminal: c.Config.TTY,
	}); err != nil {
		return err
	}
	if err := s.writeChanges(ctx, m, in(changesPart)); err != nil {
		return fmt.Errorf("what it has changed: %w", err)
	}
	oci, err := s.ContainerSpec(ctx, m.id)
	if err != nil {
		return err
	}
	err = errors.Join(
		writePart(dir, specPart, oci),
		writePart(dir, statusPart, map[string]any{"CreatedAt": c.Created.UnixNano(), "StartedAt": c.Started.UnixNano(), "Pid": c.Pid}),
		writePart(dir, configPart, dumped{
			ID: m.id, Name: c.Config.Name, ImageName: imageName(&c), ImageID: c.ImageID, ImageRef: c.ImageRef,
			Runtime: m.pod.get().Runtime, Created: c.Created, Checkpointed: time.Now().UTC(),
		}))
	if err != nil {
		return err
	}
	if err := copyLog(c.LogPath, in(logPart)); err != nil {
		return fmt.Errorf("its log: %w", err)
	}
	return nil
}

// dumped describes a container to those that read checkpoints.
type dumped struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	ImageName    string    `json:"rootfsImageName"`
	ImageID      string    `json:"rootfsImage"`
	ImageRef     string    `json:"rootfsImageRef"`
	Runtime      string    `json:"runtime"`
	Created      time.Time `json:"createdTime"`
	Checkpointed time.Time `json:"checkpointedTime"`
	Restored     time.Time `json:"restoredTime"`
	WasRestored  bool      `json:"restored"`
}

// imageName is how people call what the container stands on.
func imageName(c *spec.PodContainer) string {
	if filepath.IsAbs(c.Config.Image) { // it was a checkpoint
		return c.ImageRef
	}
	return cmp.Or(c.Config.UserImage, c.Config.Image)
}

// dumpedPod describes a pod likewise.
type dumpedPod struct {
	Metadata struct {
		Name      string `json:"name"`
		UID       string `json:"uid"`
		Namespace string `json:"namespace"`
		Attempt   uint32 `json:"attempt"`
	} `json:"metadata"`
	Hostname     string            `json:"hostname"`
	Runtime      string            `json:"runtime"`
	Checkpointed time.Time         `json:"checkpointedTime"`
	Containers   map[string]string `json:"containers"` // name to folder
}

func describe(p spec.Pod, members []*member) (d dumpedPod) {
	m := &d.Metadata
	m.Name, m.UID, m.Namespace, m.Attempt = p.Config.Name, p.Config.UID, p.Config.Namespace, p.Config.Attempt
	d.Hostname, d.Runtime, d.Checkpointed = p.Config.Hostname, p.Runtime, time.Now().UTC()
	d.Containers = map[string]string{}
	for _, m := range members {
		d.Containers[m.rec.Load().Container.Config.Name] = m.id
	}
	return d
}

func writePart(dir, name string, part any) error {
	body, err := json.Marshal(part)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), body, 0o600)
}

// writeChanges writes what the container has changed of its image.
func (s *Set) writeChanges(ctx context.Context, m *member, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // in a folder of ours
	if err != nil {
		return err
	}
	return errors.Join(s.Snapshots.Diff(ctx, snapshot.Key(m.id), f), f.Close())
}

// writeShm writes what is in the pod's /dev/shm.
func (s *Set) writeShm(ctx context.Context, p *pod, path string) error {
	shm := s.shmOf(p)
	if shm == "" {
		return nil
	}
	from, err := openFolder(shm)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // in a folder of ours
	if err != nil {
		return err
	}
	return errors.Join(folder.WriteTar(ctx, f, from, false), f.Close())
}

// copyLog copies a log, if there is one.
func copyLog(from, to string) error {
	in, err := os.Open(from) //nolint:gosec // the log of a container
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // in a folder of ours
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// packInto makes an archive of a folder, for root's eyes: there is memory of
// processes in it.
func packInto(ctx context.Context, dir, path string) (err error) {
	part := dir + ".tar"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // the name is ours
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(part))
		}
	}()
	w := tar.NewWriter(f)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), f.Sync(), f.Close(), ctx.Err()); err != nil {
		return err
	}
	return os.Rename(part, path)
}

// empty removes what is in a folder.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

// syncBelow has all of the folder's file system on disk.
func syncBelow(dir string) error {
	f, err := os.Open(dir) //nolint:gosec // a client's, who is root
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}
