package image

import (
	"context"
	"fmt"
	"sync"

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
	s.keeping.begin()
	defer s.endKeeping(ctx)
	report := serial(progress)
	from, err := s.puller.Open(ctx, req, report)
	if err != nil {
		return spec.Image{}, err
	}
	defer from.Close()
	rec, err := s.describe(ctx, from)
	if err != nil {
		return spec.Image{}, fmt.Errorf("pull %s: %w", from.Name.Familiar(), err)
	}
	open := func(ctx context.Context, n int) (tarStream, error) { return from.Tar(ctx, n) }
	image, err := s.take(ctx, rec, from.Name.String(), open, report)
	if err != nil {
		return spec.Image{}, fmt.Errorf("pull %s: %w", from.Name.Familiar(), err)
	}
	s.Notify("pull", image.ID, from.Name.Familiar())
	return image, nil
}

// take unpacks the image of rec and keeps it.
func (s *Set) take(ctx context.Context, rec *record, name string, open opener, report func(spec.Progress)) (spec.Image, error) {
	size, err := s.unpack(ctx, rec.Layers, open, report)
	if err != nil {
		return spec.Image{}, err
	}
	rec.Image.Size = size
	return s.keep(ctx, rec, name)
}

// describe makes the record of an image whose manifest and configuration are
// here.
func (s *Set) describe(ctx context.Context, from *pull.Image) (*record, error) {
	rec := &record{Target: from.Target, Manifest: from.Manifest, Config: from.ConfigDescriptor}
	for _, l := range from.Layers {
		rec.Layers = append(rec.Layers, layer{l.Descriptor, l.DiffID})
	}
	return rec, s.fillIn(ctx, rec)
}

// fillIn reads the configuration of rec.
func (s *Set) fillIn(ctx context.Context, rec *record) error {
	body, err := s.Blobs.Read(ctx, rec.Config.Digest, manifest.ConfigLimit)
	if err != nil {
		return err
	}
	doc, err := parseDocument(rec.Config.Digest, body)
	if err != nil {
		return err
	}
	rec.Image = doc.image(rec.Config.Digest)
	rec.Image.Target, rec.Image.Manifest = rec.Target.Digest.String(), rec.Manifest.Digest.String()
	rec.Image.Blobs = rec.Manifest.Size + rec.Config.Size
	for _, l := range rec.Layers {
		rec.Image.Blobs += l.Size
	}
	return nil
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
