package overlay

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"berth/node/folder"
	"berth/node/snapshot"
	"berth/spec"
)

// inside calls fn with a descriptor of the record's own folder. A View has
// none, so that fn is not called.
func (s *Store) inside(ctx context.Context, rec *snapshot.Record, fn func(dirfd int) error) error {
	if rec.Kind == snapshot.KindView {
		return ctx.Err()
	}
	fd, err := unix.Openat(s.dirfd, rec.ID+"/fs", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open layer %s: %w", rec.ID, err)
	}
	defer unix.Close(fd)
	return fn(fd)
}

// Usage counts an Active snapshot, and a Committed one the first time.
func (s *Store) Usage(ctx context.Context, key snapshot.Key) (snapshot.Usage, error) {
	rec, err := s.records.Find(key)
	if err != nil {
		return snapshot.Usage{}, err
	}
	if rec.Usage != nil {
		return *rec.Usage, nil
	}
	var usage snapshot.Usage
	err = s.inside(ctx, rec, func(dirfd int) error {
		counted, err := folder.Count(ctx, dirfd)
		usage = snapshot.Usage{Size: counted.Size, Inodes: counted.Inodes}
		return err
	})
	if err != nil {
		return snapshot.Usage{}, fmt.Errorf("usage of snapshot %s: %w", key, err)
	}
	if rec.Kind == snapshot.KindCommitted {
		s.records.Change(rec, func(r *snapshot.Record) { r.Usage = &usage })
	}
	return usage, nil
}

// Diff writes the snapshot's own folder as a tar layer.
func (s *Store) Diff(ctx context.Context, key snapshot.Key, w io.Writer) error {
	rec, err := s.records.Find(key)
	if err != nil {
		return err
	}
	if rec.Kind == snapshot.KindView {
		err = folder.NewTarWriter(w).Close()
	} else {
		err = s.inside(ctx, rec, func(dirfd int) error { return folder.WriteTar(ctx, w, dirfd, rec.Opaque) })
	}
	if err != nil {
		return fmt.Errorf("diff of snapshot %s: %w", key, err)
	}
	return nil
}

// Changes compares the snapshot's own folder with what shows below it.
func (s *Store) Changes(ctx context.Context, key snapshot.Key) (changes []spec.Change, err error) {
	rec, err := s.records.Find(key)
	if err != nil {
		return nil, err
	}
	below, err := s.foldersBelow(rec.Parent)
	if err == nil {
		err = s.inside(ctx, rec, func(dirfd int) error {
			changes, err = folder.Changes(ctx, dirfd, rec.Opaque, below)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("changes of snapshot %s: %w", key, err)
	}
	return changes, nil
}
