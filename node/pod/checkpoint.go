package pod

import (
	"context"

	"berth/base/errs"
)

// Checkpoint writes a running container to a tar at path.
func (s *Set) Checkpoint(ctx context.Context, id, path string) error {
	return errs.New(errs.Unsupported, "checkpoint of container %s to %s: not here", id, path)
}
