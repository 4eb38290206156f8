package mounts

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"berth/base/errs"
)

// ForTask makes those mounts of a container's root file system that are no
// system calls alone, and returns what is left to mount: mostly all. What it
// made is active under the container's ID, until Release, or until the
// container has gone.
func (s *Service) ForTask(ctx context.Context, container string, rootfs []*types.Mount) ([]*types.Mount, error) {
	info, err := s.activate(ctx, container, mount.FromProto(rootfs), map[string]string{"containerd.io/gc.bref.container": container})
	if errdefs.IsAlreadyExists(err) { // of a task before, that failed
		info, err = s.mounts.Info(ctx, container)
	}
	switch {
	case err == nil:
		return mount.ToProto(info.System), nil
	case errdefs.IsNotImplemented(err):
		return rootfs, nil
	}
	return nil, fmt.Errorf("mounts of container %s: %w", container, err)
}

// Release takes down what ForTask made; nothing is no error. The root file
// system is not mounted any more.
func (s *Service) Release(ctx context.Context, namespace, container string) error {
	err := s.Remove(ctx, namespace, resource(container))
	if errs.KindOf(err) == errs.NotFound {
		return nil
	}
	return err
}
