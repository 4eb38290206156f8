package container

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/spec"
)

// Changes lists the paths that differ from the image.
func (s *Set) Changes(ctx context.Context, ref string) ([]spec.Change, error) {
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	key, err := s.rootKey(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("changes of container %s: %w", c.name(), err)
	}
	changes, err := s.Snapshots.Changes(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("changes of container %s: %w", c.name(), err)
	}
	return withoutStubs(changes), nil
}

// stubs are the files that runtimes make for ours to be bound over, where the
// image has none.
var stubs = [...]string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}

// withoutStubs leaves out the stubs, and /etc where nothing else in it changed.
func withoutStubs(changes []spec.Change) []spec.Change {
	kept, other := []spec.Change{}, false
	for _, change := range changes {
		if !slices.Contains(stubs[:], change.Path) {
			kept = append(kept, change)
			other = other || strings.HasPrefix(change.Path, "/etc/")
		}
	}
	if other || len(kept) == len(changes) {
		return kept
	}
	return slices.DeleteFunc(kept, func(change spec.Change) bool { return change == spec.Change{Kind: "C", Path: "/etc"} })
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
		return tree{root, s.owners(c.get())}.archive(ctx, "/", ".", w)
	})
	if err != nil {
		return fmt.Errorf("export container %s: %w", c.name(), err)
	}
	s.publish(c.get(), "export")
	return nil
}
