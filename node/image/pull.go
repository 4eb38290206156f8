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
func (s *Set) Pull(ctx context.Context, req spec.PullRequest, progress func(spec.Progress)) (_ spec.Image, err error) {
	ctx, end := span.Start(ctx, "pull image", "image", req.Reference)
	defer func() { end(err) }()
	s.keeping.begin()
	defer s.endKeeping(ctx)
	report := serial(progress)
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
	open := func(ctx context.Context, n int) (tarStream, error) { return from.Tar(ctx, n) }
	image, err := s.take(ctx, rec, []string{from.Name.String()}, open, report)
	if err != nil {
		return spec.Image{}, fmt.Errorf("pull %s: %w", from.Name.Familiar(), err)
	}
	s.Notify("pull", image.ID, from.Name.Familiar())
	return image, nil
}

// take unpacks the image of rec and keeps it.
func (s *Set) take(ctx context.Context, rec *record, names []string, open opener, report func(spec.Progress)) (spec.Image, error) {
	size, err := s.unpack(ctx, rec.Layers, open, report)
	if err != nil {
		return spec.Image{}, err
	}
	rec.Image.Size = size
	ctx, end := span.Start(ctx, "record image")
	image, err := s.keep(ctx, rec, names)
	end(err)
	return image, err
}

// describe makes the record of an image whose manifest and configuration are
// here.
func (s *Set) describe(ctx context.Context, from *pull.Image) (*record, error) {
	rec := &record{Target: from.Target, Manifest: from.Manifest, Config: from.ConfigDescriptor}
	for _, l := range from.Layers {
		rec.Layers = append(rec.Layers, layer{l.Descriptor, l.DiffID})
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
	r.Image = doc.image(r.Config.Digest)
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
