package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/catalog"
	"berth/image/reference"
	"berth/spec"
)

// Tag gives the image called source the further name name, taking it away
// from another image if need be. NotFound, Conflict: see Get; Invalid: name
// is no name, or has a digest.
func (s *Set) Tag(ctx context.Context, source, name string) error {
	to, err := reference.Parse(name)
	if err != nil {
		return err
	}
	if to.Digest() != "" {
		return errs.New(errs.Invalid, "tag %s: a name with a digest cannot be given", name)
	}
	s.write.Lock()
	defer s.write.Unlock()
	rec, err := s.find(source)
	if err != nil {
		return err
	}
	id := rec.Image.ID
	err = s.apply(ctx, spec.DefaultNamespace, catalog.Change{
		Set: []catalog.Record{{Name: to.String(), Target: rec.Target, Image: id}},
	})
	if err != nil {
		return fmt.Errorf("tag %s: %w", name, err)
	}
	s.mu.Lock()
	s.names[to.String()] = id
	s.listed.changed++
	s.mu.Unlock()
	s.Notify("tag", id, to.Familiar())
	return nil
}

// Remove takes a name away, and with the last name the image. By its ID an
// image is removed with all names of the node's own, but of several only by
// force; those of other namespaces are their clients', and go one by one.
// Conflict: that, or containers use the image; force then takes the names only.
// NotFound: no such image. Disk is given back in the background of others.
func (s *Set) Remove(ctx context.Context, ref string, force bool) ([]spec.RemovedImage, error) {
	removed, err := s.remove(ctx, ref, force)
	if err != nil {
		return nil, fmt.Errorf("remove image %s: %w", ref, err)
	}
	s.collectSoon(ctx)
	return removed, nil
}

func (s *Set) remove(ctx context.Context, ref string, force bool) ([]spec.RemovedImage, error) {
	s.write.Lock()
	defer s.write.Unlock()
	rec, name, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	names := s.everyName(rec.Image.ID)
	if name.name != "" && len(names) > 1 {
		return s.drop(ctx, rec, []named{name}, false)
	}
	own, others := byOwner(names)
	if name.name != "" { // the last one, whosever it is
		own, others = names, nil
	}
	known, theirs := s.shownNames(rec.Image.ID), len(own) == 0
	if !theirs { // clients also give names that nobody calls an image by
		known = slices.DeleteFunc(known, func(name string) bool { return !slices.Contains(own, named{spec.DefaultNamespace, name}) })
	}
	switch {
	case theirs && len(others) > 0:
		return nil, errs.New(errs.Conflict, "only clients of other namespaces name it: %s; remove it by these names", strings.Join(known, ", "))
	case name.name == "" && len(known) > 1 && !force:
		return nil, errs.New(errs.Conflict, "it has %d names: %s; remove them, or force", len(known), strings.Join(known, ", "))
	case len(others) > 0:
		return s.drop(ctx, rec, own, false)
	}
	users := s.usersOf(rec.Image.ID)
	switch {
	case len(users) == 0:
		return s.drop(ctx, rec, names, true)
	case !force || len(names) == 0:
		return nil, errs.New(errs.Conflict, "containers use it: %s; remove them first", strings.Join(shorten(users), ", "))
	}
	return s.drop(ctx, rec, names, false)
}

// byOwner tells the names of the node's own from those of other namespaces.
func byOwner(names []named) (own, others []named) {
	for _, name := range names {
		if name.space == spec.DefaultNamespace {
			own = append(own, name)
		} else {
			others = append(others, name)
		}
	}
	return own, others
}

func shorten(ids []string) []string {
	short := make([]string, len(ids))
	for i, id := range ids {
		short[i] = id[:min(12, len(id))]
	}
	return short
}

// drop takes names away, and the record too if whole. write is held.
func (s *Set) drop(ctx context.Context, rec *record, names []named, whole bool) ([]spec.RemovedImage, error) {
	id := rec.Image.ID
	if err := s.dropNames(ctx, id, names, whole); err != nil {
		return nil, err
	}
	s.mu.Lock()
	for _, name := range names {
		delete(s.home(name.space), name.name)
	}
	if whole {
		delete(s.images, id)
	}
	s.listed.changed++
	s.mu.Unlock()
	var removed []spec.RemovedImage
	for _, name := range names {
		n, err := reference.Parse(name.name)
		if err != nil {
			continue // nobody calls it that
		}
		removed = append(removed, spec.RemovedImage{Untagged: n.Familiar()})
		s.Notify("untag", id, n.Familiar())
	}
	if whole {
		removed = append(removed, spec.RemovedImage{Deleted: id})
		s.Notify("delete", id, "")
	}
	return removed, nil
}

// dropNames takes names away on disk, namespace by namespace: the record goes
// with the last.
func (s *Set) dropNames(ctx context.Context, id string, names []named, whole bool) error {
	by := map[string][]string{}
	for _, name := range names {
		by[name.space] = append(by[name.space], name.name)
	}
	homes := slices.DeleteFunc(s.homes(), func(space string) bool { return len(by[space]) == 0 && space != spec.DefaultNamespace })
	for i, space := range homes {
		change := catalog.Change{Delete: by[space]}
		if whole && i == len(homes)-1 {
			change.Also = func(tx *kv.Tx) error { return tx.Delete(bucket, id) }
		}
		if err := s.apply(ctx, space, change); err != nil {
			return err
		}
	}
	return nil
}

// Prune removes the images that have no name, or with all those that no
// container uses and no other namespace names. filter: as List, of which label, label! and until make
// sense. Downloads that were broken off go too.
func (s *Set) Prune(ctx context.Context, all bool, filter spec.Filter) (spec.Pruned, error) {
	pruned := spec.Pruned{Removed: []string{}}
	fits, err := s.compile(filter)
	if err != nil {
		return pruned, err
	}
	var failed error
	for _, rec := range s.all() {
		removed, err := s.pruneOne(ctx, rec.Image.ID, all, fits)
		failed = errors.Join(failed, err)
		for _, r := range removed {
			if r.Deleted != "" {
				pruned.Removed = append(pruned.Removed, r.Deleted)
			}
		}
	}
	slices.Sort(pruned.Removed)
	pruned.Reclaimed, err = s.Collect(ctx)
	failed = errors.Join(failed, err)
	partial, err := s.Blobs.Sweep(time.Now()) // downloads that were broken off and nobody took up again
	pruned.Reclaimed += partial
	s.Notify("prune", "", "")
	return pruned, errors.Join(failed, err)
}

func (s *Set) pruneOne(ctx context.Context, id string, all bool, fits func(spec.Image) bool) ([]spec.RemovedImage, error) {
	s.write.Lock()
	defer s.write.Unlock()
	rec, err := s.find(id)
	if isMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	image := s.show(rec)
	names := s.everyName(id)
	if image.Containers > 0 || slices.ContainsFunc(names, isChosen) && !all || !fits(image) {
		return nil, nil
	}
	own, others := byOwner(names)
	return s.drop(ctx, rec, own, len(others) == 0)
}

// isChosen says whether somebody chose the name, be it none that people can
// call an image by here: clients name what has none <none>@sha256:….
func isChosen(n named) bool { return !strings.HasPrefix(n.name, "<none>") }
