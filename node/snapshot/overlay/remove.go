package overlay

import (
	"context"
	"slices"

	"golang.org/x/sys/unix"

	"berth/node/folder"
	"berth/node/snapshot"
)

// Remove forgets a snapshot; the sweeper deletes its folder.
func (s *Store) Remove(ctx context.Context, key snapshot.Key) error {
	rec, err := s.records.Remove(ctx, key)
	if err == nil && rec.Kind != snapshot.KindView {
		s.sweeper.Add(rec.ID)
	}
	return err
}

// sweep deletes folders.
func (s *Store) sweep(ctx context.Context) {
	s.records.Sweep(ctx, s.sweeper, func(waiting int, err error) {
		s.log.ErrorContext(ctx, "layers wait to be deleted", "layers", waiting, "error", err)
	}, func(id string) { s.deleteAll(ctx, []string{id}) })
}

// sweepLeftovers deletes what a crash left. What an ingest that did not end
// had in common with layers that went before it is on nobody's list.
func (s *Store) sweepLeftovers(ctx context.Context, ids []string) {
	unfinished := slices.ContainsFunc(ids, func(id string) bool {
		_, listed := readList(s.dirfd, id)
		return !listed && !s.has(id+"/work") // nor was it Active
	})
	s.deleteAll(ctx, ids)
	if !unfinished {
		return
	}
	if err := s.variants.sift(ctx); err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "files that no layer has are left until the next start", "error", err)
	}
}

func (s *Store) deleteAll(ctx context.Context, ids []string) {
	for _, id := range ids {
		if err := s.delete(ctx, id); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "layer is kept for the next start to delete", "layer", id, "error", err)
		}
	}
}

// delete deletes the folder of a layer, and the files that only it had. Its
// list of them goes last, so that a crash forgets none.
func (s *Store) delete(ctx context.Context, id string) error {
	if keys, listed := readList(s.dirfd, id); listed {
		if err := s.deleteFiles(ctx, id); err != nil {
			return err
		}
		if err := s.variants.drop(ctx, keys); err != nil {
			return err
		}
	}
	return folder.Remove(ctx, s.dirfd, id)
}

func (s *Store) deleteFiles(ctx context.Context, id string) error {
	fd, err := unix.Openat(s.dirfd, id, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return folder.Remove(ctx, fd, "fs")
}
