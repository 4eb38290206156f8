package container

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"berth/node/snapshot"
	"berth/spec"
)

// Changes lists the paths that differ from the image.
func (s *Set) Changes(ctx context.Context, ref string) ([]spec.Change, error) {
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	changes, err := s.Snapshots.Changes(ctx, snapshot.Key(c.id))
	if err != nil {
		return nil, fmt.Errorf("changes of container %s: %w", c.name(), err)
	}
	return changes, nil
}

// Export writes the container's root file system as a tar, without what is
// mounted on it.
func (s *Set) Export(ctx context.Context, ref string, w io.Writer) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	err = s.withRoot(ctx, c, func(dir string) error {
		root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer root.Close()
		return tree{root}.archive(ctx, "/", ".", w)
	})
	if err != nil {
		return fmt.Errorf("export container %s: %w", c.name(), err)
	}
	s.publish(c.get(), "export")
	return nil
}
