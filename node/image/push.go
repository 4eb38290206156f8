package image

import (
	"context"
	"slices"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/image/push"
	"berth/image/reference"
	"berth/spec"
)

// Push sends the image called req.Reference to the registry of that name. What
// was pulled goes up with the digests that it came with. NotFound: no image
// has that name.
func (s *Set) Push(ctx context.Context, req spec.PushRequest, progress func(spec.Progress)) error {
	name, err := reference.Parse(req.Reference)
	if err != nil {
		return err
	}
	named, err := s.catalog.Get(name.String())
	if err != nil {
		return errs.New(errs.NotFound, "push: no image is called %s; tag one so first", name.Familiar())
	}
	s.keeping.begin() // nothing is collected from under the push
	defer s.endKeeping(ctx)
	pusher := push.New(push.Config{Source: s.Blobs, Remote: s.Remote, Parallel: s.Parallel, Elsewhere: s.elsewhere})
	if _, err := pusher.Push(ctx, req, named.Target, serial(progress)); err != nil {
		return err
	}
	s.Notify("push", named.Labels[idLabel], name.Familiar())
	return nil
}

// elsewhere lists the names of the images that have a blob: their registries
// may have it too.
func (s *Set) elsewhere(d digest.Digest) []reference.Name {
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
	return names
}
