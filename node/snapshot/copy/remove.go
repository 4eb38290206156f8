package copy

import (
	"context"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/folder"
)

// delete deletes a folder in trees/, or one in such a folder. None is no
// error. Subvolumes go at once.
func (s *Store) delete(ctx context.Context, name string) error {
	if id, tree, inner := strings.Cut(name, "/"); inner {
		return s.insideIfThere(id, func(fd int) error { return removeTree(ctx, fd, tree) })
	}
	err := s.insideIfThere(name, func(fd int) error {
		trees, err := folder.Names(fd)
		for _, tree := range trees {
			if err == nil {
				err = removeTree(ctx, fd, tree)
			}
		}
		return err
	})
	if err == nil {
		err = folder.Remove(ctx, s.dirfd, filepath.Base(name))
	}
	return err
}

func (s *Store) insideIfThere(name string, fn func(fd int) error) error {
	err := s.inside(name, fn)
	if errs.IsAny(err, unix.ENOENT) {
		return nil
	}
	return err
}
