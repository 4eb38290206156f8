package copy

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/folder"
	"berth/node/snapshot"
)

const (
	treePrefix = "tree-"
	newTree    = "new" // a tree that is being made
	clonedFile = "cloned"
	layerMark  = "layer" // in Record.Own: it was ingested, and has a folder layer
)

func (s *Store) treeName() string { return treePrefix + s.boot }

func isLayer(rec *snapshot.Record) bool { return rec.Own[layerMark] != "" }

// making is a tree that somebody makes, and others wait for.
type making struct {
	done chan struct{}
	err  error
}

// whole returns the path in trees/ of the tree that the snapshot shows, and
// makes it if need be. nil is what is below everything.
func (s *Store) whole(ctx context.Context, rec *snapshot.Record) (string, error) {
	switch {
	case rec == nil:
		return emptyFolder, nil
	case rec.Kind == snapshot.KindView:
		parent, err := s.below(rec)
		if err != nil {
			return "", err
		}
		return s.whole(ctx, parent)
	}
	name := rec.ID + "/" + ownTree
	if isLayer(rec) {
		name = rec.ID + "/" + s.treeName()
	}
	for {
		if s.has(name) {
			return name, nil
		}
		if err := s.make(ctx, rec, name); err != nil {
			return "", fmt.Errorf("make the tree of %s: %w", rec.Key, errs.Full(err))
		}
	}
}

// below is the record of the parent; nil for none. NotFound: it was lost.
func (s *Store) below(rec *snapshot.Record) (*snapshot.Record, error) {
	if rec.Parent == "" {
		return nil, nil
	}
	parent, err := s.records.Find(rec.Parent)
	if err != nil {
		return nil, errs.New(errs.NotFound, "layer %s was lost", rec.Parent)
	}
	return parent, nil
}

// make makes a tree, or waits for who does.
func (s *Store) make(ctx context.Context, rec *snapshot.Record, name string) error {
	s.mu.Lock()
	if m := s.making[rec.ID]; m != nil {
		s.mu.Unlock()
		select {
		case <-m.done:
			if ctx.Err() == nil && m.err != nil && errs.KindOf(m.err) == errs.Canceled {
				return nil // it was the other's ctx: try again
			}
			return m.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m := &making{done: make(chan struct{})}
	s.making[rec.ID] = m
	s.mu.Unlock()

	if !s.has(name) { // another may have made it just before
		m.err = s.build(ctx, rec, name)
	}
	s.mu.Lock()
	delete(s.making, rec.ID)
	s.mu.Unlock()
	close(m.done)
	return m.err
}

// build makes a tree under another name first, so that a tree is complete if
// it is there.
func (s *Store) build(ctx context.Context, rec *snapshot.Record, name string) (err error) {
	id, err := unix.Openat(s.dirfd, rec.ID, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(id)
	if err := removeTree(ctx, id, newTree); err != nil {
		return err
	}
	if isLayer(rec) {
		err = s.buildLayer(ctx, rec, id)
	} else {
		err = s.buildActive(ctx, rec, id)
	}
	if err == nil {
		err = unix.Renameat(id, newTree, id, filepath.Base(name))
	}
	if err != nil {
		_ = removeTree(context.WithoutCancel(ctx), id, newTree)
	}
	return err
}

// buildActive clones the parent's tree.
func (s *Store) buildActive(ctx context.Context, rec *snapshot.Record, id int) error {
	parent, err := s.below(rec)
	if err != nil {
		return err
	}
	from, err := s.whole(ctx, parent)
	if err != nil {
		return err
	}
	cloned, err := s.clone(ctx, from, id, s.method.file())
	if err != nil {
		return err
	}
	text, err := json.Marshal(cloned)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, rec.ID, clonedFile), text, 0o600)
}

// buildLayer lays layers on the nearest tree below.
func (s *Store) buildLayer(ctx context.Context, rec *snapshot.Record, id int) error {
	layers, base, err := s.layersTo(rec)
	if err != nil {
		return err
	}
	if _, err := s.clone(ctx, base, id, folder.Link); err != nil {
		return err
	}
	tree, err := unix.Openat(id, newTree, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	for _, layer := range slices.Backward(layers) {
		err := s.inside(layer.ID+"/"+layerFolder, func(fd int) error {
			return folder.Apply(ctx, fd, tree, layer.Opaque, folder.Link)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// layersTo lists the layers from rec down that have no tree, and finds the
// tree they stand on.
func (s *Store) layersTo(rec *snapshot.Record) (layers []*snapshot.Record, base string, err error) {
	for {
		layers = append(layers, rec)
		if rec.Opaque {
			return layers, emptyFolder, nil
		}
		if rec, err = s.below(rec); err != nil {
			return nil, "", err
		}
		if rec == nil {
			return layers, emptyFolder, nil
		}
		if !isLayer(rec) {
			return layers, rec.ID + "/" + ownTree, nil
		}
		if tree := rec.ID + "/" + s.treeName(); s.has(tree) {
			return layers, tree, nil
		}
	}
}

// clone makes a new tree in the folder id from the tree at from.
func (s *Store) clone(ctx context.Context, from string, id int, how folder.Method) (cloned folder.Cloned, err error) {
	err = s.inside(from, func(fromfd int) error {
		if s.method == Btrfs && isSubvolume(fromfd) {
			return snapshotSubvolume(fromfd, id, newTree)
		}
		if s.method == Btrfs {
			err = createSubvolume(id, newTree)
		} else {
			err = unix.Mkdirat(id, newTree, 0o700)
		}
		if err != nil {
			return err
		}
		to, err := unix.Openat(id, newTree, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(to)
		cloned, err = folder.Clone(ctx, fromfd, to, how)
		return err
	})
	return cloned, err
}

// cloned reads what tells whether the files of a tree were written to. Without
// it they are all compared.
func (s *Store) cloned(rec *snapshot.Record) (c folder.Cloned) {
	text, err := os.ReadFile(filepath.Join(s.dir, rec.ID, clonedFile))
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		return folder.Cloned{}
	}
	return c
}

// inside calls fn with a descriptor of a folder in trees/.
func (s *Store) inside(name string, fn func(fd int) error) error {
	fd, err := unix.Openat(s.dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join(s.dir, name), Err: err}
	}
	defer unix.Close(fd)
	return fn(fd)
}

func (s *Store) has(name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(s.dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}
