// Package volume holds the named and the anonymous volumes of one node.
package volume

import (
	"context"
	"log/slog"

	"berth/base/errs"
	"berth/base/kv"
	"berth/spec"
)

// Set is the volumes of one node.
type Set struct{}

// Open reads the volumes kept under dir and recorded in db.
func Open(ctx context.Context, dir string, db *kv.DB, log *slog.Logger) (*Set, error) {
	return nil, errs.Unsupported
}

// Create makes a volume. One of that name with the same driver and options
// is given back; with others it is errs.Conflict.
func (s *Set) Create(ctx context.Context, config spec.VolumeConfig) (spec.Volume, error) {
	return spec.Volume{}, errs.Unsupported
}

// Get returns one volume; errs.NotFound.
func (s *Set) Get(ctx context.Context, name string) (spec.Volume, error) {
	return spec.Volume{}, errs.Unsupported
}

// List returns volumes by name. Filters: name label driver dangling
// anonymous.
func (s *Set) List(ctx context.Context, filter spec.Filter) ([]spec.Volume, error) {
	return nil, errs.Unsupported
}

// Remove deletes a volume and its data. errs.Conflict while a container uses
// it; errs.NotFound, but with force.
func (s *Set) Remove(ctx context.Context, name string, force bool) error { return errs.Unsupported }

// Prune removes the volumes that no container uses: the anonymous ones, or
// all. Filters: label label!.
func (s *Set) Prune(ctx context.Context, all bool, filter spec.Filter) (spec.Pruned, error) {
	return spec.Pruned{}, errs.Unsupported
}

// Reserve notes that a container uses the volume, so that it is not removed.
// It is recorded until Release, across restarts.
func (s *Set) Reserve(ctx context.Context, name, container string) error { return errs.Unsupported }

// Acquire reserves the volume for a container, mounts it if it has a device
// and is not mounted, and gives its folder on the host. It may be called
// again for the same container.
func (s *Set) Acquire(ctx context.Context, name, container string) (path string, err error) {
	return "", errs.Unsupported
}

// Unmount lets go of the mount that Acquire made, when no other container
// holds it; the reservation stays. For containers that stopped.
func (s *Set) Unmount(ctx context.Context, name, container string) error { return errs.Unsupported }

// Release ends the container's use of the volume. Unknown ones are no error.
func (s *Set) Release(ctx context.Context, name, container string) error { return errs.Unsupported }

// Fill copies the content of the folder from, with owners, modes, times,
// extended attributes and links, into the volume if that is empty; the
// volume's folder gets the owner and mode of from. A missing from is no
// error: it leaves the volume as it is. An acquired volume only.
func (s *Set) Fill(ctx context.Context, name, root, from string) error { return errs.Unsupported }

// Usage counts the disk that the volumes take.
func (s *Set) Usage(ctx context.Context) (spec.DiskShare, error) {
	return spec.DiskShare{}, errs.Unsupported
}
