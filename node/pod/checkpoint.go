package pod

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"berth/base/errs"
	"berth/base/undo"
	"berth/node/container"
	"berth/node/snapshot"
	"berth/spec"
)

// Checkpoint writes a container to an archive at path, as other runtimes of
// Kubernetes write them and tools read them: what CRIU has of its processes,
// what it has changed of its image, its spec and its log. It runs on. There is
// an archive only when it is whole.
//
// errs.Conflict: it does not run. errs.Unsupported: its runtime or this machine
// cannot.
func (s *Set) Checkpoint(ctx context.Context, id, path string) error {
	m, err := s.findContainer(id)
	if err != nil {
		return err
	}
	return s.finish(ctx, func(ctx context.Context) (err error) {
		if err := m.op.Lock(ctx); err != nil {
			return fmt.Errorf("checkpoint container %s: it is busy: %w", m.id, err)
		}
		defer m.op.Unlock()
		ctx, end := s.traced(ctx, m.pod.id, "checkpoint container "+m.rec.Load().Container.Config.Name)
		defer func() { end(err) }()
		if is := s.show(m); is.State != spec.Running {
			return errs.New(errs.Conflict, "checkpoint container %s: it is %s", m.id, is.State)
		}
		if err := s.checkpoint(ctx, m, path); err != nil {
			return fmt.Errorf("checkpoint container %s: %w", m.id, err)
		}
		return nil
	})
}

// checkpointed describes a container to those that read archives of them.
type checkpointed struct {
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

// checkpoint gathers the archive's parts in a folder beside it. op is held.
func (s *Set) checkpoint(ctx context.Context, m *member, path string) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".checkpoint-")
	if err != nil {
		return err
	}
	var u undo.Stack
	u.Add("remove the parts", func(context.Context) error { return os.RemoveAll(dir) })
	defer u.Run(ctx, &err)
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(in("checkpoint"), 0o700); err != nil {
		return err
	}
	if err := s.Runner.CheckpointTask(ctx, Namespace, m.id, container.Checkpoint{Image: in("checkpoint"), FileLocks: true, Terminal: s.show(m).Config.TTY}); err != nil {
		return err
	}
	if err := s.writeChanges(ctx, m, in("rootfs-diff.tar")); err != nil {
		return fmt.Errorf("what it has changed: %w", err)
	}
	oci, err := s.ContainerSpec(ctx, m.id)
	if err != nil {
		return err
	}
	c := s.show(m)
	for name, part := range map[string]any{
		"spec.dump": oci, "status.dump": c, "config.dump": checkpointed{
			ID: m.id, Name: c.Config.Name, ImageName: c.Config.UserImage, ImageID: c.ImageID, ImageRef: c.ImageRef,
			Runtime: m.pod.get().Runtime, Created: c.Created, Checkpointed: time.Now().UTC(),
		},
	} {
		body, err := json.Marshal(part)
		if err == nil {
			err = os.WriteFile(in(name), body, 0o600)
		}
		if err != nil {
			return err
		}
	}
	if err := copyLog(c.LogPath, in("container.log")); err != nil {
		return fmt.Errorf("its log: %w", err)
	}
	return packInto(dir, path)
}

// writeChanges writes what the container has changed of its image.
func (s *Set) writeChanges(ctx context.Context, m *member, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // in a folder of ours
	if err != nil {
		return err
	}
	return errors.Join(s.Snapshots.Diff(ctx, snapshot.Key(m.id), f), f.Close())
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
func packInto(dir, path string) (err error) {
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
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(part, path)
}
