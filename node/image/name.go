package image

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/image/catalog"
	"berth/node/lease"
	"berth/spec"
)

// Change is what happens to a name.
type Change string

// The changes.
const (
	NameCreated Change = "create"
	NameUpdated Change = "update"
	NameDeleted Change = "delete"
)

// names is the catalog of a namespace.
func (s *Set) namesIn(namespace string) *catalog.Catalog {
	if namespace == spec.DefaultNamespace {
		return s.catalog
	}
	return s.catalog.In(namespace)
}

// Name returns what a name stands for in a namespace. NotFound: nothing.
func (s *Set) Name(namespace, name string) (catalog.Record, error) {
	rec, err := s.namesIn(namespace).Get(name)
	if isMissing(err) {
		return rec, missingName(name)
	}
	return rec, err
}

// Names lists the names of a namespace, sorted.
func (s *Set) Names(namespace string) []catalog.Record { return s.namesIn(namespace).List() }

// CreateName has a name stand for a target. In the default namespace, and in
// those of Config.Spaces, that is an image of this node as soon as its manifest and configuration are here, for
// this node's platform; its layers are unpacked when they are needed. leased is
// the lease of a name that expires. Exists: the name is taken. Invalid: the
// target or a label is none. NotFound: no such lease.
func (s *Set) CreateName(ctx context.Context, namespace, leased string, rec catalog.Record) (catalog.Record, error) {
	if err := checkName(rec); err != nil {
		return rec, err
	}
	release, err := s.holdName(ctx, namespace, leased, rec)
	if err != nil {
		return rec, err
	}
	defer release()
	s.write.Lock()
	defer s.write.Unlock()
	names := s.namesIn(namespace)
	if _, err := names.Get(rec.Name); err == nil {
		return rec, errs.New(errs.Exists, "image %q: already exists", rec.Name)
	}
	rec.Labels = lease.WithoutEmpty(rec.Labels)
	return s.setName(ctx, namespace, rec)
}

// UpdateName changes what is said of a name. Kinds as CreateName's, and those
// of change, which may be called several times; NotFound: there is no such
// name.
func (s *Set) UpdateName(ctx context.Context, namespace, leased, name string, change func(catalog.Record) (catalog.Record, error)) (catalog.Record, error) {
	for {
		old, err := s.Name(namespace, name)
		if err != nil {
			return old, err
		}
		rec, err := change(old)
		if err != nil {
			return rec, err
		}
		rec.Name = old.Name
		if err := checkName(rec); err != nil {
			return rec, err
		}
		rec, same, err := s.update(ctx, namespace, leased, old, rec)
		if same || err != nil {
			return rec, err
		}
	}
}

// update writes rec where the name is still what old says.
func (s *Set) update(ctx context.Context, namespace, leased string, old, rec catalog.Record) (_ catalog.Record, same bool, err error) {
	release, err := s.holdName(ctx, namespace, leased, rec) // before write, which the collector takes to remove names
	if err != nil {
		return rec, false, err
	}
	defer release()
	s.write.Lock()
	defer s.write.Unlock()
	now, err := s.Name(namespace, old.Name)
	if err != nil || !sameRecord(now, old) {
		return rec, false, err
	}
	rec.Image, rec.Labels = "", lease.WithoutEmpty(rec.Labels)
	rec, err = s.setName(ctx, namespace, rec)
	return rec, true, err
}

func sameRecord(a, b catalog.Record) bool {
	return a.Image == b.Image && a.Updated.Equal(b.Updated) && a.Target.Digest == b.Target.Digest &&
		maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Target.Annotations, b.Target.Annotations)
}

func checkName(rec catalog.Record) error {
	if rec.Name == "" || len(rec.Name) > maxName {
		return errs.New(errs.Invalid, "image name of %d bytes: want 1 to %d", len(rec.Name), maxName)
	}
	if err := lease.CheckLabels(rec.Labels); err != nil {
		return fmt.Errorf("image.Labels: %w", err)
	}
	switch {
	case rec.Target.Digest.Validate() != nil:
		return errs.New(errs.Invalid, "target.Digest %.120q invalid", rec.Target.Digest)
	case rec.Target.Size <= 0:
		return errs.New(errs.Invalid, "target.Size must be greater than zero")
	case rec.Target.MediaType == "":
		return errs.New(errs.Invalid, "target.MediaType must be set")
	}
	return nil
}

// maxName bounds names, which are keys of records.
const maxName = 16 << 10

// holdName keeps what a name refers to until that is written down.
func (s *Set) holdName(ctx context.Context, namespace, leased string, rec catalog.Record) (release func(), err error) {
	if s.Leases == nil {
		return func() {}, nil
	}
	own := lease.Resource{Kind: lease.Images, ID: rec.Name}
	refs := append(lease.References(rec.Labels), own, targetOf(rec))
	release = s.Leases.Hold(namespace, refs...)
	if _, expires := lease.Expires(rec.Labels); expires && leased != "" {
		if err := s.Leases.AddSoon(namespace, leased, own); err != nil {
			release()
			return nil, err
		}
	}
	for _, r := range refs {
		if r.Kind == lease.Content && s.Content != nil {
			s.Content.Claim(ctx, namespace, digest.Digest(r.ID))
		}
	}
	return release, nil
}

