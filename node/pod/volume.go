package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/span"
	"berth/node/bundle"
	"berth/node/snapshot"
	"berth/spec"
)

// volumeError begins the text of the error of a container whose image volume
// cannot be mounted: kubelet knows it by that.
const volumeError = "ImageVolumeMountFailed"

// imageVolumeError stays at the head of whatever is said around it.
type imageVolumeError struct{ err error }

func (e *imageVolumeError) Error() string { return volumeError + ": " + e.err.Error() }
func (e *imageVolumeError) Unwrap() error { return e.err }

// volumeFirst puts an imageVolumeError to the head of the text.
func volumeFirst(err error) error {
	var volume *imageVolumeError
	if errors.As(err, &volume) && errs.KindOf(err) == errs.KindOf(volume) {
		return volume
	}
	return err
}

func (s *Set) imageDir(m *member) string { return filepath.Join(s.db.podDir(m.pod.id), "images", m.id) }

func volumeKey(container string, n int) snapshot.Key {
	return snapshot.Key(container + "." + strconv.Itoa(n))
}

// mountImages mounts the images that the container has as volumes, each once,
// and says where what is asked of them is. What is mounted is read-only.
func (s *Set) mountImages(ctx context.Context, m *member) (map[string]string, error) {
	c := m.rec.Load().Container
	if !slices.ContainsFunc(c.Config.Mounts, func(mount spec.PodMount) bool { return mount.Image != "" }) {
		next := *m.rec.Load()
		next.Container.Mounts = c.Config.Mounts
		m.rec.Store(&next)
		return nil, nil
	}
	ctx, end := span.Start(ctx, "image volumes")
	at, err := s.mountVolumes(ctx, m)
	end(err)
	if err != nil {
		return nil, &imageVolumeError{err}
	}
	return at, nil
}

func (s *Set) mountVolumes(ctx context.Context, m *member) (map[string]string, error) {
	mounts := slices.Clone(m.rec.Load().Container.Config.Mounts)
	roots, at := map[string]string{}, map[string]string{}
	for i := range mounts {
		mount := &mounts[i]
		if mount.Image == "" {
			continue
		}
		asked := *mount
		image, err := s.Images.Resolve(ctx, asked.Image)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", asked.Image, err)
		}
		if roots[image.ID] == "" {
			if roots[image.ID], err = s.mountImage(ctx, m, len(roots), image); err != nil {
				return nil, fmt.Errorf("image %s: %w", asked.Image, err)
			}
		}
		if at[bundle.ImageKey(asked)], err = within(roots[image.ID], asked.ImageSubPath); err != nil {
			return nil, fmt.Errorf("image %s: sub path %q: %w", asked.Image, asked.ImageSubPath, err)
		}
		mount.Image = image.ID
	}
	return at, s.changeMember(m, func(r *containerRecord) { r.Container.Mounts = mounts })
}

// mountImage mounts one. That there may be something is on record before.
func (s *Set) mountImage(ctx context.Context, m *member, n int, image Image) (string, error) {
	if err := s.changeMember(m, func(r *containerRecord) { r.Volumes = n + 1 }); err != nil {
		return "", err
	}
	pod := m.pod.get()
	target := filepath.Join(s.imageDir(m), strconv.Itoa(n))
	if err := os.MkdirAll(target, 0o711); err != nil { //nolint:gosec // a user namespace's root passes through; see makeFolder
		return "", err
	}
	if _, err := s.Snapshots.View(ctx, volumeKey(m.id, n), image.Layers, rootLabels(&pod, m.id)); err != nil {
		return "", err
	}
	if err := s.Snapshots.Mount(ctx, volumeKey(m.id, n), target); err != nil {
		return "", err
	}
	return target, nil
}

// within is where a path in an image is on the host, whichever links there are
// on the way. The image does not change meanwhile: it is read-only.
func within(root, path string) (string, error) {
	if path == "" {
		return root, nil
	}
	dir, err := os.Open(root)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return "", errs.New(errs.NotFound, "there is no such path in the image")
	case err != nil:
		return "", errs.New(errs.Invalid, "it cannot be resolved: %w", err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// unmountImages takes away what there may be of a container's image volumes.
func (s *Set) unmountImages(ctx context.Context, m *member) error {
	dir := s.imageDir(m)
	for n := range m.rec.Load().Volumes {
		target := filepath.Join(dir, strconv.Itoa(n))
		if err := s.Snapshots.Unmount(ctx, target); err != nil {
			return fmt.Errorf("unmount an image volume: %w", err)
		}
		if err := ignoreMissing(s.Snapshots.Remove(ctx, volumeKey(m.id, n))); err != nil {
			return fmt.Errorf("remove an image volume: %w", err)
		}
		if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an image volume: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove an image volume: %w", err)
	}
	return nil
}
