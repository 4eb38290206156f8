package container

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"berth/spec"
)

// Files knows of images whose files may still be on their way.
type Files interface {
	// Whole returns when all files of an image are here.
	Whole(ctx context.Context, imageID string) error
	// Watch is told of a root on which a container of the image is about to
	// start.
	Watch(ctx context.Context, imageID, root string)
}

// awaitFiles waits for an image to be whole if the container may mount an
// overlay on its root, which the kernel refuses while files of it are missing;
// or shift its owners.
func (s *Set) awaitFiles(ctx context.Context, c *spec.Container) error {
	if s.Files == nil || !mayMount(c.Config.Security) && s.idmap(c) == nil {
		return nil
	}
	if err := s.Files.Whole(ctx, c.ImageID); err != nil {
		return fmt.Errorf("wait for all files of the image: %w", err)
	}
	return nil
}

func mayMount(security spec.Security) bool {
	return security.Privileged || slices.ContainsFunc(security.CapAdd, func(name string) bool {
		name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		return name == "ALL" || name == "SYS_ADMIN"
	})
}
