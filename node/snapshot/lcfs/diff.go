package lcfs

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/layer"
	"berth/image/tree"
	"berth/node/folder"
	"berth/node/snapshot"
	"berth/spec"
)

// Diff writes what the snapshot changes as a tar layer, from its tree: the
// same before and after it is settled.
func (s *Store) Diff(ctx context.Context, key snapshot.Key, w io.Writer) error {
	err := s.withDelta(ctx, key, func(_ *record, delta *content) error {
		return tree.WriteTar(ctx, w, delta.root, s.open(delta))
	})
	if err != nil {
		return fmt.Errorf("diff of snapshot %s: %w", key, err)
	}
	return nil
}

// withDelta calls fn with what the snapshot changes, and keeps all of its
// chain where it is meanwhile.
func (s *Store) withDelta(ctx context.Context, key snapshot.Key, fn func(*record, *content) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	rec, letGo, err := s.pin(key)
	if err != nil {
		return err
	}
	defer letGo()
	delta, err := s.delta(ctx, rec)
	if err != nil {
		return err
	}
	return fn(rec, delta)
}

// Changes lists the same by path.
func (s *Store) Changes(ctx context.Context, key snapshot.Key) ([]spec.Change, error) {
	var changes []spec.Change
	err := s.withDelta(ctx, key, func(rec *record, delta *content) error {
		below, err := s.chainTree(ctx, rec.Parent)
		if err == nil {
			changes = tree.Changes(below.root, delta.root)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("changes of snapshot %s: %w", key, err)
	}
	return changes, nil
}

// Usage counts an Active snapshot, and a Committed one the first time.
func (s *Store) Usage(ctx context.Context, key snapshot.Key) (snapshot.Usage, error) {
	rec, err := s.find(key)
	if err != nil {
		return snapshot.Usage{}, err
	}
	if rec.Usage != nil {
		return *rec.Usage, nil
	}
	if rec.Kind == snapshot.KindView {
		return snapshot.Usage{}, nil
	}
	dirfd, err := openFolder(s.fs(rec.ID))
	if err != nil {
		return snapshot.Usage{}, fmt.Errorf("usage of snapshot %s: %w", key, err)
	}
	defer unix.Close(dirfd)
	counted, err := folder.Count(ctx, dirfd)
	if err != nil {
		return snapshot.Usage{}, fmt.Errorf("usage of snapshot %s: %w", key, err)
	}
	usage := snapshot.Usage{Size: counted.Size, Inodes: counted.Inodes}
	if rec.Kind == snapshot.KindCommitted {
		s.change(rec, func(r *record) { r.Usage = &usage })
	}
	return usage, nil
}

// Tar writes the very tar that a layer was ingested from.
func (s *Store) Tar(ctx context.Context, key snapshot.Key, w io.Writer) error {
	rec, err := s.find(key)
	if err != nil {
		return err
	}
	if !rec.Recipe {
		return errs.New(errs.Unsupported, "snapshot %s did not come from a tar", key)
	}
	recipe, err := os.Open(s.recipe(rec.ID))
	if os.IsNotExist(err) {
		return errs.New(errs.Unsupported, "the recipe of layer %s is lost", key)
	}
	if err != nil {
		return err
	}
	defer recipe.Close()
	open := func(d tree.Digest) (io.ReadCloser, error) { return s.objects.Open(d) }
	if err := layer.Write(ctx, recipe, open, w); err != nil {
		return fmt.Errorf("tar of layer %s: %w", key, err)
	}
	return nil
}
