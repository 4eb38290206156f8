package lcfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/object"
	"berth/image/tree"
	"berth/node/snapshot"
)

// strays are objects that were stored and that nothing may name.
type strays struct {
	known []tree.Digest
	// unknown: there may be others; only a look at all objects finds them.
	unknown bool
}

func (st *strays) empty() bool { return len(st.known) == 0 && !st.unknown }

// orphan notes what a layer that came to nothing may have stored; nil is not
// known.
func (s *Store) orphan(digests []tree.Digest) {
	s.mu.Lock()
	if digests == nil {
		s.lost.unknown = true
	} else {
		s.lost.known = append(s.lost.known, digests...)
	}
	s.mu.Unlock()
	s.nudge(s.tidy)
}

// findGone lists the images and recipes that no record names, as the store
// opens; temporary files go at once.
func (s *Store) findGone() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, "meta"))
	if err != nil {
		return err
	}
	for _, rec := range s.byKey {
		for _, image := range []string{rec.Delta, rec.Merged} {
			if image != "" && rec.Boot == "" && rec.Fresh == "" || s.same {
				s.sound[image] = struct{}{}
			}
		}
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), temporaryPrefix) {
			_ = os.Remove(filepath.Join(s.dir, "meta", e.Name()))
		} else if name, ok := strings.CutSuffix(e.Name(), objectsSuffix); ok {
			s.goneLocked(name, true) // the sweep asks the records
		} else if name, ok := isImage(e.Name()); ok {
			s.goneLocked(name, true)
		}
	}
	if !s.same {
		if err := s.dropWoken(); err != nil {
			return err
		}
	}
	return s.removeRecipes()
}

