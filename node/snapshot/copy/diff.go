package copy

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"

	"berth/node/folder"
	"berth/node/snapshot"
	"berth/spec"
)

// compare finds what a snapshot that has a tree of its own has changed.
func (s *Store) compare(ctx context.Context, rec *snapshot.Record, fn func(own int, changes []spec.Change) error) error {
	parent, err := s.below(rec)
	if err != nil {
		return err
	}
	tree, err := s.whole(ctx, rec)
	if err != nil {
		return err
	}
	base, err := s.whole(ctx, parent)
	if err != nil {
		return err
	}
	return s.inside(tree, func(own int) error {
		return s.inside(base, func(base int) error {
			changes, err := folder.Compare(ctx, own, base, s.cloned(rec))
			if err != nil {
				return err
			}
			return fn(own, changes)
		})
	})
}

// Usage counts an Active snapshot, and a Committed one the first time. Blocks
// that it shares with its parent are not known: what it changed is counted.
func (s *Store) Usage(ctx context.Context, key snapshot.Key) (usage snapshot.Usage, err error) {
	rec, err := s.records.Find(key)
	if err != nil || rec.Kind == snapshot.KindView {
		return usage, err
	}
	if rec.Usage != nil {
		return *rec.Usage, nil
	}
	err = s.compare(ctx, rec, func(own int, changes []spec.Change) error {
		counted, err := folder.CountChanges(ctx, own, changes)
		usage = snapshot.Usage{Size: counted.Size, Inodes: counted.Inodes}
		return err
	})
	if err != nil {
		return usage, fmt.Errorf("usage of snapshot %s: %w", key, err)
	}
	if rec.Kind == snapshot.KindCommitted {
		s.records.Change(rec, func(r *snapshot.Record) { r.Usage = &usage })
	}
	return usage, nil
}

// Diff writes what the snapshot changes as a tar layer.
func (s *Store) Diff(ctx context.Context, key snapshot.Key, w io.Writer) error {
	rec, err := s.records.Find(key)
	if err != nil {
		return err
	}
	switch {
	case rec.Kind == snapshot.KindView:
		if err = ctx.Err(); err == nil {
			err = folder.NewTarWriter(w).Close()
		}
	case isLayer(rec):
		err = s.inside(rec.ID+"/"+layerFolder, func(fd int) error { return folder.WriteTar(ctx, w, fd, rec.Opaque) })
	default:
		err = s.compare(ctx, rec, func(own int, changes []spec.Change) error {
			return folder.WriteChanges(ctx, w, own, changes)
		})
	}
	if err != nil {
		return fmt.Errorf("diff of snapshot %s: %w", key, err)
	}
	return nil
}

// Changes lists what the snapshot changes.
func (s *Store) Changes(ctx context.Context, key snapshot.Key) (changes []spec.Change, err error) {
	rec, err := s.records.Find(key)
	if err != nil {
		return nil, err
	}
	switch {
	case rec.Kind == snapshot.KindView:
		return nil, ctx.Err()
	case isLayer(rec):
		var below []string
		if below, err = s.foldersBelow(rec.Parent); err != nil {
			break
		}
		err = s.inside(rec.ID+"/"+layerFolder, func(fd int) error {
			changes, err = folder.Changes(ctx, fd, rec.Opaque, below)
			return err
		})
	default:
		err = s.compare(ctx, rec, func(_ int, found []spec.Change) error {
			changes = found
			return nil
		})
		slices.SortFunc(changes, func(a, b spec.Change) int { return cmp.Compare(a.Path, b.Path) })
	}
	if err != nil {
		return nil, fmt.Errorf("changes of snapshot %s: %w", key, err)
	}
	return changes, nil
}