func targetOf(rec catalog.Record) lease.Resource {
	return lease.Resource{Kind: lease.Content, ID: rec.Target.Digest.String()}
}

// isHome says whether the names of a namespace stand for images.
func (s *Set) isHome(namespace string) bool { return slices.Contains(s.homes(), namespace) }

// setName writes a name. In one of homes it moves from the image that it stood
// for to that of its new target. write is held.
func (s *Set) setName(ctx context.Context, namespace string, rec catalog.Record) (catalog.Record, error) {
	if !s.isHome(namespace) {
		err := s.apply(ctx, namespace, catalog.Change{Set: []catalog.Record{rec}})
		if err != nil {
			return rec, err
		}
		return s.Name(namespace, rec.Name)
	}
	to, err := s.given(ctx, rec.Target)
	if err != nil {
		return rec, err
	}
	if err := s.nameImage(ctx, namespace, rec, to); err != nil {
		return rec, err
	}
	return s.Name(namespace, rec.Name)
}

// DeleteName takes a name from a namespace, and in one of homes the image with
// its last name, unless containers use it. target "" is any. NotFound:
// there is no such name, or it stands for something else.
func (s *Set) DeleteName(ctx context.Context, namespace, name string, target digest.Digest) error {
	s.write.Lock()
	defer s.write.Unlock()
	rec, err := s.Name(namespace, name)
	if err != nil {
		return err
	}
	if target != "" && rec.Target.Digest != target {
		return errs.New(errs.NotFound, "image %q has target %s, not %s: not found", name, rec.Target.Digest, target)
	}
	of := s.image(rec.Image)
	if !s.isHome(namespace) || of == nil {
		if err := s.apply(ctx, namespace, catalog.Change{Delete: []string{name}}); err != nil {
			return err
		}
		s.mu.Lock()
		delete(s.home(namespace), name)
		s.waiting.stop(named{namespace, name})
		s.mu.Unlock()
		return nil
	}
	last := len(s.everyName(rec.Image)) == 1 && len(s.usersByID(rec.Image)) == 0
	_, err = s.drop(ctx, of, []named{{namespace, name}}, last)
	if err == nil && last {
		s.collectLater()
	}
	return err
}

// collectLater is for who must not wait, and holds write.
func (s *Set) collectLater() {
	if s.Freed != nil {
		s.Freed()
	}
}

func (s *Set) image(id string) *record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.images[id]
}

// apply changes the names of a namespace, and tells of it.
func (s *Set) apply(ctx context.Context, namespace string, ch catalog.Change) error {
	names := s.namesIn(namespace)
	var had []catalog.Record
	for _, rec := range ch.Set {
		if old, err := names.Get(rec.Name); err == nil {
			had = append(had, old)
		}
	}
	gone := slices.DeleteFunc(slices.Clone(ch.Delete), func(name string) bool {
		_, err := names.Get(name)
		return err != nil
	})
	if err := names.Apply(ctx, ch); err != nil {
		return err
	}
	for _, name := range gone {
		s.Named(ctx, namespace, NameDeleted, catalog.Record{Name: name})
	}
	for _, rec := range ch.Set {
		what := NameCreated
		if slices.ContainsFunc(had, func(old catalog.Record) bool { return old.Name == rec.Name }) {
			what = NameUpdated
		}
		s.Named(ctx, namespace, what, rec)
	}
	if s.Leases != nil && (len(gone) > 0 || len(had) > 0) {
		s.Leases.Trigger()
	}
	return nil
}

// Items implements lease.Owner.
func (o owner) Items(_ context.Context, fn func(lease.Item)) error {
	for _, namespace := range append(o.catalog.Namespaces(), spec.DefaultNamespace) {
		for _, rec := range o.namesIn(namespace).List() {
			fn(lease.Item{
				Namespace: namespace, Resource: lease.Resource{Kind: lease.Images, ID: rec.Name}, Labels: rec.Labels,
				Refs: []lease.Resource{targetOf(rec)}, Root: true,
			})
		}
	}
	return nil
}

// Remove implements lease.Owner: a name has expired.
func (o owner) Remove(ctx context.Context, namespace string, r lease.Resource) error {
	return o.DeleteName(ctx, namespace, r.ID, "")
}

// Owner is the Set as the owner of its names.
func (s *Set) Owner() lease.Owner { return owner{s} }

type owner struct{ *Set }

func missingName(name string) error {
	return errs.New(errs.NotFound, "image %.256q: not found", name)
}
