package lcfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/folder"
	"berth/node/snapshot"
)

// leftover is what no record names any more.
type leftover struct {
	id string // of a folder in layers/, or its name; and of a recipe
	// adopted: files of the folder may be objects, too.
	adopted bool
}

// Remove forgets a snapshot; what it had is deleted in the background.
func (s *Store) Remove(ctx context.Context, key snapshot.Key) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	rec, err := s.remove(key)
	if err != nil {
		return fmt.Errorf("remove snapshot: %w", err)
	}
	if rec.Upper || rec.Recipe {
		s.discard(leftover{rec.ID, rec.Kind == snapshot.KindCommitted})
	}
	if rec.Kind == snapshot.KindCommitted {
		s.nudge(s.tidy)
	}
	return nil
}

// discard has a leftover deleted, when no mount stands on it any more.
func (s *Store) discard(l leftover) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uses.uppers[l.id] > 0 {
		s.standing = append(s.standing, l)
		return
	}
	s.sweeper.add(l)
}

// discardFallen does that for leftovers that waited. mu is held.
func (s *Store) discardFallen() {
	s.standing = slices.DeleteFunc(s.standing, func(l leftover) bool {
		fallen := s.uses.uppers[l.id] == 0
		if fallen {
			s.sweeper.add(l)
		}
		return fallen
	})
}

func (s *Store) remove(key snapshot.Key) (*record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.findLocked(key)
	if err != nil {
		return nil, err
	}
	if s.children[key] > 0 {
		return nil, errs.New(errs.Conflict, "snapshot %s has %d children", key, s.children[key])
	}
	delete(s.byKey, key)
	s.unpin(rec.Parent)
	s.forget(rec.ID)
	s.goneLocked(rec.Delta, true)
	s.goneLocked(rec.Merged, false)
	s.lost.known = append(s.lost.known, rec.hidden()...)
	s.unuseLocked(byUpper(rec.ID))
	if rec.Kind != snapshot.KindCommitted {
		s.unuseLocked(byKey(key))
	}
	return rec, nil
}

// sweepFolders deletes folders and recipes. It first waits until the records
// that named them are gone from disk: else a crash would leave a snapshot with
// half a tree.
func (s *Store) sweepFolders(ctx context.Context) {
	for {
		left := s.sweeper.take(ctx)
		if left == nil {
			return
		}
		if err := s.db.Update(ctx, func(*kv.Tx) error { return nil }); err != nil {
			if ctx.Err() == nil {
				s.log.ErrorContext(ctx, "layers wait to be deleted", "layers", len(left), "error", err)
			}
			s.sweeper.add(left...)
			if !snapshot.Rest(ctx, sweepPause) {
				return
			}
			continue
		}
		for _, l := range left {
			if err := s.delete(ctx, l); err != nil && ctx.Err() == nil {
				s.log.ErrorContext(ctx, "layer is kept for the next start to delete", "layer", l.id, "error", err)
			}
		}
	}
}

// sweepPause is how long the sweep waits when records cannot be written: the
// disk may be full, and somebody may make room.
const sweepPause = time.Second

func (s *Store) delete(ctx context.Context, l leftover) error {
	if l.adopted {
		if err := os.Remove(s.recipe(l.id)); err != nil && !os.IsNotExist(err) {
			return err
		}
		// A tree that is too deep to be read never became objects.
		if err := s.own(ctx, l.id); err != nil && !errors.Is(err, errs.Unsupported) {
			return err
		}
	}
	return folder.Remove(ctx, s.dirfd, l.id)
}

// own makes files of a folder that have become objects root's alone, before
// the folder goes and leaves nothing but the objects.
func (s *Store) own(ctx context.Context, id string) error {
	dirfd, err := openFolder(filepath.Join(s.layers, id))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(dirfd)
	err = folder.Walk(ctx, dirfd, func(e *folder.Entry) error {
		if e.Stat.Mode&unix.S_IFMT != unix.S_IFREG || e.Stat.Nlink < 2 {
			return nil
		}
		f, err := e.Open()
		if err != nil {
			return err
		}
		defer f.Close()
		return ownFile(f)
	})
	if errs.IsAny(err, unix.ENOENT) {
		return nil
	}
	return err
}

func ownFile(f *os.File) error {
	if err := f.Chown(0, 0); err != nil {
		return err
	}
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	names := make([]byte, 64<<10)
	n, err := unix.Flistxattr(int(f.Fd()), names)
	if errs.IsAny(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("list xattrs", err)
	}
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if name == "" {
			continue
		}
		if err := unix.Fremovexattr(int(f.Fd()), name); err != nil && !errs.IsAny(err, unix.ENODATA, unix.ENOTSUP, unix.EPERM) {
			return fmt.Errorf("remove xattr %s: %w", name, err)
		}
	}
	return nil
}
