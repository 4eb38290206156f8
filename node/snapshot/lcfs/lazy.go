package lcfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
	"berth/node/snapshot"
)

// Missing makes layers possible of which bodies are not here: source opens a
// folder that is named like the objects and brings what is missing when it is
// opened. Call it before the store is used; false says that this kernel cannot
// mount such layers.
func (s *Store) Missing(source func(context.Context) (int, error)) bool {
	if !s.fds {
		return false
	}
	s.missing = source
	s.countLacking()
	return true
}

// countLacking looks whether there are layers that lack bodies. While there
// are, objects appear under their names only when they are whole, for
// somebody may be waiting for them.
func (s *Store) countLacking() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	lacking := false
	for _, rec := range s.byKey {
		lacking = lacking || rec.Labels[snapshot.Missing] != ""
	}
	s.lacking.Store(lacking)
	s.objects.Watched(lacking)
}

// IngestKnown takes a layer whose tree and recipe are known from before. The
// bodies that are here stay here; those that Has denies are to be brought by
// Fill, and Commit gets the label snapshot.Missing. recipe may be nil.
func (s *Store) IngestKnown(ctx context.Context, delta *tree.Node, recipe io.Reader) (snapshot.Ingest, error) {
	if s.missing == nil {
		return nil, errs.New(errs.Unsupported, "layers whose bodies are missing cannot be mounted here")
	}
	batch, err := s.objects.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("take known layer: %w", errs.Full(err))
	}
	s.lacking.Store(true)
	s.objects.Watched(true)
	s.ingests.Add(1)
	in := &ingest{store: s, id: s.newID(), batch: batch, root: delta}
	for _, d := range tree.Objects(delta) {
		batch.Pin(d)
	}
	if recipe != nil {
		if err := in.keepRecipe(recipe); err != nil {
			in.drop()
			return nil, fmt.Errorf("take known layer: %w", errs.Full(err))
		}
	}
	in.usage.Size, in.usage.Inodes = tree.Usage(delta)
	in.size, err = bytesOf(delta)
	return in, err
}

func (in *ingest) keepRecipe(from io.Reader) error {
	recipe, err := os.CreateTemp(filepath.Join(in.store.dir, "recipes"), temporaryPrefix)
	if err != nil {
		return err
	}
	in.recipe = recipe.Name()
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(recipe, sum), from)
	in.sum = hex.EncodeToString(sum.Sum(nil))
	return errors.Join(err, recipe.Close())
}

// Checked returns when the bodies that a loss of power may have damaged were
// read again: before that, Has may be wrong about what a layer was filled with.
func (s *Store) Checked(ctx context.Context) error {
	batch, err := s.objects.Begin(ctx)
	if err == nil {
		batch.End()
	}
	return err
}

// Has says whether the body d is here.
func (s *Store) Has(d tree.Digest) bool { return s.objects.Has(d) }

// Fill stores a body that a layer misses: whole under its name, or not at all.
// Invalid: the bytes are not those of d.
func (s *Store) Fill(ctx context.Context, d tree.Digest, size int64, body io.Reader) error {
	if s.objects.Has(d) {
		return nil
	}
	batch, err := s.objects.Begin(ctx)
	if err != nil {
		return errs.Full(err)
	}
	defer batch.End()
	w, err := batch.Create()
	if err != nil {
		return errs.Full(err)
	}
	defer w.Abort()
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, hash), io.LimitReader(body, size))
	if err != nil {
		return errs.Full(err)
	}
	if n < size || tree.Digest(hash.Sum(nil)) != d {
		return errs.New(errs.Invalid, "%d of %d bytes are not those of body %x", n, size, d)
	}
	_, err = w.Commit()
	return errs.Full(err)
}

// Whole takes the label from a layer of which nothing is missing any more.
// Conflict: something is.
func (s *Store) Whole(ctx context.Context, key snapshot.Key) error {
	rec, err := s.find(key)
	if err != nil {
		return err
	}
	lacks := 0
	if err := s.eachObject(ctx, rec.Delta, func(d tree.Digest) bool {
		if !s.objects.Has(d) {
			lacks++
		}
		return true
	}); err != nil {
		return fmt.Errorf("objects of layer %s: %w", key, err)
	}
	if lacks > 0 {
		return errs.New(errs.Conflict, "layer %s lacks %d bodies", key, lacks)
	}
	if err := s.objects.Sync(ctx); err != nil {
		return errs.Full(err)
	}
	if err := s.SetLabels(ctx, key, map[string]string{snapshot.Missing: ""}); err != nil {
		return err
	}
	s.countLacking()
	return nil
}

// Delta is the tree of what a layer changes. NotFound: no such key.
func (s *Store) Delta(ctx context.Context, key snapshot.Key) (root *tree.Node, err error) {
	err = s.withDelta(ctx, key, func(_ *record, c *content) error {
		root = c.root
		return nil
	})
	return root, err
}

// Recipe opens what a layer's tar can be made from again. NotFound: it did not
// come from a tar, or needs bodies that its tree does not name.
func (s *Store) Recipe(_ context.Context, key snapshot.Key) (io.ReadCloser, int64, error) {
	rec, err := s.find(key)
	if err != nil {
		return nil, 0, err
	}
	recipe, err := os.Open(s.recipe(rec.ID))
	if !rec.Recipe || len(rec.Hidden) > 0 || errors.Is(err, os.ErrNotExist) {
		if err == nil {
			_ = recipe.Close()
		}
		return nil, 0, errs.New(errs.NotFound, "layer %s has no recipe", key)
	}
	if err != nil {
		return nil, 0, err
	}
	st, err := recipe.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, recipe.Close())
	}
	return recipe, st.Size(), nil
}

// Bodies are the digests of the bodies of files in the tree of a Committed
// layer, in the order of paths; what has none is left out.
func (s *Store) Bodies(ctx context.Context, key snapshot.Key, paths []string) ([]tree.Digest, error) {
	if _, err := s.find(key); err != nil {
		return nil, err
	}
	shown, err := s.chainTree(ctx, key)
	if err != nil {
		return nil, err
	}
	var found []tree.Digest
	for _, path := range paths {
		if n := tree.Find(shown.root, path); n != nil && n.Object != (tree.Digest{}) {
			found = append(found, n.Object)
		}
	}
	return found, nil
}

// lacksLocked says whether layers from key down lack bodies. mu is held.
func (s *Store) lacksLocked(key snapshot.Key) bool {
	if !s.lacking.Load() {
		return false
	}
	for rec := s.byKey[key]; rec != nil; rec = s.byKey[rec.Parent] {
		if rec.Labels[snapshot.Missing] != "" {
			return true
		}
	}
	return false
}

// bring opens what brings the missing bodies of a stack; -1 where none are.
func (s *Store) bring(ctx context.Context, st stack) (int, error) {
	switch {
	case !st.lacks:
		return -1, nil
	case s.missing == nil:
		return -1, errs.New(errs.Unavailable, "bodies of its layers are missing, and nobody brings them")
	case st.uids != nil:
		return -1, errs.New(errs.Unavailable, "bodies of its layers are missing: its owners can be shifted when all are here")
	}
	if err := s.Checked(ctx); err != nil {
		return -1, err
	}
	return s.missing(ctx)
}

// setMissing puts the folder of what is missing behind the objects.
func setMissing(fsfd, folder int) error {
	if folder < 0 {
		return nil
	}
	if err := unix.FsconfigSetFd(fsfd, "datadir+", folder); err != nil {
		return fmt.Errorf("missing bodies: %w", err)
	}
	return nil
}