func (s *Store) removeRecipes() error {
	named := map[string]bool{}
	for _, rec := range s.byKey {
		named[rec.ID] = rec.Recipe
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "recipes"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if named[e.Name()] {
			continue
		}
		if err := os.Remove(s.recipe(e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// sweepImages deletes the images that nothing names or stands on, and the
// objects that only they named.
func (s *Store) sweepImages(ctx context.Context) error {
	dead, lost := s.takeGone()
	if len(dead) == 0 && lost.empty() {
		return nil
	}
	// What names them must be gone from disk first: a crash would bring back a
	// record without its bodies.
	err := s.db.Update(ctx, func(*kv.Tx) error { return nil })
	if err == nil {
		err = s.sweepObjects(ctx, dead, lost)
	}
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		for name, layer := range dead {
			s.goneLocked(name, layer)
		}
		s.lost.known = append(s.lost.known, lost.known...)
		s.lost.unknown = s.lost.unknown || lost.unknown
		return err
	}
	for name := range dead {
		if err := s.deleteImage(name); err != nil {
			return err
		}
	}
	return nil
}

// goneLocked notes that a record no longer names the image. The objects of a
// merged one are those of the layers below, which see to them themselves. mu
// is held.
func (s *Store) goneLocked(name string, layer bool) {
	if name != "" {
		s.gone[name] = s.gone[name] || layer
	}
}

// takeGone returns the images that nobody names any more; those that a mount
// stands on wait.
func (s *Store) takeGone() (dead map[string]bool, lost strays) {
	s.mu.Lock()
	defer s.mu.Unlock()
	named := s.namedLocked()
	dead = map[string]bool{}
	for name, layer := range s.gone {
		switch {
		case named[name] || s.making[name] > 0:
			delete(s.gone, name)
		case s.uses.images[name] == 0:
			delete(s.gone, name)
			dead[name] = layer
		default: // when the mount goes it may be the last that names its objects
			s.gone[name] = true
			s.heldBack[name] = struct{}{}
		}
	}
	lost, s.lost = s.lost, strays{}
	return dead, lost
}

// namedLocked are the images that records name. mu is held.
func (s *Store) namedLocked() map[string]bool {
	named := map[string]bool{}
	for _, rec := range s.byKey {
		named[rec.Delta], named[rec.Merged] = true, true
	}
	delete(named, "")
	return named
}

// isNamedLocked says whether a record names the image. mu is held.
func (s *Store) isNamedLocked(name string) bool {
	for _, rec := range s.byKey {
		if rec.Delta == name || rec.Merged == name {
			return true
		}
	}
	return false
}

// alive lists the images whose objects must stay: those of layers, which
// merged ones name no more than where all their layers have images, those of
// other chains, and those that something stands on.
func (s *Store) alive() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := map[string]bool{}
	settled := map[snapshot.Key]bool{"": true}
	for key, rec := range s.byKey {
		names[rec.Delta] = true
		if rec.Merged != "" && !s.settledLocked(key, settled) {
			names[rec.Merged] = true
		}
	}
	for name := range s.uses.images {
		names[name] = true
	}
	for name := range s.making {
		names[name] = true
	}
	delete(names, "")
	list := make([]string, 0, len(names))
	for name := range names {
		list = append(list, name)
	}
	return list
}

// settledLocked says whether all layers from key down are there and settled.
// It keeps in known what it has found. mu is held.
func (s *Store) settledLocked(key snapshot.Key, known map[snapshot.Key]bool) bool {
	settled, met := known[key]
	if !met {
		rec := s.byKey[key]
		settled = rec != nil && rec.isSettled() && s.settledLocked(rec.Parent, known)
		known[key] = settled
	}
	return settled
}

// sweepObjects deletes the objects of dead images, and strays, that no other
// image names.
func (s *Store) sweepObjects(ctx context.Context, dead map[string]bool, lost strays) error {
	var failed error
	digests := func(yield func(tree.Digest) bool) {
		unnamed, err := s.unnamed(ctx, dead, lost)
		failed = err
		for d := range unnamed {
			if err != nil || !yield(d) {
				return
			}
		}
	}
	_, _, err := s.objects.Sweep(ctx, digests, object.Gentle)
	return errors.Join(failed, err)
}

// unnamed lists candidates that no live image names. Lists are read one after
// the other; only the candidates are in memory.
func (s *Store) unnamed(ctx context.Context, dead map[string]bool, lost strays) (iter.Seq[tree.Digest], error) {
	candidates := lost.known
	for name, layer := range dead {
		if !layer {
			continue
		}
		list := func() error {
			return s.eachObject(ctx, name, func(d tree.Digest) bool { candidates = append(candidates, d); return true })
		}
		err := list()
		if errors.Is(err, os.ErrNotExist) && s.mendIfWhole(ctx, name) == nil { // it is of a chain, and has none
			err = list()
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrNotExist) || isTorn(err): // a crash came between its files
			lost.unknown = true
		default:
			return none, err
		}
	}
	if lost.unknown {
		err := s.objects.Walk(ctx, func(d tree.Digest, _ int64) error { candidates = append(candidates, d); return nil })
		if err != nil {
			return none, err
		}
	}
	if len(candidates) == 0 {
		return none, nil
	}
	slices.SortFunc(candidates, tree.Digest.Compare)
	candidates = slices.Compact(candidates)
	named := make([]bool, len(candidates))
	for _, name := range s.alive() {
		err := s.mark(ctx, name, candidates, named)
		if isTorn(err) || errors.Is(err, os.ErrNotExist) && !s.isBeingMade(name) {
			if err = s.mendIfWhole(ctx, name); err == nil {
				err = s.mark(ctx, name, candidates, named)
			}
		}
		if err != nil && (!errors.Is(err, os.ErrNotExist) || !s.isBeingMade(name)) {
			return none, fmt.Errorf("objects of image %.16s: %w", name, err)
		}
	}
	s.markHidden(candidates, named)
	return func(yield func(tree.Digest) bool) {
		for i, d := range candidates {
			if !named[i] && !yield(d) {
				return
			}
		}
	}, nil
}

func none(func(tree.Digest) bool) {}

// mark marks in named those candidates that an image names; both are in the
// order of digests.
func (s *Store) mark(ctx context.Context, image string, candidates []tree.Digest, named []bool) error {
	at := 0
	return s.eachObject(ctx, image, func(d tree.Digest) bool {
		n, found := slices.BinarySearchFunc(candidates[at:], d, tree.Digest.Compare)
		at += n
		if found {
			named[at] = true
		}
		return at < len(candidates)
	})
}

// mendIfWhole makes the list of an image's objects anew, if the image itself
// is what it should be.
func (s *Store) mendIfWhole(ctx context.Context, image string) error {
	_, damage, err := s.checkImage(ctx, image, unpaced)
	if err != nil {
		return err
	}
	if damage != "" {
		return errs.New(errs.Unavailable, "image %.16s and the list of its objects are damaged", image)
	}
	return s.mendList(ctx, image)
}

// errTorn says that a list of objects is not what was written.
var errTorn = errs.New(errs.Internal, "the list is damaged")

// isTorn tells that from a list that cannot be read now.
func isTorn(err error) bool {
	return errors.Is(err, errTorn) || errors.Is(err, io.ErrUnexpectedEOF) || errs.IsAny(err, unix.EIO, unix.EBADMSG, unix.EUCLEAN)
}

// isBeingMade: its objects are held by the batch that made them.
func (s *Store) isBeingMade(name string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.making[name] > 0
}

// deleteImage deletes an image, unless the very same is made again.
func (s *Store) deleteImage(name string) error {
	s.placing.Lock()
	defer s.placing.Unlock()
	s.mu.Lock()
	again := s.making[name] > 0 || s.isNamedLocked(name)
	if !again {
		delete(s.sound, name)
	}
	s.mu.Unlock()
	if again {
		return nil
	}
	s.images.forget(name)
	for _, path := range []string{s.images.path(name), s.images.restPath(name), s.objectsPath(name)} {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}
