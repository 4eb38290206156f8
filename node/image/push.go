package image

import (
	"context"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/image/push"
	"berth/image/reference"
	"berth/spec"
)

// Push sends the image called req.Reference to the registry of that name. What
// was pulled goes up with the digests that it came with, even if its blobs are
// not here any more: what the registry has is not sent, what another one has
// is fetched from there and passed on, and what this node made is made again.
// NotFound: no image has that name.
func (s *Set) Push(ctx context.Context, req spec.PushRequest, progress func(spec.Progress)) error {
	name, err := reference.Parse(req.Reference)
	if err != nil {
		return err
	}
	named, err := s.catalog.Get(name.String())
	if err != nil {
		return errs.New(errs.NotFound, "push: no image is called %s; tag one so first", name.Familiar())
	}
	if err := s.Whole(ctx, named.Image); err != nil && !isMissing(err) {
		return err
	}
	s.keeping.begin() // nothing is collected from under the push
	defer s.endKeeping(ctx)
	logins := maps.Clone(req.Logins)
	if req.Auth != nil {
		if logins == nil {
			logins = spec.Logins{}
		}
		logins[name.Domain()] = *req.Auth
	}
	parts := s.bits(logins)
	var pushed []digest.Digest
	pusher := push.New(push.Config{
		Source: parts, Remote: s.Remote, Parallel: s.Parallel, Elsewhere: s.elsewhere,
		Pushed: func(all []digest.Digest) { pushed = all },
	})
	if _, err := pusher.Push(ctx, req, named.Target, serial(progress)); err != nil {
		return err
	}
	if err := s.remember(ctx, pushed, place{name.Repository(), req.Insecure}); err != nil {
		return err
	}
	s.shedLater()
	s.Notify("push", named.Image, name.Familiar())
	return nil
}

// elsewhere lists the repositories that may have a blob: those where it was,
// and the names of the images that have it.
func (s *Set) elsewhere(d digest.Digest) []reference.Name {
	var known []reference.Name
	for _, p := range s.placesOf(d) {
		if name, err := p.name(); err == nil {
			known = append(known, name)
		}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var names []reference.Name
	for text, id := range s.names {
		rec := s.images[id]
		if rec == nil || rec.Config.Digest != d && !slices.ContainsFunc(rec.Layers, func(l layer) bool { return l.Digest == d }) {
			continue
		}
		if name, err := reference.Parse(text); err == nil {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b reference.Name) int { return slices.Compare([]byte(a.String()), []byte(b.String())) })
	return append(known, names...)
}
