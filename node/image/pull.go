package image

import (
	"context"
	"fmt"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/span"
	"berth/image/manifest"
	"berth/image/pull"
	"berth/spec"
)

// Pull fetches an image and unpacks it meanwhile. progress may be nil and is
// called from one goroutine at a time. Kinds: those of pull.Puller.Open;
// Invalid where a layer is not what its digests say or reaches outside;
// Exhausted on a full disk. A pull that fails leaves no image, and its layers
// only until the next collection.
func (s *Set) Pull(ctx context.Context, req spec.PullRequest, progress func(spec.Progress)) (spec.Image, error) {
	return s.pull(ctx, req, progress, func(from *pull.Image) naming { return naming{names: []string{from.Name.String()}} })
}

// pull is Pull, naming the image by as.
func (s *Set) pull(ctx context.Context, req spec.PullRequest, progress func(spec.Progress), as func(*pull.Image) naming) (_ spec.Image, err error) {
	ctx, end := span.Start(ctx, "pull image", "image", req.Reference)
	defer func() { end(err) }()
	s.keeping.begin()
	defer s.endKeeping(ctx)
	count := newTally()
	defer func() { count.told(s.Pulled, err) }()
	report := serial(count.watch(progress))
	resolving, resolved := span.Start(ctx, "resolve")
	from, err := s.puller.Open(resolving, req, report)
	resolved(err)
	if err != nil {
		return spec.Image{}, err
	}
	defer from.Close()
	rec, err := s.describe(ctx, from)
	if err != nil {
		return spec.Image{}, fmt.Errorf("pull %s: %w", from.Name.Familiar(), err)
	}
	s.rememberAuth(from.Name.Repository(), req.Auth)
	at := &place{from.Name.Repository(), req.Insecure}
	lazily := s.beginLazily(ctx, rec.Image.ID, rec.Layers, req, report) || s.lacks(rec.Layers)
	if e := s.openEarly(ctx, rec, req); e != nil {
		image, err := e.take(ctx, as(from), at, report)
		if err != nil {
			return spec.Image{}, fmt.Errorf("pull %s: %w", from.Name.Familiar(), err)
		}
		s.Notify("pull", image.ID, from.Name.Familiar())
		return image, nil
	}
	var notes notes
	image, err := s.take(ctx, taking{
		rec: rec, as: as(from), at: at,
		unpacking: unpacking{
			layers: rec.Layers, blobs: s.Policy == Keep && !lazily, report: report,
			open: func(ctx context.Context, n int) (tarStream, error) { return s.recordTar(ctx, from, n, &notes) },
		},
	})
	if err != nil {
		return spec.Image{}, fmt.Errorf("pull %s: %w", from.Name.Familiar(), err)
	}
	s.keepNotes(rec.Layers, &notes)
	s.Notify("pull", image.ID, from.Name.Familiar())
	return image, nil
}

// taking is an image on its way in.
type taking struct {
	unpacking
	rec *record
	as  naming
	at  *place // where it comes from, if from a registry
}

// take unpacks an image and keeps it.
func (s *Set) take(ctx context.Context, t taking) (spec.Image, error) {
	size, err := s.unpack(ctx, t.unpacking)
	if err != nil {
		return spec.Image{}, err
	}
	if keys := chain(t.layers); len(keys) > 0 {
		s.settleChain(ctx, keys[len(keys)-1])
	}
	t.rec.Image.Size = size
	ctx, end := span.Start(ctx, "record image")
	image, err := s.keep(ctx, t.rec, t.as, t.at)
	end(err)
	return image, err
}

// describe makes the record of an image whose manifest and configuration are
// here.
func (s *Set) describe(ctx context.Context, from *pull.Image) (*record, error) {
	rec := &record{Target: from.Target, Manifest: from.Manifest, Config: from.ConfigDescriptor}
	for _, l := range from.Layers {
		rec.Layers = append(rec.Layers, layer{Descriptor: l.Descriptor, DiffID: l.DiffID})
	}
	doc, err := s.readDocument(ctx, rec.Config)
	if err != nil {
		return nil, err
	}
	rec.describe(doc)
	return rec, nil
}

func (s *Set) readDocument(ctx context.Context, config ocispec.Descriptor) (document, error) {
	body, err := s.Blobs.Read(ctx, config.Digest, manifest.ConfigLimit)
	if err != nil {
		return document{}, err
	}
	return parseDocument(config.Digest, body)
}

// describe fills in the image from its configuration.
func (r *record) describe(doc document) {
	r.Image, r.platform = doc.image(r.Config.Digest), doc.Platform
	r.Image.Target, r.Image.Manifest = r.Target.Digest.String(), r.Manifest.Digest.String()
	r.Image.Blobs = r.Manifest.Size + r.Config.Size
	for _, l := range r.Layers {
		r.Image.Blobs += l.Size
	}
}

// serial makes a report that many goroutines may call out of one that only
// one may, or out of none.
func serial(report func(spec.Progress)) func(spec.Progress) {
	if report == nil {
		return func(spec.Progress) {}
	}
	var mu sync.Mutex
	return func(p spec.Progress) {
		mu.Lock()
		defer mu.Unlock()
		report(p)
	}
}
